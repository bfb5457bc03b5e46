"""The headers of NumPy's ``.npy`` files, read before anything is made of what they promise."""

from __future__ import annotations

import math
from typing import Any, BinaryIO, NamedTuple

import numpy as np


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
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format")
        shape, in_columns, dtype = read(file)
    except Exception as error:  # its parser raises nearly anything on a damaged header
        raise ValueError(str(error)) from None
    if dtype.hasobject:
        raise ValueError("an array of objects, which would have to be unpickled")
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return Header(shape, in_columns, dtype, file.tell())
