"""Re-ranking by k-reciprocal neighbours, without a matrix of all images (Zhong et al., CVPR 2017).

Zhun Zhong, Liang Zheng, Donglin Cao, Shaozi Li: Re-ranking Person Re-identification with k-reciprocal
Encoding, arXiv 1701.08398. The published code holds several matrices of all queries and gallery items
together; here the neighbours are found in one pass over tiles (``nearest``), the rest is sparse
(``reciprocal``), and the re-ranked distance of a query and a gallery item is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_choice, check_int
from rga_reid.evaluation.features import StackedRows, expand_ranges, feature_pair, split_by_count
from rga_reid.evaluation.similarity import BLOCK_SIZE, METRICS, Metric, tiles, use_full_precision
from rga_reid.evaluation.topk import filter_dtype, nearest_neighbours

_QUERIES = 4096  # prepared at a time
_PAIRS = 2**17  # scored exactly at a time: few enough that they are not searched for equal rows


class TooFewItemsError(InputError):
    """Fewer items than the neighbours that a re-ranking asks for.

    Args:
        name, value: of the setting that is too large: k1 or k2.
        least: items that it needs.
        items: queries and gallery items together.
    """

    def __init__(self, name: str, value: int, least: int, items: int) -> None:
        super().__init__(
            f"{name}: expected at most {value - (least - items)}, for {items} queries and gallery items "
            f"together, found {value}"
        )
        self.least, self.items = least, items


@dataclass(frozen=True)
class ReRanking:
    """How to re-rank; the defaults are those of the paper.

    Args:
        k1: mutual neighbours of an item.
        k2: neighbours, the item counted, over which it is averaged; 1 for none.
        lambda_value: share of the original distance in the final one, from 0 to 1.

    Raises:
        InputError: a value outside its range.
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            check_int(name, getattr(self, name))
        if not 0 <= self.lambda_value <= 1:
            raise InputError(f"lambda_value: expected 0 to 1, found {self.lambda_value!r}")

    @property
    def neighbours(self) -> int:
        """How many nearest items, itself included, are asked of each item."""
        return max(self.k1 + 1, self.k2)


def re_ranked_distances(
    query_features: Any,
    gallery_features: Any,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: Metric = "cosine",
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Re-ranked distances of all queries and gallery items.

    The neighbours are exact, equal distances going by index (queries first, then the gallery). The original
    distance in the final mix is that of a matrix product.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors. Leave junk out of the gallery: every item may be a neighbour.
        k1, k2, lambda_value: see ``ReRanking``.
        metric: "cosine", the distance between the rows scaled to length 1, or "euclidean" for the rows as
            they are; both are squared.
        device: where the products are computed, such as "cuda".
        block_size: rows held on the device at a time; changes no neighbour.
        progress: told the fraction that is done, now and then.

    Returns:
        float32 ``(q, g)``, from 0 to 1, smaller for a better fit.

    Raises:
        InputError: features that do not fit together; a row with NaN, infinity or, for cosines, only zeros;
            k1 or k2 too large for the number of items; a setting outside its range.
    """
    settings = ReRanking(k1, k2, lambda_value)
    check_choice("metric", metric, get_args(Metric))
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    query, gallery = feature_pair(query_features, gallery_features)
    METRICS[metric](query, gallery, where)  # refuses bad rows by their names
    everything = np.arange(len(gallery))
    scores = ReRankedScores(query, gallery, everything, metric, settings, where, block_size, progress)
    distances = np.empty((len(query), len(gallery)), np.float32)
    with use_full_precision(where):
        for start in range(0, len(query), _QUERIES):
            rows = np.arange(start, min(start + _QUERIES, len(query)))
            for tile, first, column in tiles(scores, rows, everything, block_size):
                place = distances[start + first :, column:]
                place[: tile.shape[0], : tile.shape[1]] = -tile.cpu().numpy()
    return distances


class ReRankedScores:
    """Minus the re-ranked distance, as a ranking takes scores.

    The exact score of a pair is a float64 number: ``−(1 − λ)·J − λ·d``, with J the Jaccard distance of the
    two sparse vectors, whose weights come from exact distances and are summed in the order of their columns,
    and d the exact original distance divided by the query's largest. An approximation differs in d alone,
    which a product gives. So ranks depend on no block size, thread count or device.

    Args:
        query, gallery: features ``(q, d)`` and ``(g, d)``, already checked.
        gallery_rows: rows of the gallery that take part, ascending.
        metric: how features are compared.
        settings: of the re-ranking.
        device: where products are computed.
        block_size: rows held on the device at a time while neighbours are searched.
        progress: told the fraction of that search that is done.

    Raises:
        InputError: fewer items than neighbours are asked for.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        gallery_rows: np.ndarray,
        metric: Metric,
        settings: ReRanking,
        device: torch.device,
        block_size: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        items = StackedRows(query, gallery, gallery_rows)
        for name, value, least in (("k1", settings.k1, settings.k1 + 1), ("k2", settings.k2, settings.k2)):
            if len(items) < least:
                raise TooFewItemsError(name, value, least, len(items))
        self._joint = METRICS[metric](items, items, device)
        self.device, self.dtype = device, filter_dtype(self._joint, len(items))
        self._first_column = len(query)
        self._gallery_rows = gallery_rows
        self._share = settings.lambda_value

        found = nearest_neighbours(
            self._joint,
            items,
            settings.neighbours,
            dtype=self.dtype,
            block_size=block_size,
            progress=progress,
        )
        reach = self._joint.identical - found.lowest
        # 0 for an item from which, but for rounding, no other is away: nothing to divide
        apart = reach > self._joint.error(torch.float64)
        self._scale = np.divide(1, reach, out=np.zeros(len(reach)), where=apart)
        self._vectors = reciprocal_vectors(found.rows, settings.k1, settings.k2, self._symmetric_distance)

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> _Queries:
        factor = torch.from_numpy(self._share * self._scale[rows]).to(self.device, dtype)
        return _Queries(self._joint.queries(rows, dtype), factor[:, None], rows)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> _Gallery:
        items = self._items(rows)
        return _Gallery(self._joint.gallery(items, dtype), self._vectors.inverted(items))

    def approximate(self, queries: _Queries, gallery: _Gallery) -> Tensor:
        tile = self._joint.approximate(queries.rows, gallery.rows)
        tile.sub_(self._joint.identical).clamp_(max=0).mul_(queries.factor).sub_(1 - self._share)
        place, overlap = gallery.vectors.overlaps(self._vectors, queries.items)
        gain = torch.from_numpy((1 - self._share) * _similarity(overlap)).to(tile)
        tile.view(-1)[torch.from_numpy(place).to(tile.device)] += gain
        return tile

    def error(self, dtype: torch.dtype) -> float:
        # d is off by the error of the score over the row's largest distance; then come a few roundings of
        # numbers up to 1, here and in the exact score
        return self._share * self._joint.error(dtype) * self._scale.max() + 8 * torch.finfo(dtype).eps

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        items = self._items(gallery_rows)
        overlap = self._vectors.overlap(query_rows, items)
        distance = self._distance(query_rows, self._joint.exact(query_rows, items))
        return (1 - self._share) * (_similarity(overlap) - 1) - self._share * distance

    def _items(self, gallery_rows: np.ndarray) -> np.ndarray:
        """Numbers of these gallery rows among queries and gallery together."""
        return self._first_column + np.searchsorted(self._gallery_rows, gallery_rows)

    def _distance(self, item: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Of a pair of this score, as a fraction of the largest distance of the item."""
        return np.maximum(self._joint.identical - score, 0) * self._scale[item]

    def _symmetric_distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Distances of pairs of items, of which most come in both directions: each is scored once."""
        items = len(self._scale)
        codes = np.minimum(first, second) * items + np.maximum(first, second)
        once, place = np.unique(codes, return_inverse=True)
        scores = [
            self._joint.exact(*np.divmod(once[start : start + _PAIRS], items))
            for start in range(0, len(once), _PAIRS)
        ]
        return self._distance(first, np.concatenate(scores)[place])


@dataclass(frozen=True)
class _Queries:
    """Some queries, prepared; a slice of them is one too."""

    rows: Tensor
    factor: Tensor  # (n, 1): what turns a difference of scores into its part of the final score
    items: np.ndarray

    def __getitem__(self, part: slice) -> _Queries:
        return _Queries(self.rows[part], self.factor[part], self.items[part])


@dataclass(frozen=True)
class _Gallery:
    """Some gallery rows, prepared."""

    rows: Tensor
    vectors: InvertedVectors


def _similarity(overlap: np.ndarray) -> np.ndarray:
    """Jaccard similarity of vectors that add up to 1 each and share this much."""
    return overlap / (2 - overlap)


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
        for part in split_by_count(self.counts[first], _ENTRIES):
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
        for part in split_by_count(counts, _ENTRIES):
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
    for part in split_by_count(size, _ENTRIES):
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
    for part in split_by_count(vectors.counts[lists].sum(axis=1), _ENTRIES):
        number, place = vectors.pairs_of(lists[part].ravel())
        row = part.start + number // length
        code, entry = np.unique(row * vectors.items + vectors.column[place], return_inverse=True)
        codes.append(code)
        values.append(np.bincount(entry, vectors.values[place]) / length)
    return SparseVectors(vectors.items, np.concatenate(codes), np.concatenate(values))
