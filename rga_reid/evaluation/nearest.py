"""The nearest rows of each row of a feature matrix, exactly, in one pass of half a matrix product.

A product is the filter, and what its error leaves undecided is scored pair by pair in float64, so neither the
block size nor the number of threads changes a neighbour. Scores are symmetric: a tile of the product serves
its rows and its columns, and the tiles below the diagonal are never computed. Rows with the same content are
searched once: their scores are equal, and equal scores go by row number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rga_reid.evaluation.highest import Highest
from rga_reid.evaluation.inputs import float32_rows
from rga_reid.evaluation.precision import full_precision
from rga_reid.evaluation.ranges import expand_ranges
from rga_reid.evaluation.scores import CosineScores, EuclideanScores, Scores
from rga_reid.evaluation.stacked import FeatureRows

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
    best = Highest(len(distinct), min(count, len(distinct)), error, exact, dtype)
    worst = Highest(len(distinct), 1, error, lambda row, column: -exact(row, column), dtype)
    with full_precision(scores.device):
        _search(scores, distinct, best, worst, dtype, min(block_size, _SIDE), progress)
    nearest, farthest = best.entries(), worst.entries()
    lowest = exact(farthest.row, farthest.column)
    return Neighbours(equal.members(nearest.column, nearest.score, count), lowest[equal.group])


def _search(
    scores: Scores,
    rows: np.ndarray,
    best: Highest,
    worst: Highest,
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
            for row in float32_rows(features, slice(start, start + _HASHED))
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
