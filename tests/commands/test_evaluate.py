"""``evaluate`` as a user runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import main
from rga_reid.evaluation import (
    PROTOCOLS,
    LabelledFeatures,
    evaluate_protocol,
    evaluate_ranking,
    expand_queries,
    pool_tracks,
)
from rga_reid.inference.feature_files import write_features

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


def change(path: str, rows: int | None = None, **arrays: Any) -> None:
    """Replace arrays of a file, or keep its first rows; None removes an array."""
    with np.load(path) as file:
        kept = {name: file[name][:rows] for name in file.files} | arrays
    np.savez(path, **{name: array for name, array in kept.items() if array is not None})


def run(files: tuple[str, str], *options: str) -> int:
    return main(["evaluate", "--query", files[0], "--gallery", files[1], *options])


def metrics(files: tuple[str, str], tmp_path: Path, *options: str) -> dict[str, Any]:
    assert run(files, *options, "--json", str(tmp_path / "metrics.json")) == 0
    return json.loads((tmp_path / "metrics.json").read_text())


def test_equals_the_published_evaluators(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    found = metrics(files, tmp_path)
    expected = json.loads((FIXTURES / "ranking.json").read_text())
    assert set(found) == {
        *("mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20", "cmc"),
        *("queries", "valid_queries", "gallery", "reranked"),
    }
    for name in ("mAP", "mAP_trapezoid", "mINP"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    np.testing.assert_allclose(found["cmc"], expected["cmc"], atol=1e-6)
    for k in (1, 5, 10, 20):
        assert found[f"rank-{k}"] == pytest.approx(expected["cmc"][k - 1], abs=1e-6)
    assert (found["queries"], found["valid_queries"], found["gallery"]) == (120, 113, 1370)

    out, err = capfd.readouterr()
    assert re.search(r"mean average precision \(step\) +│ +13\.87", out)
    assert re.search(r"mean average precision \(trapezoid.*\) +│ +12\.38", out)
    assert "113 queries against 1,370 gallery items; 7 skipped, without a match" in out
    assert "cameras: none" not in out
    assert err == ""  # a progress bar only where stderr is a terminal

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


def test_without_cameras_a_query_is_not_ranked_for_itself(files: tuple[str, str], capfd: Any) -> None:
    change(files[0], camids=None)
    with np.load(files[0]) as query:
        arrays = {name: query[name] for name in query.files}
    arrays["paths"] = np.array([f"./{path}" for path in arrays["paths"]])
    np.savez(files[1], **arrays)
    assert run(files) == 0
    with_paths = capfd.readouterr().out
    change(files[1], paths=None)
    assert run(files) == 0
    assert re.search(r"rank-1 +│ +100\.00", capfd.readouterr().out)
    assert not re.search(r"rank-1 +│ +100\.00", with_paths)
    assert "cameras: none" in with_paths


# Re-ranking, expansion, protocols ---------------------------------------------------------------------------


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


def test_query_expansion_of_tracks(tmp_path: Path) -> None:
    """Queries move towards tracks, not towards the frames of one track."""
    rng = np.random.default_rng(0)
    people, sides = rng.standard_normal((15, 8)), []
    for side, camid in (("query", 0), ("gallery", 1)):
        pids = np.repeat(np.arange(15), 4)
        features = (people[pids] + rng.standard_normal((60, 8))).astype(np.float32)
        table = pd.DataFrame({"pid": pids, "camid": camid, "track": pids})
        write_features(tmp_path / f"{side}.npz", features, table)
        sides.append(pool_tracks(LabelledFeatures.from_table(features, table, name=side), "mean"))
    expanded = expand_queries(sides[0].features, sides[1].features)
    labels = [side for pair in ("pids", "camids") for side in (getattr(one, pair) for one in sides)]
    expected = evaluate_ranking(expanded, sides[1].features, *labels)
    files = (str(tmp_path / "query.npz"), str(tmp_path / "gallery.npz"))
    found = metrics(files, tmp_path, "--pool-tracks", "mean", "--query-expansion")
    assert found["mAP"] == pytest.approx(expected.mAP, abs=1e-12)


@pytest.mark.parametrize("name", ["market1501", "multi_query", "cuhk03", "msmt17", "no_cameras", "viper"])
def test_protocols(files: tuple[str, str], tmp_path: Path, name: str) -> None:
    with np.load(files[0]) as query, np.load(files[1]) as gallery:
        labels = [side[part] for part in ("pids", "camids") for side in (query, gallery)]
        expected = evaluate_protocol(PROTOCOLS[name], query["features"], gallery["features"], *labels)
    found = metrics(files, tmp_path, "--protocol", name)
    assert found == expected.to_dict() | {"protocol": name}


def test_the_classic_protocol_has_deviations(files: tuple[str, str], tmp_path: Path, capfd: Any) -> None:
    for path, rows in zip(files, (20, 200), strict=True):
        change(path, rows, camids=np.arange(rows) % 2)
    table = tmp_path / "queries.csv"
    found = metrics(files, tmp_path, "--protocol", "cuhk03_classic", "--per-query", str(table))
    assert (found["repeats"], found["queries"]) == (100, 20)
    assert found["deviation"]["mAP"] > 0
    out = capfd.readouterr().out
    shown = f"{100 * found['mAP']:.2f} ± {100 * found['deviation']['mAP']:.2f}"
    assert re.search(rf"mean average precision \(step\) +│ +{re.escape(shown)}", out)
    assert "100 draws, seed 0" in out
    assert len(pd.read_csv(table)) == 2000


# Features in .npy files -------------------------------------------------------------------------------------


def as_npy(files: tuple[str, str], **changes: Any) -> tuple[str, str]:
    """Write the features and labels as .npy and .csv files."""
    targets = []
    for path in files:
        with np.load(path) as arrays:
            np.save(Path(path).with_suffix(".npy"), arrays["features"])
            columns = {"pid": arrays["pids"], "camid": arrays["camids"], "path": arrays["paths"]} | changes
        table = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        table.to_csv(Path(path).with_suffix(".csv"), index=False)
        targets.append(str(Path(path).with_suffix(".npy")))
    return targets[0], targets[1]


def test_arrays_with_a_table_give_the_same(
    files: tuple[str, str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    npy = as_npy(files)
    assert metrics(npy, tmp_path) == metrics((npy[0], files[1]), tmp_path) == metrics(files, tmp_path)
    npy = as_npy(files, camid=None)
    assert metrics(npy, tmp_path)["mAP"] > 0.14  # easy matches remain
    message = refused("evaluate", "--query", npy[0], "--gallery", files[1])
    assert re.search(r"query\.npy: .*'camid' .*gallery\.npz", message)


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pids": None}, r"gallery\.npz: .*'pids'"),
        ({"features": None}, r"gallery\.npz: .*'features'.* pids, camids, paths"),
        ({"camids": None}, r"gallery\.npz: .*'camids'.*query\.npz"),
        ({"pids": np.full(1500, 10**6)}, r"gallery\.npz: .*identities do not overlap"),
        ({"features": np.full((1500, 64), np.nan, "f4")}, r"gallery\.npz: gallery_features: row 0 .* NaN"),
        ({"features": np.ones((1500, 8), "f4")}, r"64 and 8"),
    ],
)
def test_bad_files(files: tuple[str, str], refused: Callable[..., str], arrays: Any, message: str) -> None:
    change(files[1], **arrays)
    assert re.search(message, refused("evaluate", "--query", files[0], "--gallery", files[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--metric manhattan", "manhattan"),
        ("--max-rank 0", "--max-rank: "),
        ("--device nowhere", "--device 'nowhere': "),
        ("--query=", "--query: "),
        ("--gallery=", "--gallery: "),
        ("--gallery nowhere.npz", "nowhere.npz: no such file"),
        ("--query-expansion --metric euclidean", "--query-expansion: expected --metric cosine"),
        ("--protocol cuhk03_classic --rerank", "--rerank: "),
        ("--protocol cuhk03_classic --query-expansion", "--query-expansion: "),
    ],
)
def test_bad_options(files: tuple[str, str], refused: Callable[..., str], options: str, message: str) -> None:
    assert message in refused("evaluate", "--query", files[0], "--gallery", files[1], *options.split())


@pytest.mark.parametrize(
    ("option", "rows", "least"), [("--rerank", (10, 10), 21), ("--query-expansion", (50, 5), 10)]
)
@pytest.mark.parametrize("junk", [True, False])  # junk does not count
def test_too_few_images(
    files: tuple[str, str], refused: Any, option: str, rows: tuple[int, int], least: int, junk: bool
) -> None:
    change(files[0], rows[0], pids=np.arange(rows[0]))
    change(files[1], pids=np.where(np.arange(1500) < rows[1], np.arange(1500), -1))
    change(files[1], None if junk else rows[1])
    message = refused("evaluate", "--query", files[0], "--gallery", files[1], option)
    assert re.search(rf"error: {option}: expected at least {least} .*leave out {option}$", message.strip())
