"""Evaluation and re-ranking as loops in float64, written from the definitions; no code of the package."""

from __future__ import annotations

from typing import Any

import numpy as np

Labels = dict[str, Any]


def naive_ranking(distance: np.ndarray, labels: Labels, max_rank: int, junk: tuple[int, ...] = (-1,)) -> Any:
    """Sort, then walk down the list, for one query after the other. Unknown labels are None.

    Returns the metrics, or None if no query has a match.
    """
    rows = []
    for q, pid in enumerate(labels["query_pids"]):
        if pid is None or pid in junk:
            continue
        hits = []
        for g in np.argsort(distance[q], kind="stable"):
            same_person = labels["gallery_pids"][g] == pid
            if labels["gallery_pids"][g] in junk or is_same_file(labels, q, g):
                continue
            if same_person and is_same_camera(labels, q, g):
                continue
            hits.append(same_person)
        if any(hits):
            rows.append(walk(hits, max_rank))
    if not rows:
        return None
    means = {key: np.mean([row[key] for row in rows], axis=0) for key in rows[0]}
    return means | {"valid": len(rows), "first": [row["first"] for row in rows]}


def is_same_camera(labels: Labels, q: int, g: int) -> bool:
    if labels["query_camids"] is None or labels["query_camids"][q] is None:
        return False
    return labels["query_camids"][q] == labels["gallery_camids"][g]


def is_same_file(labels: Labels, q: int, g: int) -> bool:
    return labels["query_paths"] is not None and labels["query_paths"][q] == labels["gallery_paths"][g]


def walk(hits: list[bool], max_rank: int) -> dict[str, Any]:
    """One query, item by item, the trapezoid as compute_AP.m of Market-1501 adds it up."""
    total = sum(hits)
    step = trapezoid = found = 0
    old_recall, old_precision = 0.0, 1.0
    first = last = None
    for place, hit in enumerate(hits):
        if hit:
            found += 1
            step += found / (place + 1) / total
            first = place if first is None else first
            last = place
        recall, precision = found / total, found / (place + 1)
        trapezoid += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    cmc = [float(first < k) for k in range(1, max_rank + 1)]
    return {"step": step, "trapezoid": trapezoid, "INP": total / (last + 1), "cmc": cmc, "first": first + 1}


def float64_distance(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Pair by pair, so that equal gallery rows are at equal distances."""
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if metric == "euclidean":
        return np.stack([((gallery - row) ** 2).sum(axis=1) for row in query])
    query = query / np.sqrt((query**2).sum(axis=1, keepdims=True))
    gallery = gallery / np.sqrt((gallery**2).sum(axis=1, keepdims=True))
    return np.stack([-(gallery * row).sum(axis=1) for row in query])


def squared_distances(features: np.ndarray, metric: str) -> np.ndarray:
    """Pair by pair in float64, so that equal rows are at equal distances."""
    x = features.astype(np.float64)
    if metric == "cosine":
        x = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    return np.stack([((x - row) ** 2).sum(axis=1) for row in x])


def naive_re_ranking(squares: np.ndarray, queries: int, k1: int, k2: int, share: float) -> np.ndarray:
    """Image by image with dense vectors. ``squares``: squared distances of all items, queries first."""
    d = _relative(squares)
    return (1 - share) * naive_jaccard(squares, k1, k2)[:queries, queries:] + share * d[:queries, queries:]


def _relative(squares: np.ndarray) -> np.ndarray:
    largest = squares.max(axis=1, keepdims=True)
    return np.divide(squares, largest, out=np.zeros_like(squares), where=largest > 0)


def naive_jaccard(squares: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Jaccard distances of the k-reciprocal neighbours of all pairs of items."""
    n, d = len(squares), _relative(squares)
    order = np.argsort(squares, axis=1, kind="stable")

    def mutual(i: int, k: int) -> set[int]:
        return {int(c) for c in order[i, : k + 1] if i in order[c, : k + 1]}

    vectors = np.zeros((n, n))
    for i in range(n):
        own = mutual(i, k1)
        grown = set(own)
        for c in own:
            close = mutual(c, int(np.around(k1 / 2)))
            if len(close & own) > 2 / 3 * len(close):
                grown |= close
        members = sorted(grown)
        if members:
            weights = np.exp(-d[i, members])
            vectors[i, members] = weights / weights.sum()
    if k2 > 1:
        vectors = np.stack([vectors[order[i, :k2]].mean(axis=0) for i in range(n)])
    shared = np.stack([np.minimum(vector, vectors).sum(axis=1) for vector in vectors])
    return 1 - shared / (2 - shared)
