"""Thresholds and error rates equal loops over all scores, pair scores equal loops over all pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rga_reid.errors import InputError
from rga_reid.evaluation import calibrate, pair_scores
from rga_reid.evaluation import calibration as pairs
from rga_reid.evaluation.calibration import CosineCounts
from rga_reid.evaluation.similarity import CosineScores
from tests.memory import measured


def drawn(seed: int = 0, genuine: int = 300, impostor: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.6, 0.15, genuine), rng.normal(0.1, 0.15, impostor)
    return (np.round(scores[0], 2), np.round(scores[1], 2)) if seed % 2 else scores  # with ties, without


def measured_rate(scores: np.ndarray, threshold: float) -> float:
    return np.count_nonzero(scores >= threshold) / len(scores)


# Thresholds ------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999), genuine=st.integers(1, 30), impostor=st.integers(2, 300), share=st.floats(0, 1)
)
def test_thresholds_and_error_rates(seed: int, genuine: int, impostor: int, share: float) -> None:
    own, other = drawn(seed, genuine, impostor)
    calibration = calibrate(own, other)
    rate = (1 + int(share * (impostor - 2))) / impostor
    threshold = calibration.threshold(rate)
    assert measured_rate(other, threshold) == calibration.false_match_rate(threshold) <= rate
    assert measured_rate(other, threshold - 1e-12) > rate
    assert calibration.false_non_match_rate(threshold) == pytest.approx(1 - measured_rate(own, threshold))
    expected = min(
        max(measured_rate(other, t), 1 - measured_rate(own, t))
        for t in np.concatenate([own, other, np.nextafter(other, np.inf)])
    )
    assert calibration.equal_error_rate == pytest.approx(expected, abs=1e-12)


def test_every_whole_number_of_false_matches_is_met() -> None:
    """The product of rate and number rounds up as often as down."""
    for total in (3, 7, 10, 49, 1000):
        calibration = calibrate([0.0], np.arange(total, dtype=float))
        for matches in range(1, total):
            rate = matches / total
            assert calibration.false_match_rate(calibration.threshold(rate)) == rate
            if matches > 1:
                below = calibration.threshold(float(np.nextafter(rate, 0)))
                assert calibration.false_match_rate(below) == (matches - 1) / total


@pytest.mark.parametrize(
    ("rate", "message"),
    [(0.0001, "5,000 impostor scores; .* 10,000 scores"), (0.0, "0.0$"), (1, "1$"), (float("nan"), "nan$")],
)
def test_rates_that_cannot_be_measured(rate: float, message: str) -> None:
    with pytest.raises(InputError, match=f"false_match_rate: .*{message}"):
        calibrate(*drawn()).threshold(rate)


def test_to_dict_is_json() -> None:
    calibration = calibrate(*drawn())
    values = json.loads(json.dumps(calibration.to_dict(0.01), allow_nan=False))
    assert values["threshold"] == calibration.threshold(0.01)
    assert values["false_match_rate"] == values["false_matches"] / 5000 == 0.01
    assert values["wanted_false_match_rate"] == 0.01
    assert (values["genuine_pairs"], values["impostor_pairs"]) == (300, 5000)
    assert sum(values["histogram"]["impostor"]) == 5000
    assert "threshold" not in calibration.to_dict()
    edges, *counts = calibration.histograms(37)
    for scores, found in zip(drawn(), counts, strict=True):
        np.testing.assert_array_equal(found, np.histogram(scores, edges)[0])


def test_every_form_of_scores_gives_the_same() -> None:
    genuine, impostor = (scores.astype(np.float32) for scores in drawn())
    expected = calibrate(genuine, impostor).to_dict(0.01)
    for form in (list, torch.from_numpy, np.float64):
        assert calibrate(form(genuine), form(impostor)).to_dict(0.01) == expected


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], r"expected numbers \(n,\).* \(0,\)"),
        ([[0.5]], r"expected numbers .* \(1, 1\)"),
        (["a"], "expected numbers"),
        ([0.5, np.nan], "entry 1 is nan"),
        ([-np.inf, 0], "entry 0 is -inf"),
    ],
)
def test_bad_scores_are_named(scores: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"impostor_scores: {message}"):
        calibrate([0.5], scores)


# Counts of cosines -----------------------------------------------------------------------------------------


def test_counts_at_the_edges_of_the_grid_are_exact() -> None:
    rng = np.random.default_rng(0)
    edges = (2 * rng.integers(-(2**19), 2**19, 500) + 1) / 2**20
    scores = np.concatenate([edges, np.nextafter(edges, 2), np.nextafter(edges, -2), [1, -1, 1 + 1e-15]])
    counts = CosineCounts()
    counts.add(scores)
    expected = [int((scores >= edge).sum()) for edge in edges]
    assert counts.at_least(edges).tolist() == expected
    assert counts.total == len(scores)
    assert counts.at_least(np.array([-7.0, 7.0])).tolist() == [len(scores), 0]
    assert (counts.at_least(edges - 1e-8) >= expected).all()  # within a cell: all of it
    assert counts.near_edge(scores[:1500], 1e-15).all()
    counts.add(scores, -1)
    assert counts.total == 0


# Pairs -----------------------------------------------------------------------------------------------------


def images(seed: int, queries: int = 20, items: int = 90, columns: int = 16) -> dict[str, Any]:
    """Draw images with junk, unknown identities and cameras, and files on both sides."""
    rng = np.random.default_rng(seed)
    case: dict[str, Any] = {}
    for side, count in (("query", queries), ("gallery", items)):
        pids = rng.integers(-1, 8, count).astype(object)
        camids = rng.integers(0, 3, count).astype(object)
        pids[rng.random(count) < 0.1] = None
        camids[rng.random(count) < 0.1] = None
        case[f"{side}_features"] = rng.standard_normal((count, columns)).astype(np.float32)
        case[f"{side}_pids"], case[f"{side}_camids"] = pids, camids
        case[f"{side}_paths"] = [f"{n}.jpg" for n in rng.permutation(200)[:count]]
    case["gallery_features"][: items // 3] = case["query_features"][0]  # ties
    return case


def naive_pairs(case: dict[str, Any]) -> tuple[list[float], list[float]]:
    genuine, impostor = [], []
    query, gallery = (case[f"{side}_features"].astype(np.float64) for side in ("query", "gallery"))
    for q, x in enumerate(query):
        for g, y in enumerate(gallery):
            pids = case["query_pids"][q], case["gallery_pids"][g]
            camids = case["query_camids"][q], case["gallery_camids"][g]
            if None in pids or -1 in pids or case["query_paths"][q] == case["gallery_paths"][g]:
                continue
            score = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
            if pids[0] != pids[1]:
                impostor.append(score)
            elif None in camids or camids[0] != camids[1]:
                genuine.append(score)
    return genuine, impostor


@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_the_naive_loop(seed: int) -> None:
    case = images(seed)
    found = pair_scores(**case, block_size=17 + seed)
    genuine, impostor = naive_pairs(case)
    np.testing.assert_allclose(np.sort(found.genuine), np.sort(genuine), rtol=0, atol=1e-12)
    assert found.impostor.total == len(impostor)
    edges = (2 * np.arange(-(2**19), 2**19) + 1) / 2**20
    expected = len(impostor) - np.searchsorted(np.sort(impostor), edges)
    np.testing.assert_array_equal(found.impostor.at_least(edges), expected)
    exact, grid = calibrate(genuine, impostor), calibrate(found.genuine, found.impostor)
    assert grid.threshold(0.01) == pytest.approx(exact.threshold(0.01), abs=2e-6)
    assert grid.equal_error_rate == pytest.approx(exact.equal_error_rate, abs=1e-3)
    assert grid.histograms()[2].sum() == len(impostor)


def test_no_count_depends_on_blocks_or_threads(
    monkeypatch: pytest.MonkeyPatch, vary: Callable[[], Iterator[int]]
) -> None:
    case = images(1, columns=600)
    expected = pair_scores(**case)
    every = np.arange(-(2**19), 2**19 + 1) / 2**19
    for block_size in vary():
        monkeypatch.setattr(pairs, "_QUERIES", block_size)
        found = pair_scores(**case, block_size=block_size)
        assert sorted(found.genuine) == sorted(expected.genuine)
        np.testing.assert_array_equal(found.impostor.at_least(every), expected.impostor.at_least(every))


def test_an_error_within_its_bound_changes_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    case = images(0)
    features = [case[f"{side}_features"] for side in ("query", "gallery")]
    scores = CosineScores(*features, torch.device("cpu"))
    exact = CosineCounts()
    rows = np.arange(20), np.arange(90)
    pairs.count_cosines(exact, scores, *rows, 30)
    approximate = scores.approximate

    def wrong(queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        tile = approximate(queries, gallery)
        return tile + 1e-7 * torch.sign(torch.sin(1e6 * tile))

    monkeypatch.setattr(scores, "approximate", wrong)
    every = (2 * np.arange(-(2**19), 2**19) + 1) / 2**20
    for error, same in ((1e-12, False), (1e-7, True)):
        monkeypatch.setattr(scores, "error", lambda dtype, error=error: error)
        off = CosineCounts()
        pairs.count_cosines(off, scores, *rows, 30)
        assert (exact.at_least(every) == off.at_least(every)).all() == same


def test_impostors_take_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((260, 8), np.float32), rng.standard_normal((12000, 8), np.float32)
    with measured() as memory:
        found = pair_scores(query, gallery, rng.integers(0, 300, 260), rng.integers(0, 300, 12000))
    assert found.impostor.total > 3.1e6
    assert memory.peak < 24e6  # these scores alone would take 25 MB
    assert 0 < memory.largest_tensor < 10e6


GOOD: dict[str, Any] = {
    "query_features": np.eye(2, dtype=np.float32),
    "gallery_features": np.ones((3, 2), np.float32),
    "query_pids": [7, 8],
    "gallery_pids": [7, 8, 8],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_pids": [1, 2]}, "identities do not overlap"),
        ({"query_pids": [7, 7], "gallery_pids": [7, 7, None]}, "two different people"),
        ({"query_camids": [1, 2]}, "gallery_camids: not given"),
        ({"query_features": np.zeros((2, 2), "f4")}, r"query_features: row 0 .* zeros"),
        ({"query_features": np.ones((2, 5), "f4")}, "5 and 2"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    assert len(pair_scores(**GOOD).genuine) == 3
    with pytest.raises(InputError, match=message):
        pair_scores(**GOOD | change)
