"""``evaluate`` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import main

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The reference features as two files, as ``evaluate`` takes them."""
    with np.load(FIXTURES / "ranking.npz") as file:
        for side in ("query", "gallery"):
            arrays = {name: file[f"{side}_{name}"] for name in ("features", "pids", "camids")}
            paths = [f"{side}/{n}.jpg" for n in range(len(arrays["pids"]))]
            np.savez(tmp_path / f"{side}.npz", **arrays, paths=np.array(paths))
    return str(tmp_path / "query.npz"), str(tmp_path / "gallery.npz")


def change(path: str, **arrays: Any) -> None:
    """Replace arrays of a file; None leaves one out."""
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files} | arrays
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})


def run(files: tuple[str, str], *options: str) -> int:
    return main(["evaluate", "--query", files[0], "--gallery", files[1], *options])


def test_equals_the_published_evaluators(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    assert run(files, "--json", str(tmp_path / "metrics.json")) == 0
    expected = json.loads((FIXTURES / "ranking.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {
        *("mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20", "cmc"),
        *("queries", "valid_queries", "gallery", "reranked"),
    }
    for name in ("mAP", "mAP_trapezoid", "mINP"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6)
    np.testing.assert_allclose(metrics["cmc"], expected["cmc"], atol=1e-6)
    for k in (1, 5, 10, 20):
        assert metrics[f"rank-{k}"] == pytest.approx(expected["cmc"][k - 1], abs=1e-6)
    assert (metrics["queries"], metrics["valid_queries"], metrics["gallery"]) == (120, 113, 1370)
    assert metrics["reranked"] is False

    out, err = capfd.readouterr()
    assert re.search(r"mean average precision \(step\) +│ +13\.87", out)
    assert re.search(r"mean average precision \(trapezoid.*\) +│ +12\.38", out)
    assert "113 queries against 1,370 gallery items; 7 skipped, without a match" in out
    assert "cameras: none" not in out
    assert err == ""  # a progress bar only where stderr is a terminal


def test_the_chosen_rule_stands_first(files: tuple[str, str], capfd: Any) -> None:
    assert run(files, "--average-precision", "trapezoid") == 0
    out = capfd.readouterr().out
    assert out.index("(trapezoid") < out.index("(step)")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_of_queries(files: tuple[str, str], tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"queries.{suffix}"
    assert run(files, "--per-query", str(target), "--metric", "euclidean", "--max-rank", "5") == 0
    table = pd.read_csv(target) if suffix == "csv" else pd.read_parquet(target)
    assert list(table.columns) == [
        *("query", "path", "pid", "camid", "AP_step", "AP_trapezoid", "INP", "first_match", "matches")
    ]
    assert table["path"].tolist() == [f"query/{n}.jpg" for n in range(120)]
    assert table["AP_step"].notna().sum() == 113
    assert (table["matches"] == 0).sum() == 7


def test_without_cameras(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    for path in files:
        change(path, camids=None)
    assert run(files, "--json", str(tmp_path / "metrics.json")) == 0
    assert "cameras: none" in capfd.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["mAP"] > 0.14  # easy matches remain


def test_a_gallery_that_holds_the_queries(files: tuple[str, str], capfd: Any) -> None:
    """Without cameras, the identical file is known by its path and does not count."""
    change(files[0], camids=None)
    with np.load(files[0]) as query:
        arrays = {name: query[name] for name in query.files}
    np.savez(files[1], **arrays)
    assert run(files) == 0
    with_paths = capfd.readouterr().out
    change(files[1], paths=None)
    assert run(files) == 0
    assert re.search(r"rank-1 +│ +100\.00", capfd.readouterr().out)
    assert not re.search(r"rank-1 +│ +100\.00", with_paths)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pids": None}, r"gallery\.npz: expected an array 'pids'"),
        ({"features": None}, r"gallery\.npz: expected an array 'features', found pids, camids, paths"),
        ({"camids": None}, r"gallery\.npz: has no array 'camids', but .*query\.npz has"),
        ({"pids": np.array([{}] * 1500)}, r"gallery\.npz: array 'pids' is pickled"),
        (
            {"pids": np.arange(3)},
            r"gallery\.npz: array 'pids': expected 1500 whole numbers.* found int64 \(3,\)",
        ),
        ({"pids": np.full(1500, 10**6)}, r"gallery\.npz: .*identities do not overlap"),
        (
            {"features": np.full((1500, 64), np.nan, "f4")},
            r"gallery\.npz: gallery_features: row 0 .* holds NaN",
        ),
        ({"features": np.ones((1500, 8), "f4")}, r"expected rows of one length, found 64 and 8"),
    ],
)
def test_bad_files_exit_with_2(files: tuple[str, str], capfd: Any, arrays: Any, message: str) -> None:
    change(files[1], **arrays)
    assert run(files) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "missing/metrics.json"], "--json missing/metrics.json: its folder does not exist"),
        (["--per-query", "missing/table.csv"], "--per-query missing/table.csv: its folder does not exist"),
        (
            ["--per-query", "table.xlsx"],
            "--per-query table.xlsx: expected a name that ends in .csv or .parquet",
        ),
        (["--metric", "manhattan"], "manhattan"),
        (["--average-precision", "area"], "area"),
        (["--max-rank", "0"], "max_rank: expected at least 1, found 0"),
        (["--device", "nowhere"], "device 'nowhere': not available"),
        (["--gallery", "nowhere.npz"], "nowhere.npz: cannot read it (No such file or directory)"),
        (["--querry", "x"], "did you mean --query?"),
    ],
)
def test_bad_options_exit_with_2(
    files: tuple[str, str], capfd: Any, options: list[str], message: str
) -> None:
    assert run(files, *options) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_help(capfd: Any) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert "--average-precision" in capfd.readouterr().out
