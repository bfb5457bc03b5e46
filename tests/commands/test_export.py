"""Exported files give the model's embeddings for any batch; the programs of docs/export.md run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rga_reid import load_model
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.commands import main
from rga_reid.models import EmbeddingModel, build_model, export_model, save_model
from rga_reid.resources import find_resource

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}


def trained(attention: str | None = "rga", stages: tuple[int, ...] = (1, 2, 3, 4)) -> EmbeddingModel:
    """Return a model whose batch norms have statistics, so that they are not the identity."""
    torch.manual_seed(0)
    model = build_model(depth=18, attention=attention, stages=stages, size=(64, 32), classes=3)
    model(torch.randn(8, 3, 64, 32))
    return model.eval()


def pixels(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + batch)
    return torch.randint(0, 256, (batch, 3, 64, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "trained.safetensors"
    save_model(trained(stages=(3,)), path)
    return path


def run_onnx(file: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


RUN: dict[str, Callable[[Path, Tensor], Tensor]] = {
    "onnx": run_onnx,
    "torchscript": lambda file, images: torch.jit.load(str(file))(images),
    "safetensors": lambda file, images: load_model(file).embed(images),
}


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "torchscript", "safetensors"])
def test_files_embed_as_the_model_does(checkpoint: Path, kind: str, tmp_path: Path) -> None:
    model, file = load_model(checkpoint), tmp_path / f"model{SUFFIXES[kind]}"
    assert main(["export", "--checkpoint", str(checkpoint), "--format", kind, "--out", str(file)]) == 0
    for batch in (1, 2, 7):
        found, expected = RUN[kind](file, pixels(batch)), model.embed(pixels(batch))
        assert found.dtype == torch.float32
        assert F.cosine_similarity(found.double(), expected.double()).min() >= 0.99999
        torch.testing.assert_close(found.detach().norm(dim=1), torch.ones(batch))


def test_a_small_model_as_onnx(tmp_path: Path) -> None:
    model = build_model(depth=18, size=(32, 32))
    assert export_model(model, tmp_path / "m.onnx", "onnx") >= 0.99999
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(
        run_onnx(tmp_path / "m.onnx", images), model.embed(images), atol=1e-4, rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("attention", [*ATTENTION_MODULES, None])
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_every_module(attention: str | None, kind: Any, tmp_path: Path) -> None:
    model, file = trained(attention), tmp_path / f"m{SUFFIXES[kind]}"
    assert export_model(model, file, kind) >= 0.99999
    torch.testing.assert_close(RUN[kind](file, pixels(5)), model.embed(pixels(5)), atol=1e-4, rtol=1e-3)


def test_wrong_options_are_named(checkpoint: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "old.pt").write_text("precious")
    for model, kind, out, message in (
        (checkpoint, "onnx", "m.pt", ".onnx"),
        (checkpoint, "onx", "m.onnx", "--format"),
        (checkpoint, "torchscript", "old.pt", "--overwrite"),
        (checkpoint, "torchscript", "none/m.pt", "none"),
        ("missing.ckpt", "onnx", "m.onnx", "missing.ckpt: no such file"),
    ):
        words = ["export", "--checkpoint", str(model), "--format", kind, "--out", str(tmp_path / out)]
        assert message in refused(*words)
    assert (tmp_path / "old.pt").read_text() == "precious"


def test_wrong_settings_are_named(checkpoint: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "old.torchscript.metadata.json").write_text("precious")
    (tmp_path / "config.pbtxt").write_text("precious")
    for words, message in (
        ("--out m.onnx --batch many", "--batch"),
        ("--out m.onnx --batch 0", "--batch"),
        ("--out m.onnx --opset 5", "--opset"),
        ("--out m.pt --target boxmot", ".torchscript for --target boxmot"),
        ("--out m.torchscript --target boxmot --input uint8", "--target boxmot: needs --input float"),
        ("--out old.torchscript --target boxmot", "--overwrite"),
        ("--out m.onnx --target triton", "--overwrite"),
        ("--out m.onnx --data.root .", "--quantize"),
        ("--out m.onnx --calibration-images .", "--quantize"),
        ("--out m.onnx --quantize int8", "--calibration-images"),
        ("--out m.onnx --quantize int8 --half", "--half"),
        ("--out m.onnx --quantize int8 --calibration-images .", "no image"),
        ("--out m.safetensors --no-l2", "--no-l2"),
        ("--out m.bin", ".safetensors"),
        ("--out m.onnx --calibration config.pbtxt", "config.pbtxt"),
    ):
        folder, arguments = str(tmp_path), words.split()
        located = [
            f"{folder}/{word}" if before in ("--out", "--calibration", "--calibration-images") else word
            for before, word in zip(["", *arguments], arguments, strict=False)
        ]
        assert message in refused("export", "--checkpoint", str(checkpoint), *located), words
    assert len(list(tmp_path.iterdir())) == 2


def test_boxmot_files_say_how_they_are_fed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(checkpoint), "--target", "boxmot", "--out", str(tmp_path / "m.torchscript")]
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    for part in (
        "float32 images (n, 3, 64, 32), RGB",
        "mean 0.485 0.456 0.406",
        "m.torchscript.metadata.json",
    ):
        assert part in printed
    assert main(["export", *words, "--overwrite", "--no-l2", "--half"]) == 0
    assert "float16" in capsys.readouterr().out
    assert (tmp_path / "m.torchscript").stat().st_size < 30e6


def mix_pictures(data: Path, root: Path) -> Path:
    """Copy a data set and give people each other's pictures, for an mAP that changes with small changes."""
    shutil.copytree(data, root)
    gallery = sorted((root / "bounding_box_test").glob("*.jpg"))
    pictures = [file.read_bytes() for file in gallery]
    for file, picture in zip(gallery, pictures[5:] + pictures[:5], strict=True):
        file.write_bytes(picture)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["int8", "dynamic"])
def test_the_loss_of_quantisation(
    checkpoint: Path, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], quantize: str
) -> None:
    root = mix_pictures(tiny_market, tmp_path / "mixed")
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "m.onnx"), "--quantize", quantize]
    words += ["--calibration-images", str(root / "bounding_box_train"), "--data.root", str(root)]
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    assert "on 48 calibration images" in printed
    before, after, loss = map(float, re.findall(r"mAP ([\d.]+) % .* ([\d.]+) % .* ([-\d.]+)\n", printed)[0])
    for file, expected in ((checkpoint, before), (tmp_path / "m.onnx", after)):
        report = tmp_path / "metrics.json"
        words = ["--checkpoint", str(file), "--data.root", str(root), "--json", str(report)]
        assert main(["test", *words]) == 0
        assert 100 * json.loads(report.read_text())["mAP"] == pytest.approx(expected, abs=0.006)
    assert before != after
    assert loss == pytest.approx(before - after, abs=0.011)


@pytest.mark.slow
def test_the_loss_is_measured_in_the_protocol_of_the_card(
    checkpoint: Path, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, report = tmp_path / "card.yaml", tmp_path / "metrics.json"
    card.write_text(f"{find_resource('datasets', 'market1501').read_text()}\nprotocol: no_cameras\n")
    root = mix_pictures(tiny_market, tmp_path / "mixed")
    words = ["--checkpoint", str(checkpoint), "--data.root", str(root), "--data.dataset"]
    assert (
        main(["export", *words, str(card), "--out", str(tmp_path / "m.onnx"), "--quantize", "dynamic"]) == 0
    )
    found = float(re.findall(r"mAP ([\d.]+) %", capsys.readouterr().out)[0])
    metrics = []
    for data in (str(card), "market1501"):
        assert main(["test", *words, data, "--json", str(report)]) == 0
        metrics.append(100 * json.loads(report.read_text())["mAP"])
    assert found == pytest.approx(metrics[0], abs=0.006)
    assert metrics[0] != pytest.approx(metrics[1], abs=0.1)


@pytest.mark.slow
def test_programs_of_the_documentation_run(checkpoint: Path, code_blocks: Any, documented: Any) -> None:
    model, folder = load_model(checkpoint), checkpoint.parent
    for kind, suffix in SUFFIXES.items():
        export_model(model, folder / f"model{suffix}", kind)
    for number, name in enumerate(("a.jpg", "b.jpg")):
        noise = np.random.default_rng(number).integers(0, 256, (80, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    a, b = model.embed([folder / "a.jpg", folder / "b.jpg"])
    programs = [
        block
        for block in code_blocks("docs/export.md")
        if block.language == "python" and "openvino" not in block.text  # runs in tests/peers
    ]
    assert len(programs) == 4
    for program in programs:
        printed = documented(program._replace(text=program.text.replace("128, 64", "64, 32")), folder)
        assert float(printed.removeprefix("similarity ")) == pytest.approx(float(a @ b), abs=2e-4)


def test_loading_a_model_imports_nothing_heavy(checkpoint: Path) -> None:
    """Neither the training stack nor torchvision and torch's compiler, which take seconds."""
    heavy = ("pytorch_lightning", "pytorch_metric_learning", "torchvision", "timm", "torch._dynamo", "onnx")
    script = (
        f"import rga_reid, sys\nrga_reid.load_model({str(checkpoint)!r})\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
