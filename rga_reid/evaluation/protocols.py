"""Evaluation protocols of published results, each a small object that holds its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal, get_args

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
from rga_reid.evaluation.ranking import AveragePrecision, evaluate_features, person_ranks, ranking_settings
from rga_reid.evaluation.relevance import MARKET, MatchRule, Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, METRICS, Metric
from rga_reid.evaluation.tracklets import Pooling, pool_tracks

OTHER_CLOTHES = MatchRule(differ=("camid", "clothes"))
SAME_CLOTHES = MatchRule(agree=("clothes",))
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

    @property
    def rule(self) -> MatchRule:
        """Which items of a query's person are correct matches."""
        return MARKET

    def _require(
        self, column: str, query: LabelledFeatures, gallery: LabelledFeatures, junk_pids: Sequence[int | str]
    ) -> None:
        """Raise an InputError if the camera (or another column) of an image of a known person is unknown."""
        check_pair(query, gallery)
        for side, table in (("query", query.table), ("gallery", gallery.table)):
            unknown = _known(table, junk_pids)
            if column in table:
                unknown &= table[column].isna()
            if unknown.any():
                name, noun, hint = f"{side}_{column}", f"{column} (a column {column})", ""
                if column == "camid":
                    name, noun, hint = f"{name}s", "camera", "; IgnoreCameras does not need cameras"
                raise InputError(
                    f"{name}: the protocol {type(self).__name__} needs the {noun} of every image, row "
                    f"{int(unknown.argmax())} has none{hint}"
                )


@dataclass(frozen=True)
class SingleQuery(Protocol):
    """Each query separately; items of its person and its camera are removed.

    The protocol of Market-1501 (Zheng et al., ICCV 2015), of MSMT17 (Wei et al., CVPR 2018) and of the new
    split of CUHK03 into 767 and 700 people (Zhong et al., CVPR 2017).
    """

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        self._require("camid", query, gallery, options.get("junk_pids", (-1,)))
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
        self._require("camid", query, gallery, junk)
        if options.get("metric", "cosine") != "cosine":
            raise InputError("metric: MultiQuery needs cosine, as its queries have length 1")
        return self._name(evaluate_features(_average_queries(query, junk), gallery, **options))


@dataclass(frozen=True)
class ClothesChange(Protocol):
    """``SingleQuery`` for data with the clothes of each person (column ``clothes``).

    Of the gallery items of a query's person, those from its camera are removed, and so are those in the same
    clothes (``same=False``) or in other clothes (``same=True``). A query without a match left is skipped. This
    is the clothes-changing setting of LTCC (Qian et al., ACCV 2020), and the same-clothes one, as evaluated by Gu
    et al. (CVPR 2022).

    Args:
        same: rank the items in the same clothes instead of those in other clothes.
    """

    same: bool = False

    @property
    def rule(self) -> MatchRule:
        return SAME_CLOTHES if self.same else OTHER_CLOTHES

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        self._require("camid", query, gallery, options.get("junk_pids", (-1,)))
        self._require("clothes", query, gallery, options.get("junk_pids", (-1,)))
        return self._name(evaluate_features(query, gallery, rule=self.rule, **options))


@dataclass(frozen=True)
class Tracklets(Protocol):
    """Tracks against tracks: ``SingleQuery`` with one feature for each track (column ``track``).

    The protocol of MARS (Zheng et al., ECCV 2016): items are tracks, those of a query's person and camera are
    removed, and with them the query itself, as the gallery also has the tracks of the queries.

    Args:
        pooling: how the features of a track become one, see ``pool_tracks``.
    """

    pooling: Pooling = "mean"

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        self._require("camid", query, gallery, options.get("junk_pids", (-1,)))
        query, gallery = (pool_tracks(side, self.pooling) for side in (query, gallery))
        return self._name(evaluate_features(query, gallery, **options))


class RandomGalleries(Protocol):
    """Base of protocols that draw galleries at random, several times. They take no ``rerank``."""

    repeats: int
    seed: int
    counts_persons: bool = False  #: the CMC curve counts persons, each at its best item, instead of items

    @abstractmethod
    def _draw(
        self,
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        junk: Sequence[int | str],
        generator: np.random.Generator,
    ) -> Iterator[Relevance]:
        """Yield the relevance of the queries to a drawn gallery; each query in one of them at most."""

    def _check_columns(
        self, query: LabelledFeatures, gallery: LabelledFeatures, junk: Sequence[int | str]
    ) -> None:
        self._require("camid", query, gallery, junk)

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
            raise InputError(f"rerank: not defined for galleries drawn at random ({type(self).__name__})")
        self._check_columns(query, gallery, junk_pids)
        check_int("block_size", block_size)
        check_choice("metric", metric, get_args(Metric))
        settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
        settings |= {"cameras": "given", "repeats": self.repeats, "seed": self.seed}
        if self.counts_persons:
            settings["cmc"] = "persons"
        scores = METRICS[metric](query.features, gallery.features, choose_device(device, types=EXACT_TYPES))
        generator = np.random.default_rng(self.seed)
        results: list[RankingResult] = []
        for _ in range(self.repeats):
            draws = list(self._draw(query.table, gallery.table, settings["junk_pids"], generator))
            ranks = (found for one in draws for found in match_ranks(scores, one, block_size=block_size))
            table = tabulate_queries(query.table, ranks)
            if not table["matches"].any():
                raise InputError(
                    "gallery_pids, gallery_camids: no query has its person in another camera, by the rule of "
                    f"{type(self).__name__}"
                )
            if self.counts_persons:
                of_persons = [person_ranks(scores, one, query.table, gallery.table) for one in draws]
                table["first_match"] = reduce(pd.Series.combine_first, of_persons)
            largest = max(len(relevance.gallery_rows) for relevance in draws)
            results.append(self._name(summarize(table, largest, settings)))
            if progress is not None:
                progress(len(results) / self.repeats)
        return RepeatedResult(tuple(results))


@dataclass(frozen=True)
class SingleShot(RandomGalleries):
    """One random image of each person, from another camera than the query's, many times.

    The classic protocol of CUHK03 (Li et al., CVPR 2014), for one of its 20 splits; with ``identities``, that of
    small data sets which are divided at random, such as VIPeR (Gray et al., PETS 2007); with ``clothes``, that of
    PRCC (Yang et al., TPAMI 2021). Images of unknown identity or camera are not drawn. It takes no ``rerank``.

    Args:
        repeats: number of random galleries; the result has the mean and the deviation over them.
        seed: random seed.
        identities: number of queried people to draw for each gallery, if there are more; the others are left out
            of queries and gallery. People who are in the gallery only always stay. None: all.
        clothes: rank matches in "other" or the "same" clothes only (column ``clothes``); queries of people who
            are drawn without a match are skipped. None: clothes are not looked at.

    Raises:
        InputError: a value outside its range.
    """

    repeats: int = 100
    seed: int = 0
    identities: int | None = None
    clothes: Literal["other", "same"] | None = None

    def __post_init__(self) -> None:
        check_int("repeats", self.repeats)
        check_int("seed", self.seed, 0)
        if self.identities is not None:
            check_int("identities", self.identities)
        if self.clothes is not None:
            check_choice("clothes", self.clothes, ("other", "same"))

    @property
    def rule(self) -> MatchRule:
        return {"other": OTHER_CLOTHES, "same": SAME_CLOTHES}.get(str(self.clothes), MARKET)

    def _check_columns(
        self, query: LabelledFeatures, gallery: LabelledFeatures, junk: Sequence[int | str]
    ) -> None:
        super()._check_columns(query, gallery, junk)
        if self.clothes is not None:
            self._require("clothes", query, gallery, junk)

    def _draw(
        self,
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        junk: Sequence[int | str],
        generator: np.random.Generator,
    ) -> Iterator[Relevance]:
        drawable = gallery[["pid", "camid"]].notna().all(axis=1) & ~is_label(gallery["pid"], junk)
        query_cameras, gallery_cameras = align_labels(query["camid"], gallery["camid"])
        if self.identities is not None:
            left_out = _draw_people(query["pid"], gallery["pid"], junk, self.identities, generator)
            query = query.assign(pid=query["pid"].mask(left_out[0]))
            drawable &= ~left_out[1]
        for camera in sorted(query_cameras.dropna().unique()):
            elsewhere = np.flatnonzero(drawable & (gallery_cameras != camera))
            mixed = generator.permutation(elsewhere)
            drawn = np.zeros(len(gallery), dtype=bool)
            drawn[mixed[~gallery["pid"].iloc[mixed].duplicated().to_numpy()]] = True
            asked = query.assign(pid=query["pid"].where(query_cameras == camera))
            yield Relevance(asked, gallery, junk, drawn, self.rule)


@dataclass(frozen=True)
class CrossModality(RandomGalleries):
    """Queries of one modality against a gallery of another, such as infrared against colour.

    For each query, all gallery items of its modality (column ``modality``), of its camera and of cameras at the
    same place are left out, whatever their identity. The protocol of SYSU-MM01 (Wu et al., ICCV 2017) is
    ``CrossModality((1, 2, 4, 5), ((2, 3),), shots=1, repeats=10, counts_persons=True)``: it draws one image (ten
    for multi-shot) of each person in each of the cameras 1, 2, 4 and 5 (1 and 2 for indoor search), ten times;
    queries of camera 3 are not compared with camera 2, which is in the same room; and the CMC curve counts
    persons, each at its most similar image. It takes no ``rerank``.

    Args:
        cameras: cameras of the gallery; None: all.
        same_place: groups of cameras that are at the same place.
        shots: images to draw of each person in each camera, fewer if there are not as many; None: all.
        repeats: number of random galleries; the result has the mean and the deviation over them.
        seed: random seed.
        counts_persons: let the CMC curve count persons instead of images.

    Raises:
        InputError: a value outside its range.
    """

    cameras: tuple[int | str, ...] | None = None
    same_place: tuple[tuple[int | str, ...], ...] = ()
    shots: int | None = None
    repeats: int = 1
    seed: int = 0
    counts_persons: bool = False

    def __post_init__(self) -> None:
        check_int("repeats", self.repeats)
        check_int("seed", self.seed, 0)
        if self.shots is not None:
            check_int("shots", self.shots)

    def _check_columns(
        self, query: LabelledFeatures, gallery: LabelledFeatures, junk: Sequence[int | str]
    ) -> None:
        super()._check_columns(query, gallery, junk)
        if self.cameras is None:  # otherwise the camera implies the modality
            self._require("modality", query, gallery, junk)

    def _draw(
        self,
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        junk: Sequence[int | str],
        generator: np.random.Generator,
    ) -> Iterator[Relevance]:
        drawn = np.ones(len(gallery), dtype=bool)
        if self.cameras is not None:
            drawn &= is_label(gallery["camid"], self.cameras).to_numpy(bool)
        if self.shots is not None:
            mixed = generator.permutation(np.flatnonzero(drawn & _known(gallery, junk).to_numpy(bool)))
            number = gallery.iloc[mixed].groupby(["pid", "camid"]).cumcount().to_numpy()
            drawn = np.zeros(len(gallery), dtype=bool)
            drawn[mixed[number < self.shots]] = True
        keys = [column for column in ("camid", "modality") if column in query and column in gallery]
        sides = [align_labels(query[column], gallery[column]) for column in keys]
        groups = pd.DataFrame({column: side[0] for column, side in zip(keys, sides, strict=True)})
        for values, rows in groups.dropna(subset="camid").groupby(keys, dropna=False):
            camera, *modality = values if isinstance(values, tuple) else (values,)
            near = [group for group in self.same_place if is_label(pd.Series([camera]), group).any()]
            left_out = (sides[0][1] == camera).fillna(False).to_numpy(bool)
            for group in near:
                left_out |= is_label(gallery["camid"], group).to_numpy(bool)
            if modality and not pd.isna(modality[0]):
                left_out |= (sides[1][1] == modality[0]).fillna(False).to_numpy(bool)
            asked = query.assign(pid=query["pid"].where(query.index.isin(rows.index)))
            yield Relevance(asked, gallery, junk, drawn & ~left_out)


@dataclass(frozen=True)
class IgnoreCameras(Protocol):
    """Each query separately, without cameras: only the query's own file is removed."""

    def evaluate(self, query: LabelledFeatures, gallery: LabelledFeatures, **options: Any) -> RankingResult:
        query, gallery = replace(query, camids=None), replace(gallery, camids=None)
        return self._name(evaluate_features(query, gallery, **options))


def _sysu_mm01(cameras: tuple[int, ...], shots: int) -> CrossModality:
    return CrossModality(cameras, ((2, 3),), shots, repeats=10, counts_persons=True)


_ALL_SEARCH, _INDOOR_SEARCH = (1, 2, 4, 5), (1, 2)  # cameras of SYSU-MM01

#: by the names that ``evaluate --protocol`` takes
PROTOCOLS: dict[str, Protocol] = {
    "market1501": SingleQuery(),
    "multi_query": MultiQuery(),
    "cuhk03": SingleQuery(),
    "cuhk03_classic": SingleShot(),
    "msmt17": SingleQuery(),
    "no_cameras": IgnoreCameras(),
    "viper": SingleShot(10, identities=316),
    "cuhk01": SingleShot(10, identities=486),
    "prid2011": SingleShot(10, identities=100),
    "clothes_changing": ClothesChange(),
    "same_clothes": ClothesChange(same=True),
    "prcc": SingleShot(10, clothes="other"),
    "prcc_same_clothes": SingleShot(10, clothes="same"),
    "mars": Tracklets(),
    "cross_modality": CrossModality(),
    "sysu_mm01": _sysu_mm01(_ALL_SEARCH, 1),
    "sysu_mm01_indoor": _sysu_mm01(_INDOOR_SEARCH, 1),
    "sysu_mm01_multi_shot": _sysu_mm01(_ALL_SEARCH, 10),
    "sysu_mm01_indoor_multi_shot": _sysu_mm01(_INDOOR_SEARCH, 10),
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
        options: keywords of ``evaluate_ranking``, and ``query_columns`` and ``gallery_columns``, the ``columns`` of
            ``LabelledFeatures``; ``RandomGalleries`` take no ``rerank``.

    Returns:
        ``RepeatedResult`` for ``RandomGalleries``, otherwise ``RankingResult``.

    Raises:
        InputError: as ``evaluate_ranking``; not a protocol; or the camera of an image is unknown to a
            protocol that needs it.
    """
    if not isinstance(protocol, Protocol):
        raise InputError(
            f"protocol: expected one such as PROTOCOLS['market1501'], got {short_repr(protocol)}"
        )
    paths = options.pop("query_paths", None), options.pop("gallery_paths", None)
    columns = [options.pop(f"{side}_columns", {}) for side in ("query", "gallery")]
    query, gallery = label_pair(
        query_features, gallery_features, query_pids, gallery_pids, query_camids, gallery_camids, *paths
    )
    query, gallery = (replace(side, columns=one) for side, one in zip((query, gallery), columns, strict=True))
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
    if len(sizes) > 1 and sizes.max() == 1:
        raise InputError(
            "query_pids: expected several queries of a person in a camera, to average them, found one each (of "
            "Market-1501, take the folder gt_bbox)"
        )
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


def _draw_people(
    query: pd.Series,
    gallery: pd.Series,
    junk: Sequence[int | str],
    count: int,
    generator: np.random.Generator,
) -> tuple[pd.Series, pd.Series]:
    """Return which queries and gallery items are of queried people who are not drawn."""
    query, gallery = align_labels(query, gallery)
    people = query[query.isin(gallery) & ~is_label(query, junk)].dropna().drop_duplicates().sort_values()
    left_out = people.iloc[generator.permutation(len(people))[count:]]
    return query.isin(left_out), gallery.isin(left_out)
