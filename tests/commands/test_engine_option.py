"""``--engine`` of features, gallery build and serve."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jsonargparse import Namespace
from PIL import Image

from rga_reid import Gallery, load_embedder, load_model
from rga_reid.commands import _embedder, main
from rga_reid.commands._embedder import suggest_engine
from rga_reid.inference.engines import open_other_engines
from rga_reid.inference.feature_files import read_features, read_fingerprint
from tests.onnx_files import write_onnx
from tests.small_net import draw_pixels, write_checkpoint

RATES = {"onnx": 30.0, "torch": 20.0}  # images per second


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("engines") / "small.safetensors"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of three persons."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(draw_pixels(6)):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        picture.save(folder / f"{number // 2:04d}_c{number % 2 + 1}s1_{number:06d}_00.png")
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint: str) -> dict[str, Any]:
    """The model in other engines."""
    return open_other_engines(load_embedder(checkpoint))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, converted: dict[str, Any]) -> list[list[str]]:
    """Replace the measurement by ``RATES``, and export the model once; return the engines of each call."""
    calls = []

    def measure(embedders: dict[str, Any], batch_size: int) -> dict[str, float]:
        calls.append(list(embedders))
        return {engine: rate for engine, rate in RATES.items() if engine in embedders}

    monkeypatch.setattr("rga_reid.inference.engines.measure_rates", measure)
    monkeypatch.setattr("rga_reid.inference.engines.open_other_engines", lambda model, device: converted)
    return calls


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def test_features_of_another_engine(
    checkpoint: str, images: Path, tmp_path: Path, measured: list[list[str]]
) -> None:
    for engine in ("torch", "onnx"):
        out = tmp_path / f"{engine}.npz"
        run("features", "--checkpoint", checkpoint, "--images", images, "--engine", engine, "--out", out)
        found = read_fingerprint(out)
        assert found is not None
        assert found.engine == engine
    one, other = (read_features(tmp_path / f"{engine}.npz")[0] for engine in ("torch", "onnx"))
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert (one @ one.T).min() < 0.9
    assert not measured


def test_a_gallery_of_another_engine(
    checkpoint: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, file = tmp_path / "G", tmp_path / "info.json"
    run(
        "gallery",
        "build",
        "--gallery",
        gallery,
        "--images",
        images,
        "--checkpoint",
        checkpoint,
        "--engine",
        "onnx",
    )
    run("gallery", "info", "--gallery", gallery, "--json", file)
    assert json.loads(file.read_text())["model"]["engine"] == "onnx"
    assert ["engine", "onnx"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    picture = sorted(images.iterdir())[4]
    Image.open(picture).save(tmp_path / "copy.png")
    run("query", "--gallery", gallery, "--image", tmp_path / "copy.png", "--json", tmp_path / "found.json")
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["matches"][0]["path"] == str(picture)
    assert found["matches"][0]["score"] == pytest.approx(1, abs=1e-5)
    run("gallery", "add", "--gallery", gallery, "--images", tmp_path, "--engine", "torch")
    assert len(Gallery.open(gallery)) == 7


def test_auto_takes_the_fastest(
    checkpoint: str,
    images: Path,
    tmp_path: Path,
    measured: list[list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "f.npz"
    run("features", "--checkpoint", checkpoint, "--images", images, "--engine", "auto", "--out", out)
    assert len(measured) == 1
    assert {"torch", "onnx"} <= set(measured[0])
    error = capsys.readouterr().err
    assert error.startswith("engine: onnx (")
    assert "onnx 30.0, torch 20.0" in error
    found = read_fingerprint(out)
    assert found is not None
    assert found.engine == "onnx"


def test_auto_without_a_choice(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = write_onnx(tmp_path / "m.onnx", "uint8")
    monkeypatch.setattr("rga_reid.inference.engines.find_missing", lambda *names: list(names))
    run("features", "--checkpoint", onnx, "--images", images, "--engine", "auto", "--out", tmp_path / "f.npz")
    error = capsys.readouterr().err
    assert error.startswith("engine: onnx (")
    assert "images/s" not in error


@pytest.mark.parametrize(
    ("engine", "images", "device", "calls", "hint"),
    [
        (None, 6_000, "cpu", 2, True),  # five minutes in PyTorch
        (None, 5_999, "cpu", 1, False),
        ("torch", 6_000, "cpu", 0, False),
        ("auto", 6_000, "cpu", 0, False),
        (None, 6_000, "cuda", 0, False),
        (None, 1_999, "cpu", 0, False),
    ],
)
def test_a_faster_engine_is_named_before_long_jobs(
    checkpoint: str,
    measured: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    engine: str | None,
    images: int,
    device: str,
    calls: int,
    hint: bool,
) -> None:
    options = Namespace(engine=engine, batch_size=64)
    suggest_engine(load_embedder(checkpoint), options, device, images)
    error = capsys.readouterr().err
    assert len(measured) == calls
    assert ("--engine onnx" in error) == hint
    assert ("1.5 times" in error) == hint


@pytest.mark.parametrize(("rate", "named"), [(23.9, False), (24.0, True)])
def test_a_little_faster_is_not_worth_a_hint(
    checkpoint: str,
    measured: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    named: bool,
) -> None:
    monkeypatch.setitem(RATES, "onnx", rate)
    suggest_engine(load_embedder(checkpoint), Namespace(engine=None, batch_size=64), "cpu", 6_000)
    assert bool(capsys.readouterr().err) == named


@pytest.mark.parametrize("command", ["features", "gallery build"])
def test_commands_give_the_hint(
    command: str,
    checkpoint: str,
    images: Path,
    tmp_path: Path,
    measured: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_embedder, "MIN_IMAGES", 6)
    monkeypatch.setattr(_embedder, "MIN_SECONDS", 0.1)
    out = ["--out", tmp_path / "f.npz"] if command == "features" else ["--gallery", tmp_path / "G"]
    words = ["--checkpoint", checkpoint, "--images", images, "--device", "cpu", *out]
    run(*command.split(), *words)
    assert "--engine onnx" in capsys.readouterr().err


def test_serve(
    checkpoint: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: list[list[str]],
) -> None:
    from starlette.testclient import TestClient

    model, files = load_embedder(checkpoint), sorted(images.iterdir())
    table = {"path": [str(file) for file in files]}
    Gallery.build(model.embed(files), pd.DataFrame(table), model=model.fingerprint).save(tmp_path / "G")
    answers: list[Any] = []

    def serve(app: object, listener: socket.socket) -> None:
        with TestClient(app, base_url="http://localhost") as http:  # type: ignore[arg-type]
            answers.append(http.get("/v1/gallery").json())
            picture = ("a.png", files[0].read_bytes())
            answers.append(http.post("/v1/embed", files=[("image", picture)]).json()["features"])
        listener.close()

    monkeypatch.setattr("rga_reid.serving.server.serve", serve)
    run("serve", "--gallery", tmp_path / "G", "--port", "0", "--engine", "auto")
    assert "engine: onnx" in capsys.readouterr().err
    assert measured
    described, features = answers
    assert described["explains"]  # by the PyTorch model
    np.testing.assert_allclose(features, load_model(checkpoint).embed(files[0]), atol=1e-5)


def test_wrong_engines_are_named(
    refused: Callable[..., str], checkpoint: str, images: Path, tmp_path: Path
) -> None:
    onnx, out = write_onnx(tmp_path / "m.onnx", "uint8"), str(tmp_path / "f.npz")
    common = ["--images", str(images), "--out", out]
    assert "openvino" in refused("features", "--checkpoint", checkpoint, "--engine", "tensorrt", *common)
    assert "m.onnx" in refused("features", "--checkpoint", str(onnx), "--engine", "torch", *common)
