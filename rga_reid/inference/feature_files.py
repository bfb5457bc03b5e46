"""Feature files: written as ``.npz``, read from ``.npz`` or ``.npy``.

Arrays of an ``.npz`` file: ``features`` ``(n, d)``, and optionally ``pids``, ``camids`` (integers or text), ``paths``
(text) and ``column_NAME`` for any other column (text, numbers, booleans, or times in UTC), each ``(n,)``, and
``model``, the fingerprint of the model as JSON text, ``()``. An array whose values are all unknown is omitted; if some
are unknown, ``pids_known``, ``camids_known`` or ``column_NAME_known`` (bool) is False for those.

An ``.npy`` file ``NAME.npy`` holds features only, with their labels in ``NAME.csv``: one row for each feature, columns
``pid``, ``camid``, ``path`` and those that protocols use, such as ``track`` and ``clothes``; cells empty where unknown.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import LABELS, RESERVED, UNKNOWN, conform
from rga_reid.data.labels import is_text, label_column
from rga_reid.errors import InputError
from rga_reid.evaluation.features import PROTOCOL_COLUMNS, feature_matrix
from rga_reid.files import atomic_file
from rga_reid.inputs import open_bytes, open_text, truncate
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.runtime import free_memory

MAX_CSV = 1 << 30  #: bytes of a table of labels
MAX_SMALL = 64 << 20  #: bytes that any archive may unpack to
MAX_RATIO = 200  #: compression of a larger archive; text in UTF-32 reaches about 100

_LABELS = {"pid": "pids", "camid": "camids"}
_ARRAY_NAMES = {"pid": "pids", "camera": "camids"}
_COLUMN = "column_"  # begins the names of the arrays of other columns
_ARRAYS = ("features", "paths", *_LABELS.values(), *(f"{name}_known" for name in _LABELS.values()))
_MODEL = "model"


def write_features(
    path: str | os.PathLike[str],
    features: Any,
    table: pd.DataFrame,
    model: ModelFingerprint | None = None,
) -> None:
    """Write features and their labels to an ``.npz`` file, atomically, replacing an existing one.

    Args:
        path: file to write.
        features: ``(n, d)``, an array or a CPU tensor; stored as float32.
        table: n rows, see ``rga_reid.data.columns``; ``path`` may be missing.
        model: fingerprint of the model that made the features; None if unknown.

    Raises:
        InputError: the table has another number of rows, a path is null, or the file cannot be written.
    """
    arrays = {"features": np.asarray(features, dtype=np.float32)}
    if arrays["features"].ndim != 2 or len(arrays["features"]) != len(table):
        raise InputError(
            f"features: expected a matrix with {len(table)} rows, as the table has, got "
            f"{arrays['features'].shape}"
        )
    labels = table.drop(columns="path", errors="ignore")
    text = {name: "string" for name in LABELS if name in labels and is_text(labels[name])}
    typed, _ = conform(labels, {**RESERVED, **text})
    for column in typed.columns.drop("path"):
        if column.endswith("_known") and column.removesuffix("_known") in typed:
            raise InputError(
                f"table: column '{column}': rename it; in the file this name is for the known values of "
                f"'{column.removesuffix('_known')}'"
            )
        name, known = _ARRAY_NAMES.get(column, f"{_COLUMN}{column}"), typed[column].notna().to_numpy(bool)
        if known.any():
            arrays[name] = _to_array(typed[column], known)
        if known.any() and not known.all():
            arrays[f"{name}_known"] = known
    if model is not None:
        arrays[_MODEL] = np.array(json.dumps(model.to_json()), dtype=np.str_)
    if "path" in table:
        if table["path"].isna().any():
            raise InputError(f"table: row {int(table['path'].isna().argmax())}: expected a path, found none")
        arrays["paths"] = np.array([os.fspath(value) for value in table["path"]], dtype=np.str_)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_features(path: str | os.PathLike[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Read features and their labels. Nothing is unpickled.

    Args:
        path: an ``.npz`` file, or an ``.npy`` file with a CSV file beside it.

    Returns:
        Features ``(n, d)``, floating-point as stored (a memory map of an ``.npy`` file), and a table of n rows
        with the columns that the file has: ``path`` (text), ``pid`` and ``camid`` (Int64 or text, null where unknown)
        and others, see ``rga_reid.data.columns``.

    Raises:
        InputError: not such a file; an array that is missing, pickled, damaged, or of another type or length.
            The message names the file and the array.
    """
    if os.fspath(path).endswith(".npy"):
        return _read_npy(path)
    arrays = _read_npz(path)
    features = feature_matrix(arrays["features"], f"{path}: array 'features'")
    columns: dict[str, Any] = {}
    if "paths" in arrays:
        columns["path"] = pd.Series(_column(path, arrays, "paths", "U", len(features)), dtype="str")
    others = {name.removeprefix(_COLUMN): name for name in arrays if name.startswith(_COLUMN)}
    for column, name in (_LABELS | others).items():
        if name.endswith("_known") and name.removesuffix("_known") in arrays:
            continue
        if name in arrays:
            kinds = "iuU" if column in _LABELS else "iuUfbM"
            values = _column(path, arrays, name, kinds, len(features))
            if values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
                raise InputError(f"{path}: array '{name}': expected integers below 2^63")
            known = np.ones(len(features), dtype=bool)
            if f"{name}_known" in arrays:
                known = _column(path, arrays, f"{name}_known", "b", len(features))
            columns[column] = _from_array(values, known)
    return features, pd.DataFrame(columns, index=pd.RangeIndex(len(features)))


def read_fingerprint(path: str | os.PathLike[str]) -> ModelFingerprint | None:
    """Return the fingerprint of the model that made the features of a file; None if the file does not say.

    Raises:
        InputError: see ``read_features``; an array ``model`` that is not the JSON of a fingerprint.
    """
    if os.fspath(path).endswith(".npy"):
        return None
    array = _read_npz(path, (_MODEL,)).get(_MODEL)
    if array is None:
        return None
    try:
        if array.shape != () or array.dtype.kind != "U":
            raise ValueError(f"{array.dtype} {array.shape}")
        return ModelFingerprint.from_json(json.loads(str(array)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: array 'model': expected the fingerprint of a model as JSON ({truncate(error)})"
        ) from None


def _read_npz(path: str | os.PathLike[str], wanted: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read those of the wanted arrays that an ``.npz`` file has; by default features, labels and columns."""
    with open_bytes(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError(f"{path}: expected an .npz file, found a single array (.npy)")
        try:
            archive = zipfile.ZipFile(file)
        except Exception:  # zipfile raises many types on a damaged directory
            raise InputError(
                f"{path}: not an .npz file of plain arrays (empty, damaged or pickled)"
            ) from None
        with archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if "features" not in members:
                found = truncate(", ".join(members)) or "none"
                raise InputError(f"{path}: expected an array 'features', found {found}")
            chosen = list(wanted or [*_ARRAYS, *(name for name in members if name.startswith(_COLUMN))])
            known = {name: members[name] for name in chosen if name in members}
            _check_size(path, known)
            return {name: _read_member(path, archive, name, member) for name, member in known.items()}


def _check_size(path: str | os.PathLike[str], members: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse an archive that would fill the memory."""
    for name, member in members.items():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # NumPy uses no other method, and zipfile decompresses others without a limit
            raise InputError(f"{path}: array '{name}': unsupported compression")
    size = sum(member.file_size for member in members.values())
    if size > max(MAX_SMALL, MAX_RATIO * os.path.getsize(path)):
        raise InputError(f"{path}: {os.path.getsize(path):,} bytes that unpack to {size:,}: refused")
    free = free_memory()
    if free is not None and size > free:
        raise InputError(
            f"{path}: {size / 2**30:.1f} GiB do not fit into the free memory of {free / 2**30:.1f} GiB; "
            "an .npy file is read in parts"
        )


def _read_member(
    path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo
) -> np.ndarray:
    try:
        with archive.open(member) as file:
            if read_npy_header(file)[2].hasobject:
                raise ValueError("Python objects: convert them before you save, as with pids.astype(str)")
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("more bytes than its header says")
            return array
    except Exception as error:  # zipfile and NumPy raise many types on damaged data
        raise InputError(f"{path}: array '{name}' is pickled or damaged ({truncate(error)})") from None


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, Fortran order and dtype of an ``.npy`` file of version 1.0, whose header has at most 64 kB.

    NumPy writes later versions only for tables with many or non-ASCII columns. It reads a header before it checks
    its length, which could be 4 GB.

    Raises:
        ValueError: another version, or not an ``.npy`` file.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version[0]}.{version[1]} of the format, expected 1.0")
        return np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # the parser raises many types on a damaged header
        raise ValueError(str(error)) from None


def _read_npy(path: str | os.PathLike[str]) -> tuple[np.ndarray, pd.DataFrame]:
    with open_bytes(path) as file:
        if file.read(4) == b"PK\x03\x04":
            raise InputError(f"{path}: expected a single array (.npy), found an .npz file")
        file.seek(0)
        try:
            read_npy_header(file)
            with np.errstate(over="ignore"):  # NumPy refuses a shape that is too big, after a warning
                features = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises many types on a damaged header
            raise InputError(
                f"{path}: not an .npy file of plain numbers (empty, damaged or pickled: {truncate(error)})"
            ) from None
    feature_matrix(features, os.fspath(path))
    return features, _read_labels(Path(path).with_suffix(".csv"), len(features))


def _read_labels(file: Path, length: int) -> pd.DataFrame:
    """Read the CSV file beside an ``.npy`` file."""
    if not file.exists():
        raise InputError(
            f"{file}: no such file; the labels of features in an .npy file are in a CSV file beside it, with "
            "the columns pid, optionally camid and path"
        )
    if file.stat().st_size > MAX_CSV:
        raise InputError(f"{file}: more than {MAX_CSV:,} bytes; add the features in parts (gallery add)")
    rows: list[list[str]] = []
    try:
        with open_text(file) as lines:
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            if not header:
                raise InputError(f"{file}: not a CSV file in UTF-8 (its first line is empty)")
            for row in itertools.islice(reader, length + 1):
                if row and len(row) != len(header):
                    raise InputError(
                        f"{file}, line {reader.line_num}: expected {len(header)} cells as in the header, found "
                        f"{len(row)}"
                    )
                rows.append(row or [""] * len(header))
    except csv.Error as error:
        raise InputError(f"{file}: not a CSV file in UTF-8 ({error})") from None
    if len(rows) != length:
        more = "more" if len(rows) > length else str(len(rows))
        raise InputError(f"{file}: expected {length} rows, one for each feature, found {more}")
    cells = pd.DataFrame(rows, columns=header, dtype="str")
    cells = cells.loc[:, ~cells.columns.duplicated()]
    table = pd.DataFrame(index=pd.RangeIndex(length))
    if "camid" not in cells:
        cells = cells.rename(columns={"camera": "camid"})
    for column in (name for name in ("path", *_LABELS, *PROTOCOL_COLUMNS) if name in cells):
        texts = cells[column].str.strip()
        if column == "path":
            table[column] = texts.where(texts != "", None)
            continue
        table[column] = label_column(texts.mask(texts.isin(UNKNOWN)), partial("{}: row {}".format, file))
    return table


def _to_array(values: pd.Series, known: np.ndarray) -> np.ndarray:
    """Return a column as NumPy stores it; what stands for null does not matter."""
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return values.dt.tz_localize(None).to_numpy("datetime64[us]")
    if pd.api.types.is_string_dtype(values):
        return values.fillna("").to_numpy(np.str_)
    kind = np.float64 if pd.api.types.is_float_dtype(values) else np.int64
    return values.to_numpy(dtype=bool if values.dtype == "boolean" else kind, na_value=0)


def _from_array(values: np.ndarray, known: np.ndarray) -> pd.Series:
    """Return a column that ``_to_array`` stored."""
    if values.dtype.kind == "M":
        return pd.Series(values.astype("datetime64[us]")).where(known).dt.tz_localize("UTC")
    if values.dtype.kind == "U":
        return pd.Series(values.astype(object)).where(known, None).astype("string")
    if values.dtype.kind in "iu":
        return pd.Series(pd.arrays.IntegerArray(values.astype(np.int64), ~known))
    return pd.Series(values).astype("boolean" if values.dtype.kind == "b" else "Float64").where(known)


def _column(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], name: str, kinds: str, length: int
) -> np.ndarray:
    array = arrays[name]
    if array.shape != (length,) or array.dtype.kind not in kinds:
        what = {"U": "texts", "iuU": "integers or texts", "b": "booleans"}.get(kinds, "values")
        raise InputError(
            f"{path}: array '{name}': expected {length} {what}, one for each row of 'features', found "
            f"{array.dtype} {array.shape}"
        )
    if array.dtype.kind == "U" and array.dtype.itemsize:
        points = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if ((points > sys.maxunicode) | ((points >= 0xD800) & (points < 0xE000))).any():
            raise InputError(f"{path}: array '{name}': contains invalid Unicode")
    return array
