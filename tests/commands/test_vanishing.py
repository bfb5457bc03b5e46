"""Files that vanish or change while a command works with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rga_reid.data
import rga_reid.models
from rga_reid import Gallery, load_model
from rga_reid.commands import main
from rga_reid.gallery import gallery as builder
from rga_reid.models import build_model, save_model
from rga_reid.training import ReIDModule
from rga_reid.training import datamodule as training_data

RECIPE: dict[str, Any] = {
    "model": {"depth": 18, "attention": None, "weights": None, "size": [64, 32]},
    "data": {"identities_per_batch": 2, "images_per_identity": 2},
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False},
}
TRUNCATED = b"\xff\xd8\xff\xe0\x00\x10JFIF"


@pytest.fixture
def market(tiny_market: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(tiny_market, tmp_path / "market")


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def afterwards(
    patch: pytest.MonkeyPatch, owner: Any, name: str, happens: Callable[[], object], call: int = 1
) -> None:
    """Let something happen when the n-th call of a function has ended."""
    original, calls = getattr(owner, name), []

    def called(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            happens()
        return found

    patch.setattr(owner, name, called)


@pytest.fixture
def train(market: Path, tmp_path: Path) -> Callable[..., list[str]]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))

    def words(out: str, cache: str = "memory") -> list[str]:
        where = ["--data.root", str(market), "--data.cache", cache, "--out", str(tmp_path / out)]
        return ["train", "--config", str(recipe), *where]

    return words


@pytest.mark.parametrize("cache", ["memory", "file"])
def test_before_it_is_decoded(
    train: Callable[..., list[str]],
    market: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    """Training names the file; nothing half-decoded is taken for a cache."""
    victim = images(market / "bounding_box_train")[-1]
    with monkeypatch.context() as patch:
        afterwards(patch, training_data, "read_training", victim.unlink)
        assert f"{victim}: no such image file" in refused(*train("run", cache))
    victim.write_bytes(TRUNCATED)
    assert f"{victim}: " in refused(*train("run", cache), "--overwrite")
    assert not list(market.rglob("*.npy"))
    victim.unlink()
    assert main([*train("run", cache), "--overwrite"]) == 0


DEFECTIVE = """
import sys
from rga_reid.commands import main
from rga_reid.data import images
original = images._to_rgb
def to_rgb(image, path):
    if str(path) == sys.argv[1]:
        raise ZeroDivisionError("in a thread")
    return original(image, path)
images._to_rgb = to_rgb
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("cache", ["memory", "file"])
def test_a_defect_in_a_thread_that_decodes(
    train: Callable[..., list[str]], market: Path, tmp_path: Path, cache: str
) -> None:
    """It ends the command, with a traceback that names the file; nothing looks finished."""
    victim = images(market / "bounding_box_train")[30]
    done = subprocess.run(
        [sys.executable, "-c", DEFECTIVE, str(victim), *train("run", cache)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError: in a thread" in done.stderr
    assert done.stderr.rstrip().endswith(f"RuntimeError: {victim}: cannot be decoded")
    assert done.stdout == ""
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".ckpt", ".npy")] == []
    assert main([*train("run", cache), "--overwrite"]) == 0


@pytest.mark.parametrize("cache", ["memory", "file"])
def test_training_needs_no_file_once_it_has_decoded_it(
    train: Callable[..., list[str]],
    market: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
) -> None:
    assert main(train("defer_signals", cache)) == 0

    def ruin() -> None:
        for path in market.rglob("*"):
            if path.is_file():  # the cache too, under the map
                path.unlink()
                path.write_bytes(TRUNCATED)

    afterwards(monkeypatch, ReIDModule, "training_step", ruin, call=2)
    assert main(train("ruined", cache)) == 0
    expected, found = (load_model(tmp_path / run / "last.ckpt") for run in ("defer_signals", "ruined"))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(TRUNCATED)])
def test_features(
    market: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
) -> None:
    folder = market / "bounding_box_test"
    victim = images(folder)[5]
    afterwards(monkeypatch, rga_reid.data, "table_from_images", lambda: damage(victim))
    words = ["--checkpoint", str(tiny_checkpoint), "--images", str(folder), "--batch-size", "2"]
    assert f"{victim}: " in refused("features", *words, "--out", str(tmp_path / "f.npz"))
    assert not [path for path in tmp_path.iterdir() if "f.npz" in path.name]


def test_gallery_build(
    market: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was embedded until then is kept; --resume goes on without the file."""
    monkeypatch.setattr(builder, "SHARD_ROWS", 4)
    folder, out = market / "bounding_box_test", tmp_path / "g"
    victim = images(folder)[9]
    words = ["build", "--gallery", str(out), "--images", str(folder), "--checkpoint", str(tiny_checkpoint)]
    with monkeypatch.context() as patch:
        afterwards(patch, rga_reid.data, "table_from_images", victim.unlink)
        assert f"{victim}: no such image file" in refused("gallery", *words, "--batch-size", "2")
    assert not (out / "manifest.json").exists()
    assert main(["gallery", *words, "--resume"]) == 0
    gallery = Gallery.open(out)
    assert gallery.table["path"].tolist() == [str(path) for path in images(folder)]
    assert gallery.check() > 0


def test_gallery_build_leaves_out_what_vanished_if_told_so(
    market: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = market / "bounding_box_test"
    victim = images(folder)[9]
    words = ["--images", str(folder), "--checkpoint", str(tiny_checkpoint), "--skip-unreadable"]
    afterwards(monkeypatch, rga_reid.data, "table_from_images", victim.unlink)
    assert main(["gallery", "build", "--gallery", str(tmp_path / "g"), *words]) == 0
    assert len(Gallery.open(tmp_path / "g")) == 13
    assert f"left out 1 unreadable images:\n  {victim}: no such image file" in capsys.readouterr().err


@pytest.fixture
def replaced(tiny_checkpoint: Path, tmp_path: Path) -> tuple[Path, Callable[[], object]]:
    """A checkpoint, and what puts another model in its place, as a training does."""
    file = shutil.copy(tiny_checkpoint, tmp_path / "last.safetensors")

    def replace() -> None:
        torch.manual_seed(1)
        save_model(build_model(depth=18, attention="rga", size=(64, 32), classes=3), file)

    return Path(file), replace


def test_a_checkpoint_that_is_replaced_while_it_is_read(
    market: Path,
    replaced: tuple[Path, Callable[[], object]],
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gallery must not remember the hash of one model with the features of another."""
    checkpoint, replace = replaced
    words = ["--gallery", str(tmp_path / "g"), "--images", str(market / "query")]
    build = ["gallery", "build", *words, "--checkpoint", str(checkpoint)]
    with monkeypatch.context() as patch:
        afterwards(patch, rga_reid.models, "load_model", replace)
        assert "last.safetensors: changed while it was read" in refused(*build)
    assert not (tmp_path / "g").exists()
    assert main(build) == 0
    query = ["query", "--gallery", str(tmp_path / "g"), "--image", str(market / "query")]
    add = ["gallery", "add", "--gallery", str(tmp_path / "g"), "--images", str(market / "bounding_box_test")]
    for command in (query, add):
        kept = checkpoint.read_bytes()
        with monkeypatch.context() as patch:
            afterwards(patch, rga_reid.models, "load_model", replace)
            assert "last.safetensors: changed while it was read" in refused(*command)
        checkpoint.write_bytes(kept)
    assert len(Gallery.open(tmp_path / "g")) == 4
