"""Re-ranking against the published code's numbers, and against a loop over dense matrices in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking, evaluate_distances, evaluate_ranking, re_ranked_distances
from rga_reid.evaluation import match_ranks as counting
from rga_reid.evaluation import rerank as reciprocal
from rga_reid.evaluation import topk as highest
from rga_reid.evaluation.similarity import METRICS
from rga_reid.evaluation.topk import product_dtype
from tests.memory import measured
from tests.oracles import naive_re_ranking, squared_distances

FIXTURES = Path(__file__).parents[1] / "fixtures"
LABELS = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "ranking.npz") as file:
        return {name: file[name] for name in file.files}


def clusters(seed: int, queries: int, items: int, columns: int = 24, people: int = 12) -> dict[str, Any]:
    """People in three cameras, close enough together to be confused."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((people, columns))
    pids = rng.integers(0, people, queries + items)
    features = (centres[pids] + 0.8 * rng.standard_normal((len(pids), columns))).astype(np.float32)
    camids = rng.integers(0, 3, len(pids))
    sides: dict[str, Any] = {}
    for name, values in (("features", features), ("pids", pids), ("camids", camids)):
        sides[f"query_{name}"], sides[f"gallery_{name}"] = values[:queries], values[queries:]
    return sides


# The published code ----------------------------------------------------------------------------------------


def test_distances_equal_the_published_code(reference: dict[str, Any]) -> None:
    kept = reference["gallery_pids"] != -1
    found = re_ranked_distances(reference["query_features"], reference["gallery_features"][kept])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference["reranked_distance"], rtol=0, atol=1e-5)


def test_metrics_equal_the_published_code(reference: dict[str, Any]) -> None:
    figures = json.loads((FIXTURES / "ranking.json").read_text())["reranked"]
    inputs = {name: values for name, values in reference.items() if name != "reranked_distance"}
    settings = ReRanking(figures["k1"], figures["k2"], figures["lambda_value"])
    result = evaluate_ranking(**inputs, rerank=settings)
    assert result.mAP == pytest.approx(figures["mAP"], abs=1e-6)
    np.testing.assert_allclose(result.cmc, figures["cmc"], atol=1e-6)
    assert result.to_dict()["reranked"] is True
    expected = {"reranked": True, "k1": 20, "k2": 6, "lambda_value": 0.3}
    assert {name: result.settings[name] for name in expected} == expected


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
        (99, 100, 0.3),
    ],
)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_the_naive_loop(k1: int, k2: int, share: float, metric: Any) -> None:
    case = clusters(k1 + k2, queries=20, items=80)
    both = [case["query_features"], case["gallery_features"]]
    expected = naive_re_ranking(squared_distances(np.concatenate(both), metric), 20, k1, k2, share)
    for block_size in (7, 60, 4096):
        found = re_ranked_distances(
            *both, k1=k1, k2=k2, lambda_value=share, metric=metric, block_size=block_size
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_features_that_are_nearly_the_same(metric: Any) -> None:
    """As those of a model that has collapsed: a float32 product could tell hardly any two apart."""
    case = clusters(0, queries=20, items=80)
    both = [1 + np.float32(3e-3) * case[f"{side}_features"] for side in ("query", "gallery")]
    expected = naive_re_ranking(squared_distances(np.concatenate(both), metric), 20, 10, 4, 0.3)
    found = re_ranked_distances(*both, k1=10, k2=4, metric=metric, block_size=30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    kind = METRICS[metric]
    for features, dtype in ((case["gallery_features"], torch.float32), (both[1], torch.float64)):
        assert product_dtype(kind(features, features, torch.device("cpu")), 80) == dtype


@pytest.mark.parametrize("copies", [2, 5, 60])
def test_equal_rows_go_by_index(copies: int) -> None:
    """Whole numbers: distances of equal and of different rows tie exactly, in the oracle too."""
    rng = np.random.default_rng(copies)
    distinct = rng.integers(-2, 3, (max(2, 120 // copies), 6)).astype(np.float32)
    rows = distinct[rng.integers(0, len(distinct), 120)]
    squares = squared_distances(rows, "euclidean")
    for k1, k2 in ((20, 6), (4, 2), (40, 3)):
        expected = naive_re_ranking(squares, 30, k1, k2, 0.3)
        found = re_ranked_distances(rows[:30], rows[30:], k1=k1, k2=k2, metric="euclidean", block_size=32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_evaluation_ranks_by_these_distances(metric: Any) -> None:
    for seed in range(3):
        case = clusters(seed, queries=30, items=150)
        case["gallery_pids"][::9] = -1  # junk is nobody's neighbour
        kept = case["gallery_pids"] != -1
        both = [case["query_features"], case["gallery_features"][kept]]
        squares = squared_distances(np.concatenate(both), metric)
        distances = naive_re_ranking(squares, 30, 20, 6, 0.3)
        labels = {name: case[name] if "query" in name else case[name][kept] for name in LABELS}
        expected = evaluate_distances(distances, **labels)
        result = evaluate_ranking(**case, metric=metric, rerank=ReRanking(), block_size=1 + 30 * seed)
        assert result.to_frame().equals(expected.to_frame())
        assert result.gallery == kept.sum()
        assert result.mAP > 1.02 * evaluate_ranking(**case, metric=metric).mAP


# Sameness and bounds ---------------------------------------------------------------------------------------


def close_calls() -> dict[str, Any]:
    """Groups of rows that differ by less than a float32 product can tell, and repeat."""
    case = clusters(3, queries=40, items=400, columns=600)
    rng = np.random.default_rng(0)
    base = case["gallery_features"][:50]
    near = base[rng.integers(0, 50, 400)] * (1 + 1e-6 * rng.standard_normal((400, 600)))
    near[200:] = near[rng.integers(0, 200, 200)]
    return case | {"gallery_features": near.astype(np.float32)}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_bit_depends_on_blocks_or_threads(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = close_calls()
    expected = evaluate_ranking(**case, metric=metric, rerank=ReRanking())
    threads = torch.get_num_threads()
    try:
        for block_size, count, few in ((3, 1, 50), (61, 2, 999), (1000, 3, 2**19)):
            torch.set_num_threads(count)
            for module, name in ((counting, "_TILE"), (highest, "_PENDING"), (highest, "_STRIP")):
                monkeypatch.setattr(module, name, few)
            monkeypatch.setattr(reciprocal, "_ENTRIES", few)
            result = evaluate_ranking(**case, metric=metric, rerank=ReRanking(), block_size=block_size)
            assert result.to_frame().equals(expected.to_frame())
    finally:
        torch.set_num_threads(threads)


def test_memory_maps_serve_as_they_are(tmp_path: Path) -> None:
    case = clusters(0, 30, 200)
    expected = re_ranked_distances(case["query_features"], case["gallery_features"])
    np.save(tmp_path / "gallery.npy", case["gallery_features"])
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    for query, gallery in (
        (case["query_features"].astype(np.float64), mapped),
        (torch.from_numpy(case["query_features"]), np.asfortranarray(mapped)),
    ):
        np.testing.assert_array_equal(re_ranked_distances(query, gallery), expected)


@pytest.mark.parametrize("kind", ["all equal", "two rows", "many copies"])
def test_degenerate_features_take_bounded_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((counting, "_TILE"), (highest, "_PENDING"), (highest, "_STRIP")):
        monkeypatch.setattr(module, name, 2**14)
    monkeypatch.setattr(counting, "_QUERIES", 64)
    monkeypatch.setattr(reciprocal, "_ENTRIES", 2**14)
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal(({"all equal": 1, "two rows": 2, "many copies": 150}[kind], 8))
    rows = distinct.astype(np.float32)[rng.integers(0, len(distinct), 3300)]
    pids = rng.integers(0, 20, 3300)
    with measured() as memory:
        result = evaluate_ranking(
            rows[:300], rows[300:], pids[:300], pids[300:], rerank=ReRanking(), block_size=256
        )
    assert 0 < result.mAP < 0.2
    assert memory.peak < 40e6  # one float32 matrix of all items alone would take 44 MB
    assert 0 < memory.largest_tensor < 11e6


def test_all_equal_rows_rank_in_gallery_order() -> None:
    rows, pids = np.full((60, 4), 0.1, np.float32), np.arange(60) % 7
    result = evaluate_ranking(rows[:20], rows[20:], pids[:20], pids[20:], rerank=ReRanking())
    expected = evaluate_distances(np.zeros((20, 40)), pids[:20], pids[20:])
    assert result.to_frame().equals(expected.to_frame())


def test_progress_ends_at_one() -> None:
    told: list[float] = []
    evaluate_ranking(**clusters(0, 30, 200), rerank=ReRanking(), block_size=40, progress=told.append)
    assert len(told) > 20
    assert told == sorted(told)
    assert told[-1] == 1


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, r"k1: expected a whole number of at least 1, got 0"),
        ({"k2": -3}, r"k2: expected a whole number of at least 1, got -3"),
        ({"k1": 2.5}, r"k1: expected a whole number of at least 1, got 2\.5"),
        ({"k2": True}, r"k2: expected a whole number of at least 1, got True"),
        ({"lambda_value": 1.5}, r"lambda_value: expected 0 to 1, found 1\.5"),
        ({"lambda_value": np.nan}, r"lambda_value: expected 0 to 1, found nan"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReRanking(**settings)


def spoiled(value: float) -> np.ndarray:
    features = clusters(0, 10, 30)["gallery_features"]
    features[4] = value
    return features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 40}, r"k1: expected at most 39, for 40 queries and gallery items together, found 40"),
        ({"k1": 5, "k2": 41}, r"k2: expected at most 40, for 40 queries .* found 41"),
        ({"gallery_features": spoiled(np.nan)}, r"gallery_features: row 4 holds NaN or infinity"),
        ({"gallery_features": spoiled(0)}, r"gallery_features: row 4 holds only zeros"),
        ({"query_features": np.ones((10, 3), "f4")}, r"expected rows of one length, found 3 and 24"),
        ({"metric": "manhattan"}, r"metric: expected cosine or euclidean, got 'manhattan'"),
        ({"block_size": 0}, r"block_size: expected a whole number of at least 1, got 0"),
        ({"device": "nowhere"}, r"device 'nowhere': not available"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    case = clusters(0, 10, 30)
    good = {name: case[name] for name in ("query_features", "gallery_features")}
    assert re_ranked_distances(**good, k1=39, k2=40).shape == (10, 30)
    with pytest.raises(InputError, match=message):
        re_ranked_distances(**good | change)


def test_too_few_items_are_named_in_an_evaluation() -> None:
    case = clusters(0, 10, 30)
    case["gallery_pids"][:20] = -1
    with pytest.raises(InputError, match=r"k1: expected at most 19, for 20 queries and gallery items"):
        evaluate_ranking(**case, rerank=ReRanking(20))
