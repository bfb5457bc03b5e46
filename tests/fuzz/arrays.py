"""Corrupt NumPy files: headers, shapes, types, members of archives."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.material import ROWS
from tests.fuzz.mutations import Draw, corrupt_bytes, draw_count, pick

SHAPES = (
    "(10**12, 8)", "(1000000000000, 8)", "(24, 8)", "(24,)", "(0, 8)", "(24, 0)", "(-1, 8)", "()", "(24, 8, 1)",
    "24", "(True, 8)", "(4611686018427387904, 8)", "(9223372036854775807, 9223372036854775807)", "(2.0, 8)",
    "('a', 8)",
)  # fmt: skip
TYPES = (
    "'<f4'", "'|O'", "'<f8'", "'<c8'", "'<U8'", "'|V4'", "[('a', '<f4')]", "'<f4, <f4'", "'|S0'", "'<U0'", "''",
    "3", "None", "'<M8[s]'", "'(3,)<f4'", "'<f2'", "'|b1'", "'>f4'", "'" + "<f4," * 400 + "'",
)  # fmt: skip


def corrupt_npy(draw: Draw, content: bytes) -> bytes:
    """Corrupt the bytes or the header of an .npy file."""
    if draw(st.booleans()):
        return corrupt_bytes(draw, content)
    order = pick(draw, "False", "True", "3", "None")
    header = f"{{'descr': {pick(draw, *TYPES)}, 'fortran_order': {order}, 'shape': {pick(draw, *SHAPES)}, }}"
    broken = (
        "(" * 400,
        "{}",
        "__import__('os')",
        "[" * 200 + "]" * 200,
        "\x00",
        header[:-3],
        header + "#" * 9900,
    )
    text = pick(draw, header, header, header, *broken).encode("latin-1", "replace") + b"\n"
    start = 10 + int.from_bytes(content[8:10], "little")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content[start:]


def corrupt_npz(draw: Draw, content: bytes) -> bytes:
    """Replace, add or remove arrays of an .npz file, corrupt one of them, or write one twice."""
    with np.load(io.BytesIO(content)) as archive:
        arrays: dict[str, Any] = dict(archive)
    for _ in range(max(1, draw_count(draw))):
        name = pick(draw, *sorted(arrays), "pids_known", "camids_known", "extra", "../../outside")
        arrays[name] = pick(draw, *ARRAYS)
        if pick(draw, False, False, False, True):
            del arrays[name]
    members = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=True)
        members[name] = buffer.getvalue()
    if members and draw(st.booleans()):
        name = pick(draw, *sorted(members))
        members[name] = corrupt_npy(draw, members[name])
    method = pick(draw, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


#: Arrays to put in place of features, labels or paths.
ARRAYS: tuple[Any, ...] = (
    np.random.default_rng(5).normal(size=(ROWS, 8)),
    *(np.full((ROWS, 8), value, np.float64) for value in (0, np.nan, np.inf, 1e308, 1e-300)),
    *(np.ones((ROWS, 8), kind) for kind in (np.float16, np.longdouble, np.complex64, bool)),
    *(np.zeros(shape) for shape in ((0, 8), (ROWS, 0), (ROWS + 1, 8), (2, 2))),
    np.arange(ROWS),
    np.arange(ROWS) - 2,
    np.arange(ROWS).astype(np.float64),
    np.full(ROWS, 2**63 - 1),
    np.full(ROWS, 2**64 - 1, np.uint64),
    np.full(ROWS, -(2**63)),
    *(np.array([text] * ROWS) for text in ("x", "\x00\x1b[2J", b"x", "", None, {}, "a" * 10_000)),
    np.array("x"),
    np.float64(3),
    *(np.zeros(ROWS, kind) for kind in (bool, "M8[s]", [("a", "<f4"), ("b", "<i8")])),
)
