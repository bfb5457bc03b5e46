"""Statistics of an ablation report against formulas written out in the tests."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rga_reid.reports.ablation_page import largest_changes
from rga_reid.reports.ablation_stats import (
    Evaluation,
    bootstrap_interval,
    paired_difference,
    pooled_deviation,
    seed_spread,
    table_rows,
)


def evaluation(name: str, seed: int, precisions: list[float | None], **more: object) -> Evaluation:
    valid = [value for value in precisions if value is not None]
    queries = pd.DataFrame(
        {
            "query": range(len(precisions)),
            "path": [f"data/{number}.jpg" for number in range(len(precisions))],
            "pid": pd.array([100 + number for number in range(len(precisions))], dtype="Int64"),
            "camid": pd.array([1] * len(precisions), dtype="Int64"),
            "AP_step": [math.nan if value is None else value for value in precisions],
            "matches": [0 if value is None else 2 for value in precisions],
        }
    )
    mean = statistics.fmean(valid)
    metrics = {"mAP": mean, "mAP_trapezoid": mean - 0.01, "rank-1": 0.5, "mINP": 0.25}
    return Evaluation(name, seed, metrics, queries=queries, **more)  # type: ignore[arg-type]


BASE = [evaluation("base", 0, [0.2, 0.4, None, 0.6]), evaluation("base", 1, [0.4, 0.4, None, 0.4])]
OURS = [evaluation("ours", 0, [0.9, 0.3, None, 0.6]), evaluation("ours", 1, [0.7, 0.3, None, 0.6])]


def test_bootstrap_against_a_loop() -> None:
    values = np.random.default_rng(3).standard_normal(23)
    generator, means = np.random.default_rng(7), []
    for _ in range(200):
        rows = generator.integers(23, size=23)
        means.append(sum(values[row] for row in rows) / 23)
    means.sort()

    def quantile(share: float) -> float:  # linear between neighbours
        place = share * (len(means) - 1)
        low = int(place)
        return means[low] + (place - low) * (means[low + 1] - means[low])

    expected = (quantile(0.025), quantile(0.975))
    assert bootstrap_interval(values, draws=200, seed=7) == pytest.approx(expected, abs=1e-12)
    assert bootstrap_interval(np.full(9, 0.5)) == (0.5, 0.5)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        low, high = bootstrap_interval(generator.standard_normal(100), draws=200)
        inside += low <= 0 <= high
    assert 88 <= inside <= 99


def test_paired_difference_is_the_mean_over_queries_of_the_means_over_seeds() -> None:
    found = paired_difference(OURS, BASE)
    assert found is not None
    per_query = [0.8 - 0.3, 0.3 - 0.4, 0.6 - 0.5]
    assert found.mean == pytest.approx(statistics.fmean(per_query))
    assert found.queries == 3
    assert min(per_query) <= found.low <= found.mean <= found.high <= max(per_query)


def rename(one: Evaluation, old: str, new: str) -> Evaluation:
    assert one.queries is not None
    return replace(one, queries=one.queries.assign(path=one.queries["path"].str.replace(old, new)))


def test_only_the_same_queries_are_compared() -> None:
    others = [rename(one, "0.jpg", "another.jpg") for one in OURS]
    for group in (others, [evaluation("ours", 0, [0.1, 0.2])], [Evaluation("ours", 0, {"mAP": 0.5})]):
        assert paired_difference(group, BASE) is None
    assert table_rows([*BASE, *others], "base")[1].verdict == ""
    moved = [rename(one, "data", "elsewhere") for one in OURS]  # the same files
    assert paired_difference(moved, BASE) == paired_difference(OURS, BASE)


def test_pooled_deviation_and_spread_against_their_formulas() -> None:
    groups = [[0.5, 0.6, 0.7], [0.2, 0.4], [0.9], [None, 0.3]]
    squares = 2 * statistics.variance([0.5, 0.6, 0.7]) + statistics.variance([0.2, 0.4])
    deviation, freedom = pooled_deviation(groups)
    assert freedom == 3
    assert deviation == pytest.approx(math.sqrt(squares / 3))
    assert pooled_deviation([[0.5], [0.6]]) == (None, 0)
    # Student's t, 97.5 %, from a printed table: 3 degrees of freedom 3.182, 4 2.776
    assert seed_spread(1.0, 3, 3, 1) == pytest.approx(3.182 * math.sqrt(1 / 3 + 1), abs=1e-3)
    assert seed_spread(2.0, 4, 2, 2) == pytest.approx(2 * 2.776, abs=2e-3)


def test_rows_have_means_deviations_and_verdicts() -> None:
    third = evaluation("tiny", 0, [0.41, 0.41, None, 0.41], parameters=5)
    rows = {row.name: row for row in table_rows([*BASE, *OURS, third], "base")}
    assert list(rows) == ["base", "ours", "tiny"]
    base, ours, tiny = rows.values()
    means = [statistics.fmean([0.9, 0.3, 0.6]), statistics.fmean([0.7, 0.3, 0.6])]
    assert ours.metrics["mAP"].mean == pytest.approx(statistics.fmean(means))
    assert ours.metrics["mAP"].deviation == pytest.approx(statistics.stdev(means))
    assert (base.verdict, base.difference, base.seeds) == ("baseline", None, 2)
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx(0.5 / 3)
    # one run deviates by 0.0667/√2 at 2 degrees of freedom, so seeds alone reach 4.303 · 0.0333 = 0.143
    assert ours.verdict == "above"
    assert tiny.verdict == "within seed spread"
    assert tiny.metrics["mAP"].deviation is None
    assert (tiny.parameters, ours.parameters) == (5, None)
    alone = table_rows([BASE[0], third], "base")
    assert alone[1].verdict == "seed spread unknown"
    lower = table_rows([*OURS, *BASE], "ours")
    assert lower[1].verdict == "below"


def test_largest_changes_are_sorted_and_have_both_lists() -> None:
    def ranked(first: int) -> pd.DataFrame:
        rows = [(q, rank, 0.5, f"{q}-{rank}.jpg", first + rank, 2) for q in range(4) for rank in (1, 2)]
        return pd.DataFrame(rows, columns=["query", "rank", "score", "path", "pid", "camid"])

    base = evaluation("base", 0, [0.2, 0.4, None, 0.6], ranked=ranked(0))
    ours = evaluation("ours", 0, [0.3, 0.9, None, 0.5], ranked=ranked(7))
    gains, losses = largest_changes([ours], [base], 5)
    assert [change.query.pid for change in gains] == [101, 100]
    assert [change.query.pid for change in losses] == [103]
    assert (gains[0].before, gains[0].after) == (0.4, 0.9)
    assert [match.pid for match in gains[0].baseline] == [1, 2]
    assert [match.pid for match in gains[0].variant] == [8, 9]
    assert gains[0].variant[1].path == "1-2.jpg"
    assert len(largest_changes([ours], [base], 1)[0]) == 1
    assert largest_changes([OURS[0]], [base]) == ([], [])  # no lists
