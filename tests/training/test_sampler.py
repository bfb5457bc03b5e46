"""P x K batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.training import IdentitySampler

COUNTS = {3: 1, 5: 2, 7: 4, 8: 9, 9: 17, 11: 40, 12: 6, 20: 5}
PIDS = np.array([pid for pid, count in COUNTS.items() for _ in range(count)])


def groups(batch: list[int], images: int) -> list[list[int]]:
    return [batch[start : start + images] for start in range(0, len(batch), images)]


@pytest.mark.parametrize("visits", ["identity", "image"])
def test_a_batch_holds_k_images_of_each_of_p_identities(visits: str) -> None:
    sampler = IdentitySampler(PIDS, 3, 4, visits=visits)  # type: ignore[arg-type]
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    for batch in batches:
        found = [PIDS[group] for group in groups(batch, 4)]
        assert all(len(set(pids)) == 1 for pids in found)
        assert len({pids[0] for pids in found}) == len(found) == 3
        for group in groups(batch, 4):
            available = COUNTS[int(PIDS[group[0]])]
            assert len(set(group)) == min(4, available)  # repeats only where there are too few


def test_each_identity_once_an_epoch() -> None:
    batches = list(IdentitySampler(PIDS, 4, 2))
    visited = Counter(int(PIDS[group[0]]) for batch in batches for group in groups(batch, 2))
    assert visited == dict.fromkeys(COUNTS, 1)
    assert len(list(IdentitySampler(PIDS, 3, 2))) == 2  # the rest of 8 = 3 + 3 + 2 is dropped


def test_visits_by_image_show_nothing_twice_before_all_is_shown() -> None:
    sampler = IdentitySampler(PIDS, 2, 4, visits="image")
    shown = Counter(row for batch in sampler for row in batch if COUNTS[int(PIDS[row])] >= 4)
    assert max(shown.values()) == 1
    visited = Counter(int(PIDS[group[0]]) for batch in sampler for group in groups(batch, 4))
    assert all(times <= max(1, COUNTS[pid] // 4) for pid, times in visited.items())
    assert sum(visited.values()) >= sum(max(1, count // 4) for count in COUNTS.values()) * 0.6


def most_steps(visits: list[int], step: int) -> int:
    """By taking those with the most visits left, again and again, which no other order can beat."""
    steps = 0
    while sum(left > 0 for left in visits) >= step:
        visits = sorted(visits, reverse=True)
        visits = [left - (place < step) for place, left in enumerate(visits)]
        steps += 1
    return steps


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_epochs_have_the_most_steps_that_there_can_be(world_size: int) -> None:
    random = np.random.default_rng(0)
    drawn = [random.integers(1, 30, random.integers(6, 20)).tolist() for _ in range(40)]
    for counts in ([8, 4, 4, 4], [40, 4, 4, 4], [4] * 9, *drawn):
        pids = np.repeat(np.arange(len(counts)), counts)
        sampler = IdentitySampler(pids, 2, 4, visits="image", world_size=world_size)
        assert len(sampler) == most_steps([max(1, count // 4) for count in counts], 2 * world_size)
        for epoch in range(20):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler)
            assert all(len(set(pids[batch])) == 2 for batch in batches)
            visited = Counter(int(pids[group[0]]) for batch in batches for group in groups(batch, 4))
            assert all(times <= max(1, counts[pid] // 4) for pid, times in visited.items())


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        sampler = IdentitySampler(PIDS, 3, 4, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


@pytest.mark.parametrize("visits", ["identity", "image"])
def test_processes_share_a_step_without_sharing_an_identity(visits: str) -> None:
    ranks = [
        list(IdentitySampler(PIDS, 2, 4, visits=visits, rank=rank, world_size=3))  # type: ignore[arg-type]
        for rank in range(3)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    for step in zip(*ranks, strict=True):
        pids = [int(PIDS[group[0]]) for batch in step for group in groups(batch, 4)]
        assert len(set(pids)) == 6


def test_too_few_identities_are_refused() -> None:
    with pytest.raises(InputError, match=r"9 identities are needed .* has 8"):
        IdentitySampler(PIDS, 9, 4)
    with pytest.raises(InputError, match=r"10 identities are needed for one step \(5 x 2 processes\)"):
        IdentitySampler(PIDS, 5, 4, world_size=2)
    with pytest.raises(InputError, match="at least 2 identities x 2 images"):
        IdentitySampler(PIDS, 5, 1)
    with pytest.raises(InputError, match="visits: expected identity or image, got 'camera'"):
        IdentitySampler(PIDS, visits="camera")  # type: ignore[arg-type]
