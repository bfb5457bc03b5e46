"""Re-ranking equals the numbers of the published code, and a loop over dense matrices in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking, evaluate_distances, evaluate_ranking, re_ranked_distances
from tests.evaluation.conftest import FIXTURES, draw_people
from tests.memory import measured
from tests.oracles import naive_re_ranking, squared_distances

LABELS = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")


# The published code ----------------------------------------------------------------------------------------


def test_distances_equal_the_published_code(reference: dict[str, Any]) -> None:
    kept = reference["gallery_pids"] != -1
    found = re_ranked_distances(reference["query_features"], reference["gallery_features"][kept])
    assert found.dtype == np.float32
    with np.load(FIXTURES / "ranking.npz") as file:
        np.testing.assert_allclose(found, file["reranked_distance"], rtol=0, atol=1e-5)


def test_metrics_equal_the_published_code(reference: dict[str, Any], figures: dict[str, Any]) -> None:
    expected = figures["reranked"]
    settings = ReRanking(expected["k1"], expected["k2"], expected["lambda_value"])
    result = evaluate_ranking(**reference, rerank=settings)
    assert result.mAP == pytest.approx(expected["mAP"], abs=1e-6)
    np.testing.assert_allclose(result.cmc, expected["cmc"], atol=1e-6)
    assert result.to_dict()["reranked"] is True
    recorded = {"reranked": True, "k1": 20, "k2": 6, "lambda_value": 0.3}
    assert {name: result.settings[name] for name in recorded} == recorded


# The definition --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k1", "k2", "share"),
    [
        (20, 6, 0.3),
        (20, 6, 0.0),
        (20, 6, 1.0),
        (5, 3, 0.3),
        (7, 1, 0.2),
        (1, 1, 0.5),
        (3, 9, 0.1),
        (59, 60, 0.3),
    ],
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_the_naive_loop(k1: int, k2: int, share: float, metric: Any) -> None:
    case = draw_people(k1 + k2, queries=12, items=48)
    both = [case["query_features"], case["gallery_features"]]
    expected = naive_re_ranking(squared_distances(np.concatenate(both), metric), 12, k1, k2, share)
    for block_size in (7, 4096):
        found = re_ranked_distances(
            *both, k1=k1, k2=k2, lambda_value=share, metric=metric, block_size=block_size
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_that_are_nearly_the_same(metric: Any) -> None:
    """Float32 products cannot separate the features of a collapsed model."""
    case = draw_people(0, queries=20, items=80)
    both = [1 + np.float32(3e-3) * case[f"{side}_features"] for side in ("query", "gallery")]
    expected = naive_re_ranking(squared_distances(np.concatenate(both), metric), 20, 10, 4, 0.3)
    found = re_ranked_distances(*both, k1=10, k2=4, metric=metric, block_size=30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("copies", [2, 5, 60])
def test_equal_rows_go_by_index(copies: int) -> None:
    """With integer features, distances tie exactly, also in the oracle."""
    rng = np.random.default_rng(copies)
    distinct = rng.integers(-2, 3, (max(2, 120 // copies), 6)).astype(np.float32)
    rows = distinct[rng.integers(0, len(distinct), 120)]
    squares = squared_distances(rows, "euclidean")
    for k1, k2 in ((20, 6), (4, 2), (40, 3)):
        expected = naive_re_ranking(squares, 30, k1, k2, 0.3)
        found = re_ranked_distances(rows[:30], rows[30:], k1=k1, k2=k2, metric="euclidean", block_size=32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("metric", "block_size"), [("cosine", 7), ("euclidean", 31)])
def test_the_evaluation_ranks_by_these_distances(metric: Any, block_size: int) -> None:
    case = draw_people(block_size, queries=20, items=100)
    case["gallery_pids"][::9] = -1  # junk is not a neighbour
    kept = case["gallery_pids"] != -1
    both = [case["query_features"], case["gallery_features"][kept]]
    squares = squared_distances(np.concatenate(both), metric)
    distances = naive_re_ranking(squares, 20, 20, 6, 0.3)
    labels = {name: case[name] if "query" in name else case[name][kept] for name in LABELS}
    expected = evaluate_distances(distances, **labels)
    result = evaluate_ranking(**case, metric=metric, rerank=ReRanking(), block_size=block_size)
    assert result.to_frame().equals(expected.to_frame())
    assert result.gallery == kept.sum()
    assert result.mAP > 1.02 * evaluate_ranking(**case, metric=metric).mAP


# Exactness and memory --------------------------------------------------------------------------------------


def close_calls() -> dict[str, Any]:
    """Groups of rows that differ by less than the error of a float32 product, and repeat."""
    case = draw_people(3, queries=20, items=160, columns=600)
    rng = np.random.default_rng(0)
    base = case["gallery_features"][:30]
    near = base[rng.integers(0, 30, 160)] * (1 + 1e-6 * rng.standard_normal((160, 600)))
    near[80:] = near[rng.integers(0, 80, 80)]
    return case | {"gallery_features": near.astype(np.float32)}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_bit_depends_on_blocks_or_threads(metric: Any, vary: Callable[[], Iterator[int]]) -> None:
    case = close_calls()
    expected = evaluate_ranking(**case, metric=metric, rerank=ReRanking())
    for block_size in vary():
        result = evaluate_ranking(**case, metric=metric, rerank=ReRanking(), block_size=block_size)
        assert result.to_frame().equals(expected.to_frame())


@pytest.mark.parametrize("distinct", [1, 2, 150])
def test_copies_take_bounded_memory(distinct: int, limit_memory: Callable[[int, int], None]) -> None:
    limit_memory(2**14, 64)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((distinct, 8)).astype(np.float32)[rng.integers(0, distinct, 2000)]
    pids = rng.integers(0, 20, 2000)
    with measured() as memory:
        result = evaluate_ranking(
            rows[:100], rows[100:], pids[:100], pids[100:], rerank=ReRanking(), block_size=256
        )
    assert 0 < result.mAP < 0.2
    assert memory.peak < 15e6  # one float32 matrix of all items would take 16 MB
    assert 0 < memory.largest_tensor < 4e6


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [("k1", 0), ("k2", -3), ("k1", 2.5), ("k2", True), ("lambda_value", 1.5), ("lambda_value", np.nan)],
)
def test_bad_settings_are_named(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{setting}: .* {value}$"):
        ReRanking(**{setting: value})


def spoil(value: float) -> np.ndarray:
    features = draw_people(0, 10, 30)["gallery_features"]
    features[4] = value
    return features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 40}, "k1: .* 39, for 40 queries .* 40$"),
        ({"k1": 5, "k2": 41}, "k2: .* 40, for 40 queries .* 41$"),
        ({"gallery_features": spoil(np.nan)}, "gallery_features: row 4 .* NaN"),
        ({"gallery_features": spoil(0)}, "gallery_features: row 4 .* zeros"),
        ({"query_features": np.ones((10, 3), "f4")}, "3 and 24"),
        ({"metric": "manhattan"}, "metric: .* 'manhattan'"),
        ({"block_size": 0}, "block_size: .* 0$"),
        ({"device": "nowhere"}, "device 'nowhere'"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    case = draw_people(0, 10, 30)
    good = {name: case[name] for name in ("query_features", "gallery_features")}
    assert re_ranked_distances(**good, k1=39, k2=40).shape == (10, 30)
    with pytest.raises(InputError, match=message):
        re_ranked_distances(**good | change)


def test_too_few_items_are_named_in_an_evaluation() -> None:
    case = draw_people(0, 10, 30)
    case["gallery_pids"][:20] = -1
    with pytest.raises(InputError, match=r"k1: .* 19, for 20 queries"):
        evaluate_ranking(**case, rerank=ReRanking(20))
