"""A model on the test images of a data set: metrics, best matches, identical files, the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.data import read_table
from rga_reid.errors import InputError
from rga_reid.evaluation import MatchRule, ReRanking
from rga_reid.evaluation.features import LabelledFeatures
from rga_reid.evaluation.ranking import evaluate_features, top_matches
from rga_reid.experiments import evaluate_model as module
from rga_reid.experiments.evaluate_model import (
    describe_identical_files,
    embed_test_images,
    evaluate_model,
    example_queries,
    rank_between_cameras,
    rank_test_images,
    ranking_page,
    tabulate_top_matches,
)
from rga_reid.models import ColourHistogram


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
def test_metrics_and_matches_are_those_of_the_two_splits(cameras: bool) -> None:
    """Compare with the functions of ``rga_reid.evaluation``, which have their own tests."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(90)],
            "pid": pd.array(random.integers(-1, 9, 90), dtype="Int64"),
            "camid": pd.array(random.integers(1, 4, 90) if cameras else [None] * 90, dtype="Int64"),
            "split": ["query"] * 20 + ["gallery"] * 70,
        }
    )
    table.loc[50:53, "path"] = table.path[:4].to_numpy()  # a query's own file is in the gallery too
    table.loc[85, "pid"] = pd.NA
    features = random.standard_normal((90, 6)).astype(np.float32)
    shuffled = random.permutation(90)
    table, features = table.iloc[shuffled], features[shuffled]
    sides = []
    for split in ("query", "gallery"):
        rows = (table.split == split).to_numpy()
        sides.append(LabelledFeatures.from_table(features[rows], table[rows].reset_index(drop=True)))

    expected = evaluate_features(*sides, junk_pids=(-1, 8), max_rank=10)
    found = rank_test_images(features, table, junk_pids=(-1, 8), max_rank=10)
    assert found.to_dict() == expected.to_dict()
    pd.testing.assert_frame_equal(found.to_frame(), expected.to_frame())

    lists = top_matches(*sides, top_k=7, junk_pids=(-1, 8))
    tabulated = tabulate_top_matches(features, table, 7, junk_pids=(-1, 8))
    assert tabulated["query"].tolist() == [one.query for one in lists for _ in one.rows]
    assert tabulated["rank"].tolist() == [rank for one in lists for rank, _ in enumerate(one.rows, 1)]
    rows = np.concatenate([one.rows for one in lists])
    assert tabulated["gallery"].tolist() == rows.tolist()
    assert tabulated["score"].tolist() == np.concatenate([one.scores for one in lists]).tolist()
    labels = sides[1].table.iloc[rows].reset_index(drop=True)
    for column in ("path", "pid", "camid"):
        assert tabulated[column].dropna().tolist() == labels[column].dropna().tolist()


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


def test_rank_between_cameras_against_loops() -> None:
    random = np.random.default_rng(3)
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(120)],
            "pid": pd.array(random.integers(-1, 8, 120), dtype="Int64"),
            "camid": pd.array(random.integers(1, 4, 120), dtype="Int64"),
            "split": ["query"] * 40 + ["gallery"] * 80,
        }
    )
    table.loc[5, "camid"] = pd.NA
    features = random.standard_normal((120, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hits: dict[tuple[str, str], list[bool]] = {}
    for q in range(40):
        pid, camera = table.pid[q], table.camid[q]
        for other in (1, 2, 3):
            items = [g for g in range(40, 120) if table.camid[g] == other and table.pid[g] != -1]
            if pd.isna(camera) or pid == -1 or camera == other or not any(table.pid[g] == pid for g in items):
                continue
            best = max(items, key=lambda g: unit[q] @ unit[g])
            hits.setdefault((str(camera), str(other)), []).append(bool(table.pid[best] == pid))
    found = rank_between_cameras(features, table).set_index(["query_camera", "gallery_camera"])
    assert len(hits) == 6
    assert found["queries"].to_dict() == {pair: len(one) for pair, one in hits.items()}
    assert found["rank1"].to_dict() == pytest.approx({pair: np.mean(one) for pair, one in hits.items()})
    anywhere = rank_between_cameras(features, table, rule=MatchRule(differ=()))
    assert set(zip(anywhere["query_camera"], anywhere["gallery_camera"], strict=True)) == {
        (one, other) for one in "123" for other in "123"
    }
    assert rank_between_cameras(features, table.assign(camid=pd.array([None] * 120, dtype="Int64"))).empty


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
    page = ranking_page(features, table, result, title="<Test>", facts=[("fact_date", "<today>")])
    assert "Test of &lt;Test&gt;</title>" in page
    assert "<dd>&lt;today&gt;</dd>" in page
    assert f"{100 * result.mAP_step:.2f} %" in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    shown = data["map"]["images"]
    # 3 of the 4 queries are shown; one of the 18 test images is junk
    assert len(re.findall(r'aria-label="Query \d"', page)) == 3
    assert (len(shown) == 17) == (points == 2000)
    assert (">All 17 images" in page) == (points == 2000)
    assert len(re.findall(r">person 1[1-4], query [123]: 4 images<", page)) == 3
    assert [sorted(map(int, one["labels"].values())) for one in data["map"]["groups"]] == [[1], [2], [3]]
    for group in data["map"]["groups"]:
        assert len({shown[row]["pid"] for row in group["points"]}) == 1
        assert all(shown[int(row)]["query"] for row in group["labels"])
    assert [chart["name"] for chart in data["charts"]] == ["cmc", "ap"]
    assert data["charts"][0]["series"][0]["y"][0] == pytest.approx(100 * result.rank(1), rel=1e-4)
    assert 'class="cameras"' in page
    worst = example_queries(result.to_frame())[0]
    assert f">lowest AP: {100 * worst.precision:.1f} %<" in page
    assert "junk" not in page.partition("<main>")[2].partition("<script")[0]
