"""Scores of query-gallery pairs: a fast approximation with a known error, and the exact value.

A higher score is a better match. The exact score of a pair is a float64 number that depends on its two rows
only. The approximation is a matrix product, whose order of summation depends on the size of the block, the
number of threads and the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rga_reid.evaluation.features import FeatureRows, copy_float32, row_norms, to_float32

#: gallery rows of a block by default; larger blocks are not faster, as the system allocates their memory
#: each time
BLOCK_SIZE = 1024
_SLICE = 2048  # columns summed at a time
_MANY = 2**18  # pairs for which a search for equal rows pays off
_HASHED = 64  # rows hashed at a time
_TEMPORARY = 2**17  # numbers of each side that a thread holds for exact scores
_MAX_THREADS = 4  # more threads would wait for the interpreter
_TILE = 2**19  # scores of a tile
_PRODUCT = 2**20  # scores computed at a time: products of fewer rows do not reach full speed
# roundings of a term of an exact score: NumPy sums 128 numbers in 8 strands, and such sums pairwise
_EXACT_ROUNDINGS = 48


class Scores(Protocol):
    """A metric, as a ranking uses it."""

    dtype: torch.dtype  #: type in which approximations decide most pairs
    device: torch.device  #: device of the approximations

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Any:
        """Prepare query rows for ``approximate``; a slice of the result is a valid argument too."""

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Any:
        """Prepare gallery rows for ``approximate``."""

    def approximate(self, queries: Any, gallery: Any) -> Tensor:
        """Return the scores of all pairs, ``(n, m)``."""

    def error(self, dtype: torch.dtype) -> float:
        """Return a bound on the difference of ``approximate`` in ``dtype`` and ``exact``."""

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        """Return the scores of the pairs ``(query_rows[n], gallery_rows[n])``, float64 ``(n,)``."""


class Tile(NamedTuple):
    """Approximate scores of a block of queries and a block of gallery rows."""

    scores: Tensor  #: (n, m)
    query: int  #: index of the first query
    column: int  #: index of the first gallery row


def tiles(
    scores: Scores,
    query_rows: np.ndarray,
    gallery_rows: np.ndarray,
    block_size: int,
    *,
    dtype: torch.dtype | None = None,
    size: int = _TILE,
) -> Iterator[Tile]:
    """Compute the approximate scores of all pairs of these rows, tile by tile, gallery block by gallery block.

    Args:
        scores: computes the scores.
        query_rows, gallery_rows: row numbers; all queries are prepared at once.
        block_size: gallery rows prepared at a time.
        dtype: type of the scores; ``scores.dtype`` by default.
        size: scores of a tile.

    Yields:
        Tiles that the caller may change.
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


def above_threshold(tile: Tensor, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, column and value of the entries that reach ``threshold``, which is broadcast.

    The other entries stay on the device.
    """
    place = flat_nonzero(tile >= torch.from_numpy(threshold).to(tile.device))
    value = tile.take(place).cpu().numpy()
    row, column = np.divmod(place.cpu().numpy(), tile.shape[1])
    return row, column, value


def flat_nonzero(mask: Tensor) -> Tensor:
    """Return the indices of true entries in the flattened mask, int64 ``(n,)``, on its device."""
    if mask.is_cpu:  # NumPy finds them faster
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


class CosineScores:
    """The float64 dot product of two float32 rows, divided by the product of their lengths.

    Args:
        query, gallery: floating-point features ``(q, d)`` and ``(g, d)``.
        device: device of the approximations.

    Raises:
        InputError: a row with NaN, infinity, or only zeros.
    """

    dtype = torch.float32
    identical = 1.0  #: score of a row with itself, apart from rounding; the highest score

    def __init__(self, query: FeatureRows, gallery: FeatureRows, device: torch.device) -> None:
        self.device = device
        self._query, self._gallery = query, gallery
        self._query_norms, self._gallery_norms = _norms(query, gallery, allow_zero=False)

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return _divide(self._query, rows, self._query_norms[rows], dtype).to(self.device)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return _divide(self._gallery, rows, self._gallery_norms[rows], dtype).to(self.device)

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

    Approximated by a product, ``2x·y − ‖x‖² − ‖y‖²``. Rows are scaled by a power of two, so that none is
    longer than 1; that changes no digit and no rank.

    Args:
        query, gallery: floating-point features ``(q, d)`` and ``(g, d)``.
        device: device of the approximations.

    Raises:
        InputError: a row with NaN or infinity.
    """

    dtype = torch.float32
    identical = 0.0  #: score of a row with itself, apart from rounding; the highest score

    def __init__(self, query: FeatureRows, gallery: FeatureRows, device: torch.device) -> None:
        self.device = device
        self._query, self._gallery = query, gallery
        query_norms, gallery_norms = _norms(query, gallery, allow_zero=True)
        longest = max(query_norms.max(), gallery_norms.max())
        self._unit = 2.0 ** np.ceil(np.log2(longest)) if longest > 0 else 1.0
        self._query_squares = (query_norms / self._unit) ** 2
        self._gallery_squares = (gallery_norms / self._unit) ** 2

    def queries(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return self._prepare(self._query, rows, self._query_squares, 2, dtype)

    def gallery(self, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
        return self._prepare(self._gallery, rows, self._gallery_squares, 1, dtype)

    def _prepare(
        self, features: FeatureRows, rows: np.ndarray, squares: np.ndarray, factor: int, dtype: torch.dtype
    ) -> Tensor:
        """Return rows times ``factor``, with their squared lengths in a last column."""
        x = _divide(features, rows, np.full(len(rows), self._unit / factor), dtype)
        return torch.column_stack([x, torch.from_numpy(squares[rows]).to(dtype)]).to(self.device)

    def approximate(self, queries: Tensor, gallery: Tensor) -> Tensor:
        return _product(queries[:, :-1], gallery[:, :-1]).sub_(queries[:, -1:]).sub_(gallery[:, -1])

    def error(self, dtype: torch.dtype) -> float:
        # The terms 2|x_i y_i| of the product add up to at most 2. The other roundings are of numbers up to 4:
        # the squares (which are sums in float64), two differences, and the exact score.
        return 2 * _rounding(self._query.shape[1], 4, dtype) + 4 * _relative(4 + 2 * _EXACT_ROUNDINGS, dtype)

    def exact(self, query_rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
        squares = _over_pairs(_squared_distance, self._query, query_rows, self._gallery, gallery_rows)
        return -squares / self._unit**2


class DistanceScores:
    """Minus the given distances, which are exact.

    Args:
        distances: ``(q, g)``, smaller for a better match.
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
    """Return the row lengths of both sides, which may be the same matrix."""
    lengths = row_norms(query, "query_features", allow_zero=allow_zero)
    if gallery is query:
        return lengths, lengths
    return lengths, row_norms(gallery, "gallery_features", allow_zero=allow_zero)


def _divide(features: FeatureRows, rows: np.ndarray, lengths: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return float32 rows divided by their lengths as a new tensor; torch divides on all threads."""
    # in float64 for lengths near or beyond the limits of float32
    small, large = lengths.min(initial=1.0), lengths.max(initial=1.0)
    wide = torch.float32 if dtype == torch.float32 and small > 1e-30 and large < 1e30 else torch.float64
    quotient = torch.from_numpy(to_float32(features, rows)).to(wide)  # a copy of the rows
    return quotient.div_(torch.from_numpy(lengths).to(wide)[:, None]).to(dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.T``, computed in slices of the columns to bound the error."""
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
    """Return a bound on the error of ``_product`` of two rows with Σ|x_i y_i| ≤ 1.

    Within a slice of s columns a term is rounded at most s times, in any order of summation (once when it is
    formed, s − 1 times when it is added, less often with fused multiply-add), then once for each slice.
    ``others`` is the number of roundings before and after. All n together change a term by a factor within
    1 ± n·u/(1 − n·u), where u is half the spacing of ``dtype`` at 1 (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd edition, lemma 3.1).
    """
    return _relative(min(columns, _SLICE) + -(-columns // _SLICE) + others, dtype)


def _relative(roundings: int, dtype: torch.dtype) -> float:
    """Return a bound on the relative change by n roundings: n·u/(1 − n·u)."""
    relative = roundings * torch.finfo(dtype).eps / 2
    return relative / (1 - relative)


def _dot(x: np.ndarray, y: np.ndarray, terms: np.ndarray, out: np.ndarray) -> None:
    terms[...] = x
    np.multiply(terms, y, out=terms).sum(axis=1, out=out)


def _squared_distance(x: np.ndarray, y: np.ndarray, terms: np.ndarray, out: np.ndarray) -> None:
    terms[...] = x
    np.subtract(terms, y, out=terms)
    np.square(terms, out=terms).sum(axis=1, out=out)


def _over_pairs(
    function: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None],
    query: FeatureRows,
    query_rows: np.ndarray,
    gallery: FeatureRows,
    gallery_rows: np.ndarray,
) -> np.ndarray:
    """Return the results of ``function(x, y, terms, out)`` for pairs of rows, computed in parts by several threads.

    x and y are float32 rows, terms is float64 memory of their shape. NumPy sums contiguous rows one by one, each in the
    same order, so a result depends on its two rows only.
    """
    if len(query_rows) > _MANY:  # perhaps because many rows are equal
        query_rows, gallery_rows = _first_twins(query, query_rows), _first_twins(gallery, gallery_rows)
        pairs, place = np.unique(query_rows * len(gallery) + gallery_rows, return_inverse=True)
        if len(pairs) < len(place):
            query_rows, gallery_rows = np.divmod(pairs, len(gallery))
            return _over_pairs(function, query, query_rows, gallery, gallery_rows)[place]
    values = np.empty(len(query_rows))
    columns = query.shape[1]
    height = max(1, min(_TEMPORARY // columns, len(values)))
    starts = range(0, len(values), height)

    def compute(first: int, step: int) -> None:
        x, y = np.empty((2, height, columns), np.float32)
        terms = np.empty((height, columns))
        for start in starts[first::step]:
            part = slice(start, start + height)
            count = len(values[part])
            copy_float32(query, query_rows[part], x[:count])
            copy_float32(gallery, gallery_rows[part], y[:count])
            function(x[:count], y[:count], terms[:count], values[part])

    threads = min(_MAX_THREADS, torch.get_num_threads(), len(starts))
    if threads <= 1:
        compute(0, 1)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute, range(threads), [threads] * threads))  # list() raises their errors
    return values


def _first_twins(features: FeatureRows, rows: np.ndarray) -> np.ndarray:
    """Replace each row number by that of the first row, among those given, with the same content."""
    distinct, place = np.unique(rows, return_inverse=True)
    group = group_equal_rows(features, distinct)
    first = np.unique(group, return_index=True)[1]
    return distinct[first[group]][place]


def group_equal_rows(features: FeatureRows, rows: np.ndarray) -> np.ndarray:
    """Return for each row the number of its group of rows of equal content, in order of appearance."""
    sums = np.empty(len(rows))
    for start in range(0, len(rows), _HASHED):
        part = slice(start, start + _HASHED)
        sums[part] = to_float32(features, rows[part]).sum(axis=1, dtype=np.float64)
    distinct, group, counts = np.unique(sums, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[group] > 1)  # only rows of the same sum can be equal
    digests = [
        hashlib.blake2b(row, digest_size=16).digest()
        for start in range(0, len(several), _HASHED)
        for row in to_float32(features, rows[several[start : start + _HASHED]])
    ]
    group[several] = len(distinct) + pd.factorize(np.array(digests, dtype=object))[0]
    return pd.factorize(group)[0]


@contextmanager
def use_full_precision(device: torch.device) -> Iterator[None]:
    """Within the block, disable autograd, autocast, and TF32 and bfloat16 in float32 products.

    TF32 and bfloat16 would exceed the error bounds of this module.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _ieee_products():
        yield


@contextmanager
def _ieee_products() -> Iterator[None]:
    backends: list[Any] = [
        getattr(part, "matmul", None) for part in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # torch before 2.9
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
