"""Checkpoints, ONNX files and classes of the user, loaded by one function."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rga_reid import load_embedder, load_model
from rga_reid.errors import InputError
from rga_reid.inference import ModelFingerprint, extract_features
from rga_reid.models import FlipTTA, export_model, save_model
from tests.onnx_files import DIMENSION, SIZE, expected_features, write_onnx

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OTHER = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
MIXED = (OTHER[0], IMAGENET[1])
METADATA = {"mean": "[0.5, 0.4, 0.3]", "std": "[0.2, 0.3, 0.4]"}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8)


def assert_features(found: torch.Tensor, expected: np.ndarray, within: float = 1e-5) -> None:
    np.testing.assert_allclose(found.numpy(), expected, atol=within)


@pytest.mark.parametrize(
    ("file", "arguments", "normalisation"),
    [
        ({"kind": "uint8"}, {}, ()),
        ({"kind": "float"}, {}, IMAGENET),
        ({"kind": "float"}, {"float_input": True}, IMAGENET),
        ({"kind": "float"}, {"mean": OTHER[0], "std": OTHER[1]}, OTHER),
        ({"kind": "float"}, {"mean": OTHER[0]}, MIXED),
        ({"kind": "float", "metadata": METADATA}, {}, OTHER),
        ({"kind": "float", "metadata": METADATA}, {"std": IMAGENET[1]}, MIXED),
        ({"kind": "uint8", "metadata": METADATA}, {}, ()),
        ({"kind": "float", "channels_last": True}, {}, IMAGENET),
        ({"kind": "uint8", "channels_last": True, "size": ("h", "w")}, {"size": SIZE}, ()),
        ({"kind": "uint8", "size": ("h", "w"), "metadata": {"size": "[4, 2]"}}, {}, ()),
        ({"kind": "uint8", "size": (4, "w")}, {"size": SIZE}, ()),
        ({"kind": "uint8", "output": (-1, DIMENSION, 1, 1)}, {}, ()),
    ],
)  # fmt: skip
def test_onnx_files_get_pixels_as_they_were_trained(
    tmp_path: Path, images: torch.Tensor, file: dict[str, Any], arguments: Any, normalisation: Any
) -> None:
    embedder = load_embedder(write_onnx(tmp_path / "m.onnx", **file), **arguments)
    assert (embedder.size, embedder.dimension) == (SIZE, DIMENSION)
    assert_features(embedder.embed(images), expected_features(images.numpy(), *normalisation))
    assert embedder.embed([]).shape == (0, DIMENSION)


def test_channel_order_and_half_precision(tmp_path: Path, images: torch.Tensor) -> None:
    bgr = load_embedder(
        write_onnx(tmp_path / "bgr.onnx", metadata={"channel_order": "bgr"}), mean=OTHER[0], std=OTHER[1]
    )
    swapped = expected_features(images.numpy()[:, ::-1], *(values[::-1] for values in OTHER))
    assert_features(bgr.embed(images), swapped)
    assert_features(bgr.embed(images.flip(1), channel_order="bgr"), swapped)
    half = load_embedder(write_onnx(tmp_path / "half.onnx", "float16"))
    assert_features(half.embed(images), expected_features(images.numpy(), *IMAGENET), 5e-3)


def test_imagenet_is_assumed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    for arguments in ({"float_input": True}, {"mean": OTHER[0], "std": OTHER[1]}):
        load_embedder(path, **arguments)  # type: ignore[arg-type]
    load_embedder(write_onnx(tmp_path / "pixels.onnx", "uint8"))
    assert not caplog.messages
    load_embedder(path)
    (message,) = caplog.messages
    assert "m.onnx" in message
    assert "0.485 0.456 0.406" in message


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 7])
def test_graphs_of_a_fixed_batch_are_run_in_batches_of_it(
    tmp_path: Path, images: torch.Tensor, batch: int
) -> None:
    embedder = load_embedder(write_onnx(tmp_path / "m.onnx", batch=batch, output=(batch, DIMENSION)))
    found = embedder.embed(images, batch_size=3)
    assert_features(found, expected_features(images.numpy(), *IMAGENET))


def test_images_of_any_kind(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    picture.save(tmp_path / "p.png")
    embedder = load_embedder(write_onnx(tmp_path / "m.onnx"))
    resized = np.asarray(picture.resize((2, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    expected = expected_features(resized[None], *IMAGENET)
    content = (tmp_path / "p.png").read_bytes()
    for image in (picture, np.asarray(picture), str(tmp_path / "p.png"), content, [content]):
        assert_features(embedder.embed(image), expected)
    features, _ = extract_features(embedder, [tmp_path / "p.png"])
    assert_features(torch.from_numpy(features), expected)
    mirrored = expected + expected_features(resized[None, :, :, ::-1], *IMAGENET)
    assert_features(FlipTTA(embedder).embed(picture), mirrored / np.linalg.norm(mirrored))


def test_fingerprints_of_onnx_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx")
    own = load_embedder(path, float_input=True).fingerprint
    assert (own.size, own.mean, own.std) == (SIZE, *IMAGENET)
    assert own.is_same(load_embedder(path.rename(tmp_path / "moved.onnx"), float_input=True).fingerprint)
    other = load_embedder(tmp_path / "moved.onnx", mean=OTHER[0], std=OTHER[1]).fingerprint
    assert not own.is_same(other)
    assert load_embedder(tmp_path / "moved.onnx", like=other).fingerprint == other
    write_onnx(path, metadata={"about": "another file"})
    assert not own.is_same(load_embedder(path, float_input=True).fingerprint)
    # an export that names the weights of a checkpoint is the same model
    model = load_embedder(tiny_checkpoint)
    mine = model.fingerprint
    assert mine == ModelFingerprint.of(load_model(tiny_checkpoint), tiny_checkpoint)
    assert mine.weights is not None
    names = {"mean": json.dumps(mine.mean), "std": json.dumps(mine.std), "weights": mine.weights}
    export = ModelFingerprint("m.onnx", "0" * 64, SIZE, mine.mean, mine.std, mine.weights)
    assert load_embedder(write_onnx(path, "uint8", metadata=names)).fingerprint.is_same(export)


@pytest.mark.parametrize(
    ("file", "arguments", "words"),
    [
        ({"extra_input": True}, {}, ["one input", "2: images, camera"]),
        ({"channels": 1, "size": (4, 6)}, {}, ["input images", "(n, 3, H, W)"]),
        ({"metadata": {"layout": "NHWC"}}, {}, ["input images"]),
        ({"size": ("h", "w")}, {}, ["--input-size"]),
        ({"size": ("h", "w")}, {"size": (8, 8)}, ["cannot run", "(1, 3, 8, 8)"]),
        ({}, {"size": (8, 8)}, ["4 x 2", "8 x 8", "--input-size"]),
        ({"output": (-1, 5, 1, 5)}, {}, ["cannot run"]),
        ({"output": (5, 1)}, {}, ["output features", "(1, d)", "(5, 1)"]),
        ({"output": (1, 1, 5, 1)}, {"mean": (0, 0)}, ["--mean"]),
        ({}, {"std": (1, 0, 1)}, ["--std", "positive"]),
        ({}, {"mean": (1, float("nan"), 1)}, ["--mean"]),
        ({"kind": "uint8"}, {"mean": (0, 0, 0)}, ["uint8", "--mean"]),
        ({"kind": "uint8"}, {"float_input": True}, ["--float-input"]),
        ({"metadata": {"mean": "[1, 2]"}}, {}, ["'mean'", "3 numbers"]),
        ({"metadata": {"std": "{"}}, {}, ["'std'"]),
        ({"kind": "uint8", "metadata": {"std": "[0, 1, 1]"}}, {}, ["'std'"]),
    ],
)
def test_onnx_files_that_cannot_embed_are_refused_in_one_line(
    tmp_path: Path, file: dict[str, Any], arguments: dict[str, Any], words: list[str]
) -> None:
    path = write_onnx(tmp_path / "m.onnx", **file)
    with pytest.raises(InputError) as caught:
        load_embedder(path, **arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_damaged_missing_and_unusable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"m\.onnx"):
        load_embedder(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        load_embedder(tmp_path / "none.onnx")
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"m\.xml: .*--engine openvino"):
        load_embedder(tmp_path / "m.xml")
    write_onnx(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"rga-reid\[export\]"):
        load_embedder(tmp_path / "m.onnx")


def test_preprocessing_is_for_onnx_files(tiny_checkpoint: Path) -> None:
    for arguments in ({"size": (256, 128)}, {"mean": (0, 0, 0)}, {"std": (1, 1, 1)}, {"float_input": True}):
        with pytest.raises(InputError, match=r"^--[\w-]+: .*\.onnx"):
            load_embedder(tiny_checkpoint, **arguments)  # type: ignore[arg-type]


def test_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    embedder, model = load_embedder(tiny_checkpoint), load_model(tiny_checkpoint)
    images = torch.randint(0, 256, (3, 3, 10, 10), dtype=torch.uint8)
    assert torch.equal(embedder.embed(images), model.embed(images))
    save_model(model, tmp_path / "m.safetensors")
    assert load_embedder(tmp_path / "m.safetensors").fingerprint.is_same(embedder.fingerprint)


class Own:
    """An embedder as a user writes it: arrays, of any length."""

    size, dimension = [4, 2], 3
    width = 3

    def embed(self, images: torch.Tensor, *, batch_size: int, device: Any) -> np.ndarray:
        assert images.dtype == torch.uint8
        assert len(images) <= batch_size
        return images.double().mean((2, 3)).numpy()[:, : self.width]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_module")
    module.Own = type("Own", (Own,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_module", module)
    return module


def test_a_class_of_the_user(module: Any, images: torch.Tensor) -> None:
    embedder = load_embedder("own_module.Own")
    assert (embedder.size, embedder.dimension) == ((4, 2), 3)
    colours = images.double().mean((2, 3))
    expected = (colours / colours.norm(dim=1, keepdim=True)).numpy()
    assert_features(embedder.embed(images, batch_size=2), expected)
    assert_features(embedder.embed(Image.fromarray(images[0].permute(1, 2, 0).numpy())), expected[:1])
    assert_features(embedder.embed(images, channel_order="bgr"), expected[:, ::-1])
    assert embedder.fingerprint.checkpoint == "own_module.Own"
    assert embedder.fingerprint.is_same(load_embedder("own_module.Own").fingerprint)
    vars(module)["Other"] = module.Own
    assert not embedder.fingerprint.is_same(load_embedder("own_module.Other").fingerprint)
    module.Own.width = 2
    with pytest.raises(InputError, match=re.escape("(5, 3), got (5, 2)")):
        embedder.embed(images)


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("own_module.Missing", {}, ["no such file", "no attribute 'Missing'"]),
        ("no_such_module.Own", {}, ["no_such_module.Own", "--import no_such_module"]),
        ("own_module.Own", {"embed": None}, ["method embed"]),
        ("own_module.Own", {"dimension": None}, ["dimension"]),
        ("own_module.Own", {"dimension": 0}, ["dimension", "0"]),
        ("own_module.Own", {"size": (4, 2, 3)}, ["size"]),
        ("own_module.Own", {"size": (4, 0)}, ["size"]),
        ("own_module.Own", {"__init__": lambda self, path: None}, ["without arguments"]),
    ],
)
def test_classes_that_are_not_embedders(
    module: Any, name: str, attributes: dict[str, Any], words: list[str]
) -> None:
    for key, value in attributes.items():
        setattr(module.Own, key, value)
    with pytest.raises(InputError) as caught:
        load_embedder(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_network_exported_by_torch(tmp_path: Path, dynamic: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 16, 8),),
        tmp_path / "m.onnx",
        dynamo=True,
        dynamic_shapes=({0: batch},) if dynamic else None,
        verbose=False,
    )
    images = torch.randint(0, 256, (5, 3, 16, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        expected = nn.functional.normalize(network((images / 255 - mean) / std))
    assert_features(load_embedder(tmp_path / "m.onnx").embed(images), expected.numpy())


@pytest.mark.slow
def test_our_own_export(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint)
    export_model(model, tmp_path / "m.onnx", "onnx")
    embedder = load_embedder(tmp_path / "m.onnx")
    images = [np.random.default_rng(0).integers(0, 256, (50, 30, 3), dtype=np.uint8) for _ in range(3)]
    assert (embedder.size, embedder.dimension) == (model.size, model.dimension)
    assert_features(embedder.embed(images), model.embed(images).numpy())
