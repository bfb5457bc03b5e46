"""What galleries in folders and in Milvus refuse alike, in the same words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.evaluation.features import as_array
from rga_reid.gallery.location import MilvusURI
from rga_reid.models.checkpoints import ModelFingerprint, is_same_model

if TYPE_CHECKING:
    from rga_reid.gallery.index import IndexConfig


def require_nonempty(count: int) -> None:
    """Refuse to make a gallery of no row."""
    if count == 0:
        raise InputError("features: expected at least one row, got an empty gallery")


def non_finite_error() -> InputError:
    """What to tell of vectors that are not finite, as a stranger's gallery may hold."""
    return InputError("the gallery holds vectors that are no numbers: gallery verify tells where")


def require_dimension(found: int, before: int) -> None:
    """Refuse rows of another length than those that a build took before."""
    if found != before:
        raise InputError(f"features: of dimension {found}, but those before of {before}")


def require_present(column: str, wanted: Iterable[Any], held: Iterable[Any]) -> None:
    """Refuse to remove what the gallery does not have.

    Args:
        column: ``pid`` or ``path``.
        wanted: the values to be removed.
        held: those that there are, or some that hold all of them.
    """
    known = set(held)
    for value in wanted:
        if value not in known:
            raise InputError(f"{column} {value}: the gallery has no image of it; nothing was removed")


def no_camera_error(camera: int) -> InputError:
    """To be raised where a camera is to be left out of a gallery that knows none."""
    return InputError(f"exclude_camera {camera}: this gallery knows the camera of no image")


def require_finished(place: Path | MilvusURI, unfinished: bool, *, overwrite: bool, resume: bool) -> None:
    """Refuse to begin a build where another was interrupted, unless it is said what becomes of that one."""
    if unfinished and not (overwrite or resume):
        raise InputError(f"{place}: holds an unfinished build; --resume goes on, --overwrite starts over")


def require_same_model(
    place: Path | MilvusURI, old: ModelFingerprint | None, new: ModelFingerprint | None
) -> None:
    """Refuse to go on with a build that another model began."""
    if not is_same_model(old, new):
        raise InputError(f"{place}: the unfinished build used another model; --overwrite starts over")


def require_same_index(place: MilvusURI, old: IndexConfig, new: IndexConfig) -> None:
    """Refuse to go on with a build that another index was chosen for: Milvus makes it with the first rows."""
    if old != new:
        given = ", ".join([old.kind, *(f"{name} {value}" for name, value in old.settings.items())])
        raise InputError(f"{place}: the unfinished build has index {given}; --overwrite starts over")


_BLOCK = 4096  # rows normalised at a time


def normalize_rows(features: Any, *, name: str = "features", first_row: int = 0) -> np.ndarray:
    """Features with every row scaled to length 1.

    Args:
        features: numbers ``(n, d)``, an array or a tensor.
        name: what an error message calls them.
        first_row: number of the first row in an error message, for a block of a larger matrix.

    Returns:
        float32 ``(n, d)``, C-contiguous. The length is taken in float64.

    Raises:
        InputError: not a matrix of real numbers; a row that is all zeros, or holds NaN or infinity.
    """
    exact = _matrix(features, name).astype(np.float64)
    # scaled by the largest entry first, so that no square overflows or vanishes
    largest = np.abs(exact).max(axis=1, keepdims=True)
    for wrong, what in ((~np.isfinite(largest), "NaN or infinity"), (largest == 0, "only zeros")):
        if wrong.any():
            raise InputError(f"{name}: row {first_row + int(np.argmax(wrong))} holds {what}")
    exact /= largest
    exact /= np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    return np.ascontiguousarray(exact, dtype=np.float32)


def is_normalized(vectors: np.ndarray) -> np.ndarray:
    """Which rows are what ``normalize_rows`` gives, bool ``(n,)``: of length 1, up to rounding."""
    exact = vectors.astype(np.float64)
    return np.abs(np.sqrt((exact * exact).sum(axis=1)) - 1) < 1e-5


def normalized_matrix(features: np.ndarray) -> np.ndarray:
    """As ``normalize_rows``, a block of rows at a time: a large matrix is never in float64 as a whole."""
    rows = np.empty(features.shape, np.float32)
    for start in range(0, max(1, len(features)), _BLOCK):
        rows[start : start + _BLOCK] = normalize_rows(features[start : start + _BLOCK], first_row=start)
    return rows


class NormalizedRows:
    """Some rows of a feature matrix as ``normalize_rows``, made when they are asked for.

    Args:
        features: numbers ``(n, d)``; may be a mapped file.
        start, stop: the rows.
    """

    def __init__(self, features: np.ndarray, start: int, stop: int) -> None:
        self._features, self._rows = features, range(start, min(stop, len(features)))

    @property
    def dimension(self) -> int:
        """d."""
        return self._features.shape[1]

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As ``Vectors.blocks``, from 0 at the first row. ``InputError`` as for ``normalize_rows``."""
        for first in self._rows[::_BLOCK]:
            stop = min(first + _BLOCK, self._rows.stop)
            numbers = np.arange(first, stop) - self._rows.start
            vectors = normalize_rows(self._features[first:stop], first_row=first)
            if keep is not None:
                kept = keep[numbers]
                numbers, vectors = numbers[kept], vectors[kept]
            if len(numbers):
                yield numbers, vectors


def gallery_table(table: pd.DataFrame, *, name: str = "table") -> pd.DataFrame:
    """The columns that a gallery keeps, in their types.

    Args:
        table: a ``path`` column (the files need not exist), optionally ``pid`` and ``camid``: whole numbers,
            null where unknown. Other columns are left out.
        name: what an error message calls it.

    Returns:
        A new table: ``path`` (str), ``pid`` and ``camid`` (Int64, nullable), rows numbered from 0.

    Raises:
        InputError: no ``path`` column, a path that is not a text, a pid or camid that is not a whole number.
    """
    if "path" not in table.columns:
        found = ", ".join(map(str, table.columns)) or "none"
        raise InputError(f"{name}: expected a column 'path', found {found}")
    kept = pd.DataFrame({"path": _texts(table["path"], name)})
    for column in ("pid", "camid"):
        values = table[column].array if column in table.columns else [pd.NA] * len(kept)
        try:
            kept[column] = pd.array(values, dtype="Int64")
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{name}: column '{column}': expected whole numbers, null where unknown, "
                f"got {table[column].dtype}"
            ) from None
    return kept


def _texts(paths: pd.Series, name: str) -> pd.Series:
    """Paths as a column of texts, numbered from 0."""
    if pd.api.types.infer_dtype(paths, skipna=False) == "string" and not paths.hasnans:
        return paths.astype("str").reset_index(drop=True)  # texts already: a million take no loop
    texts = []
    for row, value in enumerate(paths):
        if not isinstance(value, str | os.PathLike):
            raise InputError(f"{name}: row {row}: expected a path, got {value!r}")
        texts.append(os.fspath(value))
    return pd.Series(texts, dtype="str")


def match_rows(features: Any, table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Features and the table that describes them, as a gallery keeps them.

    Args:
        features: numbers ``(n, d)``.
        table: n rows.

    Returns:
        ``normalized_matrix`` of the features, ``gallery_table`` of the table.

    Raises:
        InputError: they do not fit together, or one is not what it should be.
    """
    kept, matrix = gallery_table(table), _matrix(features, "features")
    require_row_each(len(matrix), kept)
    return normalized_matrix(matrix), kept


def require_row_each(count: int, table: pd.DataFrame) -> None:
    """Refuse features that are not as many as the rows of their table."""
    if count != len(table):
        raise InputError(f"features: {count} rows, but the table has {len(table)}")


def _matrix(features: Any, name: str) -> np.ndarray:
    """Real numbers ``(n, d)`` as an array, without a copy where that is possible."""
    matrix = as_array(features)
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected a matrix (n, d) of numbers, got {matrix.dtype} {matrix.shape}")
    return matrix
