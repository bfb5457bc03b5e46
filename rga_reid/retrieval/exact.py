"""Exact nearest rows by cosine, the same whatever the batch size, thread count or machine.

FAISS multiplies in float32 and sums in an order of its own, which differs from call to call in the last
digits, so two images that tie may swap places. Here its answer is a filter only: what can still be among the
best by the bound on its rounding is scored again in float64, and ties go to the earlier row.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

_MARGIN = 32  # candidates beyond the wanted ones: enough to spare nearly every query the second search
_BLOCK = 4096  # rows scored at a time


def nearest_rows(
    index: faiss.IndexFlat, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of a flat inner-product index that score highest, for each query.

    Args:
        index: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        top_k: rows wanted, at least 1.
        keep: bool ``(n,)``, rows that may be returned; all by default.

    Yields:
        For each query: row numbers (int64) and scores (float64 dot products of the float32 rows), best first,
        ties in row order. Fewer than ``top_k`` where the index has no more.
    """
    available = index.ntotal if keep is None else int(keep.sum())
    wanted = min(top_k, available)
    if wanted == 0:
        for _ in queries:
            yield np.empty(0, np.int64), np.empty(0)
        return
    parameters = None
    if keep is not None:
        bits = np.packbits(keep, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))  # a view: bits must outlive it
        parameters = faiss.SearchParameters()
        parameters.sel = selector
    candidates = min(wanted + _MARGIN, available)
    filtered, rows = index.search(queries, candidates, params=parameters)
    error = rounding_error(index.d)
    for number, query in enumerate(queries):
        found, scores = _rescored(index, query, rows[number], wanted)
        if candidates < available and scores[-1] <= filtered[number, -1] + error:
            # a row that the filter left out may tie with the last one, or beat it
            radius = float(scores[-1]) - 2 * error
            _, _, near = index.range_search(query[None], radius, params=parameters)
            found, scores = _rescored(index, query, near, wanted)
        yield found, scores


def rounding_error(dimension: int) -> float:
    """Bound on the error of a float32 dot product of two unit vectors, for any order of summation.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, equation (3.5): d·u / (1 − d·u) times
    Σ|xᵢyᵢ|, which is at most 1; u = 2⁻²⁴.
    """
    return 1.01 * dimension * 2.0**-24


def _rescored(
    index: faiss.IndexFlat, query: np.ndarray, rows: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.sort(rows)
    exact = query.astype(np.float64)
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = index.reconstruct_batch(rows[start : start + _BLOCK])
        scores[start : start + _BLOCK] = (block * exact).sum(axis=1)  # row by row: equal rows score equally
    order = np.argsort(-scores, kind="stable")[:wanted]
    return rows[order], scores[order]
