"""Galleries of one drawn image for each person, many times (the classic protocol of CUHK03)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from rga_reid.checks import one_of, whole_number
from rga_reid.errors import InputError
from rga_reid.evaluation.counting import MatchPositions, match_positions
from rga_reid.evaluation.inputs import feature_pair, label_tables, torch_device
from rga_reid.evaluation.ranking import AveragePrecision, ranking_settings
from rga_reid.evaluation.result import RankingResult, RepeatedResult, per_query_metrics, summarise
from rga_reid.evaluation.scores import BLOCK_SIZE, METRICS, Metric, Scores
from rga_reid.evaluation.truth import GroundTruth


def evaluate_single_shot(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any,
    gallery_camids: Any,
    *,
    repeats: int = 100,
    seed: int = 0,
    metric: Metric = "cosine",
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RepeatedResult:
    """Rank, for the queries of each camera, one image of each person that another camera took.

    The images are drawn anew for each repeat. Images of unknown identity or camera are not drawn.

    Args:
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids, metric,
            average_precision, max_rank, junk_pids, query_paths, gallery_paths, device, block_size, progress:
            as for ``evaluate_ranking``; cameras are needed.
        repeats: how many times.
        seed: of the draws.

    Raises:
        InputError: as ``evaluate_ranking``, or no query with an image of its person in another camera.
    """
    whole_number("repeats", repeats)
    whole_number("block_size", block_size)
    one_of("metric", metric, get_args(Metric))
    settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
    settings |= {"cameras": "given", "repeats": repeats, "seed": seed}
    where = torch_device(device)
    features = feature_pair(query_features, gallery_features)
    query, gallery = label_tables(
        (len(features[0]), len(features[1])),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    scores = METRICS[metric](*features, where)
    generator = np.random.default_rng(seed)
    results: list[RankingResult] = []
    for _ in range(repeats):
        truths = list(_draws(query, gallery, settings["junk_pids"], generator))
        found = chain.from_iterable(_positions(scores, truth, block_size) for truth in truths)
        table = per_query_metrics(query.rename_axis("query").reset_index(), found)
        if not table["matches"].any():
            raise InputError("gallery_pids, gallery_camids: no query has its person in another camera")
        results.append(summarise(table, max(len(truth.gallery_rows) for truth in truths), settings))
        if progress is not None:
            progress(len(results) / repeats)
    return RepeatedResult(tuple(results))


def _draws(
    query: pd.DataFrame, gallery: pd.DataFrame, junk: Sequence[int], generator: np.random.Generator
) -> Iterator[GroundTruth]:
    """For each camera of the queries: its queries, and one image of each person by other cameras."""
    drawable = gallery.notna()[["pid", "camid"]].all(axis=1) & ~gallery["pid"].isin(junk)
    for camera in sorted(query["camid"].dropna().unique()):
        elsewhere = np.flatnonzero(drawable & (gallery["camid"] != camera))
        mixed = generator.permutation(elsewhere)
        chosen = np.zeros(len(gallery), dtype=bool)
        chosen[mixed[~gallery["pid"].iloc[mixed].duplicated().to_numpy()]] = True
        yield GroundTruth(
            query.assign(pid=query["pid"].where(query["camid"] == camera)), gallery, junk, chosen
        )


def _positions(scores: Scores, truth: GroundTruth, block_size: int) -> Iterator[MatchPositions]:
    return match_positions(scores, truth, block_size=block_size)
