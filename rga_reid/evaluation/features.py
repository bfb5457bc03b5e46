"""Labelled features: every check of features, labels and paths, and the one form that ranking uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, Union

import numpy as np
import pandas as pd
import torch

from rga_reid.data.labels import is_text, label_column
from rga_reid.errors import InputError, short_repr

#: other columns of a table that protocols use
PROTOCOL_COLUMNS = ("track", "clothes", "modality")
_ROWS = 64  # rows converted to float64 at a time: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Features of images with the identity, the camera and the file of each image.

    Args:
        features: floating-point numbers ``(n, d)``, an array (memory maps too) or a tensor on any device.
        pids: identities, whole numbers or text ``(n,)``, null (None, NaN, NA or masked) where unknown.
        camids: cameras, whole numbers or text ``(n,)``, null where unknown; None if no camera is known.
        paths: files ``(n,)``, null where unknown; None if no file is known.
        name: prefix of the arguments in error messages: "query" for ``query_features``, ``query_pids``, ...
        columns: other labels that a protocol uses, ``(n,)`` each, by name, such as ``{"clothes": [1, 1, 2]}``.

    Once checked, ``features`` is an array, made without a copy if possible, ``pids`` and ``camids`` are
    series, Int64 if all values are whole numbers and text otherwise, and ``paths`` is a series of strings.

    Raises:
        InputError: features that are not a matrix of floating-point numbers; labels of another length or type.

    Example:
        >>> gallery = LabelledFeatures(np.eye(3), pids=[7, 8, None], camids=[1, 2, 2])
        >>> len(gallery), gallery.select([2, 0]).pids.tolist()
        (3, [<NA>, 7])
    """

    features: Any
    pids: Any
    camids: Any = None
    paths: Any = None
    name: str = field(default="", kw_only=True)
    columns: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    table: pd.DataFrame = field(init=False, repr=False)  #: the labels, see ``label_table``

    def __post_init__(self) -> None:
        prefix = f"{self.name}_" if self.name else ""
        features = feature_matrix(self.features, f"{prefix}features")
        table = label_table(len(features), self.pids, self.camids, self.paths, prefix=prefix)
        checked = {
            "features": features,
            "pids": table["pid"],
            "camids": None if self.camids is None else table["camid"],
            "paths": None if self.paths is None else table["path"],
            "columns": {
                column: label_series(values, len(features), f"{prefix}{column}")
                for column, values in self.columns.items()
            },
        }
        table = table.assign(**checked["columns"])
        checked["table"] = table
        for attribute, values in checked.items():
            object.__setattr__(self, attribute, values)

    @classmethod
    def from_table(cls, features: Any, table: pd.DataFrame, *, name: str = "") -> LabelledFeatures:
        """Take the labels from the columns ``pid``, ``camid`` (or ``camera``), ``path`` and those of protocols.

        Columns that the table lacks are unknown.
        """
        cameras = table.get("camid", table.get("camera"))
        columns = {column: table[column] for column in PROTOCOL_COLUMNS if _is_labels(table.get(column))}
        return cls(features, table.get("pid"), cameras, table.get("path"), name=name, columns=columns)

    def __len__(self) -> int:
        return len(self.features)

    def select(self, rows: Any) -> LabelledFeatures:
        """Return some rows, given by numbers or as a boolean mask."""
        camids, paths = (None if values is None else values[rows] for values in (self.camids, self.paths))
        columns = {column: values[rows] for column, values in self.columns.items()}
        return LabelledFeatures(
            self.features[rows], self.pids[rows], camids, paths, name=self.name, columns=columns
        )


def _is_labels(values: pd.Series | None) -> bool:
    """Return whether a column can be labels; a column of a table may have the name of one by chance."""
    types = pd.api.types
    return values is not None and (
        types.is_integer_dtype(values) or types.is_string_dtype(values) or types.is_object_dtype(values)
    )


def label_pair(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Return the queries and the gallery, given as the arguments of ``evaluate_ranking``."""
    return (
        LabelledFeatures(query_features, query_pids, query_camids, query_paths, name="query"),
        LabelledFeatures(gallery_features, gallery_pids, gallery_camids, gallery_paths, name="gallery"),
    )


def check_pair(query: LabelledFeatures, gallery: LabelledFeatures) -> None:
    """Check that queries and gallery fit together.

    Raises:
        InputError: features of different lengths, or cameras on one side only.
    """
    check_dimensions(query.features, gallery.features)
    check_cameras(query.camids, gallery.camids)


def check_cameras(query_camids: Any, gallery_camids: Any) -> None:
    """Raise an InputError if cameras are given on one side only."""
    if (query_camids is None) != (gallery_camids is None):
        given, missing = ("gallery", "query") if query_camids is None else ("query", "gallery")
        raise InputError(f"{missing}_camids: not given, but {given}_camids are; give both or neither")


def check_dimensions(query_features: np.ndarray, gallery_features: np.ndarray) -> None:
    """Raise an InputError if the features of the two sides have different lengths."""
    if query_features.shape[1] != gallery_features.shape[1]:
        raise InputError(
            "query_features, gallery_features: expected rows of one length, found "
            f"{query_features.shape[1]} and {gallery_features.shape[1]}"
        )


def feature_pair(query_features: Any, gallery_features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two feature matrices, checked by ``feature_matrix`` and ``check_dimensions``."""
    query = feature_matrix(query_features, "query_features")
    gallery = feature_matrix(gallery_features, "gallery_features")
    check_dimensions(query, gallery)
    return query, gallery


def feature_matrix(
    values: Any, name: str, *, allow_integers: bool = False, allow_empty: bool = False
) -> np.ndarray:
    """Return a feature matrix as an array, without a copy if possible (a memory map remains one).

    Args:
        values: numbers ``(n, d)``, an array or a tensor on any device.
        name: what error messages call them.
        allow_integers: accept integers, not only floating-point numbers.
        allow_empty: accept a matrix of 0 rows.

    Raises:
        InputError: not a matrix, an empty matrix, or another type of numbers.
    """
    matrix = as_array(values)
    kinds, expected = ("fiu", "numbers") if allow_integers else ("f", "floating-point numbers")
    if matrix.ndim != 2 or matrix.dtype.kind not in kinds or 0 in matrix.shape[allow_empty:]:
        raise InputError(f"{name}: expected a matrix (n, d) of {expected}, got {matrix.dtype} {matrix.shape}")
    return matrix


def as_array(values: Any) -> np.ndarray:
    """Convert to a NumPy array; a tensor may be on any device and need gradients, bfloat16 becomes float32."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return np.asarray(values)


def row_norms(features: FeatureRows, name: str, *, allow_zero: bool) -> np.ndarray:
    """Return the Euclidean length of each float32 row, float64 ``(n,)``; it depends on that row only.

    Raises:
        InputError: a row with NaN or infinity, or a row of zeros unless ``allow_zero``.
    """
    squares = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        with np.errstate(invalid="ignore"):  # signalling NaNs are reported below
            rows = to_float32(features, slice(start, start + _ROWS)).astype(np.float64)
            squares[start : start + _ROWS] = np.multiply(rows, rows, out=rows).sum(axis=1)
    # the square of a float32 does not overflow in float64, so a sum is finite exactly if its row is
    reject_rows(~np.isfinite(squares), name, "NaN or infinity")
    if not allow_zero:
        reject_rows(squares == 0, name, "only zeros: it has no direction, so no cosine")
    return np.sqrt(squares)


def reject_rows(wrong: np.ndarray, name: str, what: str, first_row: int = 0) -> None:
    """Raise an InputError that names the first row for which ``wrong`` is true, if there is one.

    Args:
        wrong: bool ``(n,)``.
        name: what the error message calls them.
        what: content of such a row.
        first_row: number of the first row, for a block of a larger matrix.
    """
    if wrong.any():
        more = int(wrong.sum()) - 1
        others = f" (and {more} more rows)" if more else ""
        raise InputError(f"{name}: row {first_row + int(np.argmax(wrong))}{others} holds {what}")


def to_float32(features: FeatureRows, rows: np.ndarray | slice) -> np.ndarray:
    """Return rows of a feature matrix as C-contiguous float32; larger numbers become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):  # the caller rejects infinite values
        return np.ascontiguousarray(features[rows], dtype=np.float32)


def copy_float32(features: FeatureRows, rows: np.ndarray, out: np.ndarray) -> None:
    """Copy rows of a feature matrix to ``out``, float32 ``(n, d)``, mostly without blocking other threads."""
    if isinstance(features, StackedRows):
        features.copy(rows, out)
    elif features.dtype == np.float32 and features.flags.c_contiguous and features.flags.aligned:
        np.take(features, rows, axis=0, out=out, mode="clip")  # other modes copy twice
    else:
        out[...] = to_float32(features, rows)


def distance_matrix(values: Any) -> np.ndarray:
    """Return a matrix of distances as an array, without a copy if possible (a memory map remains one).

    Raises:
        InputError: not a matrix of real numbers, an empty one, or a row with NaN or infinity.
    """
    matrix = as_array(values)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype.kind not in "fiu":
        raise InputError(f"distances: expected a matrix (q, g) of numbers, got {matrix.dtype} {matrix.shape}")
    if matrix.dtype.kind == "f":
        # some programs write the largest number of a type for infinity; differences of such numbers overflow
        largest = np.finfo(matrix.dtype).max / 4
        blocks = (matrix[start : start + _ROWS] for start in range(0, len(matrix), _ROWS))
        wrong = np.concatenate([~(np.abs(block) <= largest).all(axis=1) for block in blocks])
        reject_rows(wrong, "distances", f"NaN, infinity or a number beyond {largest:.3g}")
    return matrix


def label_series(values: Any, length: int, name: str) -> pd.Series:
    """Return identities or cameras as a nullable series, rows numbered from 0: Int64, or text if not all are numbers.

    Args:
        values: ``length`` whole numbers or texts, null (None, NaN, NA or masked) where unknown: a list, an array, a
            tensor, a masked or pandas array.
        length: number of values expected.
        name: what error messages call them.

    Raises:
        InputError: another length, or a value that is neither a whole number nor text.
    """
    plain: Any = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    if isinstance(plain, np.ma.MaskedArray):
        masked, plain = np.ma.getmaskarray(plain), plain.data.astype(object)
        plain[masked] = None
    try:
        # as floating-point numbers, large integers in a list with a null would lose digits
        series = pd.Series(plain, dtype=object if isinstance(plain, list | tuple) else None)
        series = series.reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected {length} whole numbers or texts ({error})") from None
    _check_length(len(series), length, name)
    if is_text(series):
        return series
    kind = pd.api.types.infer_dtype(series.dropna())
    if kind == "string" or (kind == "mixed-integer" and all(map(_is_label, series.dropna()))):
        return label_column(series, partial("{}: row {}".format, name))
    if kind not in ("integer", "floating", "mixed-integer-float", "empty"):
        raise InputError(f"{name}: expected whole numbers or text, null where unknown, found {kind} values")
    try:
        return series.astype("Int64")
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: expected whole numbers of 64 bits, null where unknown") from None


def _is_label(value: Any) -> bool:
    return isinstance(value, int | np.integer | str)


def path_column(values: Iterable[Any], length: int, name: str, *, allow_null: bool = True) -> pd.Series:
    """Return paths as a series of strings, null where unknown, rows numbered from 0.

    Raises:
        InputError: another length, or a value that is not a path.
    """
    if isinstance(values, pd.Series) and pd.api.types.infer_dtype(values, skipna=False) == "string":
        paths = values.astype("str").reset_index(drop=True)  # quick for millions of strings
    else:
        paths = pd.Series([_as_path(value, row, name) for row, value in enumerate(values)], dtype="str")
    if not allow_null and paths.hasnans:
        raise InputError(f"{name}: row {int(paths.isna().argmax())}: expected a path, got none")
    _check_length(len(paths), length, name)
    return paths


def _as_path(value: Any, row: int, name: str) -> str | None:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    raise InputError(f"{name}: row {row}: expected a path, got {short_repr(value)}")


def _check_length(found: int, expected: int, name: str) -> None:
    if found != expected:
        raise InputError(f"{name}: expected {expected} values, as many as there are rows, found {found}")


def label_table(length: int, pids: Any, camids: Any, paths: Any, *, prefix: str = "") -> pd.DataFrame:
    """Check labels and return them as a table.

    Args:
        length: number of rows.
        pids, camids, paths: as for ``LabelledFeatures``.
        prefix: beginning of the argument names in error messages.

    Returns:
        Columns ``path``, ``pid`` and ``camid``, null where unknown, and ``file``: equal for paths of the same
        file, see ``identify_files``.

    Raises:
        InputError: no identities, or labels of another length or type.
    """
    if pids is None:
        raise InputError(f"{prefix}pids: expected {length} identities, found none")
    unknown = [pd.NA] * length
    path = pd.Series(unknown, dtype="str") if paths is None else path_column(paths, length, f"{prefix}paths")
    return pd.DataFrame(
        {
            "path": path,
            "pid": label_series(pids, length, f"{prefix}pids"),
            "camid": label_series(unknown if camids is None else camids, length, f"{prefix}camids"),
            "file": identify_files(path),
        }
    )


def identify_files(paths: pd.Series) -> pd.Series:
    """Return a key for each path, equal for different spellings of a path, links and hard links to a file.

    Existing files are identified by device and inode, other paths by their absolute form.
    """
    if paths.isna().all():
        return paths
    return pd.Series([None if pd.isna(path) else _file_key(path) for path in paths], dtype="str")


def _file_key(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # missing, or not a path that the system accepts
        return os.path.abspath(path)
    # some network file systems number no inodes
    return f"{status.st_dev}:{status.st_ino}" if status.st_ino else os.path.realpath(path)


class StackedRows:
    """The rows of one matrix followed by selected rows of another, indexed by rows like an array.

    Args:
        first, second: features ``(q, d)`` and ``(g, d)``, arrays or memory maps.
        selected: rows of ``second``, ``(m,)``; the result is a matrix ``(q + m, d)``.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, selected: np.ndarray) -> None:
        self._first, self._second, self._selected = first, second, selected
        self.shape = (len(first) + len(selected), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """Return a new array ``(n, d)``, also for a single row."""
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.atleast_1d(rows)
        upper = numbers < len(self._first)
        if upper.all():
            return self._first[numbers]
        if not upper.any():
            return self._second[self._selected[numbers - len(self._first)]]
        found = np.empty((len(numbers), self.shape[1]), np.result_type(self._first, self._second))
        found[upper] = self._first[numbers[upper]]
        found[~upper] = self._second[self._selected[numbers[~upper] - len(self._first)]]
        return found

    def copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows to ``out``, see ``copy_float32``."""
        upper = np.flatnonzero(rows < len(self._first))
        if len(upper) < len(rows):  # the other rows are overwritten
            copy_float32(self._second, self._selected[np.maximum(rows - len(self._first), 0)], out)
            out[upper] = to_float32(self._first, rows[upper])
        else:
            copy_float32(self._first, rows, out)


FeatureRows: TypeAlias = Union[np.ndarray, StackedRows]  # noqa: UP007 - evaluated at run time


def expand_ranges(start: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List all elements of n integer ranges, one range after the other.

    Args:
        start: first element of each range, ``(n,)``.
        counts: number of elements of each range, ``(n,)``.

    Returns:
        For each element the number of its range (0 to n − 1, ascending), and the element.

    Example:
        >>> expand_ranges(np.array([5, 2]), np.array([2, 3]))
        (array([0, 0, 1, 1, 1]), array([5, 6, 2, 3, 4]))
    """
    number = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)
    return number, start[number] + within


def split_by_count(counts: np.ndarray, limit: int, max_rows: int | None = None) -> Iterator[slice]:
    """Split rows into consecutive slices whose counts add up to ``limit`` at most.

    Args:
        counts: count of each row, ``(n,)``; a row with a larger count gets a slice for itself.
        limit: largest sum of a slice.
        max_rows: largest number of rows of a slice.
    """
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        if max_rows is not None:
            stop = min(stop, start + max_rows)
        yield slice(start, stop)
        start = stop
