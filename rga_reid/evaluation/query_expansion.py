"""Alpha query expansion (Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI
2019, arXiv 1711.02512, section 5.2.1): a query moves towards what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation.features import feature_pair
from rga_reid.evaluation.similarity import BLOCK_SIZE, CosineScores, tiles, use_full_precision
from rga_reid.evaluation.topk import TopK

_QUERIES = 1024  # worked on at a time


def expand_queries(
    query_features: Any,
    gallery_features: Any,
    *,
    k: int = 10,
    alpha: float = 3.0,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Replace each query by the weighted sum of itself and its nearest gallery items.

    All rows are scaled to length 1 first. The query has the weight 1, an item of cosine c the weight
    ``max(c, 0)^alpha``. The neighbours are exact, equal cosines going by gallery order; weights and sums are
    float64. The q x g cosines are never held at a time.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors. Leave junk out of the gallery.
        k: gallery items that join. The paper takes 50, for places; a person has fewer pictures.
        alpha: 0 for the plain mean of average query expansion; the larger, the less a distant item counts.
        device: where the products are computed, such as "cuda".
        block_size: gallery rows held on the device at a time; changes no result.
        progress: told the fraction that is done, now and then.

    Returns:
        float32 ``(q, d)``, rows L2-normalised.

    Raises:
        InputError: features that do not fit together; a row with NaN, infinity or only zeros; a setting
            outside its range.
    """
    check_int("k", k)
    check_int("block_size", block_size)
    if not (math.isfinite(alpha) and alpha >= 0):
        raise InputError(f"alpha: expected a number from 0, found {alpha!r}")
    where = choose_device(device, types=EXACT_TYPES)
    query, gallery = feature_pair(query_features, gallery_features)
    if k > len(gallery):
        raise InputError(f"k: expected at most {len(gallery)}, the number of gallery items, found {k}")
    scores = CosineScores(query, gallery, where)
    expanded = np.empty(query.shape, np.float32)
    with use_full_precision(where):
        for start in range(0, len(query), _QUERIES):
            rows = np.arange(start, min(start + _QUERIES, len(query)))
            items, cosines = _nearest_items(scores, rows, len(gallery), k, block_size)
            expanded[rows] = _weighted_sum(scores, rows, items, np.maximum(cosines, 0) ** alpha)
            if progress is not None:
                progress((start + len(rows)) / len(query))
    return expanded


def _nearest_items(
    scores: CosineScores, rows: np.ndarray, gallery: int, k: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and exact cosines of the k nearest gallery items of some queries, ``(n, k)`` each."""

    def exact(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return scores.exact(rows[row], column)

    best = TopK(len(rows), k, scores.error(scores.dtype), exact)
    for tile, row, column in tiles(scores, rows, np.arange(gallery), block_size):
        if column == 0:
            best.raise_threshold(tile, row)
        best.add(tile, row, column)
    found = best.entries()
    return found.column.reshape(-1, k), exact(found.row, found.column).reshape(-1, k)


def _weighted_sum(
    scores: CosineScores, rows: np.ndarray, items: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Unit rows of the queries plus those of their items times the weights ``(n, k)``, of length 1."""
    total = scores.queries(rows, torch.float64).cpu().numpy()
    for place in range(items.shape[1]):  # one after the other: a sum does not depend on who else is there
        total += weights[:, place, None] * scores.gallery(items[:, place], torch.float64).cpu().numpy()
    lengths = np.sqrt((total * total).sum(axis=1, keepdims=True))
    if not lengths.all():
        row = int(rows[int(np.argmin(lengths))])
        raise InputError(f"query_features: row {row} and its neighbours cancel out: no direction is left")
    return total / lengths
