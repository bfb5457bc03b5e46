"""The numbers of an ablation report: means over seeds, differences to the baseline, what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

METRICS = {
    "mAP": "mAP (step)",
    "mAP_trapezoid": "mAP (trapezoid)",
    "rank-1": "rank-1",
    "mINP": "mINP",
}
DRAWS, SEED, LEVEL = 2000, 0, 0.95  # of the bootstrap

Verdict = Literal["baseline", "above", "below", "within seed spread", "seed spread unknown", ""]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One finished run, or one evaluation. What is not known is None.

    Args:
        name: of the variant.
        seed: of the run.
        metrics: fractions by the names of ``test --json``.
        cmc: fraction of queries with a match among the first 1, 2, ... items.
        queries: ``RankingResult.to_frame()``.
        ranked: ``tabulate_top_matches``: query, rank, score, path, pid, camid.
        curve: columns ``epoch`` (from 1) and ``loss``.
        parameters, macs: of the backbone, for one image.
        training_seconds: without interruptions.
        latency_ms, memory_mib: of a forward pass.
    """

    name: str
    seed: int | None
    metrics: Mapping[str, float]
    cmc: Sequence[float] = ()
    queries: pd.DataFrame | None = field(default=None, repr=False)
    ranked: pd.DataFrame | None = field(default=None, repr=False)
    curve: pd.DataFrame | None = field(default=None, repr=False)
    parameters: int | None = None
    macs: int | None = None
    training_seconds: float | None = None
    latency_ms: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Args:
        mean: of all seeds.
        deviation: sample standard deviation of one seed, None for a single one.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Mean average precision minus the baseline's.

    Args:
        mean: over the same queries.
        low, high: interval over queries: what another draw of queries might have given.
        queries: how many were compared.
    """

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Row:
    """A variant in the table.

    Args:
        name, seeds: of the variant; how many runs.
        metrics: by the keys of ``METRICS``, those that are known.
        difference: None for the baseline, and where no queries are known.
        verdict: whether the difference of mAP is beyond what seeds alone do.
        parameters, macs, training_seconds, latency_ms, memory_mib: means over the seeds that have them.
    """

    name: str
    seeds: int
    metrics: Mapping[str, Spread]
    difference: Difference | None
    verdict: Verdict
    parameters: float | None
    macs: float | None
    training_seconds: float | None
    latency_ms: float | None
    memory_mib: float | None


def table_rows(evaluations: Sequence[Evaluation], baseline: str) -> list[Row]:
    """A row for each variant, in the order of their first evaluations."""
    groups = by_name(evaluations)
    deviation, freedom = pooled_deviation([[one.metrics.get("mAP") for one in g] for g in groups.values()])
    reference = groups.get(baseline, [])
    rows = []
    for name, group in groups.items():
        compared = name != baseline
        rows.append(
            Row(
                name,
                len(group),
                {key: spread for key in METRICS if (spread := _spread(group, key)) is not None},
                paired_difference(group, reference) if compared else None,
                _verdict(group, reference, deviation, freedom) if compared else "baseline",
                *(_mean(group, key) for key in ("parameters", "macs", "training_seconds")),
                *(_mean(group, key) for key in ("latency_ms", "memory_mib")),
            )
        )
    return rows


def by_name(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The evaluations of each variant."""
    groups: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        groups.setdefault(one.name, []).append(one)
    return groups


def pooled_deviation(groups: Sequence[Sequence[float | None]]) -> tuple[float | None, int]:
    """Standard deviation of one run around its variant's mean, from all variants with several seeds.

    Returns:
        The deviation, None where no variant has two seeds, and its degrees of freedom.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        values = [value for value in group if value is not None]
        if len(values) > 1:
            squares += (len(values) - 1) * float(np.var(values, ddof=1))
            freedom += len(values) - 1
    return (float(np.sqrt(squares / freedom)), freedom) if freedom else (None, 0)


def seed_spread(deviation: float, freedom: int, runs: int, others: int) -> float:
    """What the difference of two means over seeds reaches in 95 of 100 cases when there is nothing to it.

    Student's t with the pooled deviation: few seeds know their deviation badly, and are trusted less.
    """
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * deviation * float(np.sqrt(1 / runs + 1 / others))


def average_precisions(evaluations: Sequence[Evaluation]) -> pd.Series | None:
    """Average precision (step) of each valid query, averaged over the evaluations.

    Indexed by the query's number, file name and identity: only the same queries are ever compared. None
    where an evaluation does not know its queries, or they are not the same.
    """
    columns = []
    for one in evaluations:
        if one.queries is None:
            return None
        columns.append(_per_query(one.queries))
    if not columns or not all(column.index.equals(columns[0].index) for column in columns):
        return None
    return pd.concat(columns, axis=1).mean(axis=1)


def paired_difference(group: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> Difference | None:
    """The mean difference of average precision and its bootstrap interval over queries."""
    ours, theirs = average_precisions(group), average_precisions(baseline)
    if ours is None or theirs is None or not ours.index.equals(theirs.index):
        return None
    difference = (ours - theirs).to_numpy()
    low, high = bootstrap_interval(difference)
    return Difference(float(difference.mean()), low, high, len(difference))


def bootstrap_interval(values: np.ndarray, *, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """Percentile interval of the mean of ``values``, ``(n,)``, under drawing n of them with replacement."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[generator.integers(n, size=n)].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _per_query(queries: pd.DataFrame) -> pd.Series:
    valid = queries[queries["matches"] > 0]
    names = valid["path"].map(lambda path: Path(path).name) if "path" in valid else [""] * len(valid)
    index = pd.MultiIndex.from_arrays([valid["query"], names, valid["pid"].astype("int64")])
    return pd.Series(valid["AP_step"].to_numpy(dtype=np.float64), index)


def _spread(group: Sequence[Evaluation], key: str) -> Spread | None:
    values = [one.metrics[key] for one in group if key in one.metrics]
    if not values:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _mean(group: Sequence[Evaluation], key: str) -> float | None:
    values = [value for one in group if (value := getattr(one, key)) is not None]
    return float(np.mean(values)) if values else None


def _asked_differently(group: Sequence[Evaluation], baseline: Sequence[Evaluation]) -> bool:
    """Whether all tell their queries, and they are not the same: then figures cannot be compared."""
    if any(one.queries is None for one in (*group, *baseline)):
        return False
    return average_precisions([*group, *baseline]) is None


def _verdict(
    group: Sequence[Evaluation], baseline: Sequence[Evaluation], deviation: float | None, freedom: int
) -> Verdict:
    ours, theirs = _spread(group, "mAP"), _spread(baseline, "mAP")
    if ours is None or theirs is None:
        return ""
    if deviation is None:
        return "seed spread unknown"
    if _asked_differently(group, baseline):
        return ""
    difference = ours.mean - theirs.mean
    if abs(difference) <= seed_spread(deviation, freedom, len(group), len(baseline)):
        return "within seed spread"
    return "above" if difference > 0 else "below"
