"""The same model in PyTorch, onnxruntime and OpenVINO, and the choice of the fastest.

Tests of OpenVINO are skipped without it; tests/peers runs a command with it.
"""

from __future__ import annotations

import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rga_reid import load_embedder, load_model
from rga_reid.errors import InputError
from rga_reid.inference import ModelFingerprint
from rga_reid.inference.engines import MAX_MEASURED_BATCH, measure_rates, open_other_engines
from tests.onnx_files import DIMENSION, expected_features, write_onnx
from tests.small_net import draw_pixels, write_checkpoint

ENGINES = ["onnx", "openvino"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("engines") / "small.safetensors")


@pytest.fixture(scope="module")
def embedders(checkpoint: Path) -> dict[str, Any]:
    """The model in each installed engine."""
    model = load_embedder(checkpoint)
    return {"torch": model, **open_other_engines(model)}


def embedder_in(engine: str, embedders: dict[str, Any]) -> Any:
    if engine == "openvino":
        pytest.importorskip("openvino")
    return embedders[engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_same_features(engine: str, embedders: dict[str, Any], checkpoint: Path) -> None:
    embedder, model = embedder_in(engine, embedders), load_model(checkpoint)
    images = draw_pixels(5)
    expected = model.embed(images)
    assert (expected @ expected.T).min() < 0.9  # features of different images differ
    for batch_size in (1, 2, 64):
        found = embedder.embed(images, batch_size=batch_size)
        assert (found - expected).abs().max() < 1e-5
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99999
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    assert (embedder.embed(picture) - model.embed(picture)).abs().max() < 1e-5
    swapped = embedder.embed(images.flip(1), channel_order="bgr")
    assert (swapped - expected).abs().max() < 1e-5
    assert embedder.embed([]).shape == (0, model.dimension)
    assert (embedder.size, embedder.dimension) == (model.size, model.dimension)
    assert embedder.trained_on == {"identities": 7}


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_a_model(engine: str, embedders: dict[str, Any]) -> None:
    embedder = embedder_in(engine, embedders)
    batches = [draw_pixels(3, seed) for seed in range(20)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(embedder.embed, batches))
    for features, batch in zip(found, batches, strict=True):
        assert (features - embedders["torch"].embed(batch)).abs().max() < 1e-5


def test_fingerprints_name_the_engine(embedders: dict[str, Any], checkpoint: Path) -> None:
    own = ModelFingerprint.of(load_model(checkpoint), checkpoint)
    assert (own.engine, embedders["torch"].fingerprint) == ("torch", own)
    found = embedders["onnx"].fingerprint
    assert found == ModelFingerprint(
        own.checkpoint, own.sha256, own.size, own.mean, own.std, own.weights, "onnx"
    )
    assert found.is_same(own)
    assert ModelFingerprint.from_json(found.to_json()) == found
    for name, engine in (("a.ckpt", "torch"), ("a.onnx", "onnx")):  # written before there were engines
        old = {**own.to_json(), "checkpoint": name}
        del old["engine"]
        assert ModelFingerprint.from_json(old).engine == engine


def test_onnx_files_run_in_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 2), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    metadata = {"mean": str(list(mean)), "std": str(list(std)), "size": "[4, 2]"}
    for file, normalisation in (
        ({"size": ("h", "w"), "metadata": metadata}, (mean, std)),
        ({"kind": "uint8", "batch": 2, "output": (2, DIMENSION)}, ()),
        ({"kind": "uint8", "channels_last": True}, ()),
    ):
        path = write_onnx(tmp_path / "m.onnx", **file)  # type: ignore[arg-type]
        embedder = load_embedder(path, engine="openvino")
        expected = expected_features(images, *normalisation)
        np.testing.assert_allclose(embedder.embed(torch.from_numpy(images)).numpy(), expected, atol=1e-5)
        assert embedder.fingerprint.engine == "openvino"
        assert embedder.fingerprint.is_same(load_embedder(path).fingerprint)
        (other,) = open_other_engines(embedder).values()
        assert other.fingerprint == load_embedder(path).fingerprint
    for content, word in ((b"no graph", "OpenVINO"), (None, "2: images, camera")):
        write_onnx(tmp_path / "m.onnx", extra_input=True)
        if content is not None:
            (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_embedder(tmp_path / "m.onnx", engine="openvino")
        assert word.lower() in str(caught.value).lower()
        assert "\n" not in str(caught.value)


class Colours:
    """An embedder of the user."""

    size, dimension = (4, 2), 3

    def embed(self, images: torch.Tensor, *, batch_size: int, device: Any) -> torch.Tensor:
        return images.float().mean((2, 3))


def test_engines_that_cannot_run_a_model(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = write_onnx(tmp_path / "m.onnx", "uint8")
    assert load_embedder(onnx).fingerprint.engine == "onnx"
    module = types.ModuleType("own_module")
    module.Colours = Colours  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_module", module)
    for path, engine, words in (
        (onnx, "torch", ["--engine torch", "m.onnx"]),
        ("own_module.Colours", "onnx", ["--engine onnx", "own_module.Colours"]),
        (checkpoint, "tensorrt", ["--engine", "openvino", "tensorrt"]),
    ):
        with pytest.raises(InputError) as caught:
            load_embedder(path, engine=engine)
        assert all(word in str(caught.value) for word in words)
    assert open_other_engines(load_embedder("own_module.Colours")) == {}


def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = write_onnx(tmp_path / "m.onnx", "uint8")
    model = load_embedder(checkpoint)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_other_engines(model) == {}
    for path, engine, extra in (
        (checkpoint, "onnx", "rga-reid[export]"),
        (checkpoint, "openvino", "rga-reid[openvino]"),
        (onnx, "onnx", "rga-reid[export]"),
        (onnx, "openvino", "rga-reid[openvino]"),
    ):
        with pytest.raises(InputError) as caught:
            load_embedder(path, engine=engine)
        assert extra in str(caught.value)


def test_networks_that_cannot_be_exported(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images if images.mean() > 0 else -images)  # a graph has no such branches

    model = load_embedder(checkpoint)
    monkeypatch.setattr("tests.small_net.SmallNet.forward", forward)
    with pytest.raises(InputError) as caught:
        open_other_engines(model)
    assert "--engine onnx" in str(caught.value)
    assert "small.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


class Clocked:
    """An embedder whose calls take given seconds on a clock.

    Args:
        clock: list with the time.
        seconds: of each call, repeated from the second one.
    """

    size = (4, 2)

    def __init__(self, clock: list[float], *seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.batches: list[int] = []

    def embed(self, images: torch.Tensor, *, batch_size: int) -> None:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, *self.size)
        assert batch_size == len(images)
        turn = len(self.batches)
        self.clock[0] += self.seconds[0] if turn == 0 else self.seconds[1:][(turn - 1) % 3]
        self.batches.append(len(images))


def test_the_fastest_pass_after_the_first_counts() -> None:
    clock = [0.0]
    slow, fast = Clocked(clock, 0.1, 4.0, 2.0, 3.0), Clocked(clock, 9.0, 0.5, 0.7, 1.0)
    rates = measure_rates({"slow": slow, "fast": fast}, 8, lambda: clock[0])
    assert list(rates.items()) == [("fast", 16.0), ("slow", 4.0)]
    assert set(slow.batches + fast.batches) == {8}
    rates = measure_rates({"slow": Clocked(clock, 1.0, 2.0, 2.0, 2.0)}, 1000, lambda: clock[0])
    assert rates == {"slow": MAX_MEASURED_BATCH / 2}
