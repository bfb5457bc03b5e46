"""Exact top-k: for gallery search, re-ranking, query expansion and lists of best matches.

Approximate scores, from fast float32 products with a known error, select candidates; exact scores decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_reid.evaluation.features import FeatureRows, expand_ranges
from rga_reid.evaluation.similarity import (
    CosineScores,
    EuclideanScores,
    Scores,
    above_threshold,
    flat_nonzero,
    group_equal_rows,
    use_full_precision,
)

_PENDING = 2**18  # new candidates collected before they are sorted
_STRIP = 2**19  # scores compared with the thresholds at a time


class Entries(NamedTuple):
    """Entries of a matrix: one element for each in every array."""

    row: np.ndarray
    column: np.ndarray
    score: np.ndarray  #: float64; approximate where ``exact`` is false
    exact: np.ndarray  #: bool


class TopK:
    """The ``count`` highest entries of each row of a matrix: by exact score, equal scores by column.

    The matrix is given as tiles or lists of approximate scores. Each row has a threshold: an entry whose
    approximate score is below it cannot be among the highest. The others are candidates. From time to time
    the candidates are sorted, the thresholds rise, and candidates below them are dropped. At the end, or when too many
    candidates are within the error of the approximation, those of uncertain order are scored exactly.

    Args:
        rows: number of rows.
        count: entries wanted of each row; a row with fewer candidates has fewer.
        error: bound on ``abs(approximate - exact)``; infinite to score all candidates exactly.
        exact: computes the scores of pairs (row, column), float64.
        dtype: type of the approximate scores, float32 or float64.
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
        real = np.float32 if dtype == torch.float32 else np.float64
        self._threshold = np.full(rows, np.finfo(real).min)  # so that −∞ never reaches it
        nothing = np.empty(0, np.int64)
        self._kept = Entries(nothing, nothing, np.empty(0), np.empty(0, bool))
        self._new: list[Entries] = []
        self._pending = 0

    def raise_threshold(self, tile: Tensor, row: int) -> None:
        """Raise the thresholds by a tile before it is added, so that fewer entries become candidates."""
        if tile.shape[1] >= self._count:
            reached = torch.topk(tile, self._count, dim=1).values[:, -1].cpu().numpy()
            self._raise(np.arange(row, row + len(tile)), reached)

    def add(self, tile: Tensor, row: int, column: int, *, axis: int = 0) -> None:
        """Add a tile of approximate scores. No entry may be added twice.

        Args:
            tile: scores; entries of −∞ are never selected.
            row, column: matrix indices of the first row and the first column of the tile.
            axis: 0, or 1 to add the transpose of the tile: its columns are rows of the matrix.
        """
        height = max(1, _STRIP // tile.shape[1])
        for start in range(0, len(tile), height):
            strip = tile[start : start + height]
            first = (row + start, column)
            threshold = self._threshold[first[axis] : first[axis] + strip.shape[axis]]
            lines = None
            if self._count == 1:  # few rows have a new candidate: look at these only
                reached = strip.amax(1 - axis) >= torch.from_numpy(threshold).to(strip.device)
                chosen = flat_nonzero(reached)
                strip, lines = strip.index_select(axis, chosen), chosen.cpu().numpy()
                threshold = threshold[lines]
            *places, score = above_threshold(strip, np.expand_dims(threshold, 1 - axis))
            if lines is not None:
                places[axis] = lines[places[axis]]
            places = [place + start for place, start in zip(places, first, strict=True)]
            self.add_entries(places[axis], places[1 - axis], score)

    def add_entries(self, row: np.ndarray, column: np.ndarray, score: np.ndarray) -> None:
        """Add candidates with approximate scores, ``(m,)`` each, in any order. None may be added twice."""
        self._new.append(Entries(row, column, score.astype(np.float64), np.zeros(len(score), dtype=bool)))
        self._pending += len(score)
        if self._pending > max(_PENDING, len(self._kept.row)):
            self._select()

    def entries(self) -> Entries:
        """Return the highest entries, row by row, best first, with exact scores where the order needed them."""
        self._select(final=True)
        return self._kept

    def results(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the columns (int64) and exact scores (float64) of each row, best first."""
        found = self.entries()
        unknown = ~found.exact
        found.score[unknown] = self._exact(found.row[unknown], found.column[unknown])
        found.exact[:] = True
        ends = np.searchsorted(found.row, np.arange(1, self._rows))
        return list(zip(np.split(found.column, ends), np.split(found.score, ends), strict=True))

    def _select(self, *, final: bool = False) -> None:
        """Sort the candidates, raise the thresholds and drop candidates below them.

        At the end, and if too many remain, keep ``count`` of each row.
        """
        row, column, score, exact = map(np.concatenate, zip(self._kept, *self._new, strict=True))
        self._new, self._pending = [], 0
        order = _order(row, score, self._rows)
        row, column, score, exact = (values[order] for values in (row, column, score, exact))
        rank = np.arange(len(row)) - np.searchsorted(row, np.arange(self._rows))[row]
        last = rank == self._count - 1
        self._raise(row[last], score[last])
        kept = score >= self._threshold[row]
        if not final and np.count_nonzero(kept) <= 2 * self._rows * self._count:
            self._kept = Entries(row[kept], column[kept], score[kept], exact[kept])
            return

        # Neighbours closer than the error form a run. The order within a run is uncertain, the place of the
        # run is not.
        joined = np.zeros(len(row), dtype=bool)
        joined[1:] = (row[1:] == row[:-1]) & (score[:-1] - score[1:] <= self._radius)
        run = np.cumsum(~joined) - 1
        uncertain_runs = (np.bincount(run) > 1) & (rank[~joined] < self._count)
        uncertain = np.flatnonzero(uncertain_runs[run])
        unknown = uncertain[~exact[uncertain]]
        score[unknown] = self._exact(row[unknown], column[unknown])
        exact[unknown] = True
        order = uncertain[np.lexsort((column[uncertain], -score[uncertain], run[uncertain]))]
        column[uncertain], score[uncertain] = column[order], score[order]

        kept = rank < self._count
        self._kept = Entries(row[kept], column[kept], score[kept], exact[kept])

    def _raise(self, rows: np.ndarray, reached: np.ndarray) -> None:
        """Raise the thresholds of rows that have enough entries with a score of ``reached`` or more."""
        lowered = (reached.astype(np.float64) - self._radius).astype(self._threshold.dtype)
        lowered = np.nextafter(lowered, self._threshold.dtype.type(-np.inf))
        self._threshold[rows] = np.maximum(self._threshold[rows], lowered)


def _order(row: np.ndarray, score: np.ndarray, rows: int) -> np.ndarray:
    """Return the order by row, then best first; equal scores of a row in any order. 10 times as fast as ``lexsort``."""
    # NumPy sorts float64 by vector instructions, and 16-bit integers stably by radix
    order = np.argsort(-score)
    for shift in range(0, max(1, (rows - 1).bit_length()), 16):
        order = order[np.argsort((row[order] >> shift).astype(np.uint16), kind="stable")]
    return order


_MAX_UNDECIDED = 1e-3  # largest error, relative to the largest difference of scores, for float32 products
_MAX_SIDE = 2048  # rows of a tile: with more, more of the product on the diagonal is computed twice
_TOGETHER = 4  # sides of tiles held at a time, so that the others are prepared less often


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of each of n rows, and the score of its farthest row."""

    rows: np.ndarray  #: int64 (n, count): nearest first, ties by number; a row is a neighbour of itself
    lowest: np.ndarray  #: float64 (n,): exact score of the farthest row


def product_dtype(scores: CosineScores | EuclideanScores, items: int) -> torch.dtype:
    """Return the type in which products must be computed so that their error leaves few pairs undecided.

    That is float32, unless all rows are nearly the same, as the features of a collapsed model. The distance
    of the first row to its farthest row shows that: no two rows are farther apart than twice that distance.

    Args:
        scores: scores of the features with themselves.
        items: number of rows.
    """
    everything = np.arange(items)
    reach = scores.identical - scores.exact(np.zeros_like(everything), everything).min()
    return torch.float32 if scores.error(torch.float32) < _MAX_UNDECIDED * reach else torch.float64


def find_neighbours(
    scores: Scores,
    features: FeatureRows,
    count: int,
    *,
    dtype: torch.dtype = torch.float32,
    block_size: int,
    progress: Callable[[float], None] | None = None,
) -> Neighbours:
    """Find the ``count`` nearest rows of each row.

    Memory does not grow with n², for any features.

    Args:
        scores: scores of the features with themselves.
        features: ``(n, d)``, with n of at least ``count``.
        count: neighbours of each row, including itself.
        dtype: type of the products, see ``product_dtype``; changes no result.
        block_size: rows held at a time; changes no result.
        progress: called with the fraction of the work that is done.
    """
    groups = _EqualRows(features)
    distinct = groups.first

    def exact(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return scores.exact(distinct[row], distinct[column])

    error = scores.error(dtype)
    nearest = TopK(len(distinct), min(count, len(distinct)), error, exact, dtype)
    farthest = TopK(len(distinct), 1, error, lambda row, column: -exact(row, column), dtype)
    with use_full_precision(scores.device):
        _search_pairs(scores, distinct, nearest, farthest, dtype, min(block_size, _MAX_SIDE), progress)
    near, far = nearest.entries(), farthest.entries()
    lowest = exact(far.row, far.column)
    return Neighbours(groups.members(near.column, near.score, count), lowest[groups.group])


def _search_pairs(
    scores: Scores,
    rows: np.ndarray,
    nearest: TopK,
    farthest: TopK,
    dtype: torch.dtype,
    side: int,
    progress: Callable[[float], None] | None,
) -> None:
    """Add all tiles on and above the diagonal, and their transposes."""
    starts = range(0, len(rows), side)
    done, total = 0, len(starts) * (len(starts) + 1) // 2

    def prepare(start: int, side_of: Callable[..., Tensor]) -> Tensor:
        return side_of(rows[start : start + side], dtype)

    def add_tile(left: Tensor, right: Tensor, upper: int, lower: int) -> None:
        nonlocal done
        tile = scores.approximate(left, right)
        for best in (nearest, farthest):
            if upper == lower:
                best.raise_threshold(tile, upper)
            else:
                best.add(tile, upper, lower, axis=1)
            best.add(tile, upper, lower)
            tile.neg_()
        done += 1
        if progress is not None:
            progress(done / total)

    for start in starts:  # the diagonal first: it gives every row a threshold
        add_tile(prepare(start, scores.queries), prepare(start, scores.gallery), start, start)
    for first in range(0, len(starts), _TOGETHER):
        uppers = {upper: prepare(upper, scores.queries) for upper in starts[first : first + _TOGETHER]}
        for lower in starts[first + 1 :]:
            right = prepare(lower, scores.gallery)
            for upper, left in uppers.items():
                if upper < lower:
                    add_tile(left, right, upper, lower)


class _EqualRows:
    """Groups of rows of equal content, so that a row with many copies is searched once.

    Args:
        features: ``(n, d)``, compared as float32.
    """

    def __init__(self, features: FeatureRows) -> None:
        #: (n,): number of each row's group; groups are numbered in the order of their first rows
        self.group = group_equal_rows(features, np.arange(len(features)))
        self._order = np.argsort(self.group, kind="stable")
        self._size = np.bincount(self.group)
        self._start = np.cumsum(self._size) - self._size
        #: (groups,): the first row of each group
        self.first = self._order[self._start]

    def members(self, groups: np.ndarray, scores: np.ndarray, count: int) -> np.ndarray:
        """Return for each row the first ``count`` members of its nearest groups, ``(n, count)``.

        Args:
            groups: nearest groups of each group, one group after the other, nearest first.
            scores: scores of these, exact where two of them are nearly equal.
            count: rows wanted; the nearest groups of a group have at least as many.
        """
        if len(self.first) == len(self.group):  # no two rows are equal
            return groups.reshape(len(self.group), -1)[:, :count]
        owner = np.repeat(np.arange(len(self.first)), len(groups) // len(self.first))
        number, place = expand_ranges(self._start[groups], np.minimum(self._size[groups], count))
        owner, row, score = owner[number], self._order[place], scores[number]
        order = np.lexsort((row, -score, owner))
        owner, row = owner[order], row[order]
        rank = np.arange(len(owner)) - np.searchsorted(owner, np.arange(len(self.first)))[owner]
        return row[rank < count].reshape(-1, count)[self.group]
