"""The headers of NumPy's ``.npy`` files, read before anything is made of what they promise."""

from __future__ import annotations

import io
import math
from typing import Any, BinaryIO, NamedTuple

import numpy as np

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
