"""Trained comparison: variants of an ablation, use of a module, and networks trained for ``explain --demo``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rga_reid.commands import main
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.experiments.mechanisms import load_variants, measure_use
from rga_reid.models import build_model
from rga_reid.models.analysis import capture_stages
from rga_reid.models.checkpoints import CONFIG_KEY
from rga_reid.models.embedding import uint8_batch


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "set"
    write_synthetic(root, SyntheticSettings(2, 1, (2, 2), (2, 2), 0, 0, (64, 32)))
    return sorted((root / "query").glob("*.jpg"))[0]


def write_run(folder: Path, variant: str, seed: int, attention: str | None, trained: bool = True) -> None:
    """Write the checkpoint of a run of an ablation, which interrupted runs have, too."""
    torch.manual_seed(seed)
    place = folder / variant / f"seed-{seed}" / "train"
    place.mkdir(parents=True)
    model = build_model(depth=18, attention=attention, stages=(4,), size=(64, 32))
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: model.config}, place / "last.ckpt")
    if trained:
        (place.parent / "trained.json").write_text('{"runs_side_by_side": 1}')


def test_each_variant_with_relations_is_compared_with_its_first_seed(
    picture: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    runs = tmp_path / "runs"
    for variant, attention in (("plain", None), ("position", "pam"), ("relation", "rga")):
        for seed in (10, 2):
            write_run(runs, variant, seed, attention)
    write_run(runs, "position", 1, "pam", trained=False)
    write_run(runs, "unfinished", 0, "cam", trained=False)
    models = load_variants(runs)
    assert list(models) == ["position", "relation"]
    torch.manual_seed(2)
    expected = build_model(depth=18, attention="pam", stages=(4,), size=(64, 32))
    torch.testing.assert_close(models["position"].state_dict(), expected.state_dict())

    page = tmp_path / "page.html"
    assert main(["explain", "--runs", str(runs), "--image", str(picture), "--out", str(page)]) == 0
    held = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert held is not None
    labels = [exhibit["label"] for exhibit in json.loads(held[1])["exhibits"]]
    assert labels == ["pam, trained", "rga, trained"]
    error = refused("explain", "--runs", str(tmp_path), "--image", str(picture), "--out", str(page))
    assert str(tmp_path) in error


def test_use_is_the_change_of_the_map_or_the_spread_of_the_gates(picture: Path) -> None:
    model = build_model(depth=18, attention="pam", stages=(3, 4), size=(64, 32))
    assert "less than 1 %: stage 3, 4" in measure_use(model, picture)
    model.backbone.attention4.gamma.data.fill_(0.5)
    (capture,) = [one for one in capture_stages(model, uint8_batch([picture], model.size)) if one.stage == 4]
    x, output = (one.numpy().astype(float) for one in (capture.x, capture.output))
    change = 100 * np.sqrt(((output - x) ** 2).sum() / (x**2).sum())
    assert f"0.0 % after stage 3, {change:.1f} % after stage 4" in measure_use(model, picture)
    model = build_model(depth=18, attention="rga_s", stages=(4,), size=(64, 32))
    (capture,) = capture_stages(model, uint8_batch([picture], model.size))
    spread = 100 * np.std(capture.weights["spatial"].numpy(), ddof=1)
    assert f"gates vary by {spread:.1f} %" in measure_use(model, picture)


def test_sources_of_models_exclude_each_other(
    picture: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    image = ["--image", str(picture)]
    assert "--demo, --runs" in refused("explain", "--demo", str(tmp_path / "demo"), "--runs", "x", *image)
    assert "--image" in refused("explain", "--runs", "x", "--out", "page.html")
    assert "--out" in refused("explain", *image)
    assert "--epochs" in refused("explain", *image, "--epochs", "2", "--out", str(tmp_path / "page.html"))
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_networks_are_trained_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    write_synthetic(folder / "data", SyntheticSettings(16, 2, (4, 4), (2, 2), 0, 0, (96, 48)))
    words = ["explain", "--demo", str(folder), "--attention", "pam", "rga", "--epochs", "1", "--lang", "zh"]
    assert main(words) == 0
    checkpoints = [folder / "mechanisms" / name / "last.ckpt" for name in ("pam", "rga")]
    before = [file.stat().st_mtime_ns for file in checkpoints]
    page = (folder / "mechanisms.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert "图中的人物由代码绘制" in page.partition('id="data"')[0]
    assert "rga, trained" in page
    assert "untrained&#" not in page
    assert "pam: the map changes by" in capsys.readouterr().out
    assert main(words) == 0
    assert [file.stat().st_mtime_ns for file in checkpoints] == before
