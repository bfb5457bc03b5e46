"""P x K batches: P identities with K images each (Hermans et al., arXiv 1703.07737, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from rga_reid._deprecated import rename_option_arguments
from rga_reid.errors import InputError, check_choice


class IdentitySampler(Sampler[list[int]]):
    """Yield the rows of one batch at a time: K rows for each of P identities.

    Every process draws the same epoch from (seed, epoch) and takes its part of each step, so that an identity
    is on one process only and all processes make the same number of steps. Rows of identities with fewer
    than K images are repeated; otherwise a batch has no repeats.

    With tracks, a track counts as an image: K tracks of an identity are drawn, and of each track a random frame, as
    video re-identification samples frames of K tracklets. Consecutive frames are almost equal, so an epoch does
    not need all of them.

    Args:
        pids: identity of each row.
        identities: P, in the batch of one process.
        images: K.
        tracks: number of each row's track, of one identity; −1 for an image without a track. None: no tracks.
        epoch: ``identities`` visits each identity once per epoch (as the released RGA code); ``images`` visits
            it (number of its images, or tracks) // K times, and at least once.
        seed: random seed.
        rank, world_size: number of this process, and of processes.

    Raises:
        InputError: fewer identities than one step needs, or invalid values.
    """

    @rename_option_arguments("data")
    def __init__(
        self,
        pids: Sequence[int],
        identities: int = 16,
        images: int = 4,
        *,
        tracks: Sequence[int] | np.ndarray | None = None,
        epoch: Literal["identities", "images"] = "identities",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if identities < 2 or images < 2:
            raise InputError(f"batch: expected at least 2 identities x 2 images, got {identities} x {images}")
        check_choice("epoch", epoch, ("identities", "images"))
        labels = np.asarray(pids)
        self.rows = [np.flatnonzero(labels == pid) for pid in np.unique(labels)]
        self._frames: dict[int, np.ndarray] = {}  #: rows of a track, by its first row
        if tracks is not None:
            self._frames = _group_frames(np.asarray(tracks), labels)
            first = np.ones(len(labels), dtype=bool)
            for rows in self._frames.values():
                first[rows[1:]] = False
            self.rows = [rows[first[rows]] for rows in self.rows]
        self.identities, self.images = identities, images
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.start = 0  #: steps that the next iteration skips, because they were taken before an interruption
        step = identities * world_size
        if len(self.rows) < step:
            raise InputError(
                f"identities_per_batch: one step needs {step} identities "
                f"({identities} x {world_size} processes), the training set has {len(self.rows)}"
            )
        counts = np.array([len(rows) for rows in self.rows])
        self._visits = np.ones_like(counts) if epoch == "identities" else np.maximum(1, counts // images)
        self._steps = _count_steps(self._visits, step)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws (called by Lightning)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the steps per epoch; identities that do not fill a step are dropped."""
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        rng = np.random.default_rng([self.seed, self.epoch])
        unseen: dict[int, list[int]] = {}
        for number, identities in enumerate(self._draw_identities(rng)):
            groups = [
                [self._draw_frame(row, rng) for row in self._draw_rows(identity, unseen, rng)]
                for identity in identities
            ]
            if number < start:
                continue
            own = groups[self.rank * self.identities : (self.rank + 1) * self.identities]
            yield [row for group in own for row in group]

    def _draw_frame(self, row: int, rng: np.random.Generator) -> int:
        """Draw a frame of the track that begins with this row."""
        frames = self._frames.get(row)
        return row if frames is None else int(rng.choice(frames))

    def _draw_identities(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the distinct identities of each step."""
        visits, step = self._visits.copy(), self.identities * self.world_size
        for steps_left in range(self._steps, 0, -1):
            # Sample in proportion to the remaining visits (Efraimidis and Spirakis), so that identities
            # with many images do not remain alone at the end.
            left = np.flatnonzero(visits)
            keys = rng.random(len(left)) ** (1 / visits[left])
            due = visits[left] >= steps_left  # needed in every step left, or a step would lack identities
            if np.count_nonzero(due) <= step:
                keys[due] += 1
            chosen = left[np.argsort(-keys, kind="stable")[:step]]
            visits[chosen] -= 1
            yield chosen

    def _draw_rows(self, identity: int, unseen: dict[int, list[int]], rng: np.random.Generator) -> list[int]:
        """Draw K rows of an identity, rows not seen in this epoch first."""
        rows = self.rows[identity]
        if len(rows) < self.images:
            return [int(row) for row in (*rng.permutation(rows), *rng.choice(rows, self.images - len(rows)))]
        pile = unseen.setdefault(identity, [])
        if len(pile) < self.images:
            pile[:] = list(rng.permutation(rows))
        return [int(pile.pop()) for _ in range(self.images)]


def _group_frames(tracks: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return the rows of each track by its first row."""
    known = np.flatnonzero(tracks >= 0)
    order = known[np.argsort(tracks[known], kind="stable")]
    starts = np.flatnonzero(np.diff(tracks[order], prepend=-1))
    frames = {int(rows[0]): rows for rows in np.split(order, starts[1:]) if len(rows)}
    for rows in frames.values():
        if (labels[rows] != labels[rows[0]]).any():
            raise InputError(
                f"track: expected images of one identity in each track of a camera, found {len(set(labels[rows]))} "
                f"in that of row {rows[0]}"
            )
    return frames


def _count_steps(visits: np.ndarray, step: int) -> int:
    """Return the largest number of steps, each with ``step`` distinct identities, that ``visits`` allows.

    r steps are possible if and only if the visits, counting at most r for each identity, sum to r · step.
    """
    steps = 0
    while np.minimum(visits, steps + 1).sum() >= (steps + 1) * step:
        steps += 1
    return steps
