"""Images that vanish or change while a command works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rga_reid.data
from rga_reid import Gallery, load_model
from rga_reid.commands import main
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
    """A copy that tests may damage."""
    return shutil.copytree(tiny_market, tmp_path / "market")


def images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def run_after(
    patch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], object], call: int = 1
) -> None:
    """Run an action when the n-th call of a function has returned."""
    original, calls = getattr(owner, name), []

    def called(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        calls.append(name)
        if len(calls) == call:
            action()
        return result

    patch.setattr(owner, name, called)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(TRUNCATED)])
def test_features_names_the_image_and_writes_nothing(
    market: Path,
    checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
) -> None:
    folder = market / "bounding_box_test"
    victim = images(folder)[5]
    run_after(monkeypatch, rga_reid.data, "table_from_images", lambda: damage(victim))
    words = ["--checkpoint", str(checkpoint), "--images", str(folder), "--batch-size", "2"]
    assert f"{victim}: " in refused("features", *words, "--out", str(tmp_path / "f.npz"))
    assert not [path for path in tmp_path.iterdir() if "f.npz" in path.name]


def test_gallery_build_resumes_without_the_image(
    market: Path,
    checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = market / "bounding_box_test", tmp_path / "g"
    victim = images(folder)[9]
    words = ["gallery", "build", "--images", str(folder), "--checkpoint", str(checkpoint), "--gallery"]
    with monkeypatch.context() as patch:
        run_after(patch, rga_reid.data, "table_from_images", victim.unlink)
        assert f"{victim}: no such image file" in refused(*words, str(out), "--batch-size", "2")
        assert not (out / "manifest.json").exists()
        victim.write_bytes(TRUNCATED)
        assert main([*words, str(tmp_path / "skipped"), "--skip-unreadable"]) == 0
    assert f"\n  {victim}: " in capsys.readouterr().err
    assert len(Gallery.open(tmp_path / "skipped")) == 13
    victim.unlink()
    assert main([*words, str(out), "--resume"]) == 0
    gallery = Gallery.open(out)
    assert gallery.table["path"].tolist() == [str(path) for path in images(folder)]
    assert gallery.check() > 0


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "file"])
def test_train(
    market: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    """An image that vanishes before it is decoded is named; afterwards training needs no file."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(RECIPE))  # JSON is YAML

    def words(out: str) -> list[str]:
        where = ["--data.root", str(market), "--data.cache", cache, "--out", str(tmp_path / out)]
        return ["train", "--config", str(recipe), *where]

    victim = images(market / "bounding_box_train")[-1]
    content = victim.read_bytes()
    with monkeypatch.context() as patch:
        run_after(patch, training_data, "read_training", victim.unlink)
        assert f"{victim}: no such image file" in refused(*words("whole"))
    victim.write_bytes(TRUNCATED)
    assert f"{victim}: " in refused(*words("whole"), "--overwrite")
    assert not list(market.rglob("*.npy"))
    victim.write_bytes(content)
    assert main([*words("whole"), "--overwrite"]) == 0

    def ruin() -> None:
        for path in market.rglob("*"):
            if path.is_file():  # the mapped cache file too
                path.unlink()
                path.write_bytes(TRUNCATED)

    run_after(monkeypatch, ReIDModule, "training_step", ruin, call=2)
    assert main(words("ruined")) == 0
    expected, found = (load_model(tmp_path / run / "last.ckpt") for run in ("whole", "ruined"))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name
