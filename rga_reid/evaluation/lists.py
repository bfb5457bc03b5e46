"""Ranked lists of chosen queries: what an evaluation ranked, to be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rga_reid.checks import one_of, whole_number
from rga_reid.evaluation.inputs import feature_pair, label_tables, torch_device
from rga_reid.evaluation.precision import full_precision
from rga_reid.evaluation.reranking import ReRankedScores, ReRanking
from rga_reid.evaluation.scores import BLOCK_SIZE, METRICS, Metric, Scores, tiles
from rga_reid.evaluation.truth import GroundTruth

_SCORES = 2**22  # approximate scores at a time


@dataclass(frozen=True, eq=False)
class RankedList:
    """The best gallery items for one query."""

    query: int  #: row of the query
    rows: np.ndarray  #: int64 (n,), rows of the gallery, best first
    scores: np.ndarray  #: float64 (n,), of the metric, also where the order is that of a re-ranking


def ranked_lists(
    query_features: Any,
    gallery_features: Any,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    chosen: Sequence[int],
    *,
    top_k: int = 10,
    metric: Metric = "cosine",
    junk_pids: Sequence[int] = (-1,),
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
) -> list[RankedList]:
    """The ranking of ``evaluate_ranking`` for some queries, item by item: the same order, the same left out.

    A re-ranking searches the neighbours of all images once more, as the evaluation did.

    Args:
        query_features, gallery_features: as for ``evaluate_ranking``.
        query, gallery: columns ``pid``, ``camid`` (null where unknown) and ``path``.
        chosen: rows of the queries.
        top_k: items in a list; fewer if the gallery has fewer.
        metric, junk_pids, rerank, device: as for ``evaluate_ranking``.

    Raises:
        InputError: as for ``evaluate_ranking``, but queries need no correct match; a gallery of junk alone.
    """
    whole_number("top_k", top_k)
    one_of("metric", metric, tuple(METRICS))
    where = torch_device(device)
    left, right = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(left), len(right)), query.pid, gallery.pid, query.camid, gallery.camid, query.path, gallery.path
    )
    truth = GroundTruth(*tables, junk_pids)
    if not len(truth.gallery_rows):
        raise truth.explain_no_match()
    plain: Scores = METRICS[metric](left, right, where)
    order: Scores = plain
    if rerank is not None:
        order = ReRankedScores(left, right, truth.gallery_rows, metric, rerank, where, BLOCK_SIZE, None)
    step = max(1, _SCORES // max(1, len(truth.gallery_rows)))
    with full_precision(where):
        parts = [
            list(_some(plain, order, truth, np.asarray(chosen[start : start + step], dtype=np.int64), top_k))
            for start in range(0, len(chosen), step)
        ]
    return [ranked for part in parts for ranked in part]


def _some(
    plain: Scores, order: Scores, truth: GroundTruth, queries: np.ndarray, top_k: int
) -> Iterator[RankedList]:
    """Lists of some queries: a product tells which items can be in them, exact scores in which order."""
    real = np.float32 if order.dtype == torch.float32 else np.float64
    rough = np.empty((len(queries), len(truth.gallery_rows)), real)
    for tile, row, column in tiles(order, queries, truth.gallery_rows, BLOCK_SIZE):
        rough[row : row + tile.shape[0], column : column + tile.shape[1]] = tile.cpu().numpy()
    own = truth.own_items(queries)
    rough[own.query[~own.match], own.column[~own.match]] = -np.inf
    last = min(top_k, rough.shape[1]) - 1
    floor = -np.partition(-rough, last, axis=1)[:, last] - 2 * order.error(order.dtype)
    for number, scores, lowest in zip(queries, rough, floor, strict=True):
        rows = truth.gallery_rows[(scores >= lowest) & (scores > -np.inf)]
        exact = order.exact(np.full_like(rows, number), rows)
        rows = rows[np.argsort(-exact, kind="stable")[:top_k]]
        yield RankedList(int(number), rows, plain.exact(np.full_like(rows, number), rows))
