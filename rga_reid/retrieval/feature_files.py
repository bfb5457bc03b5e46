"""Features in an ``.npz`` file: what ``features`` writes, and what anyone may write for any model.

Arrays: ``features`` ``(n, d)``, and optionally ``pids``, ``camids`` (whole numbers) and ``paths`` (text),
each ``(n,)``. An array whose values are all unknown is left out. Where only some are unknown, ``pids_known``
or ``camids_known`` (bool) tells which are not; no number stands for "unknown".

Read, but not written, are also features alone in an ``.npy`` file ``NAME.npy`` with their labels in
``NAME.csv``: a row for each feature, columns ``pid``, ``camid`` and ``path``, cells empty where unknown.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.files import atomic_file

_LABELS = {"pid": "pids", "camid": "camids"}


def write_features(path: str | os.PathLike[str], features: Any, table: pd.DataFrame) -> None:
    """Write features and what is known of them, atomically; a file that is there is replaced.

    Args:
        path: of the ``.npz`` file.
        features: ``(n, d)``, an array or a CPU tensor; stored as float32.
        table: n rows; of its columns ``path`` (text), ``pid`` and ``camid`` (nullable integers) those that
            there are.

    Raises:
        InputError: the table has another number of rows, a path is null, or the file cannot be written.
    """
    arrays = {"features": np.asarray(features, dtype=np.float32)}
    if arrays["features"].ndim != 2 or len(arrays["features"]) != len(table):
        raise InputError(
            f"features: expected a matrix with {len(table)} rows, as the table has, got "
            f"{arrays['features'].shape}"
        )
    for column, name in _LABELS.items():
        known = table[column].notna().to_numpy() if column in table else np.zeros(len(table), dtype=bool)
        if known.any():
            arrays[name] = table[column].astype("Int64").fillna(0).to_numpy(dtype=np.int64)
        if known.any() and not known.all():
            arrays[f"{name}_known"] = known
    if "path" in table:
        if table["path"].isna().any():
            raise InputError(f"table: row {int(table['path'].isna().argmax())}: expected a path, found none")
        arrays["paths"] = np.array([os.fspath(value) for value in table["path"]], dtype=np.str_)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_features(path: str | os.PathLike[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Read features and what is known of them. Nothing is unpickled.

    Args:
        path: of an ``.npz`` file, or of an ``.npy`` file with a CSV file beside it.

    Returns:
        Features ``(n, d)``, floating-point as stored (a memory map, unless compressed), and a table of n
        rows with those of the columns ``path`` (text), ``pid`` and ``camid`` (Int64, null where unknown) that
        the file has.

    Raises:
        InputError: not such a file; an array that is missing, pickled, damaged, or of another type or length.
            The message names the file and the array.
    """
    if os.fspath(path).endswith(".npy"):
        return _read_npy(path)
    arrays = _read_arrays(path)
    features = arrays["features"]
    _check_features(features, f"{path}: array 'features'")
    columns: dict[str, Any] = {}
    if "paths" in arrays:
        columns["path"] = pd.Series(_column(path, arrays, "paths", "U", len(features)), dtype="str")
    for column, name in _LABELS.items():
        if name in arrays:
            values = _column(path, arrays, name, "iu", len(features))
            if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
                raise InputError(f"{path}: array '{name}': expected whole numbers below 2^63")
            known = np.ones(len(features), dtype=bool)
            if f"{name}_known" in arrays:
                known = _column(path, arrays, f"{name}_known", "b", len(features))
            columns[column] = pd.arrays.IntegerArray(values.astype(np.int64), ~known)
    return features, pd.DataFrame(columns, index=pd.RangeIndex(len(features)))


def _check_features(features: np.ndarray, name: str) -> None:
    if features.ndim != 2 or features.dtype.kind != "f" or 0 in features.shape:
        raise InputError(
            f"{name}: expected floating-point numbers (n, d), found {features.dtype} {features.shape}"
        )


def _read_npy(path: str | os.PathLike[str]) -> tuple[np.ndarray, pd.DataFrame]:
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from None
    except (ValueError, EOFError):
        raise InputError(f"{path}: not an .npy file of plain numbers (empty, damaged or pickled)") from None
    if not isinstance(features, np.ndarray):
        raise InputError(f"{path}: expected a single array (.npy), found an .npz file")
    _check_features(features, os.fspath(path))
    return features, _read_labels(Path(path).with_suffix(".csv"), len(features))


def _read_labels(file: Path, length: int) -> pd.DataFrame:
    try:
        cells = pd.read_csv(file, dtype="str", encoding="utf-8-sig", index_col=False, skip_blank_lines=False)
    except FileNotFoundError:
        raise InputError(
            f"{file}: no such file; the labels of features in an .npy file are in a CSV file beside it, with "
            "the columns pid, optionally camid and path"
        ) from None
    except (OSError, ValueError) as error:  # what pandas raises for bad CSV or bad UTF-8 are ValueErrors
        raise InputError(f"{file}: not a CSV file in UTF-8 ({error})") from None
    if len(cells) != length:
        raise InputError(f"{file}: expected {length} rows, one for each feature, found {len(cells)}")
    table = cells[[column for column in ("path", "pid", "camid") if column in cells]].copy()
    for column in table.columns.intersection(list(_LABELS)):
        try:
            table[column] = pd.to_numeric(table[column]).astype("Int64")
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file}: column '{column}': expected whole numbers, empty where unknown ({error})"
            ) from None
    return table


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays that this module knows, of which there is ``features`` at least."""
    wanted = ["features", "paths", *_LABELS.values(), *(f"{name}_known" for name in _LABELS.values())]
    try:
        with open(path, "rb") as file:
            try:
                archive = np.load(file, allow_pickle=False)
            except (ValueError, EOFError, zipfile.BadZipFile):
                raise InputError(
                    f"{path}: not an .npz file of plain arrays (empty, damaged or pickled)"
                ) from None
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: expected an .npz file, found a single array (.npy)")
            if "features" not in archive.files:
                found = ", ".join(archive.files) or "none"
                raise InputError(f"{path}: expected an array 'features', found {found}")
            return {name: _read_array(path, archive, name) for name in wanted if name in archive.files}
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from None


def _read_array(path: str | os.PathLike[str], archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = _mapped(path, archive, f"{name}.npy") if name == "features" else None
        array = archive[name] if array is None else array
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: array '{name}' is pickled or damaged ({error})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: array '{name}' is damaged: not in the format of NumPy")
    return array


def _mapped(path: str | os.PathLike[str], archive: np.lib.npyio.NpzFile, member: str) -> np.ndarray | None:
    """An array in place, its checksum compared first; None if it is compressed or no plain array.

    Raises:
        ValueError, OSError, EOFError, zipfile.BadZipFile: it is damaged.
    """
    if archive.zip is None or member not in archive.zip.namelist():
        return None
    info = archive.zip.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.zip.open(info) as content:
        version = np.lib.format.read_magic(content)
        if version != (1, 0):
            return None
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(content)
        header = content.tell()
        while content.read(1 << 20):  # to the end, where its checksum is compared
            pass
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size == 0 or info.file_size != header + size:
        return None
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of name and extra field end the member's header
        name, extra = struct.unpack("<HH", file.read(4))
    start = info.header_offset + 30 + name + extra + header
    return np.memmap(path, dtype, "r", start, shape, "F" if in_columns else "C")


def _column(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], name: str, kinds: str, length: int
) -> np.ndarray:
    array = arrays[name]
    if array.shape != (length,) or array.dtype.kind not in kinds:
        what = {"U": "texts", "iu": "whole numbers", "b": "truth values"}[kinds]
        raise InputError(
            f"{path}: array '{name}': expected {length} {what}, one for each row of 'features', found "
            f"{array.dtype} {array.shape}"
        )
    return array
