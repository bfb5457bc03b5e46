"""NumPy's files, spoiled: headers, shapes, types, members of archives."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.material import ROWS
from tests.fuzz.mutations import Draw, spoiled_bytes, times


def spoiled_npy(draw: Draw, content: bytes) -> bytes:
    if draw(st.booleans()):
        return spoiled_bytes(draw, content)
    return _with_header(content, _header(draw))


def _header(draw: Draw) -> str:
    shape = draw(
        st.sampled_from(
            (
                "(10**12, 8)",
                "(1000000000000, 8)",
                "(24, 8)",
                "(24,)",
                "(0, 8)",
                "(24, 0)",
                "(-1, 8)",
                "()",
                "(24, 8, 1)",
                "24",
                "(True, 8)",
                "(4611686018427387904, 8)",
                "(9223372036854775807, 9223372036854775807)",
                "(2.0, 8)",
                "('a', 8)",
            )
        )
    )
    descr = draw(
        st.sampled_from(
            (
                "'<f4'",
                "'|O'",
                "'<f8'",
                "'<c8'",
                "'<U8'",
                "'|V4'",
                "[('a', '<f4')]",
                "'<f4, <f4'",
                "'|S0'",
                "'<U0'",
                "''",
                "3",
                "None",
                "'<M8[s]'",
                "'(3,)<f4'",
                "'<f2'",
                "'|b1'",
                "'>f4'",
                "'" + "<f4," * 400 + "'",
            )
        )
    )
    order = draw(st.sampled_from(("False", "True", "3", "None")))
    whole = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return draw(
        st.sampled_from(
            (
                whole,
                whole,
                whole,
                whole[:-3],
                "(" * 400,
                "{}",
                "__import__('os')",
                "[" * 200 + "]" * 200,
                "\x00",
                whole + "#" * 9900,
            )
        )
    )


def _with_header(content: bytes, header: str) -> bytes:
    """An .npy file with another header."""
    text = header.encode("latin-1", "replace") + b"\n"
    start = 10 + int.from_bytes(content[8:10], "little")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content[start:]


def spoiled_npz(draw: Draw, content: bytes) -> bytes:
    """The same arrays, some of them replaced or given another header."""
    with np.load(io.BytesIO(content)) as archive:
        arrays: dict[str, Any] = dict(archive)
    for _ in range(max(1, times(draw))):
        name = draw(
            st.sampled_from((*sorted(arrays), "pids_known", "camids_known", "extra", "../../outside"))
        )
        arrays[name] = draw(st.sampled_from(_ARRAYS))(ROWS)
        if draw(st.sampled_from((False, False, False, True))):
            del arrays[name]
    buffer, saved = io.BytesIO(), {}
    for name, array in arrays.items():
        one = io.BytesIO()
        np.lib.format.write_array(one, np.asanyarray(array), allow_pickle=True)
        saved[name] = one.getvalue()
    if saved and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(saved)))
        saved[name] = spoiled_npy(draw, saved[name])
    method = draw(
        st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    )
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in saved.items():
            file.writestr(f"{name}.npy", data)
            if draw(st.sampled_from((False,) * 9 + (True,))):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a name that is there twice is what is wanted
                    file.writestr(f"{name}.npy", data[: len(data) // 2])
    return buffer.getvalue()


_ARRAYS: tuple[Callable[[int], Any], ...] = (
    lambda n: np.random.default_rng(5).normal(size=(n, 8)),
    lambda n: np.zeros((n, 8), np.float32),
    lambda n: np.full((n, 8), np.nan),
    lambda n: np.full((n, 8), 1e308),
    lambda n: np.full((n, 8), 1e-300),
    lambda n: np.full((n, 8), np.inf),
    lambda n: np.ones((n, 8), np.float16),
    lambda n: np.ones((n, 8), np.longdouble),
    lambda n: np.ones((n, 8), np.complex64),
    lambda n: np.ones((n, 8), bool),
    lambda n: np.zeros((0, 8)),
    lambda n: np.zeros((n, 0)),
    lambda n: np.zeros((n + 1, 8)),
    lambda n: np.arange(n),
    lambda n: np.arange(n) - 2,
    lambda n: np.arange(n).astype(np.float64),
    lambda n: np.full(n, 2**63 - 1),
    lambda n: np.full(n, 2**64 - 1, np.uint64),
    lambda n: np.full(n, -(2**63)),
    lambda n: np.array(["x"] * n),
    lambda n: np.array(["\x00\x1b[2J"] * n),
    lambda n: np.array([b"x"] * n),
    lambda n: np.array([""] * n),
    lambda n: np.array([None] * n),
    lambda n: np.array([{}] * n),
    lambda n: np.array(["a" * 10_000] * n),
    lambda n: np.array("x"),
    lambda n: np.float64(3),
    lambda n: np.zeros(n, bool),
    lambda n: np.zeros(n, "M8[s]"),
    lambda n: np.zeros(n, [("a", "<f4"), ("b", "<i8")]),
    lambda n: np.array([[1, 2], [3, 4]]),
)
