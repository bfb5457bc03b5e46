"""The command `test`: metrics, page, refused options."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.models import load_model
from rga_reid.reports import feature_map as feature_space
from tests.oracles import float64_distance, naive_ranking, naive_re_ranking, squared_distances


def test_page_and_metrics(
    tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, metrics = tmp_path / "page.html", tmp_path / "metrics.json"
    words = ["--checkpoint", str(tiny_checkpoint), "--data.root", str(tiny_market), "--device", "cpu"]
    assert main(["test", *words, "--html", str(page), "--json", str(metrics)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert f"{tiny_checkpoint.parent.name}/tiny.safetensors</title>" in text
    assert f">“{tiny_market.name}”, read as market1501<" in text
    assert re.search(r"<dd>\d{4}-\d\d-\d\d \d\d:\d\d UTC</dd>", text)
    assert text.count("<img") > 10
    assert metrics.is_file()


def test_data_set_too_small_to_rerank(
    tiny_market: Path, tiny_checkpoint: Path, refused: Callable[..., str]
) -> None:
    words = ["test", "--checkpoint", str(tiny_checkpoint), "--data.root", str(tiny_market), "--rerank"]
    assert "--rerank: expected at least 21" in refused(*words, "--device", "cpu")


def test_output_and_library_are_checked_first(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["test", "--checkpoint", "gone.ckpt", "--data.root", str(tmp_path), "--html"]
    assert "its folder does not exist" in refused(*words, str(tmp_path / "no" / "page.html"))
    monkeypatch.setattr(feature_space, "find_spec", lambda name: None)
    assert "pip install scikit-learn" in refused(*words, str(tmp_path / "page.html"))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with enough people to re-rank."""
    root = tmp_path_factory.mktemp("crowd") / "market"
    settings = SyntheticSettings(
        train_identities=2,
        test_identities=6,
        cameras_per_identity=(3, 3),
        images_per_camera=(2, 2),
        distractors=4,
        junk=3,
        size=(64, 32),
    )
    write_synthetic(root, settings)
    return root


@pytest.mark.parametrize(
    ("flip", "rerank", "protocol"),
    [(True, False, None), (False, True, None), (False, False, "no_cameras"), (False, False, "msmt17")],
)
def test_metrics_are_those_of_the_definitions(
    crowd: Path, tiny_checkpoint: Path, tmp_path: Path, flip: bool, rerank: bool, protocol: str | None
) -> None:
    file = tmp_path / "metrics.json"
    words = ["--checkpoint", str(tiny_checkpoint), "--data.root", str(crowd), "--device", "cpu"]
    words += ["--json", str(file), *["--flip"] * flip, *["--rerank"] * rerank]
    assert main(["test", *words, *(["--protocol", protocol] if protocol else [])]) == 0
    metrics = json.loads(file.read_text())
    assert metrics.get("protocol") == protocol

    model, table = load_model(tiny_checkpoint), read_table(crowd)
    sides = {}
    for split in ("query", "gallery"):
        sides[split] = rows = table[(table.split == split) & (table.pid != -1 if rerank else True)]
        images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in rows.path]))
        images = images.permute(0, 3, 1, 2)
        features = model.embed(images).double()
        if flip:
            features += model.embed(images.flip(-1)).double()
        rows.attrs["features"] = features.numpy()
    both = [sides[split].attrs["features"] for split in ("query", "gallery")]
    if rerank:
        squares = squared_distances(np.concatenate(both), "cosine")
        distance = naive_re_ranking(squares, len(both[0]), 20, 6, 0.3)
    else:
        distance = float64_distance(*both, "cosine")
    labels = {
        f"{split}_{column}s": rows[column].tolist()
        for split, rows in sides.items()
        for column in ("pid", "camid", "path")
    }
    if protocol == "no_cameras":
        labels["query_camids"] = [99] * len(sides["query"])
    expected = naive_ranking(distance, labels, 20)
    found = [metrics[name] for name in ("mAP", "mAP_trapezoid", "mINP")]
    wanted = [expected[name] for name in ("step", "trapezoid", "INP")]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics["cmc"][:20], expected["cmc"], rtol=0, atol=1e-12)


def test_data_set_with_one_camera(
    tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    root = shutil.copytree(tiny_market, tmp_path / "market")
    for file in root.rglob("*_c2s1_*"):
        file.rename(file.with_name(file.name.replace("_c2s1_", "_c1s2_")))
    words = ["test", "--checkpoint", str(tiny_checkpoint), "--data.root", str(root), "--device", "cpu"]
    error = refused(*words)
    assert "own camera" in error
    assert "--protocol no_cameras" in error
    page = tmp_path / "page.html"
    assert main([*words, "--protocol", "no_cameras", "--html", str(page), "--lang", "zh"]) == 0
    assert '<html lang="zh-CN">' in page.read_text(encoding="utf-8")
    assert page.read_text(encoding="utf-8").count("<img") > 10


def test_protocols_without_lists_of_single_queries(refused: Callable[..., str]) -> None:
    words = ["test", "--checkpoint", "m.ckpt", "--data.root", "x", "--protocol", "cuhk03_classic"]
    assert "--html: " in refused(*words, "--html", "page.html")
    assert "--rerank: " in refused(*words, "--rerank")
