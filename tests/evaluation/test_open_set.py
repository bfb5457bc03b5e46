"""Rates of searches equal loops over all galleries that can be drawn, and known answers of simulated scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import LabelledFeatures, calibrate, calibrate_open_set, open_set, score_pairs
from tests.memory import measured


def images(seed: int, queries: int = 8, items: int = 12) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Draw images with junk, unknown identities and cameras, and files on both sides."""
    rng = np.random.default_rng(seed)
    sides = []
    for name, count in (("query", queries), ("gallery", items)):
        pids = rng.integers(-1, 5, count).astype(object)
        camids = rng.integers(0, 3, count).astype(object)
        pids[rng.random(count) < 0.1] = None
        camids[rng.random(count) < 0.1] = None
        features = rng.standard_normal((count, 6)).astype(np.float32)
        paths = [f"{number}.jpg" for number in rng.permutation(40)[:count]]
        sides.append(LabelledFeatures(features, pids, camids, paths, name=name))
    return sides[0], sides[1]


def naive_searches(
    query: LabelledFeatures, gallery: LabelledFeatures
) -> tuple[list[list[float]], list[float]]:
    """Return the scores of each non-mate search, and the highest correct score of each mate search."""
    strangers, mates = [], []
    for q, x in enumerate(query.features.astype(np.float64)):
        if query.pids[q] is None or query.pids.isna()[q] or query.pids[q] == -1:
            continue
        others, own = [], []
        for g, y in enumerate(gallery.features.astype(np.float64)):
            if gallery.pids.isna()[g] or gallery.pids[g] == -1 or query.paths[q] == gallery.paths[g]:
                continue
            score = float(x @ y / np.sqrt((x @ x) * (y @ y)))
            if query.pids[q] != gallery.pids[g]:
                others.append(score)
            elif query.camids.isna()[q] or gallery.camids.isna()[g] or query.camids[q] != gallery.camids[g]:
                own.append(score)
        strangers.append(others)
        if own:
            mates.append(max(own))
    return strangers, mates


@pytest.mark.parametrize("size", [1, 2, 3, None])
@pytest.mark.parametrize("seed", range(4))
def test_rates_equal_all_galleries_that_can_be_drawn(seed: int, size: int | None) -> None:
    query, gallery = images(seed)
    strangers, mates = naive_searches(query, gallery)
    found = calibrate_open_set(query, gallery, size, block_size=5 + seed)
    size = min(map(len, strangers)) if size is None else size
    assert found.gallery_size == found.measured_size == size
    assert (found.non_mates.searches, found.mates.total) == (len(strangers), len(mates))
    best = [[max(drawn) for drawn in combinations(others, size)] for others in strangers]
    for threshold in (2 * np.linspace(-(2**18), 2**18, 21).round() + 1) / 2**20 * 2:
        expected = np.mean([np.mean([score >= threshold for score in scores]) for scores in best])
        assert found.fpir(threshold) == pytest.approx(expected, abs=1e-12)
        assert found.fnir(threshold) == pytest.approx(np.mean([score < threshold for score in mates]))
    assert (found.fpir(-1), found.fpir(1.1)) == (pytest.approx(1), 0)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.77])
@pytest.mark.parametrize("size", [1, 4, None])
def test_the_threshold_is_the_smallest_that_keeps_the_rate(size: int | None, rate: float) -> None:
    query, gallery = images(5, queries=40, items=30)
    found = calibrate_open_set(query, gallery, size)
    threshold = found.threshold(rate)
    assert found.fpir(threshold) <= rate + 1e-12
    assert found.fpir(threshold - 2**-19) > rate


def test_every_whole_number_of_searches_is_met() -> None:
    found = calibrate_open_set(*sphere(5, 40, 30))
    searches = found.non_mates.searches
    for accepted in range(1, searches):
        assert found.fpir(found.threshold(accepted / searches)) == pytest.approx(accepted / searches)


def test_no_rate_depends_on_blocks_or_threads(
    monkeypatch: pytest.MonkeyPatch, vary: Callable[[], Iterator[int]]
) -> None:
    query, gallery = images(6, queries=30, items=40)
    expected = calibrate_open_set(query, gallery, 10).to_dict(0.3)
    for block_size in vary():
        monkeypatch.setattr(open_set, "_CELLS", 40 * block_size)
        found = calibrate_open_set(query, gallery, 10, block_size=block_size).to_dict(0.3)
        assert found["threshold"] == expected["threshold"]
        assert found["det"]["fpir"] == pytest.approx(expected["det"]["fpir"], abs=1e-12)
        assert found["det"]["fnir"] == expected["det"]["fnir"]


@pytest.mark.parametrize("seed", range(6))
def test_rates_of_a_larger_gallery_are_between_0_and_1(seed: int) -> None:
    found = calibrate_open_set(*images(seed, queries=20, items=30), 500)
    assert found.estimated
    values = json.loads(json.dumps(found.to_dict(threshold=0.0), allow_nan=False))
    assert found.fpir(-1) == 1
    assert values["det"]["fpir"] == sorted(values["det"]["fpir"])
    assert 0 <= values["det"]["fpir"][0] <= values["det"]["fpir"][-1] == 1


# Known answers ---------------------------------------------------------------------------------------------


def sphere(seed: int, queries: int, items: int) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Directions in space, all of other people, and one image of each query's person.

    The cosine of two of them is uniform from -1 to 1.
    """
    rng = np.random.default_rng(seed)
    asked, others = rng.standard_normal((queries, 3)), rng.standard_normal((items, 3))
    own = asked + 0.01 * rng.standard_normal((queries, 3))
    query = LabelledFeatures(asked, np.arange(queries))
    return query, LabelledFeatures(np.concatenate([own, others]), np.arange(queries + items))


@pytest.mark.parametrize(("size", "estimated"), [(5, False), (50, False), (12_000, True)])
def test_simulated_scores_give_the_known_threshold(size: int, estimated: bool) -> None:
    """Of galleries of n images, a share of 1 − ((1 + t)/2)^n has an image with a cosine of t or more."""
    found = calibrate_open_set(*sphere(0, 600, 3400), size)
    assert found.estimated is estimated
    assert found.measured_size == (3999 if estimated else size)
    # 60 or more of 600 searches are accepted, of 12,000 images 20: a standard error of 13 % or 22 %, and less
    # if many galleries can be drawn
    tolerance = 0.6 if estimated else 0.1
    for rate in (0.1, 0.3):
        height = 2 - 2 * (1 - rate) ** (1 / size)
        assert 1 - found.threshold(rate) == pytest.approx(height, rel=tolerance)
        assert found.fpir(1 - height) == pytest.approx(rate, rel=tolerance)


def strangers(seed: int, people: int, each: int, first_pid: int = 0) -> LabelledFeatures:
    """People of 12 kinds of looks, so that some are asked for among many who look alike."""
    rng = np.random.default_rng([7, seed])
    looks = np.random.default_rng(0).standard_normal((12, 24))
    centres = looks[rng.integers(0, 12, people)] + rng.standard_normal((people, 24))
    pids = np.repeat(np.arange(people), each)
    features = centres[pids] + 0.5 * rng.standard_normal((len(pids), 24))
    return LabelledFeatures(features.astype(np.float32), first_pid + pids)


@pytest.mark.parametrize("size", [180, 1200])
def test_strangers_are_accepted_at_the_wanted_rate(size: int) -> None:
    """A per-pair threshold accepts more of them the larger the gallery; an open-set threshold as many as wanted."""
    query, gallery = strangers(0, 1500, 1), strangers(1, 1500, 1, first_pid=5000)
    per_pair = calibrate(*matched_scores(query, gallery)).threshold(0.001)
    query, gallery = with_mates(query, gallery)
    threshold = calibrate_open_set(query, gallery, size).threshold(0.05)
    asked, enrolled = strangers(2, 1500, 1), strangers(3, 20 * size, 1, first_pid=5000)
    cosine = unit(asked.features) @ unit(enrolled.features).T
    highest = cosine.reshape(1500, 20, size).max(axis=2)  # of each stranger in 20 galleries
    accepted = (highest >= threshold).mean()
    assert accepted == pytest.approx(0.05, rel=0.35)
    assert (highest >= per_pair).mean() > (0.08 if size == 180 else 0.25)


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def with_mates(
    query: LabelledFeatures, gallery: LabelledFeatures
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Add an image of one query's person to the gallery: a calibration needs a mate search."""
    features = np.concatenate([gallery.features, 1.01 * query.features[:1]])
    return query, LabelledFeatures(features, [*gallery.pids, query.pids[0]])


def matched_scores(query: LabelledFeatures, gallery: LabelledFeatures) -> tuple[np.ndarray, Any]:
    found = score_pairs(*with_mates(query, gallery))
    return found.genuine, found.impostor


# The rest --------------------------------------------------------------------------------------------------


def test_to_dict_is_json() -> None:
    found = calibrate_open_set(*sphere(1, 100, 300), 40)
    values = json.loads(json.dumps(found.to_dict(0.1), allow_nan=False))
    assert values["kind"] == "open_set"
    assert (values["gallery_size"], values["measured_gallery_size"]) == (40, 40)
    assert values["estimated"] is False
    assert (values["wanted_fpir"], values["threshold"]) == (0.1, found.threshold(0.1))
    assert (values["non_mate_searches"], values["mate_searches"]) == (100, 100)
    det = values["det"]
    assert len(det["fpir"]) == len(det["fnir"]) == len(det["threshold"])
    assert np.all(np.diff(det["threshold"]) <= 0)
    assert np.all(np.diff(det["fpir"]) >= 0)
    assert np.all(np.diff(det["fnir"]) <= 0)
    for threshold, fpir, fnir in zip(det["threshold"], det["fpir"], det["fnir"], strict=True):
        assert (found.fpir(threshold), found.fnir(threshold)) == (pytest.approx(fpir), pytest.approx(fnir))


def test_memory_does_not_grow_with_the_pairs() -> None:
    query, gallery = sphere(0, 1500, 4000)
    with measured() as memory:
        calibrate_open_set(query, gallery, 500)
    assert memory.peak < 70e6  # 1,500 x 5,500 scores would take 66 MB, and their order as much
    assert 0 < memory.largest_tensor < 30e6


def test_progress_ends_at_one() -> None:
    calls: list[float] = []
    calibrate_open_set(*images(0), progress=calls.append)
    assert calls[-1] == 1


@pytest.mark.parametrize(
    ("rate", "size"), [(0, None), (1, None), (float("nan"), None), (0.009, None), (0.05, 4000)]
)
def test_rates_that_cannot_be_measured(rate: float, size: int | None) -> None:
    with pytest.raises(InputError, match="fpir: "):
        calibrate_open_set(*sphere(0, 100, 300), size).threshold(rate)


@pytest.mark.parametrize(
    ("query_pids", "gallery_pids", "options", "message"),
    [
        ([1, 2], [3, 4], {}, "query_pids, gallery_pids"),
        ([7, 7], [7, 7], {}, "query_pids, gallery_pids"),
        ([None, -1], [7, 7], {}, "query_pids"),
        ([7, 8], [7, 8], {"gallery_size": 0}, "gallery_size"),
        ([7, 8], [7, 8], {"block_size": 0}, "block_size"),
    ],
)
def test_bad_input_is_named(query_pids: Any, gallery_pids: Any, options: Any, message: str) -> None:
    features = np.float32([[1, 0], [0, 1]])
    with pytest.raises(InputError, match=message):
        calibrate_open_set(
            LabelledFeatures(features, query_pids), LabelledFeatures(features, gallery_pids), **options
        )
