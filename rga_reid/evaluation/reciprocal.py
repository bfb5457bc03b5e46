"""k-reciprocal neighbours as sparse vectors (Zhong et al., CVPR 2017), in the variant of the published code.

Where the code differs from the paper, the code is followed: distances are squared and divided by the largest
of their row, and a set that joins is measured against the item's own set, not against the one that has grown.
Sets of pairs (i, c) of n items are sorted whole numbers i·n + c, so that all items are worked on at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from rga_reid.evaluation.ranges import expand_ranges, parts

_ENTRIES = 2**20  # of temporary arrays


class Relation:
    """Pairs of n items.

    Args:
        items: n.
        codes: of each pair row·n + column, ascending.
    """

    def __init__(self, items: int, codes: np.ndarray) -> None:
        self.items, self.codes = items, codes
        #: (n + 1,): the pairs of row i have the places starts[i] to starts[i + 1] − 1
        self.starts = np.searchsorted(codes, np.arange(items + 1) * items)
        self.counts = np.diff(self.starts)

    @cached_property
    def column(self) -> np.ndarray:
        """Of each pair."""
        return self.codes % self.items

    def rows(self) -> np.ndarray:
        """Row of each pair."""
        return np.repeat(np.arange(self.items), self.counts)

    def pairs_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each of these rows all pairs: the number of the row (0 to n − 1), and the place of the pair."""
        return expand_ranges(self.starts[rows], self.counts[rows])

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where these pairs are, and which of them are there at all."""
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return place, self.codes[place] == codes


class SparseVectors(Relation):
    """A vector of non-negative numbers for each of n items, most of them 0.

    Args:
        items, codes: which are not 0.
        values: float64, one for each of the codes.
    """

    def __init__(self, items: int, codes: np.ndarray, values: np.ndarray) -> None:
        super().__init__(items, codes)
        self.values = values

    def overlap(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Sum of the smaller entries, Σ min(v_first[n], v_second[n]), for each pair n of items; float64.

        Terms are added in the order of the columns: a sum depends on its two vectors alone.
        """
        sums = np.empty(len(first))
        for part in parts(self.counts[first], _ENTRIES):
            number, place = self.pairs_of(first[part])
            other, there = self.find(second[part][number] * self.items + self.column[place])
            smaller = np.minimum(self.values[place], self.values[other])[there]
            sums[part] = np.bincount(number[there], smaller, minlength=part.stop - part.start)
        return sums

    def inverted(self, items: np.ndarray) -> InvertedVectors:
        """The vectors of these items, to be overlapped with many others."""
        number, place = self.pairs_of(items)
        order = np.argsort(self.column[place], kind="stable")
        place = place[order]
        return InvertedVectors(len(items), self.column[place], number[order], self.values[place])


class InvertedVectors:
    """Some vectors, column by column.

    Args:
        width: how many vectors there are.
        column: of each entry, ascending.
        owner: the number of its vector.
        value: the entry.
    """

    def __init__(self, width: int, column: np.ndarray, owner: np.ndarray, value: np.ndarray) -> None:
        self._width, self._column, self._owner, self._value = width, column, owner, value

    def overlaps(self, vectors: SparseVectors, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Overlaps of all these items with all vectors held: the same sums as ``SparseVectors.overlap``.

        Returns:
            Of those that are not 0, the place in the matrix (items, vectors held) and the sum, float64.
        """
        number, place = vectors.pairs_of(items)
        column = vectors.column[place]
        first = np.searchsorted(self._column, column, side="left")
        counts = np.searchsorted(self._column, column, side="right") - first
        sums = np.zeros(len(items) * self._width)
        for part in parts(counts, _ENTRIES):
            entry, other = expand_ranges(first[part], counts[part])
            smaller = np.minimum(vectors.values[place[part]][entry], self._value[other])
            # in the order of entries, which is that of the columns
            np.add.at(sums, number[part][entry] * self._width + self._owner[other], smaller)
        found = np.flatnonzero(sums)
        return found, sums[found]


def reciprocal_vectors(
    neighbours: np.ndarray, k1: int, k2: int, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> SparseVectors:
    """Vectors that are alike where items have the same reciprocal neighbours.

    Args:
        neighbours: the nearest items of each of n items, itself included, best first; int64
            ``(n, at least max(k1 + 1, k2))``.
        k1: neighbours that must be mutual, the item itself not counted.
        k2: neighbours over which vectors are averaged, the item itself counted.
        distance: of pairs of items, divided by the largest of the first item.

    Returns:
        Vectors that add up to 1; or to less, where lists hold an item that has no mutual neighbour, not even
        itself, because of many equal ones before it.
    """
    near = _mutual(neighbours[:, : k1 + 1])
    close = _mutual(neighbours[:, : round(k1 / 2) + 1])  # a half to even, as the published np.around does
    sets = _expanded(near, close)
    row = sets.rows()
    weights = np.exp(-distance(row, sets.column))
    weights /= np.bincount(row, weights, minlength=sets.items)[row]
    vectors = SparseVectors(sets.items, sets.codes, weights)
    return vectors if k2 == 1 else _averaged(vectors, neighbours[:, :k2])


def _mutual(lists: np.ndarray) -> Relation:
    """Pairs of which each is in the other's list."""
    items, length = lists.shape
    row, column = np.repeat(np.arange(items), length), lists.ravel()
    both = np.intersect1d(row * items + column, column * items + row, assume_unique=True)
    return Relation(items, both)


def _expanded(near: Relation, close: Relation) -> Relation:
    """To the set of each item, the close sets of its members that have more than 2/3 of themselves in it."""
    row, size = near.rows(), close.counts[near.column]
    found = [near.codes]
    for part in parts(size, _ENTRIES):
        number, place = close.pairs_of(near.column[part])
        codes = row[part][number] * near.items + close.column[place]
        shared = np.bincount(number, near.find(codes)[1], minlength=part.stop - part.start)
        joins = 3 * shared > 2 * size[part]
        found.append(np.unique(codes[joins[number]]))
    return Relation(near.items, np.unique(np.concatenate(found)))


def _averaged(vectors: SparseVectors, lists: np.ndarray) -> SparseVectors:
    """Each vector replaced by the mean over the items in its list."""
    length = lists.shape[1]
    codes, values = [], []
    for part in parts(vectors.counts[lists].sum(axis=1), _ENTRIES):
        number, place = vectors.pairs_of(lists[part].ravel())
        row = part.start + number // length
        code, entry = np.unique(row * vectors.items + vectors.column[place], return_inverse=True)
        codes.append(code)
        values.append(np.bincount(entry, vectors.values[place]) / length)
    return SparseVectors(vectors.items, np.concatenate(codes), np.concatenate(values))
