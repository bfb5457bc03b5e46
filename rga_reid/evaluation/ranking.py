"""Exact ranking metrics for features of any model, or for a matrix of distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import pandas as pd
import torch

from rga_reid.checks import one_of, whole_number
from rga_reid.errors import InputError
from rga_reid.evaluation.counting import match_positions
from rga_reid.evaluation.inputs import (
    distance_matrix,
    feature_pair,
    label_tables,
    torch_device,
)
from rga_reid.evaluation.reranking import ReRankedScores, ReRanking
from rga_reid.evaluation.result import RankingResult, per_query_metrics, summarise
from rga_reid.evaluation.scores import BLOCK_SIZE, METRICS, DistanceScores, Metric, Scores
from rga_reid.evaluation.truth import GroundTruth

LONGEST_CURVE = 1_000_000  #: ranks of a CMC curve
AveragePrecision = Literal["step", "trapezoid"]


def evaluate_ranking(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    metric: Metric = "cosine",
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank the gallery for each query and compare with the truth, in the protocol of Market-1501.

    For each query, items of its identity and its camera are removed, and so is its own file; the other items
    of its identity are correct matches, all the rest is wrong. Ranks are those of a stable sort by the
    float64 score of each pair, whatever the block size, the number of threads and the device. The q x g
    scores are never held at a time.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors, their rows of any length; ranked as float32.
        query_pids, gallery_pids: identities, whole numbers ``(q,)`` and ``(g,)``. Null (None, NaN, NA) where
            unknown: such a query is skipped, such a gallery item is a wrong answer for all.
        query_camids, gallery_camids: cameras, likewise. An item or query of unknown camera is never removed
            for its camera. None: no camera is known.
        metric: "cosine", the dot product of the rows scaled to length 1, or "euclidean" for the rows as they
            are.
        average_precision: which rule ``mAP`` and ``average_precisions`` follow; the result has both means.
        max_rank: length of the CMC curve.
        junk_pids: gallery items of these identities are left out, such queries are skipped.
        query_paths, gallery_paths: files, null where unknown: a query is known in the gallery by its path.
        rerank: re-rank by k-reciprocal neighbours among all queries and the gallery without junk, and rank by
            the re-ranked distances; they are never held either.
        device: where the products are computed, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: features, labels and paths that do not fit together; a row of features with NaN, infinity,
            or, for cosines, only zeros; no query with a correct match; a re-ranking that asks for more
            neighbours than there are items.
    """
    one_of("metric", metric, get_args(Metric))
    settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
    whole_number("block_size", block_size)
    where = torch_device(device)
    query, gallery = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(query), len(gallery)),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    truth = GroundTruth(*tables, settings["junk_pids"])
    scores: Scores = METRICS[metric](query, gallery, where)
    if rerank is not None:
        rows = truth.gallery_rows
        # in products: half of all items with each other, then the queries with the gallery
        search = (len(query) + len(rows)) ** 2 / 2
        share = search / (search + len(query) * len(rows))
        scores = ReRankedScores(
            query, gallery, rows, metric, rerank, where, block_size, _part(progress, 0, share)
        )
        progress = _part(progress, share, 1)
        settings |= {"reranked": True, **asdict(rerank)}
    return _evaluate(scores, truth, tables[0], settings, block_size, progress)


def evaluate_distances(
    distances: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """The same as ``evaluate_ranking`` for distances that are there already.

    Args:
        distances: real numbers ``(q, g)``, smaller for a better fit: an array (a memory map too) or a tensor.
            Compared as they are; equal ones go by gallery order.
        query_pids, gallery_pids, query_camids, gallery_camids: as for ``evaluate_ranking``.
        average_precision, max_rank, junk_pids, query_paths, gallery_paths: likewise.
        block_size: columns looked at at a time; changes no result.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: as for ``evaluate_ranking``.
    """
    settings = ranking_settings("distances", average_precision, max_rank, junk_pids)
    whole_number("block_size", block_size)
    matrix = distance_matrix(distances)
    tables = label_tables(
        matrix.shape, query_pids, gallery_pids, query_camids, gallery_camids, query_paths, gallery_paths
    )
    truth = GroundTruth(*tables, settings["junk_pids"])
    return _evaluate(DistanceScores(matrix), truth, tables[0], settings, block_size, progress)


def _evaluate(
    scores: Scores,
    truth: GroundTruth,
    query: pd.DataFrame,
    settings: dict[str, Any],
    block_size: int,
    progress: Callable[[float], None] | None,
) -> RankingResult:
    settings["cameras"] = "given" if truth.has_cameras else "none"
    query.insert(0, "query", range(len(query)))
    if query["path"].isna().all():
        query = query.drop(columns="path")
    found = match_positions(scores, truth, block_size=block_size, progress=progress)
    table = per_query_metrics(query, found)
    if not table["matches"].any():
        raise truth.explain_no_match()
    return summarise(table, len(truth.gallery_rows), settings)


def ranking_settings(
    metric: str, average_precision: str, max_rank: int, junk_pids: Sequence[int]
) -> dict[str, Any]:
    """The settings of a result, checked."""
    one_of("average_precision", average_precision, get_args(AveragePrecision))
    whole_number("max_rank", max_rank)
    if max_rank > LONGEST_CURVE:
        raise InputError(f"max_rank: expected at most {LONGEST_CURVE:,}, found {max_rank}")
    return {
        "metric": metric,
        "average_precision": average_precision,
        "max_rank": max_rank,
        "junk_pids": tuple(int(pid) for pid in junk_pids),
        "reranked": False,
    }


def _part(
    progress: Callable[[float], None] | None, start: float, stop: float
) -> Callable[[float], None] | None:
    """What tells ``progress`` of a part of the work."""
    return None if progress is None else lambda fraction: progress(start + fraction * (stop - start))
