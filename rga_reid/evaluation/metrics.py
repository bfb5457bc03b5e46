"""Rank, average precision, INP and CMC, and the results that hold them.

A query's metrics depend on the ranks of its correct matches only::

    AP (step)       mean over the matches of n / r_n
    AP (trapezoid)  mean over the matches of (n / r_n + (n - 1) / (r_n - 1)) / 2
    INP             k / r_k
    CMC at rank k   fraction of queries with r_1 <= k

where r_n is the rank, from 1, of a query's n-th match and k the number of its matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from rga_reid.errors import InputError

RANKS = (1, 5, 10, 20)  #: k of the rank-k that are reported


class MatchRanks(NamedTuple):
    """Ranks of the correct matches of some queries, each of which has at least one.

    Example:
        Two queries, the first with matches at ranks 1 and 4, the second with one at rank 2:

        >>> MatchRanks.from_lists([[1, 4], [2]])
        MatchRanks(queries=array([0, 1]), owner=array([0, 0, 1]), rank=array([1, 4, 2]))
    """

    queries: np.ndarray  #: int64 (n,), rows of the queries
    owner: np.ndarray  #: int64 (m,), for each match the number of its query, 0 to n - 1; ascending
    rank: np.ndarray  #: int64 (m,), ranks from 1 without the removed items; ascending within a query

    @classmethod
    def from_lists(cls, ranks: Sequence[Sequence[int]]) -> MatchRanks:
        """Collect the ranks of queries 0, 1, ..., given as one list each."""
        rows = np.arange(len(ranks))
        return cls(
            rows, np.repeat(rows, [len(one) for one in ranks]), np.concatenate(list(map(np.sort, ranks)))
        )

    @property
    def counts(self) -> np.ndarray:
        """Number of matches of each query, ``(n,)``."""
        return np.bincount(self.owner)

    @property
    def first(self) -> np.ndarray:
        """Index of each query's first match, ``(n,)``."""
        return np.cumsum(self.counts) - self.counts

    @property
    def number(self) -> np.ndarray:
        """For each match how many matches its query has down to it, from 1, ``(m,)``."""
        return np.arange(len(self.owner)) - self.first[self.owner] + 1


def count_before(
    query: np.ndarray, score: np.ndarray, column: np.ndarray, *kinds: np.ndarray
) -> list[np.ndarray]:
    """Count the items that rank before each item of the same query.

    Items rank by descending score, equal scores by gallery column, as in a stable sort. The rank of an item
    is one more than the number of items before it.

    Args:
        query, score, column: query number, score and gallery column of each item, ``(n,)``.
        kinds: bool ``(n,)``, items to count; each kind is counted separately.

    Returns:
        int64 ``(n,)`` for each of the kinds.

    Example:
        Scores 0.9, 0.7, 0.7, 0.5 of one query. The items at 0.7 tie, so the one in column 1 ranks first:

        >>> query, column = np.zeros(4, int), np.array([0, 1, 2, 3])
        >>> score = np.array([0.9, 0.7, 0.7, 0.5])
        >>> count_before(query, score, column, np.ones(4, bool))
        [array([0, 1, 2, 3])]
        >>> count_before(query, score, column, np.array([True, False, True, True]))
        [array([0, 1, 1, 2])]
    """
    order = np.lexsort((column, -score, query))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    start = np.searchsorted(query[order], query)  # place of the first item of the same query
    totals = [np.concatenate([[0], np.cumsum(kind[order])]) for kind in kinds]
    return [total[place] - total[start] for total in totals]


def average_precision_step(found: MatchRanks) -> np.ndarray:
    """Return each query's average precision: the mean of the precision at each match.

    Example:
        Matches at ranks 1 and 4: (1/1 + 2/4) / 2. A match at rank 2: 1/2.

        >>> average_precision_step(MatchRanks.from_lists([[1, 4], [2]]))
        array([0.75, 0.5 ])
    """
    return np.bincount(found.owner, weights=found.number / found.rank) / found.counts


def average_precision_trapezoid(found: MatchRanks) -> np.ndarray:
    """Return each query's average precision by the trapezoidal rule of the Market-1501 MATLAB code.

    Each match contributes the mean of the precision at the match and just before it. Before the first item
    the precision is 1.

    Example:
        Matches at ranks 1 and 4: ((1/1 + 1)/2 + (2/4 + 1/3)/2) / 2. A match at rank 2: (1/2 + 0/1)/2.

        >>> average_precision_trapezoid(MatchRanks.from_lists([[1, 4], [2]])).round(4)
        array([0.7083, 0.25  ])
    """
    precision = found.number / found.rank
    before = np.divide(found.number - 1, found.rank - 1, out=np.ones(len(found.rank)), where=found.rank > 1)
    return np.bincount(found.owner, weights=(precision + before) / 2) / found.counts


def inverse_negative_penalty(found: MatchRanks) -> np.ndarray:
    """Return each query's INP: the precision at its last match (Ye et al., TPAMI 2021).

    Example:
        Two matches, the last at rank 4: 2/4. One match, at rank 2: 1/2.

        >>> inverse_negative_penalty(MatchRanks.from_lists([[1, 4], [2]]))
        array([0.5, 0.5])
    """
    return found.counts / found.rank[found.first + found.counts - 1]


def cmc(first_match: np.ndarray, max_rank: int) -> np.ndarray:
    """Return the cumulative matching characteristic: rank-k for k = 1, ..., ``max_rank``.

    Args:
        first_match: rank of each query's first match, ``(n,)``.
        max_rank: length of the curve.

    Example:
        First matches at ranks 1, 2, 2 and 5:

        >>> cmc(np.array([2, 1, 5, 2]), max_rank=5)
        array([0.25, 0.75, 0.75, 0.75, 1.  ])
    """
    reached = np.searchsorted(np.sort(first_match), np.arange(1, max_rank + 1), side="right")
    return reached / len(first_match)


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Metrics of a ranking, as fractions, not percent."""

    mAP: float  #: mean average precision by the rule in ``settings["average_precision"]``
    mAP_step: float  #: mean of ``average_precision_step``
    mAP_trapezoid: float  #: mean of ``average_precision_trapezoid``
    mINP: float  #: mean inverse negative penalty (Ye et al., TPAMI 2021)
    #: float64 (max_rank,): fraction of valid queries with a match among the first 1, 2, ... items
    cmc: np.ndarray = field(repr=False)
    #: float64 (valid_queries,), by the same rule as mAP, in query order
    average_precisions: np.ndarray = field(repr=False)
    valid_queries: int  #: queries with a correct match; the metrics are means over these
    skipped_queries: int  #: queries without a match: junk, unknown identity, or all matches removed
    gallery: int  #: gallery items, without junk
    settings: dict[str, Any]  #: settings of the ranking; ``cameras`` is "none" if no camera was known
    per_query: pd.DataFrame = field(repr=False)  #: see ``to_frame``

    def rank(self, k: int) -> float:
        """Return the fraction of valid queries with a correct match among the first ``k`` items.

        Raises:
            InputError: ``k`` is not between 1 and ``max_rank``.
        """
        if not 1 <= k <= len(self.cmc):
            raise InputError(f"rank {k}: expected 1 to {len(self.cmc)}, the max_rank of this evaluation")
        return float(self.cmc[k - 1])

    def to_frame(self) -> pd.DataFrame:
        """Return a copy of the table with one row per query, in query order.

        Returns:
            Columns ``query`` (row number), ``path`` (if paths were given), ``pid``, ``camid``, ``AP_step``,
            ``AP_trapezoid``, ``INP``, ``first_match`` (rank of the first match, from 1) and ``matches``
            (number of correct matches). Skipped queries have 0 matches and null metrics.
        """
        return self.per_query.copy()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``evaluate --json``: fractions, not percent.

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
    """Metrics of rankings of several random galleries: means over the draws, fractions, not percent."""

    repeats: tuple[RankingResult, ...] = field(repr=False)  #: one for each draw, at least one

    @property
    def mAP(self) -> float:
        """Mean over the draws, by the rule in ``settings["average_precision"]``."""
        return float(np.mean([result.mAP for result in self.repeats]))

    @property
    def mAP_deviation(self) -> float:
        """Sample standard deviation of the mAP over the draws; 0 for a single draw."""
        return _deviation([result.mAP for result in self.repeats])

    @property
    def cmc(self) -> np.ndarray:
        """Mean curve, float64 ``(max_rank,)``."""
        return np.mean([result.cmc for result in self.repeats], axis=0)

    @property
    def cmc_deviation(self) -> np.ndarray:
        """Sample standard deviation of the curve over the draws, rank by rank, float64 ``(max_rank,)``."""
        return np.array([_deviation(column) for column in zip(*(r.cmc for r in self.repeats), strict=True)])

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the ranking, with ``repeats`` and ``seed``."""
        return self.repeats[0].settings

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``evaluate --json``: means, and standard deviations under ``deviation``."""
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


def tabulate_queries(queries: pd.DataFrame, ranks: Iterable[MatchRanks]) -> pd.DataFrame:
    """Return the table of ``RankingResult.to_frame``.

    Args:
        queries: labels of the queries, as from ``label_table``.
        ranks: ranks of the matches; queries that appear in none have no match.
    """
    step, trapezoid, inp = np.full((3, len(queries)), np.nan)
    first, matches = np.zeros((2, len(queries)), dtype=np.int64)
    for found in ranks:
        rows = found.queries
        step[rows] = average_precision_step(found)
        trapezoid[rows] = average_precision_trapezoid(found)
        inp[rows] = inverse_negative_penalty(found)
        first[rows], matches[rows] = found.rank[found.first], found.counts
    columns = ["pid", "camid"] if queries["path"].isna().all() else ["path", "pid", "camid"]
    return (
        queries[columns]
        .rename_axis("query")
        .reset_index()
        .assign(
            AP_step=step,
            AP_trapezoid=trapezoid,
            INP=inp,
            first_match=pd.Series(first, dtype="Int64").mask(matches == 0),
            matches=matches,
        )
    )


def summarize(per_query: pd.DataFrame, gallery: int, settings: dict[str, Any]) -> RankingResult:
    """Average over the queries that have a match; there must be at least one.

    Args:
        per_query: from ``tabulate_queries``.
        gallery: number of gallery items without junk.
        settings: with ``average_precision`` and ``max_rank``.
    """
    valid = per_query[per_query["matches"] > 0]
    rule = f"AP_{settings['average_precision']}"
    means = valid[["AP_step", "AP_trapezoid", "INP"]].mean()
    return RankingResult(
        mAP=float(means[rule]),
        mAP_step=float(means["AP_step"]),
        mAP_trapezoid=float(means["AP_trapezoid"]),
        mINP=float(means["INP"]),
        cmc=cmc(valid["first_match"].to_numpy(dtype=np.int64), settings["max_rank"]),
        average_precisions=valid[rule].to_numpy(),
        valid_queries=len(valid),
        skipped_queries=len(per_query) - len(valid),
        gallery=gallery,
        settings=settings,
        per_query=per_query,
    )
