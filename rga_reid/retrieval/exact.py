"""Exact nearest rows by cosine, the same whatever the batch size, thread count or machine.

FAISS multiplies in float32 and sums in an order of its own, which differs from call to call in the last
digits, so two images that tie may swap places. Here its answer is a filter only: what can still be among the
best by the bound on its rounding is scored again in float64, and ties go to the earlier row.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import faiss
import numpy as np

from rga_reid.retrieval.refusals import no_numbers
from rga_reid.retrieval.vectors import Vectors

Found = tuple[np.ndarray, np.ndarray]  #: row numbers (int64) and scores (float64), best first

MARGIN = 32  #: candidates beyond the wanted ones: enough to spare nearly every query the second search
_BLOCK = 4096  # rows scored at a time
_MOST_ON_GPU = 2048  # rows that FAISS can select there


def nearest_rows(
    vectors: Vectors, queries: np.ndarray, top_k: int, keep: np.ndarray | None = None
) -> Iterator[Found]:
    """The rows that score highest, for each query.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        top_k: rows wanted, at least 1.
        keep: bool ``(n,)``, rows that may be returned; all by default.

    Yields:
        For each query: row numbers (int64) and scores (float64 dot products of the float32 rows), best first,
        ties in row order. Fewer than ``top_k`` where there are no more.
    """
    available = len(vectors) if keep is None else int(keep.sum())
    wanted = min(top_k, available)
    if wanted == 0:
        for _ in queries:
            yield np.empty(0, np.int64), np.empty(0)
        return
    candidates = min(wanted + MARGIN, available)
    filtered, rows = _filter(vectors, queries, candidates, keep)
    error = rounding_error(queries.shape[1])
    best = rescored_together(vectors, queries, rows, wanted, filtered)
    for number, (query, (found, scores)) in enumerate(zip(queries, best, strict=True)):
        if candidates < available and scores[-1] <= filtered[number].min() + error:
            # a row that the filter left out may tie with the last one, or beat it
            radius = scores[-1] - 2 * error
            near = [numbers[block @ query >= radius] for numbers, block in vectors.blocks(keep)]
            found, scores = rescored(vectors, query, np.concatenate(near), wanted)
        yield found, scores


def rescored(vectors: Vectors, query: np.ndarray, rows: np.ndarray, wanted: int) -> Found:
    """The best of some rows by their exact scores.

    Args:
        vectors: unit rows, ``(n, d)``.
        query: unit row, float32 ``(d,)``.
        rows: candidates in any order, without duplicates.
        wanted: how many to return at most.
    """
    rows = np.sort(rows)
    exact = query.astype(np.float64)
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = vectors.take(rows[start : start + _BLOCK])
        scores[start : start + _BLOCK] = (block * exact).sum(axis=1)  # row by row: equal rows score equally
    order = np.argsort(-scores, kind="stable")[:wanted]
    return rows[order], scores[order]


def rescored_together(
    vectors: Vectors, queries: np.ndarray, rows: np.ndarray, wanted: int, rough: np.ndarray | None = None
) -> Iterator[Found]:
    """As ``rescored``, for queries with as many candidates each: many at a time.

    A float32 product says which candidates can be among the best by the bound on its rounding: only those are
    scored in float64.

    Args:
        vectors: unit rows, ``(n, d)``.
        queries: unit rows, float32 ``(q, d)``.
        rows: int64 ``(q, c)``, candidates of each in any order, without duplicates; c at least ``wanted``.
        wanted: how many to return of each.
        rough: float32 ``(q, c)``, their dot products, summed in any order; taken here by default.
    """
    by_row = np.argsort(rows, axis=1)
    rows = np.take_along_axis(rows, by_row, axis=1)
    rough = vectors.products(queries, rows) if rough is None else np.take_along_axis(rough, by_row, axis=1)
    last = -np.partition(-rough, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    owner, place = np.nonzero(rough >= last - 2 * rounding_error(queries.shape[1]))
    scores = np.full(rows.shape, -np.inf)
    for start in range(0, len(owner), _BLOCK):
        mine, there = owner[start : start + _BLOCK], place[start : start + _BLOCK]
        block = vectors.take(rows[mine, there])
        scores[mine, there] = (block * queries[mine].astype(np.float64)).sum(axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :wanted]
    found, best = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
    yield from zip(found, best, strict=True)


def rounding_error(dimension: int) -> float:
    """Bound on the error of a float32 dot product of two unit vectors, for any order of summation.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, equation (3.5): d·u / (1 − d·u) times
    Σ|xᵢyᵢ|, which is at most 1; u = 2⁻²⁴.
    """
    return 1.01 * dimension * 2.0**-24


def _highest(queries: np.ndarray, block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's search: on a GPU where its package (faiss-gpu) and the machine have one."""
    product = faiss.METRIC_INNER_PRODUCT
    if faiss.get_num_gpus() and count <= _MOST_ON_GPU:
        return faiss.knn_gpu(_gpu(), queries, block, count, metric=product)
    return faiss.knn(queries, block, count, metric=product)


@cache
def _gpu() -> Any:
    return faiss.StandardGpuResources()  # of faiss-gpu only


def _filter(
    vectors: Vectors, queries: np.ndarray, candidates: int, keep: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows by float32 scores, in no order: scores and row numbers, ``(q, candidates)`` each."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for numbers, block in vectors.blocks(keep):
        scores, found = _highest(queries, block, min(candidates, len(block)))
        if (found < 0).any():  # FAISS ranks no NaN
            raise no_numbers()
        best = np.concatenate([best, scores], axis=1)
        rows = np.concatenate([rows, numbers[found]], axis=1)
        if best.shape[1] > candidates:
            order = np.argpartition(-best, candidates - 1, axis=1)[:, :candidates]
            best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return best, rows
