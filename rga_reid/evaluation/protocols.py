"""Evaluation protocols of published results, each a small object that holds its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from rga_reid.data.labels import align_labels, is_label
from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_choice, check_int, short_repr
from rga_reid.evaluation.features import (
    LabelledFeatures,
    check_pair,
    label_pair,
    row_norms,
    split_by_count,
    to_float32,
)
from rga_reid.evaluation.match_ranks import match_ranks
from rga_reid.evaluation.metrics import RankingResult, RepeatedResult, summarize, tabulate_queries
from rga_reid.evaluation.ranking import AveragePrecision, evaluate_features, ranking_settings
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, METRICS, Metric

_AVERAGED = 4096  # rows averaged at a time, in float64


class Protocol(ABC):
    """A way to evaluate a ranking. ``settings["protocol"]`` of the result is the name of the class."""

    @abstractmethod
    def evaluate(
        self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any
    ) -> RankingResult | RepeatedResult:
        """Rank the gallery for each query.

        Args:
            query, gallery: features and labels.
            options: keywords of ``evaluate_features``.

        Raises:
            InputError: as ``evaluate_features``; an image of unknown camera, if the protocol needs cameras.
        """

    def _name(self, result: RankingResult) -> RankingResult:
        return replace(result, settings={**result.settings, "protocol": type(self).__name__})

    def _require_cameras(
        self, query: LabelledFeatures, gallery: LabelledFeatures, junk_pids: Sequence[int | str] = (-1,)
    ) -> None:
        """Raise an InputError if the camera of an image of a known person is unknown."""
        check_pair(query, gallery)
        for side, table in (("query", query.table), ("gallery", gallery.table)):
            unknown = table["camid"].isna() & _known(table, junk_pids)
            if unknown.any():
                raise InputError(
                    f"{side}_camids: the protocol {type(self).__name__} needs the camera of every image, row "
                    f"{int(unknown.argmax())} has none; IgnoreCameras does not need cameras"
                )


@dataclass(frozen=True)
class SingleQuery(Protocol):
    """Each query separately; items of its person and its camera are removed.

    The protocol of Market-1501 (Zheng et al., ICCV 2015), of MSMT17 (Wei et al., CVPR 2018) and of the new
    split of CUHK03 into 767 and 700 people (Zhong et al., CVPR 2017).
    """

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        self._require_cameras(query, gallery, options.get("junk_pids", (-1,)))
        return self._name(evaluate_features(query, gallery, **options))


@dataclass(frozen=True)
class MultiQuery(Protocol):
    """``SingleQuery`` with one query for each person and camera: the mean of its features, of length 1.

    The multiple-query protocol of Market-1501 with average pooling. The queries should be all images of a
    person in a camera (``gt_bbox`` of Market-1501), or as many as are available. The result has one query for
    each pair of a person and a camera, in order of appearance.
    """

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        junk = options.get("junk_pids", (-1,))
        self._require_cameras(query, gallery, junk)
        return self._name(evaluate_features(_average_queries(query, junk), gallery, **options))


@dataclass(frozen=True)
class SingleShot(Protocol):
    """One random image of each person, from another camera than the query's, many times.

    The classic protocol of CUHK03 (Li et al., CVPR 2014), for one of its 20 splits. Images of unknown
    identity or camera are not drawn. It takes no ``rerank``.

    Args:
        repeats: number of random galleries; the result has the mean and the deviation over them.
        seed: random seed.

    Raises:
        InputError: ``repeats`` below 1, or a negative seed.
    """

    repeats: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("repeats", self.repeats)
        check_int("seed", self.seed, 0)

    def evaluate(  # type: ignore[override]  # names the options
        self,
        query: LabelledFeatures,
        gallery: LabelledFeatures,
        *,
        metric: Metric = "cosine",
        average_precision: AveragePrecision = "step",
        max_rank: int = 50,
        junk_pids: Sequence[int | str] = (-1,),
        rerank: None = None,
        device: str | torch.device = "cpu",
        block_size: int = BLOCK_SIZE,
        progress: Callable[[float], None] | None = None,
    ) -> RepeatedResult:
        if rerank is not None:
            raise InputError("rerank: not defined for galleries of one image for each person (SingleShot)")
        self._require_cameras(query, gallery, junk_pids)
        check_int("block_size", block_size)
        check_choice("metric", metric, get_args(Metric))
        settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
        settings |= {"cameras": "given", "repeats": self.repeats, "seed": self.seed}
        scores = METRICS[metric](query.features, gallery.features, choose_device(device, types=EXACT_TYPES))
        generator = np.random.default_rng(self.seed)
        results: list[RankingResult] = []
        for _ in range(self.repeats):
            draws = list(_draw_galleries(query.table, gallery.table, settings["junk_pids"], generator))
            ranks = (found for one in draws for found in match_ranks(scores, one, block_size=block_size))
            table = tabulate_queries(query.table, ranks)
            if not table["matches"].any():
                raise InputError("gallery_pids, gallery_camids: no query has its person in another camera")
            largest = max(len(relevance.gallery_rows) for relevance in draws)
            results.append(self._name(summarize(table, largest, settings)))
            if progress is not None:
                progress(len(results) / self.repeats)
        return RepeatedResult(tuple(results))


@dataclass(frozen=True)
class IgnoreCameras(Protocol):
    """Each query separately, without cameras: only the query's own file is removed."""

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        query, gallery = replace(query, camids=None), replace(gallery, camids=None)
        return self._name(evaluate_features(query, gallery, **options))


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
    """Rank the gallery for each query by a protocol.

    Args:
        protocol: such as ``PROTOCOLS["market1501"]``.
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids: as for
            ``evaluate_ranking``.
        options: keywords of ``evaluate_ranking``; ``SingleShot`` takes no ``rerank``.

    Returns:
        ``RepeatedResult`` for ``SingleShot``, otherwise ``RankingResult``.

    Raises:
        InputError: as ``evaluate_ranking``; not a protocol; or the camera of an image is unknown to a
            protocol that needs it.
    """
    if not isinstance(protocol, Protocol):
        raise InputError(
            f"protocol: expected one such as PROTOCOLS['market1501'], got {short_repr(protocol)}"
        )
    paths = options.pop("query_paths", None), options.pop("gallery_paths", None)
    query, gallery = label_pair(
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids, *paths
    )
    return protocol.evaluate(query, gallery, **options)


def _known(table: pd.DataFrame, junk_pids: Sequence[int | str]) -> pd.Series:
    return table["pid"].notna() & ~is_label(table["pid"], junk_pids)


def _average_queries(query: LabelledFeatures, junk_pids: Sequence[int | str]) -> LabelledFeatures:
    """Return the mean feature of each person in each camera, of length 1. A mean has no path."""
    row_norms(query.features, "query_features", allow_zero=True)  # rejects a bad row by its number
    rows = np.flatnonzero(_known(query.table, junk_pids))
    if not len(rows):
        raise InputError("query_pids: every query is junk or of unknown identity; nothing to look for")
    kept = query.table.iloc[rows]
    group = kept.groupby(["pid", "camid"], sort=False).ngroup().to_numpy()
    order = rows[np.argsort(group, kind="stable")]
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    people = kept[["pid", "camid"]].drop_duplicates()
    means = np.empty((len(sizes), query.features.shape[1]))
    for part in split_by_count(sizes, _AVERAGED):
        begin = starts[part.start]
        members = order[begin : starts[part.stop - 1] + sizes[part.stop - 1]]
        sums = np.add.reduceat(to_float32(query.features, members).astype(np.float64), starts[part] - begin)
        lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        if not lengths.all():
            pid, camid = people.iloc[part.start + int(np.argmin(lengths))]
            raise InputError(
                f"query_features: the features of pid {pid} in camera {camid} cancel out: their mean is zero"
            )
        means[part] = sums / lengths
    return LabelledFeatures.from_table(means, people, name="query")


def _draw_galleries(
    query: pd.DataFrame, gallery: pd.DataFrame, junk: Sequence[int | str], generator: np.random.Generator
) -> Iterator[Relevance]:
    """For each camera of the queries, yield its queries and one random image of each person by other cameras."""
    drawable = gallery[["pid", "camid"]].notna().all(axis=1) & ~is_label(gallery["pid"], junk)
    query_cameras, gallery_cameras = align_labels(query["camid"], gallery["camid"])
    for camera in sorted(query_cameras.dropna().unique()):
        elsewhere = np.flatnonzero(drawable & (gallery_cameras != camera))
        mixed = generator.permutation(elsewhere)
        drawn = np.zeros(len(gallery), dtype=bool)
        drawn[mixed[~gallery["pid"].iloc[mixed].duplicated().to_numpy()]] = True
        yield Relevance(query.assign(pid=query["pid"].where(query_cameras == camera)), gallery, junk, drawn)
