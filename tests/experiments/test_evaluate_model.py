"""A model on the test images of a data set: metrics, best matches, identical files, the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.data import read_table
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.experiments import evaluate_model as module
from rga_reid.experiments.evaluate_model import (
    describe_identical_files,
    embed_test_images,
    evaluate_model,
    example_queries,
    rank_test_images,
    ranking_page,
    tabulate_top_matches,
)
from rga_reid.models import ColourHistogram
from tests.oracles import float64_distance, is_same_camera, is_same_file, naive_ranking


def test_re_ranking_is_passed_on(tiny_market: Path) -> None:
    table = read_table(tiny_market)
    plain, reranked = (
        evaluate_model(ColourHistogram(), table, rerank=rerank) for rerank in (None, ReRanking(4, 2))
    )
    assert (plain.to_dict()["reranked"], reranked.to_dict()["reranked"]) == (False, True)
    assert reranked.settings["k1"] == 4
    with pytest.raises(InputError, match=r"k1: .* 16, for 17"):
        evaluate_model(ColourHistogram(), table, rerank=ReRanking())
    with pytest.raises(InputError, match="query"):
        evaluate_model(ColourHistogram(), table[table.split != "query"])


@pytest.mark.parametrize("cameras", [True, False])
def test_metrics_and_matches_equal_the_naive_loop(cameras: bool) -> None:
    random = np.random.default_rng(0)
    count = 90
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(count)],
            "pid": pd.array(random.integers(-1, 9, count), dtype="Int64"),
            "camid": pd.array(random.integers(1, 4, count) if cameras else [None] * count, dtype="Int64"),
            "split": ["query"] * 20 + ["gallery"] * (count - 20),
        }
    )
    table.loc[50:53, "path"] = table.path[:4].to_numpy()  # a query's own file is in the gallery too
    features = random.standard_normal((count, 6)).astype(np.float32)
    features[70:74] = features[4:8]  # of the query's person and camera, and nearest
    table.loc[70:73, ["pid", "camid"]] = table.loc[4:7, ["pid", "camid"]].to_numpy()
    features[81] = features[80]  # equal scores: the earlier row first
    table.loc[85, "pid"] = pd.NA
    shuffled = random.permutation(count)
    table, features = table.iloc[shuffled], features[shuffled]

    is_query = (table.split == "query").to_numpy()
    labels = {
        f"{side}_{name}s": [None if pd.isna(value) else value for value in table[name][rows]]
        for side, rows in (("query", is_query), ("gallery", ~is_query))
        for name in ("pid", "camid", "path")
    }
    distance = float64_distance(features[is_query], features[~is_query], "cosine")
    expected = naive_ranking(distance, labels, 10, junk=(-1, 8))
    result = rank_test_images(features, table, junk_pids=(-1, 8), max_rank=10)
    assert result.mAP_step == pytest.approx(expected["step"], abs=1e-12)
    assert result.mAP_trapezoid == pytest.approx(expected["trapezoid"], abs=1e-12)
    assert result.mINP == pytest.approx(expected["INP"], abs=1e-12)
    np.testing.assert_allclose(result.cmc, expected["cmc"], rtol=0, atol=1e-12)
    assert result.valid_queries == expected["valid"]

    found = tabulate_top_matches(features, table, 7, junk_pids=(-1, 8))
    rows = []
    for q, pid in enumerate(labels["query_pids"]):
        kept = [
            g
            for g in np.argsort(distance[q], kind="stable")
            if labels["gallery_pids"][g] not in (-1, 8)
            and not is_same_file(labels, q, g)
            and not (labels["gallery_pids"][g] == pid is not None and is_same_camera(labels, q, g))
        ]
        rows += [(q, rank, g) for rank, g in enumerate(kept[:7], 1)]
    assert list(zip(found["query"], found["rank"], found["gallery"], strict=True)) == rows
    np.testing.assert_allclose(found.score, -distance[found["query"], found["gallery"]], atol=1e-12)
    assert found.path.tolist() == [labels["gallery_paths"][g] for g in found["gallery"]]


def test_identical_files_are_reported(tiny_market: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_market, tmp_path / "market")
    assert describe_identical_files(read_table(root)) is None
    shutil.copy(
        root / "query" / "0011_c1s1_000000_00.jpg", root / "bounding_box_train" / "0001_c2s1_000099_00.jpg"
    )
    warning = describe_identical_files(read_table(root))
    assert warning is not None
    assert warning.startswith("warning: 1 image occurs")
    for word in ("0011_c1s1_000000_00.jpg", "0001_c2s1_000099_00.jpg", "train", "query"):
        assert word in warning


def frame(*precisions: float | None) -> pd.DataFrame:
    matches = [0 if one is None else 2 for one in precisions]
    return pd.DataFrame({"query": range(len(precisions)), "AP_step": precisions, "matches": matches})


def test_examples_of_each_kind() -> None:
    found = example_queries(frame(0.5, 0.1, None, 1.0, 0.3, 0.7, 0.9, 0.2, 0.6, 0.4, 0.8), each=2)
    assert [(one.query, one.kind) for one in found] == [
        *((1, "lowest"), (7, "lowest"), (0, "middling"), (8, "middling"), (6, "highest"), (3, "highest"))
    ]
    assert found[0].precision == 0.1
    assert [one.query for one in example_queries(frame(0.5, None, 0.2))] == [2, 0]
    assert [one.query for one in example_queries(frame(0.5))] == [0]
    assert len(example_queries(frame(*[0.5] * 9))) == 9


@pytest.mark.parametrize("points", [2000, 12])
def test_page_of_a_small_set(tiny_market: Path, monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    monkeypatch.setattr(module, "MAX_POINTS", points)
    features, table = embed_test_images(ColourHistogram(), read_table(tiny_market))
    result = rank_test_images(features, table)
    page = ranking_page(features, table, result, title="<Test>", note="a note")
    assert "&lt;Test&gt;" in page
    assert f"{100 * result.mAP_step:.2f} %" in page
    assert page.count('src="data:image/png') == 1
    # 3 of the 4 queries are shown; one of the 18 test images is junk
    assert len(re.findall(r'aria-label="query \d"', page)) == 3
    assert ("all 17" in page) == (points == 2000)
    assert len(re.findall(r"person 1[1-4], query [123]: 4 images", page)) == 3
    worst = example_queries(result.to_frame())[0]
    assert f"lowest AP: {100 * worst.precision:.1f} %" in page
    assert "junk" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).split("<main>")[1]
