"""The protocols in which results are published, each a small object that holds its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias, Union, get_args

import numpy as np
import pandas as pd
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_choice, check_int, short_repr
from rga_reid.evaluation.features import (
    feature_pair,
    label_tables,
    parts,
    row_norms,
    to_float32,
)
from rga_reid.evaluation.metrics import (
    MatchRanks,
    RankingResult,
    RepeatedResult,
    per_query_metrics,
    summarize,
)
from rga_reid.evaluation.ranking import (
    AveragePrecision,
    evaluate_ranking,
    match_ranks,
    ranking_settings,
)
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, METRICS, Metric, Scores

_AVERAGED = 4096  # rows at a time, in float64


@dataclass(frozen=True)
class SingleQuery:
    """Each query on its own; items of its person and its camera are removed.

    The protocol of Market-1501 (Zheng et al., ICCV 2015), of MSMT17 (Wei et al., CVPR 2018) and of CUHK03 as
    split anew into 767 and 700 people (Zhong et al., CVPR 2017).
    """


@dataclass(frozen=True)
class MultiQuery:
    """As ``SingleQuery``, with one query for each person and camera: the mean of its features, of length 1.

    The multiple-query protocol of Market-1501 with average pooling. The queries are to be all images of a
    person in a camera (Market's ``gt_bbox``), or as many as there are.
    """


@dataclass(frozen=True)
class SingleShot:
    """One drawn image of each person, from another camera than the query's, many times.

    The classic protocol of CUHK03 (Li et al., CVPR 2014), for one of its 20 splits.

    Args:
        repeats: draws; the result has their mean and deviation.
        seed: of the draws.

    Raises:
        InputError: no repeat, or a negative seed.
    """

    repeats: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("repeats", self.repeats)
        check_int("seed", self.seed, 0)


@dataclass(frozen=True)
class IgnoreCameras:
    """Each query on its own, cameras unknown: nothing but the query's own file, by its path, is removed."""


Protocol: TypeAlias = Union[SingleQuery, MultiQuery, SingleShot, IgnoreCameras]  # noqa: UP007 - at run time

#: by the names that ``evaluate --protocol`` takes
PROTOCOLS: dict[str, Protocol] = {
    "market1501": SingleQuery(),
    "multi_query": MultiQuery(),
    "cuhk03": SingleQuery(),
    "cuhk03_classic": SingleShot(),
    "msmt17": SingleQuery(),
    "no_cameras": IgnoreCameras(),
}


def evaluate_protocol(
    protocol: Protocol,
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    **options: Any,
) -> RankingResult | RepeatedResult:
    """Rank the gallery for each query as a protocol has it.

    Args:
        protocol: one of the classes here, such as ``PROTOCOLS["market1501"]``.
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids: as for
            ``evaluate_ranking``.
        options: keywords of ``evaluate_ranking``; ``SingleShot`` takes no ``rerank``.

    Returns:
        ``RepeatedResult`` for ``SingleShot``, otherwise ``RankingResult``; the queries of ``MultiQuery`` are
        the pairs of a person and a camera, in their order. ``settings["protocol"]`` names the class.

    Raises:
        InputError: as ``evaluate_ranking``; another protocol; or the camera of an image is unknown to a
            protocol that needs it.
    """
    if not isinstance(protocol, SingleQuery | MultiQuery | SingleShot | IgnoreCameras):
        raise InputError(
            f"protocol: expected one such as PROTOCOLS['market1501'], got {short_repr(protocol)}"
        )
    name, junk = type(protocol).__name__, options.get("junk_pids", (-1,))
    query, gallery = feature_pair(query_features, gallery_features)
    labels = (query_pids, gallery_pids, query_camids, gallery_camids)
    if isinstance(protocol, IgnoreCameras):
        return _named(evaluate_ranking(query, gallery, query_pids, gallery_pids, **options), name)
    tables = label_tables((len(query), len(gallery)), *labels, None, None)
    for side, table in zip(("query", "gallery"), tables, strict=True):
        _require_cameras(table, side, name, junk)
    if isinstance(protocol, SingleShot):
        if options.pop("rerank", None) is not None:
            raise InputError("rerank: not defined for galleries of one image for each person (SingleShot)")
        repeated = evaluate_single_shot(
            query, gallery, *labels, repeats=protocol.repeats, seed=protocol.seed, **options
        )
        return RepeatedResult(tuple(_named(result, name) for result in repeated.repeats))
    if isinstance(protocol, MultiQuery):
        query, people = _averaged(query, tables[0], junk)
        labels = (people["pid"], gallery_pids, people["camid"], gallery_camids)
        options |= {"query_paths": None, "gallery_paths": None}  # a mean is no file
    return _named(evaluate_ranking(query, gallery, *labels, **options), name)


def _named(result: RankingResult, protocol: str) -> RankingResult:
    return replace(result, settings={**result.settings, "protocol": protocol})


def _require_cameras(table: pd.DataFrame, side: str, protocol: str, junk: Any) -> None:
    """Refuse an image of a known person in an unknown camera."""
    unknown = table["camid"].isna() & table["pid"].notna() & ~table["pid"].isin(list(junk))
    if unknown.any():
        raise InputError(
            f"{side}_camids: the protocol {protocol} needs the camera of every image, row "
            f"{int(unknown.argmax())} has none; IgnoreCameras does without"
        )


def _averaged(features: np.ndarray, table: pd.DataFrame, junk: Any) -> tuple[np.ndarray, pd.DataFrame]:
    """Mean features of each person in each camera, of length 1, and whose they are."""
    row_norms(features, "query_features", allow_zero=True)  # names a bad row before it is averaged away
    rows = np.flatnonzero(table["pid"].notna() & ~table["pid"].isin(list(junk)))
    if not len(rows):
        raise InputError("query_pids: every query is junk or of unknown identity; nothing to look for")
    kept = table.iloc[rows]
    group = kept.groupby(["pid", "camid"], sort=False).ngroup().to_numpy()
    order = rows[np.argsort(group, kind="stable")]
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    people = kept[["pid", "camid"]].drop_duplicates()
    means = np.empty((len(sizes), features.shape[1]))
    for part in parts(sizes, _AVERAGED):
        begin = starts[part.start]
        members = order[begin : starts[part.stop - 1] + sizes[part.stop - 1]]
        sums = np.add.reduceat(to_float32(features, members).astype(np.float64), starts[part] - begin)
        lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        if not lengths.all():
            pid, camid = people.iloc[part.start + int(np.argmin(lengths))]
            raise InputError(
                f"query_features: those of pid {pid} in camera {camid} cancel out: no direction is left"
            )
        means[part] = sums / lengths
    return means, people


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
    check_int("repeats", repeats)
    check_int("block_size", block_size)
    check_choice("metric", metric, get_args(Metric))
    settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
    settings |= {"cameras": "given", "repeats": repeats, "seed": seed}
    where = choose_device(device, types=EXACT_TYPES)
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
        results.append(summarize(table, max(len(truth.gallery_rows) for truth in truths), settings))
        if progress is not None:
            progress(len(results) / repeats)
    return RepeatedResult(tuple(results))


def _draws(
    query: pd.DataFrame, gallery: pd.DataFrame, junk: Sequence[int], generator: np.random.Generator
) -> Iterator[Relevance]:
    """For each camera of the queries: its queries, and one image of each person by other cameras."""
    drawable = gallery.notna()[["pid", "camid"]].all(axis=1) & ~gallery["pid"].isin(junk)
    for camera in sorted(query["camid"].dropna().unique()):
        elsewhere = np.flatnonzero(drawable & (gallery["camid"] != camera))
        mixed = generator.permutation(elsewhere)
        chosen = np.zeros(len(gallery), dtype=bool)
        chosen[mixed[~gallery["pid"].iloc[mixed].duplicated().to_numpy()]] = True
        yield Relevance(query.assign(pid=query["pid"].where(query["camid"] == camera)), gallery, junk, chosen)


def _positions(scores: Scores, truth: Relevance, block_size: int) -> Iterator[MatchRanks]:
    return match_ranks(scores, truth, block_size=block_size)
