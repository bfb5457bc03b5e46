"""P x K batches."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.training import IdentitySampler

COUNTS = {3: 1, 5: 2, 7: 4, 8: 9, 9: 17, 11: 40, 12: 6, 20: 5}
PIDS = np.array([pid for pid, count in COUNTS.items() for _ in range(count)])
Epoch = Literal["identities", "images"]


def split_groups(batch: list[int], images: int) -> list[list[int]]:
    return [batch[start : start + images] for start in range(0, len(batch), images)]


@pytest.mark.parametrize("epoch", ["identities", "images"])
def test_batches(epoch: Epoch) -> None:
    sampler = IdentitySampler(PIDS, 3, 4, epoch=epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    for batch in batches:
        groups = split_groups(batch, 4)
        pids = [set(PIDS[group]) for group in groups]
        assert all(len(one) == 1 for one in pids)
        assert len(set.union(*pids)) == len(groups) == 3
        for group in groups:  # repeats only if there are too few images
            assert len(set(group)) == min(4, COUNTS[int(PIDS[group[0]])])


def test_each_identity_once_per_epoch() -> None:
    batches = list(IdentitySampler(PIDS, 4, 2))
    visits = Counter(int(PIDS[group[0]]) for batch in batches for group in split_groups(batch, 2))
    assert visits == dict.fromkeys(COUNTS, 1)
    assert len(list(IdentitySampler(PIDS, 3, 2))) == 2  # 8 = 3 + 3, and 2 are dropped


def test_no_image_twice_before_all_are_shown() -> None:
    sampler = IdentitySampler(PIDS, 2, 4, epoch="images")
    shown = Counter(row for batch in sampler for row in batch if COUNTS[int(PIDS[row])] >= 4)
    assert max(shown.values()) == 1


def most_steps(visits: list[int], step: int) -> int:
    """Count steps greedily: no order beats taking the identities with the most visits left."""
    steps = 0
    while sum(left > 0 for left in visits) >= step:
        visits = sorted(visits, reverse=True)
        visits = [left - (place < step) for place, left in enumerate(visits)]
        steps += 1
    return steps


@pytest.mark.parametrize("world_size", [1, 2])
def test_as_many_steps_as_possible(world_size: int) -> None:
    random = np.random.default_rng(0)
    drawn = [random.integers(1, 30, random.integers(6, 20)).tolist() for _ in range(20)]
    for counts in ([8, 4, 4, 4], [40, 4, 4, 4], [4] * 9, *drawn):
        pids = np.repeat(np.arange(len(counts)), counts)
        sampler = IdentitySampler(pids, 2, 4, epoch="images", world_size=world_size)
        assert len(sampler) == most_steps([max(1, count // 4) for count in counts], 2 * world_size)
        for epoch in range(5):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert all(len(set(pids[batch])) == 2 for batch in batches)
            visits = Counter(int(pids[group[0]]) for batch in batches for group in split_groups(batch, 4))
            assert all(times <= max(1, counts[pid] // 4) for pid, times in visits.items())


def test_draws_depend_on_seed_and_epoch() -> None:
    def draw(seed: int, epoch: int) -> list[list[int]]:
        sampler = IdentitySampler(PIDS, 3, 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(0, 0) == draw(0, 0)
    assert draw(0, 0) != draw(0, 1)
    assert draw(0, 0) != draw(1, 0)


@pytest.mark.parametrize("epoch", ["identities", "images"])
def test_processes_share_no_identity_in_a_step(epoch: Epoch) -> None:
    ranks = [list(IdentitySampler(PIDS, 2, 4, epoch=epoch, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        assert len({int(pid) for batch in step for pid in PIDS[batch]}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"identities": 9}, "identities_per_batch: .* 9 identities .* has 8"),
        ({"identities": 5, "world_size": 2}, r"10 identities \(5 x 2 processes\)"),
        ({"images": 1}, "at least 2 identities x 2 images"),
        ({"epoch": "cameras"}, "epoch: .*'cameras'"),
    ],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        IdentitySampler(PIDS, **options)  # type: ignore[arg-type]


# Tracks ----------------------------------------------------------------------------------------------------

#: tracks of PIDS: three frames each, and every seventh image in none
TRACKS = np.where(np.arange(len(PIDS)) % 7 == 0, -1, PIDS * 100 + np.arange(len(PIDS)) // 3)


@pytest.mark.parametrize("epoch", ["identities", "images"])
def test_frames_are_of_different_tracks(epoch: Epoch) -> None:
    items = {
        pid: len(own[own >= 0].drop_duplicates()) + int((own < 0).sum())
        for pid, own in pd.Series(TRACKS).groupby(PIDS)
    }
    shown: Counter[int] = Counter()
    sampler = IdentitySampler(PIDS, 3, 4, tracks=list(TRACKS), epoch=epoch)
    for number in range(80):
        sampler.set_epoch(number)
        for group in (group for batch in sampler for group in split_groups(batch, 4)):
            pid = int(PIDS[group[0]])
            assert set(PIDS[group]) == {pid}
            drawn = {row if TRACKS[row] < 0 else -TRACKS[row] for row in group}
            assert len(drawn) == min(4, items[pid])
            shown.update(group)
    assert set(shown) == set(range(len(PIDS)))  # every frame, at some time


def test_an_epoch_of_images_shows_each_track_as_often_as_an_image() -> None:
    kept = np.flatnonzero((TRACKS < 0) | ~pd.Series(TRACKS).duplicated())
    of_images = IdentitySampler(PIDS[kept], 2, 2, epoch="images")
    assert len(IdentitySampler(PIDS, 2, 2, tracks=list(TRACKS), epoch="images")) == len(of_images)
    assert len(of_images) < len(IdentitySampler(PIDS, 2, 2, epoch="images"))


def test_the_same_seed_draws_the_same_frames() -> None:
    first, again, other = (
        list(IdentitySampler(PIDS, 2, 4, tracks=list(TRACKS), seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    sampler = IdentitySampler(PIDS, 2, 4, tracks=list(TRACKS), seed=1)
    sampler.start = 2
    assert list(sampler) == first[2:]
    alone = IdentitySampler(PIDS, 2, 4, tracks=[-1] * len(PIDS), seed=1)
    assert list(alone) == list(IdentitySampler(PIDS, 2, 4, seed=1))


def test_a_track_of_two_identities_is_refused() -> None:
    with pytest.raises(InputError, match=r"one identity .* found 8"):
        IdentitySampler(PIDS, 2, 2, tracks=[0] * len(PIDS))
