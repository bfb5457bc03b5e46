"""Groups equal DBSCAN written out over dense distances; tracks are kept whole and apart; measures equal loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics.cluster import pair_confusion_matrix

from rga_reid.errors import InputError
from rga_reid.evaluation import Grouping, bcubed_agreement, group_images, grouping, pairwise_agreement
from tests.memory import measured
from tests.oracles import naive_jaccard, squared_distances


def people(
    seed: int, images: int = 160, persons: int = 14, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Features of people, and their identities."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, persons, images)
    centres = rng.standard_normal((persons, 24))
    features = centres[pids] + noise * rng.standard_normal((images, 24))
    return features.astype(np.float32), pids


def partition(groups: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in set(groups.tolist()) - {-1}}


# DBSCAN ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.4, 0.8, 1.2])
@pytest.mark.parametrize("min_samples", [1, 2, 4, 9])
def test_groups_are_those_of_dbscan(noise: float, min_samples: int) -> None:
    features, _ = people(min_samples, noise=noise)
    settings = Grouping(eps=0.55, min_samples=min_samples, k1=8, k2=3)
    found = group_images(features, settings=settings, block_size=33)
    near = naive_jaccard(squared_distances(features, "cosine"), 8, 3) <= 0.55
    core = near.sum(axis=1) >= min_samples
    reached = np.linalg.matrix_power((near & core & core[:, None]).astype(float), 64) > 0
    expected = partition(np.array([int(np.argmax(row)) if row.any() else -1 for row in reached]))
    assert len(expected) > 1
    kept = {group for group in expected if len(members(found, group)) >= min_samples}
    assert {frozenset(i for i in members(found, group) if core[i]) for group in kept} == kept
    for image in np.flatnonzero(~core):
        groups = set(found[near[image] & core].tolist())  # of the cores near a border image
        assert found[image] in (groups or {-1})


def members(found: np.ndarray, group: frozenset[int]) -> frozenset[int]:
    """All images of the found group of the first image of an expected one."""
    return frozenset(np.flatnonzero(found == found[min(group)]).tolist())


def test_well_separated_people_are_found() -> None:
    features, pids = people(0, images=300, persons=12, noise=0.2)
    features[7] = np.random.default_rng(2).standard_normal(24)  # like nobody
    found = group_images(features)
    others = np.arange(300) != 7
    agreement = pairwise_agreement(found[others], pids[others])
    assert agreement.precision == 1
    assert agreement.recall > 0.95
    assert found[7] == -1
    persons = pd.unique(found[found >= 0])
    assert persons.tolist() == list(range(len(persons)))  # numbered in the order of their first images


def test_nothing_depends_on_blocks_threads_or_scale(
    monkeypatch: pytest.MonkeyPatch, vary: Callable[[], Iterator[int]]
) -> None:
    features, pids = people(3, noise=0.8)
    arguments: dict[str, Any] = {"tracks": pids * 30 + np.arange(160) % 5, "times": np.arange(160)}
    expected = group_images(features, **arguments)
    assert group_images(torch.from_numpy(4 * features), **arguments).tolist() == expected.tolist()
    for block_size in vary():
        monkeypatch.setattr(grouping, "_CELLS", 50 * block_size)
        monkeypatch.setattr(grouping, "_ROWS", block_size)
        assert group_images(features, block_size=block_size, **arguments).tolist() == expected.tolist()


@pytest.mark.parametrize("images", [1, 2, 3, 5, 9])
def test_few_images(images: int) -> None:
    features = np.repeat(np.eye(5, 8, dtype=np.float32), 2, axis=0)[:images]
    features += 0.01 * np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
    found = group_images(features, settings=Grouping(min_samples=2, min_score=0.9))
    pairs = np.arange(images) // 2
    assert found.tolist() == [pair if 2 * pair + 1 < images else -1 for pair in pairs]


def test_copies_of_an_image_are_one_item() -> None:
    features, _ = people(0, images=100, persons=6, noise=0.2)
    rows = np.concatenate([np.arange(100), np.zeros(1500, int)])
    with measured() as memory:
        found = group_images(features[rows])
    assert memory.peak < 9e6  # distances of all pairs of copies would take 18 MB
    assert found[:100].tolist() == group_images(features).tolist()
    assert set(found[100:]) == {found[0]}


def test_memory_does_not_grow_with_the_pairs() -> None:
    features, _ = people(0, images=2500, persons=200, noise=0.3)
    with measured() as memory:
        group_images(features)
    assert memory.peak < 40e6  # a matrix of 2,500 x 2,500 float64 numbers would take 50 MB
    assert 0 < memory.largest_tensor < 20e6


# Tracks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_tracks_are_whole_and_overlapping_ones_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, _ = people(seed, persons=4, noise=0.6)  # few people: many overlaps
    track = rng.integers(0, 12, 160).astype(object)
    camera = np.array(["yard", "gate", "hall"], object)[rng.integers(0, 3, 160)]
    time = 20.0 * track.astype(float) + rng.integers(0, 40, 160)  # neighbours overlap
    track[rng.random(160) < 0.2] = None
    camera[rng.random(160) < 0.1] = None
    time[rng.random(160) < 0.1] = np.nan
    settings = Grouping(eps=0.8, min_samples=int(rng.integers(1, 5)))
    found = group_images(features, cameras=camera, tracks=track, times=time, settings=settings)
    table = pd.DataFrame({"group": found, "track": track, "camera": camera, "time": time})
    spans = []
    for (place, _), rows in table.dropna(subset=["track", "camera"]).groupby(["camera", "track"]):
        assert rows["group"].nunique() == 1
        spans.append((rows["group"].iloc[0], place, rows["time"].min(), rows["time"].max()))
    for one, other in combinations(spans, 2):
        if one[0] == other[0] != -1 and one[1] == other[1]:
            assert not (one[2] <= other[3] and other[2] <= one[3])
    assert all((found == group).sum() >= settings.min_samples for group in set(found) - {-1})


def test_images_count_not_tracks() -> None:
    """Two tracks of 3 images are a person of 6 images, which is enough for ``min_samples`` of 4."""
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(10), 6)
    features = rng.standard_normal((10, 64))[pids] + 0.2 * rng.standard_normal((60, 64))
    found = group_images(features, tracks=np.arange(60) // 3, settings=Grouping(min_score=0.8))
    assert found.tolist() == pids.tolist()


def test_pairs_below_the_least_score_are_no_neighbours() -> None:
    """Each of 40 people has a track: without a limit, people who are each other's nearest are joined."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((40, 64)), 4, axis=0) + 0.3 * rng.standard_normal((160, 64))
    tracks = np.repeat(np.arange(40), 4)
    relative = group_images(features, tracks=tracks)
    assert pairwise_agreement(relative, tracks).precision < 1
    means = np.stack(
        [(rows / np.linalg.norm(rows, axis=1)[:, None]).mean(axis=0) for rows in features.reshape(40, 4, 64)]
    )
    means /= np.linalg.norm(means, axis=1)[:, None]
    cosine = np.sort(means @ means.T - 2 * np.eye(40), axis=None)
    limit = (cosine[-1] + cosine[-3]) / 2  # the most similar pair reaches it; the matrix has each pair twice
    found = group_images(features, tracks=tracks, settings=Grouping(min_score=limit))
    assert len(set(found)) >= 39
    assert (
        group_images(features, tracks=tracks, settings=Grouping(min_score=cosine[-1] + 1e-4)).tolist()
        == tracks.tolist()
    )


def twins() -> tuple[np.ndarray, list[int | None]]:
    """Two people who look alike, each with a track of 3 images and 5 others, and 4 people with 8 images."""
    rng = np.random.default_rng(0)
    centres = np.concatenate([np.eye(5, 16)[[0]], np.eye(5, 16)])
    centres[1, 10] = 0.25
    features = np.repeat(centres, 8, axis=0) + 0.03 * rng.standard_normal((48, 16))
    return features.astype(np.float32), [1] * 3 + [None] * 5 + [2] * 3 + [None] * 37


@pytest.mark.parametrize(
    ("times", "cameras", "split"),
    [
        (None, None, False),
        ([0, 1, 2] * 16, None, True),
        (pd.date_range("2026-01-01", periods=3, tz="Asia/Tokyo").tolist() * 16, None, True),
        ([0, None, 5] * 3 + [2, 3, 9] * 13, ["gate"] * 48, True),
        ([0, 1, 2] * 3 + [3, 5, 9] * 13, ["gate"] * 48, True),  # both are seen at 2
        ([0, 1, 2, 0, 1, 2, 0, 1] + [3, 5, 9, 4] * 10, ["gate"] * 48, False),  # one after the other
        ([0, 1, 2] * 16, ["gate"] * 8 + ["yard"] * 40, False),
        ([None] * 8 + [1] * 40, ["gate"] * 48, False),
    ],
)
def test_a_split_keeps_the_most_similar_together(times: Any, cameras: Any, split: bool) -> None:
    features, tracks = twins()
    settings = Grouping(eps=0.9)
    found = group_images(features, cameras=cameras, tracks=tracks, times=times, settings=settings)
    expected = np.repeat(np.arange(6) if split else [0, 0, 1, 2, 3, 4], 8)
    assert found.tolist() == expected.tolist()


def test_a_track_number_of_two_cameras_is_two_tracks() -> None:
    features, pids = people(0, images=60, persons=6, noise=0.1)
    settings = Grouping(min_score=0.9)
    found = group_images(features, cameras=pids, tracks=np.zeros(60), settings=settings)
    assert pairwise_agreement(found, pids).f1 == 1
    assert group_images(features, tracks=np.zeros(60), settings=settings).tolist() == [0] * 60


def test_a_track_that_is_like_no_other_is_a_person_if_it_is_long_enough() -> None:
    rng = np.random.default_rng(0)
    tracks = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4])
    found = group_images(rng.standard_normal((31, 512)), tracks=tracks, settings=Grouping(min_score=0.5))
    assert partition(found) == partition(np.where(np.bincount(tracks)[tracks] >= 4, tracks, -1))


# Measures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_measures_equal_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, 6, 60)
    groups = np.where(rng.random(60) < 0.5, pids, rng.integers(-1, 8, 60))

    def same(i: int, j: int) -> bool:
        return i == j or groups[i] == groups[j] != -1

    pairs = list(combinations(range(60), 2))
    found = [pair for pair in pairs if same(*pair)]
    correct = [(i, j) for i, j in found if pids[i] == pids[j]]
    wanted = [(i, j) for i, j in pairs if pids[i] == pids[j]]
    precision, recall = len(correct) / len(found), len(correct) / len(wanted)
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert pairwise_agreement(groups, pids) == pytest.approx(expected)
    alone = np.where(groups == -1, 100 + np.arange(60), groups)
    (_, false), (missed, true) = pair_confusion_matrix(pids, alone)
    assert expected[:2] == pytest.approx((true / (true + false), true / (true + missed)))

    shares = []
    for i in range(60):
        group = [j for j in range(60) if same(i, j)]
        person = [j for j in range(60) if pids[i] == pids[j]]
        both = len(set(group) & set(person))
        shares.append((both / len(group), both / len(person)))
    precision, recall = np.mean(shares, axis=0)
    expected = (precision, recall, 2 * precision * recall / (precision + recall))
    assert bcubed_agreement(groups, [f"person {pid}" for pid in pids]) == pytest.approx(expected)


def test_measures_without_pairs() -> None:
    assert pairwise_agreement([-1, -1, -1], [1, 2, 3]) == (1, 1, 1)
    assert pairwise_agreement([-1, -1, -1], [1, 1, 3]) == (1, 0, 0)
    assert pairwise_agreement([0, 0, 1], [1, 2, 3]) == (0, 1, 0)
    assert bcubed_agreement([-1, -1, -1], [1, 2, 3]) == (1, 1, 1)


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"features": np.ones(3)}, "features"),
        ({"features": np.float32([[1, 0], [0, 0], [0, 1]])}, "features: row 1"),
        ({"features": np.float32([[1, 0], [0, 1], [np.nan, 1]])}, "features: row 2"),
        ({"tracks": [1, 2]}, "tracks"),
        ({"cameras": [1, 2, 3, 4]}, "cameras"),
        ({"times": [1]}, "times"),
        ({"times": ["noon", "night", None]}, "times"),
        ({"block_size": 0}, "block_size"),
        ({"device": "nowhere"}, "device"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], name: str) -> None:
    good: dict[str, Any] = {"features": np.eye(3, dtype=np.float32)}
    assert len(group_images(**good)) == 3
    with pytest.raises(InputError, match=name):
        group_images(**good | change)


@pytest.mark.parametrize(
    "change", [{"eps": 0}, {"eps": 1}, {"min_samples": 0}, {"k1": 0}, {"k2": -1}, {"min_score": 2}]
)
def test_bad_settings_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        Grouping(**change)


@pytest.mark.parametrize(("groups", "pids"), [([], []), ([0, 1], [1]), ([0, 1], [1, None])])
def test_bad_labels_are_named(groups: Any, pids: Any) -> None:
    with pytest.raises(InputError, match="groups, pids"):
        bcubed_agreement(groups, pids)
