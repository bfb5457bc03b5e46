"""Checks of features, tables and requests that all galleries share, so that messages are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import RESERVED, Schema, conform_columns, make_table
from rga_reid.errors import InputError
from rga_reid.evaluation.features import feature_matrix, path_column, reject_rows
from rga_reid.models.checkpoints import ModelFingerprint, is_same_model

_BLOCK = 4096  # rows normalised at a time


def require_nonempty(count: int) -> None:
    """Refuse to build a gallery without rows."""
    if count == 0:
        raise InputError("features: expected at least one row, got an empty gallery")


def non_finite_error() -> InputError:
    """Return the error for a gallery, perhaps of a stranger, with vectors that are not finite."""
    return InputError("gallery contains NaN or infinite vectors; run `gallery check` to locate them")


def require_finished(location: object, unfinished: bool, *, overwrite: bool, resume: bool) -> None:
    """Refuse to start a build over an interrupted one, unless one of the options says what happens to it."""
    if unfinished and not (overwrite or resume):
        raise InputError(
            f"{location}: contains an unfinished build; give --resume to continue it, --overwrite to start over"
        )


def require_same_model(location: object, old: ModelFingerprint | None, new: ModelFingerprint | None) -> None:
    """Refuse to resume a build that was started with another model."""
    if not is_same_model(old, new):
        raise InputError(f"{location}: the unfinished build used another model; --overwrite starts over")


def normalize_rows(features: Any, *, name: str = "features", first_row: int = 0) -> np.ndarray:
    """Scale every row of a feature matrix to length 1.

    Args:
        features: numbers ``(n, d)``, an array or a tensor.
        name: what error messages call them.
        first_row: number of the first row in error messages, for a block of a larger matrix.

    Returns:
        float32 ``(n, d)``, C-contiguous. The length is computed in float64.

    Raises:
        InputError: not a matrix of real numbers; a row that is all zeros, or contains NaN or infinity.
    """
    exact = feature_matrix(features, name, allow_integers=True, allow_empty=True).astype(np.float64)
    # scaled by the largest entry first, so that no square overflows or vanishes
    largest = np.abs(exact).max(axis=1, keepdims=True)
    reject_rows(~np.isfinite(largest), name, "NaN or infinity", first_row)
    reject_rows(largest == 0, name, "only zeros", first_row)
    exact /= largest
    exact /= np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    return np.ascontiguousarray(exact, dtype=np.float32)


def is_normalized(vectors: np.ndarray) -> np.ndarray:
    """Return which rows have length 1, up to rounding: bool ``(n,)``."""
    exact = vectors.astype(np.float64)
    return np.abs(np.sqrt((exact * exact).sum(axis=1)) - 1) < 1e-5


def normalized_blocks(features: np.ndarray, first_row: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """Normalise a large matrix, which may be a mapped file, block by block; for ``first_row`` see ``normalize_rows``.

    Yields:
        The rows of a block and what ``normalize_rows`` returns for them.
    """
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(features)))
        yield rows, normalize_rows(features[rows], first_row=first_row + start)


def gallery_table(
    table: pd.DataFrame, schema: Schema = RESERVED, *, name: str = "table"
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a table as a gallery keeps it, and the schema with its new columns.

    Args:
        table: a ``path`` column (the files need not exist) and any others, see ``rga_reid.data.columns``.
        schema: columns of the gallery and their types.
        name: what error messages call the table.

    Raises:
        InputError: no ``path`` column, a path that is not a string; see also ``conform``.
    """
    if "path" not in table.columns:
        found = ", ".join(map(str, table.columns)) or "none"
        raise InputError(f"{name}: expected a column 'path', found {found}")
    paths = path_column(table["path"], len(table), name, allow_null=False)
    columns, types = conform_columns(table, schema, {"path": paths}, name=name)
    return make_table(columns, types, len(table)), types


def match_rows(
    features: Any, table: pd.DataFrame, schema: Schema = RESERVED
) -> tuple[np.ndarray, pd.DataFrame, dict[str, str]]:
    """Return features and their table as a gallery keeps them.

    Args:
        features: numbers ``(n, d)``.
        table: n rows.
        schema: columns of the gallery and their types.

    Returns:
        Unit rows, float32 ``(n, d)``, and ``gallery_table`` of the table.

    Raises:
        InputError: they do not fit together, or one of them is invalid.
    """
    kept, columns = gallery_table(table, schema)
    matrix = feature_matrix(features, "features", allow_integers=True, allow_empty=True)
    require_row_each(len(matrix), kept)
    vectors = np.empty(matrix.shape, np.float32)
    for rows, block in normalized_blocks(matrix):
        vectors[rows] = block
    return vectors, kept, columns


def require_row_each(count: int, table: pd.DataFrame) -> None:
    """Refuse a number of features that differs from the number of rows of their table."""
    if count != len(table):
        raise InputError(f"features: {count} rows, but the table has {len(table)}")
