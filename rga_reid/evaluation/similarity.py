"""Scores of query-gallery pairs: a fast approximation with a known error, and the exact value.

A score is higher the better a pair fits. The exact score of a pair is a float64 number that depends on its
two rows alone; the approximation is a matrix product, which sums in an order of its own for each size of
block, number of threads and device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rga_reid.evaluation.features import FeatureRows, row_norms, to_float32

#: gallery rows in a block, by default; larger blocks are no faster, and the memory of every block must be
#: fetched anew from the system
BLOCK_SIZE = 1024
_SLICE = 2048  # columns that are summed before they join the total
_MANY = 2**18  # pairs for which a search for equal rows pays
_TEMPORARY = 2**18  # float64 numbers of each side that exact scores hold at a time
_TILE = 2**19  # scores in a tile
_PRODUCT = 2**20  # scores computed at a time: with fewer rows a product does not reach its full speed
# What a term of an exact score goes through: NumPy sums 128 numbers in 8 strands, and such sums pairwise
_EXACT_ROUNDINGS = 48


class Scores(Protocol):
    """What a ranking needs of a metric."""

    dtype: torch.dtype  #: of approximations that are good enough for most pairs
    device: torch.device  #: where they are computed

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Any:
        """These query rows, prepared for ``approximate``; slices of what is returned serve too."""

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Any:
        """These gallery rows, likewise."""

    def approximate(self, queries: Any, gallery: Any) -> Tensor:
        """Scores of all pairs, ``(n, m)``."""

    def error(self, dtype: torch.dtype) -> float:
        """Bound on how far ``approximate`` is from ``exact`` when it computes with ``dtype``."""

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Scores of the pairs ``(query_rows[n], gallery_rows[n])``, float64 ``(n,)``."""


class Tile(NamedTuple):
    """Approximate scores of some queries and some gallery rows."""

    scores: Tensor  #: (n, m)
    query: int  #: number of the first query
    column: int  #: number of the first gallery row


def tiles(
    scores: Scores,
    query_rows: np.ndarray,
    gallery_rows: np.ndarray,
    block_size: int,
    *,
    dtype: torch.dtype | None = None,
    size: int = _TILE,
) -> Iterator[Tile]:
    """Approximate scores of all pairs of these rows, tile by tile, all queries of a gallery block in turn.

    Args:
        scores: what computes them.
        query_rows, gallery_rows: row numbers; all the queries are prepared at a time.
        block_size: gallery rows prepared at a time.
        dtype: of the scores; by default what is good enough for most pairs.
        size: scores in a tile.
    """
    dtype = scores.dtype if dtype is None else dtype
    left = scores.queries(query_rows, dtype)
    height = max(1, size // block_size)
    tall = height * max(1, _PRODUCT // (height * block_size))
    for column in range(0, len(gallery_rows), block_size):
        right = scores.gallery(gallery_rows[column : column + block_size], dtype)
        for first in range(0, len(query_rows), tall):
            product = scores.approximate(left[first : first + tall], right)
            for row in range(0, len(product), height):
                yield Tile(product[row : row + height], first + row, column)


def above_threshold(tile: Tensor, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of the entries of ``tile`` that are not below ``floor``, which broadcasts."""
    reached = tile >= torch.from_numpy(floor).to(tile.device)
    place = np.flatnonzero(reached.cpu().numpy())
    value = tile.take(torch.from_numpy(place).to(tile.device)).cpu().numpy()
    row, column = np.divmod(place, tile.shape[1])
    return row, column, value


class CosineScores:
    """The float64 dot product of two float32 rows, divided by the product of their lengths.

    Args:
        query, gallery: floating-point features ``(q, d)`` and ``(g, d)``.
        device: where approximations are computed.

    Raises:
        InputError: a row with NaN, infinity, or only zeros.
    """

    dtype = torch.float32
    identical = 1.0  #: score of a row and itself, apart from rounding; no pair fits better

    def __init__(self, query: FeatureRows, gallery: FeatureRows, device: torch.device) -> None:
        self.device = device
        self._query, self._gallery = query, gallery
        self._query_norms, self._gallery_norms = _norms(query, gallery, allow_zero=False)

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return _divided(self._query, rows, self._query_norms[rows], dtype).to(self.device)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return _divided(self._gallery, rows, self._gallery_norms[rows], dtype).to(self.device)

    def approximate(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return _product(queries, gallery)

    def error(self, dtype: torch.dtype) -> float:
        # Each entry of a unit row is off by at most 2 roundings (of the length, of the quotient), and by
        # Cauchy-Schwarz Σ|x_i y_i| is at most 1.
        return _rounding(self._query.shape[1], 4 + _EXACT_ROUNDINGS, dtype)

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        dots = _over_pairs(_dot, self._query, query_rows, self._gallery, gallery_rows)
        return dots / (self._query_norms[query_rows] * self._gallery_norms[gallery_rows])


class EuclideanScores:
    """Minus the squared Euclidean distance of two float32 rows, summed in float64.

    Approximated by a product, ``2x·y − ‖x‖² − ‖y‖²``. All is measured in a unit, a power of two, that makes
    no row longer than 1: that changes no digit and no rank.

    Args:
        query, gallery: floating-point features ``(q, d)`` and ``(g, d)``.
        device: where approximations are computed.

    Raises:
        InputError: a row with NaN or infinity.
    """

    dtype = torch.float32
    identical = 0.0  #: score of a row and itself, apart from rounding; no pair fits better

    def __init__(self, query: FeatureRows, gallery: FeatureRows, device: torch.device) -> None:
        self.device = device
        self._query, self._gallery = query, gallery
        query_norms, gallery_norms = _norms(query, gallery, allow_zero=True)
        longest = max(query_norms.max(), gallery_norms.max())
        self._unit = 2.0 ** np.ceil(np.log2(longest)) if longest > 0 else 1.0
        self._query_squares = (query_norms / self._unit) ** 2
        self._gallery_squares = (gallery_norms / self._unit) ** 2

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return self._prepared(self._query, rows, self._query_squares, 2, dtype)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return self._prepared(self._gallery, rows, self._gallery_squares, 1, dtype)

    def _prepared(
        self, features: FeatureRows, rows: np.ndarray, squares: np.ndarray, factor: int, dtype: torch.dtype
    ) -> Tensor:
        """Rows times ``factor``, and their squared lengths in a last column."""
        x = _divided(features, rows, np.full(len(rows), self._unit / factor), dtype)
        return torch.column_stack([x, torch.from_numpy(squares[rows]).to(dtype)]).to(self.device)

    def approximate(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return _product(queries[:, :-1], gallery[:, :-1]).sub_(queries[:, -1:]).sub_(gallery[:, -1])

    def error(self, dtype: torch.dtype) -> float:
        # Of the product: its terms 2|x_i y_i| add up to at most 2. Of the rest: numbers up to 4, namely the
        # rounding of the squares (themselves sums in float64), two differences, and the exact score.
        return 2 * _rounding(self._query.shape[1], 4, dtype) + 4 * _relative(4 + 2 * _EXACT_ROUNDINGS, dtype)

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        squares = _over_pairs(_squared_distance, self._query, query_rows, self._gallery, gallery_rows)
        return -squares / self._unit**2


class DistanceScores:
    """Minus the given distances: exact already.

    Args:
        distances: ``(q, g)``, smaller for a better fit.
    """

    device = torch.device("cpu")

    def __init__(self, distances: np.ndarray) -> None:
        self._distances = distances
        self._real = np.float32 if distances.dtype == np.float32 else np.float64
        self.dtype = torch.float32 if distances.dtype == np.float32 else torch.float64

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        return rows

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        return rows

    def approximate(self, queries: np.ndarray, gallery: np.ndarray) -> Tensor:
        return torch.from_numpy(-self._distances[queries[:, None], gallery].astype(self._real))

    def error(self, dtype: torch.dtype) -> float:
        return 0.0

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        return -self._distances[query_rows, gallery_rows].astype(np.float64)


Metric = Literal["cosine", "euclidean"]
METRICS: dict[Metric, type[CosineScores] | type[EuclideanScores]] = {
    "cosine": CosineScores,
    "euclidean": EuclideanScores,
}


def _norms(query: FeatureRows, gallery: FeatureRows, *, allow_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row lengths of both sides, which may be the same matrix."""
    lengths = row_norms(query, "query_features", allow_zero=allow_zero)
    if gallery is query:
        return lengths, lengths
    return lengths, row_norms(gallery, "gallery_features", allow_zero=allow_zero)


def _divided(features: FeatureRows, rows: np.ndarray, lengths: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Rows of float32 divided by their lengths, a new tensor of ``dtype``; Torch divides on all threads."""
    # lengths that float32 cannot hold, or hardly, are divided by in float64
    small, large = lengths.min(initial=1.0), lengths.max(initial=1.0)
    wide = torch.float32 if dtype == torch.float32 and small > 1e-30 and large < 1e30 else torch.float64
    quotient = torch.from_numpy(to_float32(features, rows)).to(wide)  # a copy: of these rows
    return quotient.div_(torch.from_numpy(lengths).to(wide)[:, None]).to(dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T``, a slice of the columns at a time: that is what bounds its error."""
    total = left[:, :_SLICE] @ right[:, :_SLICE].T
    part = torch.empty_like(total) if left.shape[1] > _SLICE else total
    for start in range(_SLICE, left.shape[1], _SLICE):
        total += torch.mm(left[:, start : start + _SLICE], right[:, start : start + _SLICE].T, out=part)
    return total


def product_error(columns: int, dtype: torch.dtype) -> float:
    """Return a bound on how far a product of unit rows is from their float64 dot product.

    The product may sum in any order. Σ|x_i y_i| is at most 1 for unit rows, 1.01 for rows that are nearly of
    length 1.
    """
    return 1.01 * (_relative(columns, dtype) + _relative(columns, torch.float64))


def _rounding(columns: int, others: int, dtype: torch.dtype) -> float:
    """Bound on the error of ``_product`` of two rows with Σ|x_i y_i| ≤ 1.

    Within a slice of s columns a term goes through at most s roundings, in whatever order the product sums
    (one when it is formed, s − 1 when it is added, fewer with fused multiply-add), then through one for each
    slice. ``others`` is how many more there are before and after. All n together change a term by a factor
    within 1 ± n·u/(1 − n·u), where u is half the spacing of ``dtype`` at 1 (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd edition, lemma 3.1).
    """
    return _relative(min(columns, _SLICE) + -(-columns // _SLICE) + others, dtype)


def _relative(roundings: int, dtype: torch.dtype) -> float:
    """Bound on the relative change by so many roundings: n·u/(1 − n·u)."""
    relative = roundings * torch.finfo(dtype).eps / 2
    return relative / (1 - relative)


def _dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x *= y
    return x.sum(axis=1)


def _squared_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x -= y
    x *= x
    return x.sum(axis=1)


def _over_pairs(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    query: FeatureRows,
    query_rows: np.ndarray,
    gallery: FeatureRows,
    gallery_rows: np.ndarray,
) -> np.ndarray:
    """``function(x, y)`` of pairs of rows, some at a time; x is float64, a copy that it may change.

    NumPy sums contiguous rows one by one, each in the same order: a value depends on its two rows alone.
    """
    if len(query_rows) > _MANY:  # perhaps because many rows are the same
        query_rows, gallery_rows = _first_twins(query, query_rows), _first_twins(gallery, gallery_rows)
        pairs, place = np.unique(query_rows * len(gallery) + gallery_rows, return_inverse=True)
        if len(pairs) < len(place):
            query_rows, gallery_rows = np.divmod(pairs, len(gallery))
            return _over_pairs(function, query, query_rows, gallery, gallery_rows)[place]
    values = np.empty(len(query_rows))
    step = max(1, _TEMPORARY // query.shape[1])
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        x = to_float32(query, query_rows[part]).astype(np.float64)
        values[part] = function(x, to_float32(gallery, gallery_rows[part]).astype(np.float64))
    return values


def _first_twins(features: FeatureRows, rows: np.ndarray) -> np.ndarray:
    """Each row number replaced by that of the first row, among those given, with the same content."""
    distinct, place = np.unique(rows, return_inverse=True)
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(features[row].tobytes(), digest_size=16).digest() for row in distinct)
    return np.array([first.setdefault(digest, row) for digest, row in zip(digests, distinct, strict=True)])[
        place
    ]


@contextmanager
def use_full_precision(device: torch.device) -> Iterator[None]:
    """Within the block: no autograd, no autocast, no TF32 or bfloat16 inside float32 products.

    The last two would put the error of a product far beyond what float32 promises.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _ieee_products():
        yield


@contextmanager
def _ieee_products() -> Iterator[None]:
    backends: list[Any] = [
        getattr(part, "matmul", None) for part in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # torch before 2.9
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
