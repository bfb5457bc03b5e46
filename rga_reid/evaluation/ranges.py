"""Many ranges at a time, and rows in parts of bounded size: sparse work without a loop over rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def expand_ranges(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All places of n ranges, one after the other.

    Args:
        first: where each range begins, ``(n,)``.
        counts: how many places it has, ``(n,)``.

    Returns:
        For each place the number of its range (0 to n − 1, ascending), and the place.
    """
    number = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    return number, first[number] + within


def parts(counts: np.ndarray, limit: int, most: int | None = None) -> Iterator[slice]:
    """Consecutive rows in parts whose counts add up to ``limit`` at most; a row that has more stands alone.

    Args:
        counts: of each row, ``(n,)``.
        limit: of a part's sum.
        most: rows that a part may have.
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        if most is not None:
            stop = min(stop, start + most)
        yield slice(start, stop)
        start = stop
