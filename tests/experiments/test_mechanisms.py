"""Trained comparison: variants of an ablation, use of a module, and networks trained for ``explain --demo``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.experiments.mechanisms import load_variants, measure_use
from rga_reid.models import build_model
from rga_reid.models.analysis import capture_stages
from rga_reid.models.checkpoints import CONFIG_KEY
from rga_reid.models.embedding import uint8_batch
from tests.page_texts import element_texts


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


class Plain(nn.Module):
    """Attention of a user: neither relations nor gates."""

    def __init__(self, in_channels: int, size: Any) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


class Gated(Plain):
    """Attention of a user with gates only."""

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return {"place": x.new_full((len(x), 1, *x.shape[2:]), 0.5)}


def test_each_trained_variant_is_loaded_with_its_first_seed(tmp_path: Path) -> None:
    for variant, attention in (("plain", None), ("position", "pam")):
        for seed in (10, 2):
            write_run(tmp_path, variant, seed, attention)
    write_run(tmp_path, "position", 1, "pam", trained=False)
    write_run(tmp_path, "unfinished", 0, "cam", trained=False)
    models = load_variants(tmp_path)
    assert list(models) == ["plain", "position"]
    torch.manual_seed(2)
    expected = build_model(depth=18, attention="pam", stages=(4,), size=(64, 32))
    torch.testing.assert_close(models["position"].state_dict(), expected.state_dict())


def test_variants_are_in_the_order_of_the_plan(tmp_path: Path) -> None:
    for variant in ("zeta", "alpha", "mid", "late", "new"):
        write_run(tmp_path, variant, 0, None, trained=variant != "late")
    plan = {"title": "x", "baseline": "zeta", "variants": ["zeta", "late", "mid"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert list(load_variants(tmp_path)) == ["zeta", "mid", "alpha", "new"]


@pytest.mark.parametrize(
    ("view", "shown", "left_out"),
    [
        ([], {"position", "relation", "module", "gated"}, "left out: plain (no attention)"),
        (
            ["--view", "gates"],
            {"relation", "gated"},
            "left out: module (no gates), plain (no gates), position (no gates)",
        ),
        (["--view", "activation"], {"plain", "position", "relation", "module", "gated"}, ""),
    ],
)
def test_runs_are_left_out_for_what_the_view_needs(
    picture: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    view: list[str],
    shown: set[str],
    left_out: str,
) -> None:
    own = {"module": f"{__name__}.Plain", "gated": f"{__name__}.Gated"}
    for variant, attention in {"plain": None, "position": "pam", "relation": "rga", **own}.items():
        write_run(tmp_path / "runs", variant, 0, attention)
    out = tmp_path / "page.html"
    words = ["explain", *view, "--image", str(picture), "--out", str(out)]
    assert main([*words, "--runs", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("left out")] == [left_out] * bool(left_out)
    if view:
        found = {*element_texts(out.read_text(encoding="utf-8"), "b")} - {"Photo"}
    else:
        held = re.search(r'id="data">(.*?)</script>', out.read_text(encoding="utf-8"), re.DOTALL)
        assert held is not None
        found = {exhibit["label"].removesuffix(", trained") for exhibit in json.loads(held[1])["exhibits"]}
    assert found == shown

    assert str(tmp_path) in refused(*words, "--runs", str(tmp_path))
    write_run(tmp_path / "one", "plain", 0, None)
    if "activation" not in view:
        assert "--runs" in refused(*words, "--runs", str(tmp_path / "one"))


def test_use_is_the_change_of_the_map_or_the_spread_of_the_gates(picture: Path) -> None:
    model = build_model(depth=18, attention="pam", stages=(3, 4), size=(64, 32))
    assert "hardly used (less than 1 %) after stage 3, 4" in measure_use(model, picture)
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
    assert "图中的行人由代码绘制" in page.partition('id="data"')[0]
    assert "rga, trained" in page
    assert "untrained&#" not in page
    assert "pam: the map changes by" in capsys.readouterr().out
    assert main(words) == 0
    assert [file.stat().st_mtime_ns for file in checkpoints] == before
    assert main(["2" if word == "1" else word for word in words]) == 0
    assert all(file.stat().st_mtime_ns > old for file, old in zip(checkpoints, before, strict=True))
