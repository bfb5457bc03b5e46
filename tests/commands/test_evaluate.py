"""``evaluate`` as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import main
from rga_reid.commands.evaluate import PROTOCOLS as NAMES
from rga_reid.evaluation import PROTOCOLS, evaluate_protocol, evaluate_ranking, expand_queries

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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_a_table_that_nothing_takes(files: tuple[str, str], tmp_path: Path) -> None:
    """The files are written before it."""
    json_file, rows = tmp_path / "o.json", tmp_path / "o.csv"
    words = ["evaluate", "--query", files[0], "--gallery", files[1], "--json", str(json_file)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "cli.py", *words, "--per-query", str(rows)],
            cwd=Path(__file__).parents[2],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "rga-reid: error: output: No space left on device\n")
    expected = json.loads((FIXTURES / "ranking.json").read_text())
    assert json.loads(json_file.read_text())["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    assert len(pd.read_csv(rows)) == 120


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


# Re-ranking, expansion, protocols ---------------------------------------------------------------------------


def metrics(files: tuple[str, str], tmp_path: Path, *options: str) -> dict[str, Any]:
    assert run(files, *options, "--json", str(tmp_path / "metrics.json")) == 0
    return json.loads((tmp_path / "metrics.json").read_text())


def test_re_ranking_equals_the_published_code(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    expected = json.loads((FIXTURES / "ranking.json").read_text())["reranked"]
    found = metrics(files, tmp_path, "--rerank")
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
    np.testing.assert_allclose(found["cmc"], expected["cmc"], atol=1e-6)
    assert found["reranked"] is True
    assert "re-ranked (k1 20, k2 6, lambda 0.3)" in capfd.readouterr().out


def test_query_expansion_moves_the_queries(files: tuple[str, str], tmp_path: Path) -> None:
    with np.load(files[0]) as query, np.load(files[1]) as gallery:
        kept = gallery["pids"] != -1
        expanded = expand_queries(query["features"], gallery["features"][kept])
        labels = [side[name] for name in ("pids", "camids") for side in (query, gallery)]
        expected = evaluate_ranking(expanded, gallery["features"], *labels)
    found = metrics(files, tmp_path, "--query-expansion")
    assert found["mAP"] == pytest.approx(expected.mAP, abs=1e-12)
    assert found["mAP"] != pytest.approx(metrics(files, tmp_path)["mAP"], abs=1e-3)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "cuhk03_classic"])
def test_protocols(files: tuple[str, str], tmp_path: Path, name: str) -> None:
    with np.load(files[0]) as query, np.load(files[1]) as gallery:
        labels = [side[part] for part in ("pids", "camids") for side in (query, gallery)]
        expected = evaluate_protocol(PROTOCOLS[name], query["features"], gallery["features"], *labels)
    found = metrics(files, tmp_path, "--protocol", name)
    assert found == expected.to_dict() | {"protocol": name}


def test_the_classic_protocol_has_deviations(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    table = tmp_path / "queries.csv"
    found = metrics(files, tmp_path, "--protocol", "cuhk03_classic", "--per-query", str(table))
    assert (found["repeats"], found["queries"]) == (100, 120)
    assert found["deviation"]["mAP"] > 0
    out = capfd.readouterr().out
    shown = f"{100 * found['mAP']:.2f} ± {100 * found['deviation']['mAP']:.2f}"
    assert re.search(rf"mean average precision \(step\) +│ +{re.escape(shown)}", out)
    assert "100 draws, seed 0" in out
    assert len(pd.read_csv(table)) == 12000


def test_the_names_of_protocols_are_those_of_the_library() -> None:
    assert tuple(PROTOCOLS) == NAMES


# Features alone, beside a table -----------------------------------------------------------------------------


def as_npy(files: tuple[str, str], **changes: Any) -> tuple[str, str]:
    """The same features and labels as .npy and .csv files."""
    targets = []
    for path in files:
        with np.load(path) as arrays:
            np.save(Path(path).with_suffix(".npy"), arrays["features"])
            columns = {"pid": arrays["pids"], "camid": arrays["camids"], "path": arrays["paths"]} | changes
        table = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        table.to_csv(Path(path).with_suffix(".csv"), index=False)
        targets.append(str(Path(path).with_suffix(".npy")))
    return targets[0], targets[1]


def test_arrays_beside_a_table_give_the_same(files: tuple[str, str], tmp_path: Path) -> None:
    assert metrics(as_npy(files), tmp_path) == metrics(files, tmp_path)
    mixed = as_npy(files)[0], files[1]
    assert metrics(mixed, tmp_path) == metrics(files, tmp_path)


def test_a_table_without_people_or_cameras(
    files: tuple[str, str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    npy = as_npy(files, camid=None)
    assert metrics(npy, tmp_path)["mAP"] > 0.14
    words = ["evaluate", "--query", npy[0], "--gallery"]
    assert "query.npy: expected a column 'camid' in its CSV file" in refused(*words, files[1])
    npy = as_npy(files, pid=None)
    assert "query.npy: expected a column 'pid' in its CSV file" in refused(*words, npy[1])
    Path(npy[0]).with_suffix(".csv").unlink()
    assert "query.csv: no such file; the labels of features in an .npy file" in refused(*words, npy[1])


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pids": None}, r"gallery\.npz: expected an array 'pids'"),
        ({"features": None}, r"gallery\.npz: expected an array 'features', found pids, camids, paths"),
        ({"camids": None}, r"gallery\.npz: expected an array 'camids', as .*query\.npz has"),
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
        (["--max-rank", "0"], "error: --max-rank: expected a whole number of at least 1, got 0"),
        (["--device", "nowhere"], "error: --device 'nowhere': not available"),
        (["--query", ""], "error: --query: expected a file of features, got an empty name"),
        (["--gallery", ""], "error: --gallery: expected a file of features, got an empty name"),
        (["--gallery", "nowhere.npz"], "nowhere.npz: no such file"),
        (["--querry", "x"], "did you mean --query?"),
        (["--protocol", "market"], "market"),
        (["--query-expansion", "--metric", "euclidean"], "--query-expansion: expected --metric cosine"),
        (["--protocol", "cuhk03_classic", "--rerank"], "--rerank: not defined for cuhk03_classic"),
        (
            ["--protocol", "cuhk03_classic", "--query-expansion"],
            "--query-expansion: not defined for cuhk03_classic",
        ),
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


def test_too_few_images_to_re_rank(files: tuple[str, str], refused: Callable[..., str]) -> None:
    for path in files:
        with np.load(path) as file:
            arrays = {name: file[name][:10] for name in file.files}
        change(path, **arrays)
    told = refused("evaluate", "--query", files[0], "--gallery", files[1], "--rerank")
    assert "error: --rerank: expected at least 21 query and gallery images together, found 20" in told


def test_help(capfd: Any) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert "--average-precision" in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_outputs_that_are_no_files_are_left_alone(
    tmp_path: Path, refused: Callable[..., str], kind: str
) -> None:
    place = tmp_path / "metrics.json"
    if kind == "link":
        (tmp_path / "elsewhere.json").write_text("{}")
        place.symlink_to(tmp_path / "elsewhere.json")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place = Path("/dev/null")
    words = ["evaluate", "--query", "q.npz", "--gallery", "g.npz", "--json", str(place)]
    assert "which would be replaced; expected a file" in refused(*words)
    assert place.is_symlink() == (kind == "link")
    assert not place.is_file() or kind == "link"
