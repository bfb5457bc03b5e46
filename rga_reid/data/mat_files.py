"""MATLAB 5 files: looked through before SciPy makes arrays of what they promise.

A few bytes can stand for a cell array of any size, and a compressed variable for a thousand times its size.
The format: MAT-File Format, The MathWorks, chapter 1 (level 5).
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rga_reid.errors import InputError
from rga_reid.inputs import read_file, shortened

#: Bytes of all variables: a protocol of CUHK03 has 2 MiB, and SciPy makes up to ten times as much of texts.
MOST_UNPACKED = 8 << 20

_HEADER = 128  # bytes, of which the last two tell the order of bytes in numbers
_COMPRESSED, _MATRIX = 15, 14  # types of elements
_CELL, _CHAR, _NUMBERS = 1, 4, range(6, 16)  # classes of arrays
_DEEPEST = 4  # cells inside each other
_SMALLEST = 48  # bytes of a cell that tells its kind, shape and name: eight can stand for an empty one


def read_mat(file: Path, names: Sequence[str]) -> dict[str, Any]:
    """Some variables of a MATLAB 5 file: numbers, texts and cells of them.

    Returns:
        Arrays by their names; those that are not there are left out.

    Raises:
        InputError: no such file, or a larger one than any of the kind.
        ValueError: another format, or a damaged file; the text tells what was found.
    """
    from scipy.io import loadmat  # here: only CUHK03 needs it

    content = read_file(file, MOST_UNPACKED)
    try:
        _look_through(content, names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # SciPy's, such as of two variables of one name
            found = loadmat(file, appendmat=False, variable_names=list(names))
    except InputError:
        raise
    except Exception as error:  # SciPy raises nearly anything on a damaged file
        raise ValueError(shortened(error) or type(error).__name__) from None
    return {name: found[name] for name in names if name in found}


def _look_through(content: bytes, names: Sequence[str]) -> None:
    """Refuse what would not fit into memory; ``ValueError`` or ``struct.error`` for what cannot be read."""
    if content.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise ValueError("this is MATLAB 7.3 (HDF5)")
    mark = content[_HEADER - 2 : _HEADER]
    if mark not in (b"IM", b"MI"):
        raise ValueError("it has no header of that format")
    order = "<" if mark == b"IM" else ">"
    left = MOST_UNPACKED
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, left)
            if unpacker.unconsumed_tail:
                raise ValueError(f"more than {MOST_UNPACKED:,} bytes in its variables")
            kind, data = next(_elements(data, order), (0, b""))
        left -= len(data)
        if kind != _MATRIX or left <= 0:
            raise ValueError("an element that is no variable" if left > 0 else "too large")
        _check_matrix(data, order, names, 0)


def _check_matrix(data: bytes, order: str, names: Sequence[str], depth: int) -> None:
    """An array may have no more values than bytes, and a cell array no more than whole cells take."""
    parts = _elements(data, order)
    (_, flags), (_, dimensions), (_, name) = next(parts), next(parts), next(parts)
    if depth == 0 and name.decode("latin-1") not in names:
        return
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    size = math.prod(struct.unpack(f"{order}{len(dimensions) // 4}I", dimensions))
    if kind != _CELL and kind != _CHAR and kind not in _NUMBERS:
        raise ValueError(
            f"variable {name.decode('latin-1')!r} of class {kind}: expected numbers, texts or cells"
        )
    if size > len(data) // (_SMALLEST if kind == _CELL else 1) or depth > _DEEPEST:
        raise ValueError(f"an array of {size:,} values in {len(data):,} bytes")
    if kind == _CELL:
        for part, inner in parts:
            if part == _MATRIX and inner:
                _check_matrix(inner, order, names, depth + 1)


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}2I", data, place)
        if kind >> 16:  # both in four bytes, the content in the four after them
            kind, size, start, step = kind & 0xFFFF, kind >> 16, place + 4, 8
        else:
            start, step = place + 8, 8 + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError(f"an element of {size:,} bytes where {len(data) - start:,} are left")
        yield kind, data[start : start + size]
        place += step
