"""Metrics of a ranking, per query and in all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rga_reid.errors import InputError

RANKS = (1, 5, 10, 20)  #: k of the rank-k that are reported


class MatchRanks(NamedTuple):
    """Where the correct matches of some queries rank."""

    queries: np.ndarray  #: rows of the queries, each with at least one match
    owner: np.ndarray  #: for each match, its query's number in ``queries``, ascending
    position: np.ndarray  #: how many items, the removed left out, rank before it; ascending within a query


@dataclass(frozen=True, eq=False)
class RankingResult:
    """How well a gallery was ranked. All metrics are fractions, not percent."""

    mAP: float  #: mean average precision by the rule in ``settings["average_precision"]``
    mAP_step: float  #: each match counts the precision where it stands, n/(h + 1)
    mAP_trapezoid: float  #: the rule of the Market-1501 MATLAB code: ½·[n/(h + 1) + (n − 1)/h]
    mINP: float  #: mean inverse negative penalty (Ye et al., TPAMI 2021): k/(h_k + 1)
    #: float64 (max_rank,): fraction of valid queries with a match among the first 1, 2, ... items
    cmc: np.ndarray = field(repr=False)
    #: float64 (valid_queries,), by the same rule as mAP, in query order
    average_precisions: np.ndarray = field(repr=False)
    valid_queries: int  #: queries with a correct match; the metrics are means over these
    skipped_queries: int  #: queries without one: junk, unknown identity, or nobody left to be found
    gallery: int  #: gallery items, without junk
    settings: dict[str, Any]  #: how it was ranked; ``cameras`` is "none" if no camera was known
    per_query: pd.DataFrame = field(repr=False)  #: see ``to_frame``

    def rank(self, k: int) -> float:
        """Fraction of valid queries with a correct match among the first ``k`` items.

        Raises:
            InputError: ``k`` is not between 1 and ``max_rank``.
        """
        if not 1 <= k <= len(self.cmc):
            raise InputError(f"rank {k}: expected 1 to {len(self.cmc)}, the max_rank of this evaluation")
        return float(self.cmc[k - 1])

    def to_frame(self) -> pd.DataFrame:
        """One row for each query, in their order, so that the worst can be found.

        Returns:
            Columns ``query`` (row number), ``path`` (if paths were given), ``pid``, ``camid``, ``AP_step``,
            ``AP_trapezoid``, ``INP``, ``first_match`` (rank of the first match, from 1) and ``matches`` (how
            many there are to be found). Skipped queries have 0 matches and null metrics.
        """
        return self.per_query.copy()

    def to_dict(self) -> dict[str, Any]:
        """What ``evaluate --json`` writes: fractions, not percent.

        Returns:
            ``mAP`` (always the step rule here), ``mAP_trapezoid``, ``mINP``, ``rank-1``, ``rank-5``,
            ``rank-10``, ``rank-20``, ``cmc`` (a list), ``queries``, ``valid_queries``, ``gallery`` (its
            size) and ``reranked``.
        """
        return {
            **self._metrics(),
            "cmc": self.cmc.tolist(),
            "queries": len(self.per_query),
            "valid_queries": self.valid_queries,
            "gallery": self.gallery,
            "reranked": bool(self.settings["reranked"]),
        }

    def _metrics(self) -> dict[str, float]:
        first = self.per_query["first_match"].dropna().to_numpy(dtype=np.int64)
        return {
            "mAP": self.mAP_step,
            "mAP_trapezoid": self.mAP_trapezoid,
            "mINP": self.mINP,
            **{f"rank-{k}": float(np.mean(first <= k)) for k in RANKS},
        }


@dataclass(frozen=True, eq=False)
class RepeatedResult:
    """Rankings of several draws of a gallery. Metrics are means over the draws, fractions, not percent."""

    repeats: tuple[RankingResult, ...] = field(repr=False)  #: one for each draw, at least one

    @property
    def mAP(self) -> float:
        """Mean over the draws, by the rule in ``settings["average_precision"]``."""
        return float(np.mean([result.mAP for result in self.repeats]))

    @property
    def mAP_deviation(self) -> float:
        """Sample standard deviation of one draw's mAP; 0 for a single draw."""
        return _deviation([result.mAP for result in self.repeats])

    @property
    def cmc(self) -> np.ndarray:
        """float64 ``(max_rank,)``, the mean curve."""
        return np.mean([result.cmc for result in self.repeats], axis=0)

    @property
    def cmc_deviation(self) -> np.ndarray:
        """float64 ``(max_rank,)``, sample standard deviation of one draw's curve, rank by rank."""
        return np.array([_deviation(column) for column in zip(*(r.cmc for r in self.repeats), strict=True)])

    @property
    def settings(self) -> dict[str, Any]:
        """How it was ranked, with ``repeats`` and ``seed``."""
        return self.repeats[0].settings

    def to_dict(self) -> dict[str, Any]:
        """What ``evaluate --json`` writes: means, and under ``deviation`` the deviations of the draws."""
        metrics = [result._metrics() for result in self.repeats]
        values = {name: [metric[name] for metric in metrics] for name in metrics[0]}
        return {
            **self.repeats[0].to_dict(),
            **{name: float(np.mean(value)) for name, value in values.items()},
            "cmc": self.cmc.tolist(),
            "repeats": len(self.repeats),
            "deviation": {
                **{name: _deviation(value) for name, value in values.items()},
                "cmc": self.cmc_deviation.tolist(),
            },
        }


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def per_query_metrics(queries: pd.DataFrame, found: Iterable[MatchRanks]) -> pd.DataFrame:
    """The table of ``RankingResult.to_frame``.

    Args:
        queries: one row for each query, with the columns that say which it is.
        found: where the matches of the queries rank.
    """
    step, trapezoid, inp = np.full((3, len(queries)), np.nan)
    first, matches = np.zeros((2, len(queries)), dtype=np.int64)
    for rows, owner, h in found:
        k = np.bincount(owner)
        starts = np.cumsum(k) - k
        n = np.arange(len(owner)) - starts[owner] + 1  # h is the 0-based position of a query's n-th match
        precision = n / (h + 1)
        precision_before = np.divide(n - 1, h, out=np.ones(len(h)), where=h > 0)
        step[rows] = np.bincount(owner, weights=precision) / k
        trapezoid[rows] = np.bincount(owner, weights=(precision + precision_before) / 2) / k
        inp[rows] = k / (h[starts + k - 1] + 1)
        first[rows], matches[rows] = h[starts] + 1, k
    return queries.assign(
        AP_step=step,
        AP_trapezoid=trapezoid,
        INP=inp,
        first_match=pd.Series(first, dtype="Int64").mask(matches == 0),
        matches=matches,
    )


def summarize(per_query: pd.DataFrame, gallery: int, settings: dict[str, Any]) -> RankingResult:
    """Means over the queries that have a match, of which there must be one.

    Args:
        per_query: from ``per_query_metrics``.
        gallery: number of items in the gallery, without junk.
        settings: with ``average_precision`` and ``max_rank``.
    """
    valid = per_query[per_query["matches"] > 0]
    first = np.sort(valid["first_match"].to_numpy(dtype=np.int64))
    ranks = np.arange(1, settings["max_rank"] + 1)
    chosen = f"AP_{settings['average_precision']}"
    means = valid[["AP_step", "AP_trapezoid", "INP"]].mean()
    return RankingResult(
        mAP=float(means[chosen]),
        mAP_step=float(means["AP_step"]),
        mAP_trapezoid=float(means["AP_trapezoid"]),
        mINP=float(means["INP"]),
        cmc=np.searchsorted(first, ranks, side="right") / len(valid),
        average_precisions=valid[chosen].to_numpy(),
        valid_queries=len(valid),
        skipped_queries=len(per_query) - len(valid),
        gallery=gallery,
        settings=settings,
        per_query=per_query,
    )
