"""The highest entries of each row of a matrix that is seen tile by tile, in approximate scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rga_reid.evaluation.features import FeatureRows, expand_ranges, to_float32
from rga_reid.evaluation.similarity import (
    CosineScores,
    EuclideanScores,
    Scores,
    above_threshold,
    use_full_precision,
)

_WAITING = 2**18  # new entries that are gathered before they are sorted in
_STRIP = 2**19  # scores that are looked through at a time


class Entries(NamedTuple):
    """Entries of a matrix: one number for each in every array."""

    row: np.ndarray
    column: np.ndarray
    score: np.ndarray  #: float64; approximate where ``exact`` is false
    exact: np.ndarray  #: bool


class TopK:
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
            down, across, score = above_threshold(strip, np.expand_dims(floor, 1 - axis))
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


_HASHED = 64  # rows at a time
_UNDECIDED = 1e-3  # error, beside the largest difference, from which on float64 is faster
_SIDE = 2048  # of a tile at most: with more, more of the product is computed twice, on the diagonal


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of each of n rows, the rows that fit best, and how well the worst one fits."""

    rows: np.ndarray  #: int64 (n, count): best first, equal ones by number; a row is its own neighbour too
    lowest: np.ndarray  #: float64 (n,): exact score of the row that fits worst


def filter_dtype(scores: CosineScores | EuclideanScores, items: int) -> torch.dtype:
    """What the product of all rows must compute in, so that its error leaves little undecided.

    That is float32, unless all rows are nearly the same, as those of a model that has collapsed. How far the
    first row's farthest is away tells: no two rows are more than twice as far from each other.

    Args:
        scores: of the features with themselves.
        items: number of rows.
    """
    everything = np.arange(items)
    reach = scores.identical - scores.exact(np.zeros_like(everything), everything).min()
    return torch.float32 if scores.error(torch.float32) < _UNDECIDED * reach else torch.float64


def nearest_neighbours(
    scores: Scores,
    features: FeatureRows,
    count: int,
    *,
    dtype: torch.dtype = torch.float32,
    block_size: int,
    progress: Callable[[float], None] | None = None,
) -> Neighbours:
    """The ``count`` nearest rows of each row.

    Memory does not grow with n², whatever the features are.

    Args:
        scores: of the features with themselves.
        features: ``(n, d)``; n is at least ``count``.
        count: neighbours of each row, itself included.
        dtype: of the product that is the filter, see ``filter_dtype``; changes no result.
        block_size: rows held at a time; changes no result.
        progress: told the fraction that is done, now and then.
    """
    equal = _EqualRows(features)
    distinct = equal.first

    def exact(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return scores.exact(distinct[row], distinct[column])

    error = scores.error(dtype)
    best = TopK(len(distinct), min(count, len(distinct)), error, exact, dtype)
    worst = TopK(len(distinct), 1, error, lambda row, column: -exact(row, column), dtype)
    with use_full_precision(scores.device):
        _search(scores, distinct, best, worst, dtype, min(block_size, _SIDE), progress)
    nearest, farthest = best.entries(), worst.entries()
    lowest = exact(farthest.row, farthest.column)
    return Neighbours(equal.members(nearest.column, nearest.score, count), lowest[equal.group])


def _search(
    scores: Scores,
    rows: np.ndarray,
    best: TopK,
    worst: TopK,
    dtype: torch.dtype,
    side: int,
    progress: Callable[[float], None] | None,
) -> None:
    """Show all tiles on and above the diagonal to both collectors."""
    starts = range(0, len(rows), side)
    done, total = 0, len(starts) * (len(starts) + 1) // 2

    def prepared(start: int, of: Callable[..., Tensor]) -> Tensor:
        return of(rows[start : start + side], dtype)

    def show(left: Tensor, upper: int, lower: int) -> None:
        nonlocal done
        tile = scores.approximate(left, prepared(lower, scores.gallery))
        for collector, signed in ((best, tile), (worst, -tile)):
            if upper == lower:
                collector.raise_floor(signed, upper)
            else:
                collector.add(signed, upper, lower, axis=1)
            collector.add(signed, upper, lower)
        done += 1
        if progress is not None:
            progress(done / total)

    for start in starts:  # the diagonal first: it gives every row a floor
        show(prepared(start, scores.queries), start, start)
    for upper in starts:
        left = prepared(upper, scores.queries)
        for lower in starts[upper // side + 1 :]:
            show(left, upper, lower)


class _EqualRows:
    """Rows of the same content.

    Args:
        features: ``(n, d)``, compared as float32.
    """

    def __init__(self, features: FeatureRows) -> None:
        digests = [
            hashlib.blake2b(row, digest_size=16).digest()
            for start in range(0, len(features), _HASHED)
            for row in to_float32(features, slice(start, start + _HASHED))
        ]
        #: (n,): number of each row's group; groups are numbered in the order of their first rows
        self.group = pd.factorize(np.array(digests, dtype=object))[0]
        self._order = np.argsort(self.group, kind="stable")
        self._size = np.bincount(self.group)
        self._start = np.cumsum(self._size) - self._size
        #: (groups,): the first row of each
        self.first = self._order[self._start]

    def members(self, groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
        """For each row the first ``count`` members of its nearest groups, ``(n, count)``.

        Args:
            groups: of each group its nearest groups, one group after the other, best first.
            scores: theirs, exact where two of one group's are nearly equal.
            count: rows wanted; the nearest groups have as many at least.
        """
        owner = np.repeat(np.arange(len(self.first)), len(groups) // len(self.first))
        number, place = expand_ranges(self._start[groups], np.minimum(self._size[groups], count))
        owner, row, score = owner[number], self._order[place], scores[number]
        order = np.lexsort((row, -score, owner))
        owner, row = owner[order], row[order]
        rank = np.arange(len(owner)) - np.searchsorted(owner, np.arange(len(self.first)))[owner]
        return row[rank < count].reshape(-1, count)[self.group]
