"""Scores of genuine and of impostor pairs, collected from features block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rga_reid.checks import whole_number
from rga_reid.errors import InputError
from rga_reid.evaluation.inputs import feature_pair, label_tables, torch_device
from rga_reid.evaluation.precision import full_precision
from rga_reid.evaluation.score_counts import CosineCounts
from rga_reid.evaluation.scores import BLOCK_SIZE, CosineScores, tiles
from rga_reid.evaluation.truth import GroundTruth

_QUERIES = 2048  # prepared at a time, in float64
_OWN = 2**19  # pairs of one identity at a time


@dataclass(frozen=True, eq=False)
class PairScores:
    """Cosines of pairs of images, by whether they show the same person."""

    genuine: np.ndarray  #: float64 (pairs,): of every pair of one person
    impostor: CosineCounts  #: of the pairs of different people, of which there may be thousands of millions


def pair_scores(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> PairScores:
    """Compare each query with each gallery item that a ranking would show it.

    Genuine are the correct matches of the Market-1501 protocol: one person, in two cameras where cameras are
    known. Impostors are all pairs of two different known people. Pairs of one person and camera, the query's
    own file, junk, and images of unknown identity take no part.

    Scores are float64 dot products of the float32 rows scaled to length 1. The genuine ones are all kept. For
    the impostors, exact counts on a grid are kept, by products in float64; a score that lies within their
    error of an edge of the grid is computed on its own. So memory does not grow with the number of impostor
    pairs, and no count depends on the block size, the number of threads or the device.

    Args:
        query_features, gallery_features, query_pids, gallery_pids: as for ``evaluate_ranking``.
        query_camids, gallery_camids, junk_pids, query_paths, gallery_paths: likewise.
        device: where the products are computed, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: inputs that do not fit together; a row of features with NaN, infinity or only zeros; no
            genuine pair, or no impostor pair.
    """
    whole_number("block_size", block_size)
    where = torch_device(device)
    features = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(features[0]), len(features[1])),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    truth = GroundTruth(*tables, junk_pids)
    scores = CosineScores(*features, where)
    known = tables[1]["pid"].notna().to_numpy()[truth.gallery_rows]
    genuine, impostor = [np.empty(0)], CosineCounts()
    blocks = list(truth.blocks(_QUERIES, _OWN, strangers=True))
    done, total = 0, sum(map(len, blocks))
    with full_precision(where):
        for queries in blocks:
            _count_all(impostor, scores, queries, truth.gallery_rows[known], block_size)
            own = truth.own_items(queries)
            own_scores = scores.exact(queries[own.query], truth.gallery_rows[own.column])
            impostor.add(own_scores[known[own.column]], -1)
            genuine.append(own_scores[own.match])
            done += len(queries)
            if progress is not None:
                progress(done / total)
    found = PairScores(np.concatenate(genuine), impostor)
    if not len(found.genuine):
        raise truth.explain_no_match()
    if not impostor.total:
        raise InputError("query_pids, gallery_pids: expected pairs of two different people, found none")
    return found


def _count_all(
    counts: CosineCounts,
    scores: CosineScores,
    queries: np.ndarray,
    gallery_rows: np.ndarray,
    block_size: int,
) -> None:
    """Count the cosines of all pairs of these rows."""
    error = scores.error(torch.float64)
    for tile, first_query, first_column in tiles(
        scores, queries, gallery_rows, block_size, dtype=torch.float64
    ):
        values = tile.cpu().numpy()
        query, column = np.nonzero(counts.near_edge(values, error))
        values[query, column] = scores.exact(
            queries[first_query + query], gallery_rows[first_column + column]
        )
        counts.add(values)
