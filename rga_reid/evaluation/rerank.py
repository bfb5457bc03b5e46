"""Re-ranking by k-reciprocal neighbours (Zhong et al., CVPR 2017), in memory that does not grow with n².

Zhun Zhong, Liang Zheng, Donglin Cao, Shaozi Li: Re-ranking Person Re-identification with k-reciprocal
Encoding, arXiv 1701.08398. With N(p, k) the k nearest items of an item p among all n queries and gallery
items, and d the squared distance divided by the largest one of p:

1. R(p, k): the items g of N(p, k) with p in N(g, k)                              ``find_reciprocal``
2. R*(p, k1): R(p, k1), and each R(q, k1/2) of its members that shares 2/3 with it ``expand_sets``
3. V(p): a vector over all items, exp(-d(p, g)) for g in R*(p, k1), sum 1          ``encode``
4. V(p): its mean over N(p, k2)                                                    ``average_vectors``
5. J(p, g) = 1 - Σ min(V(p), V(g)) / Σ max(V(p), V(g))                             ``jaccard_similarity``
6. the final distance (1 - λ) J(p, g) + λ d(p, g)                                  ``ReRankedScores``

The published code holds several n x n matrices. Here the neighbours are found tile by tile (``topk``), sets
and vectors are sparse, and the distance of a pair is computed when it is asked for.
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
from rga_reid.evaluation.features import (
    FeatureRows,
    StackedRows,
    expand_ranges,
    feature_pair,
    split_by_count,
)
from rga_reid.evaluation.similarity import (
    BLOCK_SIZE,
    METRICS,
    CosineScores,
    EuclideanScores,
    Metric,
    tiles,
    use_full_precision,
)
from rga_reid.evaluation.topk import find_neighbours, product_dtype

_QUERIES = 4096  # queries prepared at a time
_PAIRS = 2**17  # pairs scored exactly at a time: few enough to skip the search for equal rows
_ENTRIES = 2**20  # elements of temporary arrays


class TooFewItemsError(InputError):
    """Fewer items than the neighbours that a re-ranking needs.

    Args:
        name, value: setting that is too large: k1 or k2.
        least: number of items that it needs.
        items: number of queries and gallery items together.
    """

    def __init__(self, name: str, value: int, least: int, items: int) -> None:
        super().__init__(
            f"{name}: expected at most {value - (least - items)}, for {items} queries and gallery items "
            f"together, found {value}"
        )
        self.least, self.items = least, items


@dataclass(frozen=True)
class ReRanking:
    """Settings of a re-ranking; the defaults are those of the paper.

    Args:
        k1: reciprocal neighbours of an item.
        k2: neighbours, including the item, whose vectors are averaged; 1 for no averaging.
        lambda_value: weight of the original distance in the final one, from 0 to 1.

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
        """Number of nearest items, including itself, that each item needs."""
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
    """Return the re-ranked distances of all queries and gallery items.

    The neighbours are exact, ties by index (queries first, then the gallery). The original distance in the
    final mix is that of a matrix product.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors. Leave junk out of the gallery: every item can be a neighbour.
        k1, k2, lambda_value: see ``ReRanking``.
        metric: "cosine", the distance between the rows scaled to length 1, or "euclidean" for the unscaled
            rows; both are squared.
        device: device of the products, such as "cuda".
        block_size: rows held on the device at a time; changes no neighbour.
        progress: called with the fraction of the work that is done.

    Returns:
        float32 ``(q, g)``, from 0 to 1, smaller for a better match.

    Raises:
        InputError: features that do not fit together; a row with NaN, infinity or, for cosines, only zeros;
            k1 or k2 too large for the number of items; a setting outside its range.
    """
    settings = ReRanking(k1, k2, lambda_value)
    check_choice("metric", metric, get_args(Metric))
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    query, gallery = feature_pair(query_features, gallery_features)
    METRICS[metric](query, gallery, where)  # rejects bad rows by the names of the arguments
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
    """Minus the re-ranked distance, as ``Scores`` for a ranking.

    The exact score of a pair is the float64 number ``−(1 − λ)·J − λ·d``. J comes from vectors whose weights
    are computed from exact distances and summed in the order of their columns, d is the exact original
    distance divided by the query's largest. An approximate score differs in d only, which comes from a
    product. So ranks do not depend on the block size, the number of threads or the device.

    Args:
        query, gallery: features ``(q, d)`` and ``(g, d)``, already checked.
        gallery_rows: rows of the gallery to rank, ascending.
        metric: how features are compared.
        settings: parameters of the re-ranking.
        device: device of the products.
        block_size: rows held on the device at a time during the search for neighbours.
        progress: called with the fraction of that search that is done.

    Raises:
        InputError: fewer items than neighbours.
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
        self._scores = METRICS[metric](items, items, device)
        self._encoded = EncodedItems(self._scores, items, settings, block_size=block_size, progress=progress)
        self.device, self.dtype = device, self._encoded.dtype
        self._scale, self._vectors = self._encoded.scale, self._encoded.vectors
        self._first_column = len(query)
        self._gallery_rows = gallery_rows
        self._lambda = settings.lambda_value

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> _Queries:
        factor = torch.from_numpy(self._lambda * self._scale[rows]).to(self.device, dtype)
        return _Queries(self._scores.queries(rows, dtype), factor[:, None], rows)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> _Gallery:
        items = self._items(rows)
        return _Gallery(self._scores.gallery(items, dtype), self._vectors.invert(items))

    def approximate(self, queries: _Queries, gallery: _Gallery) -> Tensor:
        tile = self._scores.approximate(queries.rows, gallery.rows)
        tile.sub_(self._scores.identical).clamp_(max=0).mul_(queries.factor).sub_(1 - self._lambda)
        place, overlap = gallery.vectors.overlaps(self._vectors, queries.items)
        gain = torch.from_numpy((1 - self._lambda) * jaccard_similarity(overlap)).to(tile)
        tile.view(-1)[torch.from_numpy(place).to(tile.device)] += gain
        return tile

    def error(self, dtype: torch.dtype) -> float:
        # the error of d is that of the score divided by the largest distance; then there are a few roundings
        # of numbers up to 1, here and in the exact score
        return self._lambda * self._scores.error(dtype) * self._scale.max() + 8 * torch.finfo(dtype).eps

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        items = self._items(gallery_rows)
        overlap = self._vectors.overlap(query_rows, items)
        distance = self._encoded.distance(query_rows, self._scores.exact(query_rows, items))
        return (1 - self._lambda) * (jaccard_similarity(overlap) - 1) - self._lambda * distance

    def _items(self, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the numbers of gallery rows among queries and gallery together."""
        return self._first_column + np.searchsorted(self._gallery_rows, gallery_rows)


@dataclass(frozen=True)
class _Queries:
    """Prepared queries; a slice of them is one too."""

    rows: Tensor
    factor: Tensor  # (n, 1): converts a difference of scores to its part of the final score
    items: np.ndarray

    def __getitem__(self, part: slice) -> _Queries:
        return _Queries(self.rows[part], self.factor[part], self.items[part])


@dataclass(frozen=True)
class _Gallery:
    """Prepared gallery rows."""

    rows: Tensor
    vectors: InvertedVectors


class EncodedItems:
    """Items encoded by their k-reciprocal neighbours, and the scale of their distances.

    The vectors are computed from exact distances, so they do not depend on the block size, the number of
    threads or the device.

    Args:
        scores: scores of the items with themselves.
        items: features ``(n, d)``, with n of at least ``settings.neighbours``.
        settings: k1 and k2 are used.
        block_size: rows held at a time during the search for neighbours.
        progress: called with the fraction of that search that is done.
    """

    def __init__(
        self,
        scores: CosineScores | EuclideanScores,
        items: FeatureRows,
        settings: ReRanking,
        *,
        block_size: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._scores = scores
        self.dtype = product_dtype(scores, len(items))
        found = find_neighbours(
            scores,
            items,
            settings.neighbours,
            dtype=self.dtype,
            block_size=block_size,
            progress=progress,
        )
        largest = scores.identical - found.lowest  # distance of each item's farthest item
        # no scale for an item that, within rounding, equals all others: its distances are 0
        apart = largest > scores.error(torch.float64)
        #: float64 (n,): converts a difference of scores to a distance divided by the largest of the item
        self.scale = np.divide(1, largest, out=np.zeros(len(largest)), where=apart)
        self.vectors = encode(found.rows, settings.k1, settings.k2, self._symmetric_distance)

    def distance(self, item: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Convert the scores of pairs to distances, divided by the largest distance of the first item."""
        return np.maximum(self._scores.identical - score, 0) * self.scale[item]

    def _symmetric_distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the distances of pairs of items. Most pairs occur in both directions: score them once."""
        items = len(self.scale)
        codes = np.minimum(first, second) * items + np.maximum(first, second)
        once, place = np.unique(codes, return_inverse=True)
        scores = [
            self._scores.exact(*np.divmod(once[start : start + _PAIRS], items))
            for start in range(0, len(once), _PAIRS)
        ]
        return self.distance(first, np.concatenate(scores)[place])


def jaccard_similarity(overlap: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity of vectors of sum 1 from the sums of their minima.

    The sum of the maxima is 2 minus that of the minima.
    """
    return overlap / (2 - overlap)


def encode(
    neighbours: np.ndarray, k1: int, k2: int, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> SparseVectors:
    """Encode items as vectors that are similar for items with the same reciprocal neighbours.

    Args:
        neighbours: nearest items of each of n items, including itself, best first; int64
            ``(n, at least max(k1 + 1, k2))``.
        k1: reciprocal neighbours, without the item itself.
        k2: neighbours whose vectors are averaged, including the item itself.
        distance: distances of pairs of items, divided by the largest of the first item.

    Returns:
        Vectors of sum 1. The sum is smaller if an averaged item has no reciprocal neighbour, not even itself,
        because of many equal items before it.
    """
    near = find_reciprocal(neighbours[:, : k1 + 1])
    close = find_reciprocal(
        neighbours[:, : round(k1 / 2) + 1]
    )  # half to even, as np.around in published code
    sets = expand_sets(near, close)
    row = sets.rows()
    weights = np.exp(-distance(row, sets.column))
    weights /= np.bincount(row, weights, minlength=sets.items)[row]
    vectors = SparseVectors(sets.items, sets.codes, weights)
    return vectors if k2 == 1 else average_vectors(vectors, neighbours[:, :k2])


def find_reciprocal(neighbours: np.ndarray) -> SparseSets:
    """Return for each item those of its neighbours ``(n, k)`` that have it among their neighbours."""
    items, length = neighbours.shape
    row, column = np.repeat(np.arange(items), length), neighbours.ravel()
    both = np.intersect1d(row * items + column, column * items + row, assume_unique=True)
    return SparseSets(items, both)


def expand_sets(near: SparseSets, close: SparseSets) -> SparseSets:
    """Add to each near set the close sets of its members that share more than 2/3 of themselves with it."""
    row, size = near.rows(), close.counts[near.column]
    found = [near.codes]
    for part in split_by_count(size, _ENTRIES):
        number, place = close.pairs_of(near.column[part])
        codes = row[part][number] * near.items + close.column[place]
        shared = np.bincount(number, near.find(codes)[1], minlength=part.stop - part.start)
        joins = 3 * shared > 2 * size[part]
        found.append(_sort_distinct(codes[joins[number]]))
    return SparseSets(near.items, _sort_distinct(np.concatenate(found)))


def _sort_distinct(codes: np.ndarray) -> np.ndarray:
    """As ``np.unique``, which looks up integers in a hash table: sorting is faster."""
    codes = np.sort(codes)
    return codes[np.diff(codes, prepend=-1) > 0]


def average_vectors(vectors: SparseVectors, neighbours: np.ndarray) -> SparseVectors:
    """Replace each vector by the mean over the item's neighbours ``(n, k)``: local query expansion."""
    length = neighbours.shape[1]
    codes, values = [], []
    for part in split_by_count(vectors.counts[neighbours].sum(axis=1), _ENTRIES):
        number, place = vectors.pairs_of(neighbours[part].ravel())
        row = part.start + number // length
        code, entry = np.unique(row * vectors.items + vectors.column[place], return_inverse=True)
        codes.append(code)
        values.append(np.bincount(entry, vectors.values[place]) / length)
    return SparseVectors(vectors.items, np.concatenate(codes), np.concatenate(values))


class SparseSets:
    """A set of items for each of n items, stored as sorted pairs (row, column).

    Args:
        items: n.
        codes: row·n + column of each pair, ascending.
    """

    def __init__(self, items: int, codes: np.ndarray) -> None:
        self.items, self.codes = items, codes
        #: (n + 1,): the pairs of row i are starts[i] to starts[i + 1] − 1
        self.starts = np.searchsorted(codes, np.arange(items + 1) * items)
        self.counts = np.diff(self.starts)

    @cached_property
    def column(self) -> np.ndarray:
        """Column of each pair."""
        return self.codes % self.items

    def rows(self) -> np.ndarray:
        """Return the row of each pair."""
        return np.repeat(np.arange(self.items), self.counts)

    def pairs_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs of m rows: for each the number of the row (0 to m − 1) and the place of the pair."""
        return expand_ranges(self.starts[rows], self.counts[rows])

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of pairs, and whether each pair exists."""
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return place, self.codes[place] == codes


class SparseVectors(SparseSets):
    """A sparse vector of non-negative numbers for each of n items.

    Args:
        items, codes: indices of the non-zero entries, as for ``SparseSets``.
        values: their values, float64.
    """

    def __init__(self, items: int, codes: np.ndarray, values: np.ndarray) -> None:
        super().__init__(items, codes)
        self.values = values

    def overlap(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return Σ min(v_first, v_second) for each pair of items, float64.

        Terms are added in the order of the columns, so a sum depends on its two vectors only.
        """
        sums = np.empty(len(first))
        for part in split_by_count(self.counts[first], _ENTRIES):
            number, place = self.pairs_of(first[part])
            other, exists = self.find(second[part][number] * self.items + self.column[place])
            smaller = np.minimum(self.values[place], self.values[other])[exists]
            sums[part] = np.bincount(number[exists], smaller, minlength=part.stop - part.start)
        return sums

    def invert(self, items: np.ndarray) -> InvertedVectors:
        """Return the vectors of these items, prepared to be compared with many others."""
        number, place = self.pairs_of(items)
        order = np.argsort(self.column[place], kind="stable")
        place = place[order]
        starts = np.searchsorted(self.column[place], np.arange(self.items + 1))
        return InvertedVectors(len(items), starts, number[order], self.values[place])


@dataclass(frozen=True, eq=False)
class InvertedVectors:
    """Vectors stored column by column."""

    width: int  #: number of vectors
    starts: np.ndarray  #: (n + 1,): the entries of column i are starts[i] to starts[i + 1] − 1
    owner: np.ndarray  #: number of the entry's vector
    value: np.ndarray

    def overlaps(self, vectors: SparseVectors, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the non-zero overlaps of all these items with all vectors, as ``SparseVectors.overlap``.

        Returns:
            For each its place in the flat matrix (items, vectors), and the sum, float64.
        """
        number, place = vectors.pairs_of(items)
        column = vectors.column[place]
        first = self.starts[column]
        counts = self.starts[column + 1] - first
        sums = np.zeros(len(items) * self.width)
        for part in split_by_count(counts, _ENTRIES):
            entry, other = expand_ranges(first[part], counts[part])
            smaller = np.minimum(vectors.values[place[part]][entry], self.value[other])
            # entries are in the order of the columns, and so are the terms of each sum
            np.add.at(sums, number[part][entry] * self.width + self.owner[other], smaller)
        found = np.flatnonzero(sums)
        return found, sums[found]
