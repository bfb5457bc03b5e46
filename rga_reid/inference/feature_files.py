"""Features in an ``.npz`` file: what ``features`` writes, and what anyone may write for any model.

Arrays: ``features`` ``(n, d)``, and optionally ``pids``, ``camids`` (whole numbers) and ``paths`` (text),
each ``(n,)``. An array whose values are all unknown is left out. Where only some are unknown, ``pids_known``
or ``camids_known`` (bool) tells which are not; no number stands for "unknown".

Read, but not written, are also features alone in an ``.npy`` file ``NAME.npy`` with their labels in
``NAME.csv``: a row for each feature, columns ``pid``, ``camid`` and ``path``, cells empty where unknown.
"""

from __future__ import annotations

import csv
import io
import math
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from rga_reid.data.readers import WHOLE_NUMBER
from rga_reid.errors import InputError, short_repr
from rga_reid.files import atomic_file
from rga_reid.inputs import open_bytes, open_text, truncate
from rga_reid.runtime import free_memory

MAX_LABELS = (
    20_000_000  #: of labels in CSV, which take some 200 bytes each; larger galleries are made in parts
)

_LABELS = {"pid": "pids", "camid": "camids"}
_UNKNOWN = {"", "NA", "<NA>", "N/A", "NaN", "nan", "NULL", "null", "None"}  # how tables write it
_HARMLESS = 64 << 20  # bytes that an array may unpack to, however small its file is
_MOST_PACKED = 200  # times that an array may shrink: names in UTF-32 with like beginnings do, to a 100th


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
        with open_bytes(path) as file:
            if file.read(4) == b"PK\x03\x04":
                raise InputError(f"{path}: expected a single array (.npy), found an .npz file")
            file.seek(0)
            header = read_header(file)
        if os.path.getsize(path) < header.start + header.size:
            raise ValueError(f"shorter than its header says, {header.shape}")
        features = _map(path, header, header.start)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not an .npy file of plain numbers (empty, damaged or pickled: {truncate(error)})"
        ) from None
    _check_features(features, os.fspath(path))
    return features, _read_labels(Path(path).with_suffix(".csv"), len(features))


def _read_labels(file: Path, length: int) -> pd.DataFrame:
    """The table beside an ``.npy`` file; no more is read than rows are wanted."""
    if not os.path.exists(file):
        raise InputError(
            f"{file}: no such file; the labels of features in an .npy file are in a CSV file beside it, with "
            "the columns pid, optionally camid and path"
        )
    if length > MAX_LABELS:  # a header of features can promise any number of them, in a file of holes
        raise InputError(
            f"{file}: expected at most {MAX_LABELS:,} rows, one for each feature, found {length:,} "
            "features; give them in parts (gallery add)"
        )
    columns: dict[str, list[str]] = {}
    found = 0
    try:
        with open_text(file) as lines:
            reader = csv.reader(lines, strict=True)
            names = next(reader, [])
            if not names:
                raise InputError(f"{file}: not a CSV file in UTF-8 (its first line is empty)")
            places = {name: names.index(name) for name in ("path", *_LABELS) if name in names}
            columns = {name: [] for name in places}
            for found, cells in enumerate(reader, start=1):
                if found > length:
                    break
                if cells and len(cells) != len(names):
                    raise InputError(
                        f"{file}, line {reader.line_num}: expected {len(names)} cells as in the header, "
                        f"found {len(cells)}"
                    )
                for name, place in places.items():
                    columns[name].append(cells[place] if cells else "")
    except csv.Error as error:
        raise InputError(f"{file}: not a CSV file in UTF-8 (line {reader.line_num}: {error})") from None
    if found != length:
        more = "more" if found > length else str(found)
        raise InputError(f"{file}: expected {length} rows, one for each feature, found {more}")
    table = pd.DataFrame(index=pd.RangeIndex(length))
    for name, cells in columns.items():
        if name == "path":
            table[name] = pd.Series([cell or None for cell in cells], dtype="str")
        else:
            table[name] = pd.array([_whole_number(cell, file, name) for cell in cells], dtype="Int64")
    return table


def _whole_number(cell: str, file: Path, column: str) -> int | None:
    text = cell.strip()
    if text in _UNKNOWN:
        return None
    number = WHOLE_NUMBER.fullmatch(text)
    if number is None:
        raise InputError(
            f"{file}: column '{column}': expected whole numbers, empty where unknown, found {short_repr(cell)}"
        )
    return int(number[1])


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays that this module knows, of which there is ``features`` at least."""
    wanted = ["features", "paths", *_LABELS.values(), *(f"{name}_known" for name in _LABELS.values())]
    with open_bytes(path) as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError(f"{path}: expected an .npz file, found a single array (.npy)")
        try:
            archive = zipfile.ZipFile(file)
        except Exception:  # zipfile raises nearly anything on a damaged directory
            raise InputError(
                f"{path}: not an .npz file of plain arrays (empty, damaged or pickled)"
            ) from None
        with archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            if "features" not in found:
                shown = truncate(", ".join(found)) or "none"
                raise InputError(f"{path}: expected an array 'features', found {shown}")
            return {name: _read_array(path, archive, name) for name in wanted if name in found}


def _read_array(path: str | os.PathLike[str], archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an archive; the features in place, if they are not compressed.

    Its header is read first: what it promises must be what the archive holds, and must fit into memory.
    """
    try:
        info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.namelist() else name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # which is how numpy writes; the other decoders unpack all that they are given at once
            raise InputError(f"{path}: array '{name}': packed in another way than numpy's: refused")
        with archive.open(info) as content:
            header = read_header(content)
            if info.file_size != header.start + header.size:
                raise ValueError(f"its header says {header.shape} of {header.dtype}")
            if name == "features" and info.compress_type == zipfile.ZIP_STORED and header.size:
                while content.read(1 << 20):  # to the end, where its checksum is compared
                    pass
                return _map(path, header, _start(path, info) + header.start)
            _refuse_large(f"{path}: array '{name}'", info, header)
            numbers = np.frombuffer(content.read(), header.dtype)
            return numbers.reshape(header.shape, order="F" if header.in_columns else "C")
    except InputError:
        raise
    except Exception as error:  # zipfile and its decoders raise nearly anything on damaged data
        raise InputError(f"{path}: array '{name}' is pickled or damaged ({truncate(error)})") from None


def _refuse_large(name: str, info: zipfile.ZipInfo, header: Header) -> None:
    """Refuse an array that is read into memory and was made to fill it."""
    if header.size > max(_HARMLESS, _MOST_PACKED * info.compress_size):
        raise InputError(f"{name}: {info.compress_size:,} bytes that unpack to {header.size:,}: refused")
    free = free_memory()
    if free is not None and header.size > free:
        raise InputError(
            f"{name}: {header.size / 2**30:.1f} GiB do not fit into the free memory, {free / 2**30:.1f} GiB"
        )


def _start(path: str | os.PathLike[str], info: zipfile.ZipInfo) -> int:
    """Where the content of a member that is not compressed begins."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of name and extra field end the member's header
        name, extra = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name + extra


def _map(path: str | os.PathLike[str], header: Header, start: int) -> np.ndarray:
    """Numbers of a file, in place."""
    if header.size == 0:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.in_columns else "C")


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
    if kinds == "U" and length:
        letters = np.ascontiguousarray(array).view(np.uint32)
        if array.dtype.byteorder == ">":
            letters = letters.byteswap()
        if ((letters > sys.maxunicode) | ((letters >= 0xD800) & (letters < 0xE000))).any():
            raise InputError(f"{path}: array '{name}': holds what is no text (half a character, or none)")
    return array


_LONGEST = 1 << 16  # bytes of a header; one of features has a hundred
_READERS: dict[Any, Any] = {  # by version of the format: what reads a header, and bytes of its length
    (1, 0): (np.lib.format.read_array_header_1_0, 2),
    (2, 0): (np.lib.format.read_array_header_2_0, 4),
}


class Header(NamedTuple):
    """What an array in a file is.

    ``start`` is where its numbers begin, in bytes; ``in_columns`` is true for Fortran's order.
    """

    shape: tuple[int, ...]
    in_columns: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: BinaryIO | Any) -> Header:
    """The header of the ``.npy`` file that begins where ``file`` stands; nothing else is read.

    Raises:
        ValueError: no such header, or one of an array that would have to be unpickled.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _READERS:
            raise ValueError(f"version {version} of the format")
        read, bytes_of_length = _READERS[version]
        length = file.read(bytes_of_length)
        if int.from_bytes(length, "little") > _LONGEST:  # NumPy would read and decode all of it
            raise ValueError(f"a header of {int.from_bytes(length, 'little'):,} bytes")
        header = file.read(int.from_bytes(length, "little"))
        shape, in_columns, dtype = read(io.BytesIO(length + header))
    except Exception as error:  # its parser raises nearly anything on a damaged header
        raise ValueError(str(error)) from None
    if dtype.hasobject:
        raise ValueError("an array of objects, which would have to be unpickled")
    if dtype.itemsize == 0:
        raise ValueError(f"an array of {dtype}, of numbers or texts of no length")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return Header(shape, in_columns, dtype, file.tell())
