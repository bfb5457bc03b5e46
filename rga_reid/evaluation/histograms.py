"""One histogram of scores for each query, whose bins tell the query's own items apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BINS = 1024
_QUERIES = 64  # at a time where numbers are summed: they fit into the processor's cache


class Histograms:
    """Histograms from the lowest to the highest own item of each query.

    A bin is *near* if it holds a score within ``radius`` of an own item. An item in any other bin is certain
    to be better than the own items of all lower bins, and worse than those of all higher bins.

    Args:
        owner: for each own item its query, ascending; each of the queries 0 to n − 1 has at least one.
        scores: of the own items, float64.
        radius: how far from an own item a score must be to be certain.
        real: float32 or float64, the type of the scores to be counted.
    """

    def __init__(self, owner: np.ndarray, scores: np.ndarray, radius: float, real: type[np.floating]) -> None:
        # rounded outwards, so that the rounding to `real` makes nothing certain
        floor = np.nextafter((scores - radius).astype(real), real(-np.inf))
        ceiling = np.nextafter((scores + radius).astype(real), real(np.inf))
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        #: (n,): an item of a lower score is worse than all own items of the query, and need not be counted
        self.lowest = np.minimum.reduceat(floor, starts)
        highest = np.maximum.reduceat(ceiling, starts)
        # wide enough that neither it nor its reciprocal vanishes or overflows
        width = np.maximum((highest - self.lowest) / real(_BINS - 2), np.finfo(real).tiny)
        self._scale = (1 / width).astype(real)

        self._owner, self._first = owner, self._bins(owner, floor)
        self._near = np.empty((len(starts), _BINS), dtype=bool)
        last = self._bins(owner, ceiling)
        for queries, own in self._parts():
            edges = np.zeros((len(self._near[queries]), _BINS + 1), dtype=np.int64)
            np.add.at(edges, (owner[own] - queries.start, self._first[own]), 1)
            np.add.at(edges, (owner[own] - queries.start, last[own] + 1), -1)
            self._near[queries] = np.cumsum(edges[:, :_BINS], axis=1) > 0
        self._counts = np.zeros((len(starts), _BINS), dtype=np.int32)

    def add(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Count some scores, each not below the lowest of its query.

        Returns:
            Which of them fell into a near bin, so that their count settles nothing: ascending places.
        """
        bins = queries * _BINS + self._bins(queries, scores)
        one = self._counts.dtype.type(1)  # of another type it would take NumPy's slow path
        np.add.at(self._counts.reshape(-1), bins, one)
        return np.flatnonzero(self._near.reshape(-1)[bins])

    def better(self) -> np.ndarray:
        """For each own item, how many of the scores in bins that are not near are better."""
        better = np.empty(len(self._owner), dtype=np.int64)
        for queries, own in self._parts():
            certain = np.where(self._near[queries], 0, self._counts[queries])
            up_to_here = np.cumsum(certain, axis=1, dtype=np.int64)
            owner, first = self._owner[own] - queries.start, self._first[own]
            better[own] = up_to_here[owner, -1] - up_to_here[owner, first]
        return better

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Some of the queries, and their own items."""
        for start in range(0, len(self._near), _QUERIES):
            own = np.searchsorted(self._owner, [start, start + _QUERIES])
            yield slice(start, start + _QUERIES), slice(*own)

    def _bins(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Bin of each score. Each step is monotonic, rounding included: no higher score is in a lower bin."""
        height = (scores - self.lowest[queries]) * self._scale[queries]
        return np.minimum(height, _BINS - 1).astype(np.int64)
