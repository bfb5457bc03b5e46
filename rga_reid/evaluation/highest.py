"""The highest entries of each row of a matrix that is seen tile by tile, in approximate scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_reid.evaluation.scores import entries_reaching

_WAITING = 2**18  # new entries that are gathered before they are sorted in
_STRIP = 2**19  # scores that are looked through at a time


class Entries(NamedTuple):
    """Entries of a matrix: one number for each in every array."""

    row: np.ndarray
    column: np.ndarray
    score: np.ndarray  #: float64; approximate where ``exact`` is false
    exact: np.ndarray  #: bool


class Highest:
    """The ``count`` highest entries of each row: by exact score, equal ones by column.

    Each row has a *floor*: no entry whose approximate score is below it can be among the highest. The entries
    that reach it are listed; from time to time they are sorted, those beyond ``count`` are dropped, and the
    floors rise. Entries whose order the error of the approximation leaves open are scored exactly.

    Args:
        rows: n.
        count: entries wanted of each row.
        error: bound on how far an approximate score is from the exact one.
        exact: scores of pairs (row, column), float64.
        dtype: of the approximate scores, float32 or float64.
    """

    def __init__(
        self,
        rows: int,
        count: int,
        error: float,
        exact: Callable[[np.ndarray, np.ndarray], np.ndarray],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._rows, self._count, self._radius, self._exact = rows, count, 2 * error, exact
        self._floor = np.full(rows, -np.inf, np.float32 if dtype == torch.float32 else np.float64)
        nothing = np.empty(0, np.int64)
        self._kept = Entries(nothing, nothing, np.empty(0), np.empty(0, bool))
        self._new: list[Entries] = []
        self._waiting = 0

    def raise_floor(self, tile: Tensor, row: int) -> None:
        """Learn from a tile, before it is added, how high the floors of its rows are: so few are listed."""
        if tile.shape[1] >= self._count:
            reached = torch.topk(tile, self._count, dim=1).values[:, -1].cpu().numpy()
            self._raise(np.arange(row, row + len(tile)), reached)

    def add(self, tile: Tensor, row: int, column: int, *, axis: int = 0) -> None:
        """List what may be among the highest.

        Args:
            tile: approximate scores.
            row, column: the numbers in the matrix of the tile's first row and first column.
            axis: 0, or 1 to take the tile for that part of the matrix that mirrors it: its columns are rows.
        """
        height = max(1, _STRIP // tile.shape[1])
        for start in range(0, len(tile), height):
            strip = tile[start : start + height]
            first = (row + start, column)
            floor = self._floor[first[axis] : first[axis] + strip.shape[axis]]
            down, across, score = entries_reaching(strip, np.expand_dims(floor, 1 - axis))
            places = (down + first[0], across + first[1])
            unknown = np.zeros(len(score), dtype=bool)
            self._new.append(Entries(places[axis], places[1 - axis], score.astype(np.float64), unknown))
            self._waiting += len(score)
            if self._waiting > max(_WAITING, len(self._kept.row)):
                self._settle()

    def entries(self) -> Entries:
        """The highest entries of all rows, by row, then the highest first; each row has the same number."""
        self._settle()
        return self._kept

    def _settle(self) -> None:
        row, column, score, exact = map(np.concatenate, zip(self._kept, *self._new, strict=True))
        self._new, self._waiting = [], 0
        order = np.lexsort((-score, row))
        row, column, score, exact = (values[order] for values in (row, column, score, exact))
        rank = np.arange(len(row)) - np.searchsorted(row, np.arange(self._rows))[row]

        # entries that follow each other closer than the error form a chain, of any order but in its place
        linked = np.zeros(len(row), dtype=bool)
        linked[1:] = (row[1:] == row[:-1]) & (score[:-1] - score[1:] <= self._radius)
        chain = np.cumsum(~linked) - 1
        open_chains = (np.bincount(chain) > 1) & (rank[~linked] < self._count)
        contested = np.flatnonzero(open_chains[chain])
        unknown = contested[~exact[contested]]
        score[unknown] = self._exact(row[unknown], column[unknown])
        exact[unknown] = True
        order = contested[np.lexsort((column[contested], -score[contested], chain[contested]))]
        column[contested], score[contested] = column[order], score[order]

        kept = rank < self._count
        self._kept = Entries(row[kept], column[kept], score[kept], exact[kept])
        last = rank == self._count - 1
        self._raise(row[last], score[last])

    def _raise(self, rows: np.ndarray, reached: np.ndarray) -> None:
        """Entries of ``reached`` or more are there in the wanted number."""
        lowered = (reached.astype(np.float64) - self._radius).astype(self._floor.dtype)
        lowered = np.nextafter(lowered, self._floor.dtype.type(-np.inf))
        self._floor[rows] = np.maximum(self._floor[rows], lowered)
