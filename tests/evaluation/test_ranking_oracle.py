"""The ranking equals a loop written from the definition, in many random cases."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import RankingResult, evaluate_distances, evaluate_ranking
from tests.oracles import Labels, float64_distance, naive_ranking


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, str, Labels, int]:
    """Draw a small case with everything that can go wrong in a large one."""
    rng = np.random.default_rng(seed)
    q, g, d = (
        int(rng.choice([1, 2, 6, 12])),
        int(rng.choice([1, 2, 7, 30, 80])),
        int(rng.choice([1, 2, 16, 700])),
    )
    query = rng.standard_normal((q, d)).astype(np.float32)
    gallery = rng.standard_normal((g, d)).astype(np.float32)
    metric = str(rng.choice(["cosine", "euclidean"]))
    kind = rng.integers(7)
    if kind == 0:  # many exact duplicates, across identities and in the query set
        gallery = gallery[rng.integers(0, max(1, g // 4), g)]
        query[-1] = gallery[0]
    elif kind == 1:  # all features equal
        query, gallery = query[[0] * q], query[[0] * g]
    elif kind == 2:  # closer together than the error of a float32 product
        gallery = gallery[:1] + np.float32(1e-6) * gallery
    elif kind == 3:  # other lengths, the same direction
        lengths = rng.choice([0.5, 1, 2], (g, 1)).astype(np.float32)
        gallery = gallery[rng.integers(0, max(1, g // 2), g)] * lengths
    elif kind == 4 and metric == "euclidean":  # whole numbers: different rows at equal distances
        query, gallery = np.rint(query), np.rint(gallery)
    elif kind == 5:  # one item far away, and a scale that float32 can hardly square
        gallery[-1] *= 1e3
        query, gallery = query * np.float32(1e-18), gallery * np.float32(1e-18)
    people, cameras, unknown = int(rng.choice([1, 3, 8])), int(rng.choice([1, 2, 4])), rng.choice([0.0, 0.2])

    def draw(count: int, low: int, high: int) -> list[int | None]:
        return [None if rng.random() < unknown else int(rng.integers(low, high + 1)) for _ in range(count)]

    labels: Labels = {
        "query_pids": draw(q, -1, people),
        "gallery_pids": draw(g, -1, people + 2),  # more people than are asked for: distractors
        "query_camids": None,
        "gallery_camids": None,
        "query_paths": None,
        "gallery_paths": None,
    }
    if rng.random() < 0.7:
        labels |= {"query_camids": draw(q, 0, cameras), "gallery_camids": draw(g, 0, cameras)}
    if rng.random() < 0.4:
        labels |= {
            "query_paths": [f"{n}.jpg" for n in range(q)],
            "gallery_paths": [f"{n}.jpg" for n in rng.permutation(g)],
        }
    return query, gallery, metric, labels, int(rng.choice([1, 5, 50]))


def check(result: RankingResult, expected: dict[str, Any]) -> None:
    assert result.mAP_step == pytest.approx(expected["step"], abs=1e-12)
    assert result.mAP_trapezoid == pytest.approx(expected["trapezoid"], abs=1e-12)
    assert result.mINP == pytest.approx(expected["INP"], abs=1e-12)
    np.testing.assert_allclose(result.cmc, expected["cmc"], rtol=0, atol=1e-12)
    assert result.valid_queries == expected["valid"]
    assert result.to_frame()["first_match"].dropna().tolist() == expected["first"]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 6))])
def test_equals_the_naive_loop(part: int) -> None:
    compared = 0
    for seed in itertools.count(10_000 * part):
        query, gallery, metric, labels, max_rank = random_case(seed)
        distance = float64_distance(query, gallery, metric)
        expected = naive_ranking(distance, labels, max_rank)
        options: Any = {"max_rank": max_rank, "block_size": 1 + seed % 50, **labels}
        if expected is None:
            with pytest.raises(InputError):
                evaluate_ranking(query, gallery, metric=metric, **options)
            continue
        check(evaluate_ranking(query, gallery, metric=metric, **options), expected)
        check(evaluate_distances(distance, **options), expected)
        compared += 1
        if compared == 100:
            break


@pytest.mark.parametrize("noise", [0.6, 1.0])
def test_equals_the_naive_loop_on_features_of_a_trained_model(noise: float) -> None:
    """Few wrong items score higher than the correct matches of a query."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((60, 32))
    query_pids, gallery_pids = rng.integers(0, 60, 50), rng.integers(0, 60, 900)
    query, gallery = (
        (centres[pids] + noise * rng.standard_normal((len(pids), 32))).astype(np.float32)
        for pids in (query_pids, gallery_pids)
    )
    labels: Labels = {
        "query_pids": query_pids.tolist(),
        "gallery_pids": gallery_pids.tolist(),
        "query_camids": rng.integers(0, 4, 50).tolist(),
        "gallery_camids": rng.integers(0, 4, 900).tolist(),
        "query_paths": None,
        "gallery_paths": None,
    }
    expected = naive_ranking(float64_distance(query, gallery, "cosine"), labels, 50)
    assert expected is not None
    assert 0.2 < expected["step"] < 1
    check(evaluate_ranking(query, gallery, block_size=200, **labels), expected)
