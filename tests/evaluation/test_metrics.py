"""The examples of the metrics, and the results that hold them."""

from __future__ import annotations

import doctest
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import calibration, evaluate_ranking, features, metrics, ranking
from rga_reid.evaluation.metrics import (
    MatchRanks,
    average_precision_step,
    average_precision_trapezoid,
    inverse_negative_penalty,
    summarize,
    tabulate_queries,
)
from tests.oracles import walk


@pytest.mark.parametrize("module", [metrics, features, ranking, calibration])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted >= 2


def test_metrics_equal_a_walk_down_the_list() -> None:
    rng = np.random.default_rng(0)
    hits = [rng.random(rng.integers(1, 40)) < rng.choice([0.05, 0.5, 1]) for _ in range(200)]
    hits = [one for one in hits if one.any()]
    ranks = MatchRanks.from_lists([(np.flatnonzero(one) + 1).tolist() for one in hits])
    expected = [walk(one.tolist(), 10) for one in hits]
    for name, function in (
        ("step", average_precision_step),
        ("trapezoid", average_precision_trapezoid),
        ("INP", inverse_negative_penalty),
    ):
        np.testing.assert_allclose(function(ranks), [one[name] for one in expected], rtol=0, atol=1e-13)
    assert ranks.rank[ranks.first].tolist() == [one["first"] for one in expected]


def result(ranks: list[list[int]], skipped: int = 0, max_rank: int = 4) -> Any:
    """Metrics of queries with these ranks, and of skipped ones after them."""
    count = len(ranks) + skipped
    labels = pd.DataFrame({"path": pd.Series([None] * count, dtype="str"), "pid": range(count), "camid": 1})
    table = tabulate_queries(labels, [MatchRanks.from_lists(ranks)])
    settings = {"average_precision": "step", "max_rank": max_rank, "reranked": False}
    return summarize(table, 9, settings)


def test_rank_k_and_the_curve_beyond_a_short_gallery() -> None:
    found = result([[1], [4]])
    assert [found.rank(k) for k in (1, 2, 3, 4)] == [0.5, 0.5, 0.5, 1.0]
    for k in (0, 5):
        with pytest.raises(InputError, match=f"rank {k}: expected 1 to 4"):
            found.rank(k)
    assert found.to_dict()["rank-20"] == 1.0
    assert found.to_dict()["cmc"] == [0.5, 0.5, 0.5, 1.0]
    assert result([[2]], max_rank=6).cmc.tolist() == [0, 1, 1, 1, 1, 1]


def test_skipped_queries_have_no_metrics() -> None:
    found = result([[1, 4], [2]], skipped=2)
    assert (found.valid_queries, found.skipped_queries, found.to_dict()["queries"]) == (2, 2, 4)
    assert found.mAP == 0.625
    frame = found.to_frame()
    assert frame["matches"].tolist() == [2, 1, 0, 0]
    assert frame[["AP_step", "AP_trapezoid", "INP", "first_match"]].isna().sum().tolist() == [2] * 4


def test_to_frame_explains_the_means(reference: dict[str, Any]) -> None:
    found = evaluate_ranking(**reference)
    frame = found.to_frame()
    assert list(frame.columns) == [
        *("query", "pid", "camid", "AP_step", "AP_trapezoid", "INP", "first_match", "matches")
    ]
    assert frame["query"].tolist() == list(range(120))
    assert frame["pid"].tolist() == reference["query_pids"].tolist()
    for column, value in (
        ("AP_step", found.mAP_step),
        ("AP_trapezoid", found.mAP_trapezoid),
        ("INP", found.mINP),
    ):
        assert frame[column].mean() == pytest.approx(value)
    assert (frame["first_match"] == 1).sum() / found.valid_queries == found.rank(1)
    np.testing.assert_array_equal(frame["AP_step"].dropna(), found.average_precisions)
    frame["pid"] = 0
    assert (found.to_frame()["pid"] != 0).any()


def test_to_dict_is_json(reference: dict[str, Any]) -> None:
    found = evaluate_ranking(**reference)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(values) == [
        *("mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20"),
        *("cmc", "queries", "valid_queries", "gallery", "reranked"),
    ]
    assert values["rank-10"] == found.rank(10)
    assert values["reranked"] is False
