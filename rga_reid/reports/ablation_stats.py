"""Statistics of an ablation report: means over seeds, differences from the baseline and their significance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

METRICS = {
    "mAP": "mAP (step)",
    "mAP_trapezoid": "mAP (trapezoid)",
    "rank-1": "rank-1",
    "mINP": "mINP",
}
DRAWS, SEED, LEVEL = 2000, 0, 0.95  # of the bootstrap: resamples, random seed, confidence

Verdict = Literal["baseline", "above", "below", "within seed spread", "seed spread unknown", ""]
Reason = Literal["baseline", "no per-query results", "other queries", ""]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One finished run, or one evaluation. Unknown values are None.

    Args:
        name: of the variant.
        seed: random seed of the run.
        metrics: fractions, with the keys of ``test --json``.
        cmc: fraction of queries with a match among the first 1, 2, ... items.
        queries: ``RankingResult.to_frame()``.
        ranked: columns query, rank, score, path, pid, camid, see ``tabulate_top_matches``.
        curve: columns ``epoch`` (from 1), ``loss`` and ``val_mAP``, null where it was not logged.
        parameters, macs: of the backbone, for one image.
        training_seconds: without interruptions.
        latency_ms, memory_mib: of a forward pass.
        checkpoint: file of the tested model.
        cameras: see ``rank_between_cameras``.
        counts: numbers of queries and of gallery items.
        trained_on: numbers of images and identities of the training.
        imports: modules of the user that the model of ``checkpoint`` needs.
        dataset: name of the card of the data set that it was tested on.
        drawn: whether that data set was drawn by code.
        options: training options by name, such as ``trainer.max_epochs``; empty if unknown.
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
    checkpoint: str | None = None
    cameras: pd.DataFrame | None = field(default=None, repr=False)
    counts: tuple[float, float] | None = None
    trained_on: tuple[float, float] | None = None
    imports: Sequence[str] = ()
    dataset: str | None = None
    drawn: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Args:
        mean: over the seeds.
        deviation: sample standard deviation over the seeds; None for one seed.
    """

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """Mean average precision minus that of the baseline.

    Args:
        mean: over the queries, which are the same on both sides.
        low, high: confidence interval over queries: the range to expect of other queries.
        queries: their number.
    """

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Row:
    """A row of the table: one variant.

    Args:
        name: of the variant.
        seeds: number of runs.
        metrics: known metrics, with the keys of ``METRICS``.
        difference: None for the baseline, and where it is unknown.
        reason: why there is no difference.
        verdict: whether the difference of mAP exceeds the spread of the seeds.
        parameters, macs, training_seconds, latency_ms, memory_mib: means over the seeds where they are known.
    """

    name: str
    seeds: int
    metrics: Mapping[str, Spread]
    difference: Difference | None
    reason: Reason
    verdict: Verdict
    parameters: float | None
    macs: float | None
    training_seconds: float | None
    latency_ms: float | None
    memory_mib: float | None


def table_rows(evaluations: Sequence[Evaluation], baseline: str) -> list[Row]:
    """Return a row per variant, in order of first appearance."""
    groups = by_name(evaluations)
    deviation, dof = pooled_deviation([[one.metrics.get("mAP") for one in g] for g in groups.values()])
    reference = groups.get(baseline, [])
    rows = []
    for name, group in groups.items():
        compared = name != baseline
        difference = paired_difference(group, reference) if compared else None
        rows.append(
            Row(
                name,
                len(group),
                {key: spread for key in METRICS if (spread := _spread(group, key)) is not None},
                difference,
                "baseline" if not compared else "" if difference else _reason([*group, *reference]),
                _verdict(group, reference, deviation, dof) if compared else "baseline",
                *(_mean(group, key) for key in ("parameters", "macs", "training_seconds")),
                *(_mean(group, key) for key in ("latency_ms", "memory_mib")),
            )
        )
    return rows


def by_name(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Group evaluations by variant."""
    groups: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        groups.setdefault(one.name, []).append(one)
    return groups


def pooled_deviation(groups: Sequence[Sequence[float | None]]) -> tuple[float | None, int]:
    """Return the standard deviation over seeds, pooled over the variants with several seeds.

    Returns:
        The deviation, or None if no variant has two seeds, and its degrees of freedom.
    """
    squares, dof = 0.0, 0
    for group in groups:
        values = [value for value in group if value is not None]
        if len(values) > 1:
            squares += (len(values) - 1) * float(np.var(values, ddof=1))
            dof += len(values) - 1
    return (float(np.sqrt(squares / dof)), dof) if dof else (None, 0)


def seed_spread(deviation: float, dof: int, runs: int, others: int) -> float:
    """Return the half width of the 95 % interval of a difference of two means over seeds, under no effect.

    By Student's t with the pooled deviation, so the interval is wider if the deviation comes from few seeds.
    """
    return float(stats.t.ppf((1 + LEVEL) / 2, dof)) * deviation * float(np.sqrt(1 / runs + 1 / others))


def camera_matrix(evaluations: Sequence[Evaluation]) -> pd.DataFrame | None:
    """Return rank-1 between cameras, averaged over the evaluations; None if one of them does not have it.

    Returns:
        Index ``query_camera`` and ``gallery_camera``, columns ``rank1`` (a fraction) and ``queries``.
    """
    known = [one.cameras for one in evaluations if one.cameras is not None and len(one.cameras)]
    if not known or len(known) < len(evaluations):
        return None
    return pd.concat(known).groupby(["query_camera", "gallery_camera"])[["rank1", "queries"]].mean()


def average_precisions(evaluations: Sequence[Evaluation]) -> pd.Series | None:
    """Return the average precision (step) of each valid query, averaged over the evaluations.

    The index is the number, file name and identity of the query, so that only equal queries are compared.
    None if an evaluation has no per-query results, or other queries.
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
    """Return the mean difference of average precision with its bootstrap interval over queries.

    None if the two sides do not have the same queries.
    """
    ours, theirs = average_precisions(group), average_precisions(baseline)
    if ours is None or theirs is None or not ours.index.equals(theirs.index):
        return None
    difference = (ours - theirs).to_numpy()
    low, high = bootstrap_interval(difference)
    return Difference(float(difference.mean()), low, high, len(difference))


def bootstrap_interval(values: np.ndarray, *, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """Return the bootstrap percentile interval of the mean of ``values``, ``(n,)``."""
    generator = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[generator.integers(n, size=n)].mean() for _ in range(draws)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _per_query(queries: pd.DataFrame) -> pd.Series:
    valid = queries[queries["matches"] > 0]
    names = valid["path"].map(lambda path: Path(path).name) if "path" in valid else [""] * len(valid)
    index = pd.MultiIndex.from_arrays([valid["query"], names, valid["pid"].astype(object)])
    return pd.Series(valid["AP_step"].to_numpy(dtype=np.float64), index)


def _spread(group: Sequence[Evaluation], key: str) -> Spread | None:
    values = [one.metrics[key] for one in group if key in one.metrics]
    if not values:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _mean(group: Sequence[Evaluation], key: str) -> float | None:
    values = [value for one in group if (value := getattr(one, key)) is not None]
    return float(np.mean(values)) if values else None


def _reason(both: Sequence[Evaluation]) -> Reason:
    unknown = any(one.queries is None for one in both) and not _differ_in_counts(both)
    return "no per-query results" if unknown else "other queries"


def _differ_in_counts(both: Sequence[Evaluation]) -> bool:
    """Return whether evaluations have different numbers of queries or gallery items: other data."""
    return len({one.counts for one in both if one.counts is not None}) > 1


def _verdict(
    group: Sequence[Evaluation], baseline: Sequence[Evaluation], deviation: float | None, dof: int
) -> Verdict:
    ours, theirs = _spread(group, "mAP"), _spread(baseline, "mAP")
    if ours is None or theirs is None:
        return ""
    both = [*group, *baseline]
    per_query = all(one.queries is not None for one in both)
    if _differ_in_counts(both) or (per_query and average_precisions(both) is None):
        return ""  # of other queries
    if deviation is None:
        return "seed spread unknown"
    difference = ours.mean - theirs.mean
    if abs(difference) <= seed_spread(deviation, dof, len(group), len(baseline)):
        return "within seed spread"
    return "above" if difference > 0 else "below"
