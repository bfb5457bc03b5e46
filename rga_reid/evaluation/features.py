"""What the public functions take, checked once and brought to one form."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, Union

import numpy as np
import pandas as pd
import torch

from rga_reid.errors import InputError

_ROWS = 64  # of float64 at a time: they stay in the processor's cache


def feature_matrix(values: Any, name: str) -> np.ndarray:
    """A feature matrix as an array, without a copy where that is possible (a memory map stays one).

    Args:
        values: floating-point numbers ``(n, d)``, an array or a tensor on any device.
        name: what an error message calls them.

    Raises:
        InputError: not a matrix, an empty one, or one of another type.
    """
    matrix = as_array(values)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind != "f":
        raise InputError(
            f"{name}: expected a matrix (n, d) of floating-point numbers, got {matrix.dtype} {matrix.shape}"
        )
    return matrix


def feature_pair(query_features: Any, gallery_features: Any) -> tuple[np.ndarray, np.ndarray]:
    """The two feature matrices that nearly every function takes, checked by ``feature_matrix``.

    Raises:
        InputError: one of them is none, or their rows are of different lengths.
    """
    query = feature_matrix(query_features, "query_features")
    gallery = feature_matrix(gallery_features, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            "query_features, gallery_features: expected rows of one length, found "
            f"{query.shape[1]} and {gallery.shape[1]}"
        )
    return query, gallery


def row_norms(features: FeatureRows, name: str, *, allow_zero: bool) -> np.ndarray:
    """Euclidean length of each row of float32, float64 ``(n,)``; each depends on its own row only.

    Raises:
        InputError: a row that holds NaN or infinity, or only zeros where that has no meaning.
    """
    squares = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        rows = to_float32(features, slice(start, start + _ROWS)).astype(np.float64)
        squares[start : start + _ROWS] = np.multiply(rows, rows, out=rows).sum(axis=1)
    # a float32 squared is far from overflow in float64, so a sum is finite exactly if its row is
    reject_rows(~np.isfinite(squares), name, "NaN or infinity")
    if not allow_zero:
        reject_rows(squares == 0, name, "only zeros: it has no direction, so no cosine")
    return np.sqrt(squares)


def reject_rows(wrong: np.ndarray, name: str, what: str) -> None:
    """Raise an InputError that names the first row for which ``wrong`` is true."""
    if wrong.any():
        more = int(wrong.sum()) - 1
        others = f" (and {more} more rows)" if more else ""
        raise InputError(f"{name}: row {int(np.argmax(wrong))}{others} holds {what}")


def to_float32(features: FeatureRows, rows: np.ndarray | slice) -> np.ndarray:
    """Rows of a feature matrix in float32, C-contiguous; what is too large becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        return np.ascontiguousarray(features[rows], dtype=np.float32)


def distance_matrix(values: Any) -> np.ndarray:
    """A matrix of distances as an array, without a copy where that is possible (a memory map stays one).

    Raises:
        InputError: not a matrix of real numbers, an empty one, or a row with NaN or infinity.
    """
    matrix = as_array(values)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise InputError(f"distances: expected a matrix (q, g) of numbers, got {matrix.dtype} {matrix.shape}")
    if matrix.dtype.kind == "f":
        # the largest numbers of a type stand for infinity somewhere; their differences overflow
        most = np.finfo(matrix.dtype).max / 4
        blocks = (matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS))
        wrong = np.concatenate([~(np.abs(block) <= most).all(axis=1) for block in blocks])
        infinite = wrong.copy()
        infinite[wrong] = ~np.isfinite(matrix[wrong]).all(axis=1)
        reject_rows(infinite, "distances", "NaN or infinity")
        reject_rows(wrong, "distances", f"a number beyond {most:.3g}")
    return matrix


def labels(values: Any, length: int, name: str) -> pd.Series:
    """Identities or cameras as nullable integers.

    Args:
        values: ``length`` whole numbers, null (None, NaN, NA or masked) where unknown: a list, an array, a
            tensor, a masked or pandas array. None: all are unknown.
        name: what an error message calls them.

    Returns:
        Int64 series of ``length``, rows numbered from 0.

    Raises:
        InputError: another length, or something that is not a whole number.
    """
    if values is None:
        return pd.Series([pd.NA] * length, dtype="Int64")
    plain: Any = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if isinstance(plain, np.ma.MaskedArray):
        masked, plain = np.ma.getmaskarray(plain), plain.data.astype(object)
        plain[masked] = None
    try:
        # a list of whole numbers with a null among them would become floating, and lose digits
        series = pd.Series(plain, dtype=object if isinstance(plain, list | tuple) else None)
        series = series.reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected {length} whole numbers ({error})") from None
    _same_length(len(series), length, name)
    kind = pd.api.types.infer_dtype(series.dropna())
    if kind not in ("integer", "floating", "mixed-integer-float", "empty"):
        raise InputError(f"{name}: expected whole numbers, null where unknown, found {kind} values")
    try:
        return series.astype("Int64")
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: expected whole numbers of 64 bits, null where unknown") from None


def file_names(values: Iterable[Any] | None, length: int, name: str) -> pd.Series:
    """Paths as text, null where unknown; all are unknown if ``values`` is None.

    Raises:
        InputError: another length, or something that is not a path.
    """
    if values is None:
        return pd.Series([pd.NA] * length, dtype="str")
    paths: list[str | None] = []
    for row, value in enumerate(values):
        if isinstance(value, str | os.PathLike):
            paths.append(os.fspath(value))
        elif pd.api.types.is_scalar(value) and pd.isna(value):
            paths.append(None)
        else:
            raise InputError(f"{name}: row {row}: expected a path, got {value!r}")
    _same_length(len(paths), length, name)
    return pd.Series(paths, dtype="str")


def label_tables(
    shape: tuple[int, ...],
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    query_paths: Iterable[Any] | None,
    gallery_paths: Iterable[Any] | None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is known of each query and of each gallery item, checked by ``labels`` and ``file_names``.

    Args:
        shape: (q, g), how many queries and gallery items there are.
        query_pids, gallery_pids, query_camids, gallery_camids, query_paths, gallery_paths: as for
            ``evaluate_ranking``.

    Returns:
        Two tables, of q and of g rows, with the columns ``path``, ``pid`` and ``camid``.

    Raises:
        InputError: no identities, cameras on one side only, or labels that do not fit.
    """
    if (query_camids is None) != (gallery_camids is None):
        given, missing = ("gallery", "query") if query_camids is None else ("query", "gallery")
        raise InputError(f"{missing}_camids: not given, but {given}_camids are; give both or neither")
    queries, items = shape
    return (
        _label_table("query", queries, query_pids, query_camids, query_paths),
        _label_table("gallery", items, gallery_pids, gallery_camids, gallery_paths),
    )


def as_array(values: Any) -> np.ndarray:
    """As an array of NumPy: a tensor from any device, without its gradient, bfloat16 as float32."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return np.asarray(values)


def _label_table(side: str, length: int, pids: Any, camids: Any, paths: Iterable[Any] | None) -> pd.DataFrame:
    if pids is None:
        raise InputError(f"{side}_pids: expected {length} identities, found none")
    return pd.DataFrame(
        {
            "path": file_names(paths, length, f"{side}_paths"),
            "pid": labels(pids, length, f"{side}_pids"),
            "camid": labels(camids, length, f"{side}_camids"),
        }
    )


def _same_length(found: int, expected: int, name: str) -> None:
    if found != expected:
        raise InputError(f"{name}: expected {expected} values, as many as there are rows, found {found}")


class StackedRows:
    """The rows of one matrix, followed by chosen rows of another. Indexed by rows, as an array is.

    Args:
        first, second: features ``(q, d)`` and ``(g, d)``, arrays or memory maps.
        chosen: rows of ``second`` that take part, ``(m,)``: this is a matrix ``(q + m, d)``.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, chosen: np.ndarray) -> None:
        self._first, self._second, self._chosen = first, second, chosen
        self.shape = (len(first) + len(chosen), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """A new array ``(n, d)``; one row, too, gives a matrix."""
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.atleast_1d(rows)
        upper = numbers < len(self._first)
        if upper.all():
            return self._first[numbers]
        if not upper.any():
            return self._second[self._chosen[numbers - len(self._first)]]
        found = np.empty((len(numbers), self.shape[1]), np.result_type(self._first, self._second))
        found[upper] = self._first[numbers[upper]]
        found[~upper] = self._second[self._chosen[numbers[~upper] - len(self._first)]]
        return found


FeatureRows: TypeAlias = Union[np.ndarray, StackedRows]  # noqa: UP007 - evaluated at run time


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
