"""Alpha query expansion: move each query towards its nearest gallery items.

Filip Radenović, Giorgos Tolias, Ondřej Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI
2019, arXiv 1711.02512, section 5.2.1.
"""

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

NEIGHBOURS = 10  #: gallery items that join a query by default
_QUERIES = 1024  # queries expanded at a time


def expand_queries(
    query_features: Any,
    gallery_features: Any,
    *,
    k: int = NEIGHBOURS,
    alpha: float = 3.0,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Replace each query by the weighted sum of itself and its nearest gallery items.

    All rows are scaled to length 1 first. The query has the weight 1, an item of cosine c the weight
    ``max(c, 0)^alpha``. The neighbours are exact, ties in gallery order; weights and sums are float64. The
    q x g cosines are never held at once.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors. Leave junk out of the gallery.
        k: gallery items that join. The paper uses 50, for places; a person has fewer images.
        alpha: 0 for the plain mean of average query expansion; a larger value gives distant items less weight.
        device: device of the products, such as "cuda".
        block_size: gallery rows held on the device at a time; changes no result.
        progress: called with the fraction of the work that is done.

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
    """Return numbers and exact cosines of the k nearest gallery items of some queries, ``(n, k)`` each."""

    def exact(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return scores.exact(rows[row], column)

    best = TopK(len(rows), k, scores.error(scores.dtype), exact)
    for tile, row, column in tiles(scores, rows, np.arange(gallery), block_size):
        if column == 0:
            best.raise_threshold(tile, row)
        best.add(tile, row, column)
    items, cosines = zip(*best.results(), strict=True)
    return np.stack(items), np.stack(cosines)


def _weighted_sum(
    scores: CosineScores, rows: np.ndarray, items: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Add the unit rows of the items, times the weights ``(n, k)``, to those of the queries; normalise."""
    total = scores.queries(rows, torch.float64).cpu().numpy()
    for place in range(items.shape[1]):  # one by one, so that a sum does not depend on the other queries
        total += weights[:, place, None] * scores.gallery(items[:, place], torch.float64).cpu().numpy()
    lengths = np.sqrt((total * total).sum(axis=1, keepdims=True))
    if not lengths.all():
        row = int(rows[int(np.argmin(lengths))])
        raise InputError(f"query_features: row {row} and its neighbours cancel out: their sum is zero")
    return total / lengths
