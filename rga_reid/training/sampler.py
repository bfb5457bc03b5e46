"""P x K batches: P identities, K images of each (Hermans et al., arXiv 1703.07737, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from rga_reid.errors import InputError, check_choice


class IdentitySampler(Sampler[list[int]]):
    """Yields the row numbers of one batch at a time: K rows of each of P identities, one after another.

    Every process draws the same epoch from (seed, epoch) and takes its own share of each step, so that no
    identity stands on two ranks in one step and all ranks make the same number of steps. An identity with
    fewer than K images fills up with repeats; with more, it shows its images without repeats.

    Args:
        pids: identity of each row.
        identities: P, in the batch of one process.
        images: K.
        visits: ``"identity"`` visits each identity once an epoch (the released RGA code); ``"image"``
            visits each one (number of its images) // K times, at least once.
        seed: of the draws.
        rank, world_size: this process and how many there are.

    Raises:
        InputError: fewer identities than one step needs, or another value than these.
    """

    def __init__(
        self,
        pids: Sequence[int],
        identities: int = 16,
        images: int = 4,
        *,
        visits: Literal["identity", "image"] = "identity",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if identities < 2 or images < 2:
            raise InputError(f"batch: expected at least 2 identities x 2 images, got {identities} x {images}")
        check_choice("visits", visits, ("identity", "image"))
        labels = np.asarray(pids)
        self.rows = [np.flatnonzero(labels == pid) for pid in np.unique(labels)]
        self.identities, self.images = identities, images
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.start = 0  #: steps that the next iteration leaves out, as they were taken before an interruption
        step = identities * world_size
        if len(self.rows) < step:
            raise InputError(
                f"identities_per_batch: {step} identities are needed for one step "
                f"({identities} x {world_size} processes), the training set has {len(self.rows)}"
            )
        counts = np.array([len(rows) for rows in self.rows])
        self._visits = np.ones_like(counts) if visits == "identity" else np.maximum(1, counts // images)
        self._steps = _most_rounds(self._visits, step)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps in each epoch: a rest that does not fill a step is dropped."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        rng = np.random.default_rng([self.seed, self.epoch])
        piles: dict[int, list[int]] = {}
        for number, identities in enumerate(self._rounds(rng)):
            groups = [self._draw(identity, piles, rng) for identity in identities]
            if number < start:
                continue
            mine = groups[self.rank * self.identities : (self.rank + 1) * self.identities]
            yield [row for group in mine for row in group]

    def _rounds(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """The identities of each step: distinct within a step."""
        visits, step = self._visits.copy(), self.identities * self.world_size
        for to_come in range(self._steps, 0, -1):
            # in proportion to the visits that remain (Efraimidis and Spirakis), so that the identities
            # with many images do not stay behind alone
            left = np.flatnonzero(visits)
            keys = rng.random(len(left)) ** (1 / visits[left])
            due = visits[left] >= to_come  # needed in each step to come, or one of them lacks identities
            if np.count_nonzero(due) <= step:
                keys[due] += 1
            chosen = left[np.argsort(-keys, kind="stable")[:step]]
            visits[chosen] -= 1
            yield chosen

    def _draw(self, identity: int, piles: dict[int, list[int]], rng: np.random.Generator) -> list[int]:
        """K rows of an identity; those not shown yet in this epoch come first."""
        rows = self.rows[identity]
        if len(rows) < self.images:
            return [*rng.permutation(rows), *rng.choice(rows, self.images - len(rows))]
        pile = piles.setdefault(identity, [])
        if len(pile) < self.images:
            pile[:] = list(rng.permutation(rows))
        return [int(pile.pop()) for _ in range(self.images)]


def _most_rounds(visits: np.ndarray, step: int) -> int:
    """The most steps of so many distinct identities, with no more than its visits of each.

    r steps are there if and only if no fewer than r · step visits are left where more than r of one identity
    do not count.
    """
    rounds = 0
    while np.minimum(visits, rounds + 1).sum() >= (rounds + 1) * step:
        rounds += 1
    return rounds
