"""How many scores reach a threshold: from the scores themselves, or from exact counts on a fine grid."""

from __future__ import annotations

from typing import Protocol

import numpy as np

_NORMAL = float(np.finfo(np.float64).smallest_normal)
_HALF = 2**20  # half the cells' width is 1 / _HALF


class ScoreCounts(Protocol):
    """Some scores, as a calibration needs them."""

    @property
    def total(self) -> int:
        """How many scores there are."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Numbers between which all scores are."""

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        """How many scores reach each threshold."""

    def threshold(self, most: int) -> float:
        """The smallest threshold that at most so many scores reach, fewer than there are."""


class SortedScores:
    """Every score is kept: thresholds are as fine as float64.

    Args:
        scores: float64 ``(n,)``, finite.
    """

    def __init__(self, scores: np.ndarray) -> None:
        #: (n,), ascending
        self.values = np.sort(scores)

    @property
    def total(self) -> int:
        return len(self.values)

    @property
    def bounds(self) -> tuple[float, float]:
        return float(self.values[0]), float(self.values[-1])

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        return self.total - np.searchsorted(self.values, thresholds, side="left")

    def threshold(self, most: int) -> float:
        above = float(np.nextafter(self.values[self.total - 1 - most], np.inf))
        # a thread that flushes subnormal numbers to zero would take 5e-324 for the 0 that it is to exclude
        return above if abs(above) >= _NORMAL else _NORMAL


class CosineCounts:
    """Counts of cosines in cells of width 2⁻¹⁹ (0.0000019) around the multiples of 2⁻¹⁹, from −1 to 1.

    Which cell a score is in is decided exactly, so the count at an edge of the grid is exact, and thresholds
    are such edges. In between, all of the cell counts: a number of false matches is never understated. The
    edges are odd multiples of 2⁻²⁰, which the cosines of simple features, 0 and 1 before all, are not.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_HALF + 1, dtype=np.int64)

    @staticmethod
    def cells(scores: np.ndarray | float) -> np.ndarray:
        """Number of the cell of each score; no rounding is involved."""
        return ((np.floor(np.multiply(scores, float(_HALF))).astype(np.int64) + 1) >> 1) + _HALF // 2

    @staticmethod
    def near_edge(scores: np.ndarray, error: float) -> np.ndarray:
        """Whether each score is so near to an edge that an error of this size could change its cell."""
        height = scores * (_HALF / 2) + 0.5
        return abs(height - np.rint(height)) <= error * (_HALF / 2) + 1e-9  # 1e-9: of this arithmetic

    def add(self, scores: np.ndarray, times: int = 1) -> None:
        """Count cosines; with −1, take them out again."""
        np.add.at(self._counts, self.cells(scores), times)

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    @property
    def bounds(self) -> tuple[float, float]:
        filled = np.flatnonzero(self._counts)
        return self._edge(int(filled[0])), self._edge(int(filled[-1]) + 1)

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        clipped = np.clip(thresholds, -1.0, 1 + 1 / _HALF)  # beyond the last edge there is nothing
        return self._reaching()[self.cells(clipped)]

    def threshold(self, most: int) -> float:
        return self._edge(int(np.argmax(self._reaching() <= most)))

    @staticmethod
    def _edge(cell: int) -> float:
        """Lower edge of a cell."""
        return (2 * cell - 1) / _HALF - 1

    def _reaching(self) -> np.ndarray:
        """How many scores reach the lower edge of each cell, and that of one more."""
        return np.concatenate([np.cumsum(self._counts[::-1])[::-1], [0]])
