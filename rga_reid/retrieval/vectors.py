"""Feature rows that lie in several arrays, one per segment of a gallery, numbered as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import faiss
import numpy as np

_BLOCK_BYTES = 1 << 26  # of float32 scanned at a time: large enough for BLAS, small beside a gallery


class Blocks(Protocol):
    """A matrix ``(n, d)`` whose rows come some at a time."""

    @property
    def dimension(self) -> int:
        """d."""

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As ``Vectors.blocks``."""


class Vectors:
    """A matrix ``(n, d)`` in parts, which may be memory-mapped files: nothing is copied to join them.

    Args:
        parts: float32 ``(n_i, d)`` each, in the order of the rows.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def dimension(self) -> int:
        """d."""
        return self._parts[0].shape[1]

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows in order, some at a time.

        Args:
            keep: bool ``(n,)``, rows to give; all by default.

        Yields:
            Row numbers (int64) and their vectors; never an empty block.
        """
        for start, part in zip(self._starts, self._parts, strict=False):  # the last start is the end
            step = max(1, _BLOCK_BYTES // (part.shape[1] * part.itemsize))
            for first in range(0, len(part), step):
                block = part[first : first + step]
                rows = np.arange(start + first, start + first + len(block))
                if keep is not None:
                    kept = keep[rows[0] : rows[-1] + 1]
                    rows, block = rows[kept], block[kept]
                if len(rows):
                    yield rows, block

    def span(self, start: int, stop: int) -> Vectors:
        """The rows from ``start`` to ``stop``; nothing is copied."""
        cuts = zip(self._starts, self._parts, strict=False)
        parts = [part[max(start - first, 0) : max(stop - first, 0)] for first, part in cuts]
        return Vectors([part for part in parts if len(part)])

    def products(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Float32 dot products of queries and some rows of each, which are not copied.

        Args:
            queries: float32 ``(q, d)``.
            rows: int64 ``(q, c)``.

        Returns:
            ``(q, c)``, each summed in an order of FAISS's own.
        """
        library: Any = faiss  # whose stubs do not know this function
        pointer, queries = library.swig_ptr, np.ascontiguousarray(queries)
        products = np.zeros(rows.shape, np.float32)
        for start, part in zip(self._starts, self._parts, strict=False):
            inside = (rows >= start) & (rows < start + len(part))
            if inside.any():
                local = np.where(inside, rows - start, 0)
                here, part = np.empty_like(products), np.ascontiguousarray(part)
                arrays = (pointer(array) for array in (here, queries, part, local))
                library.fvec_inner_products_by_idx(*arrays, queries.shape[1], *rows.shape)
                np.copyto(products, here, where=inside)
        return products

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copies of some rows, float32 ``(len(rows), d)``, in the order asked for."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        taken = np.empty((len(rows), self._parts[0].shape[1]), np.float32)
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            taken[mine] = self._parts[owner][rows[mine] - self._starts[owner]]
        return taken
