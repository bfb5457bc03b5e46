"""The queries that a variant finds better, and those it finds worse, than the baseline does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from rga_reid.reports.ablation_numbers import Evaluation, average_precisions
from rga_reid.reports.ranked_page import Match, Picture

COUNT = 10  #: of gains, and of losses


@dataclass(frozen=True)
class Change:
    """One query, with the lists of both sides.

    Args:
        query: whose average precision changed.
        before, after: average precision of the baseline and of the variant, averaged over their seeds.
        baseline, variant: best matches of the first seed of each.
    """

    query: Picture
    before: float
    after: float
    baseline: tuple[Match, ...]
    variant: tuple[Match, ...]


def largest_changes(
    group: Sequence[Evaluation], baseline: Sequence[Evaluation], count: int = COUNT
) -> tuple[list[Change], list[Change]]:
    """The queries whose average precision grows most, and those that lose most; both may be shorter.

    Empty where queries or lists are not known, or the two sides were not asked the same.
    """
    ours, theirs = average_precisions(group), average_precisions(baseline)
    if ours is None or theirs is None or not ours.index.equals(theirs.index):
        return [], []
    mine, other = group[0], baseline[0]
    if mine.ranked is None or other.ranked is None or mine.queries is None:
        return [], []
    queries = mine.queries.set_index("query")
    difference = (ours - theirs).sort_values(kind="stable")
    sides = []
    for ordered in (difference[difference > 0][::-1], difference[difference < 0]):
        changes = []
        for key in ordered.index[:count]:
            number = key[0]
            changes.append(
                Change(
                    _picture(queries.loc[number]),
                    float(theirs[key]),
                    float(ours[key]),
                    _matches(other.ranked, number),
                    _matches(mine.ranked, number),
                )
            )
        sides.append(changes)
    return sides[0], sides[1]


def _picture(row: pd.Series) -> Picture:
    return Picture(str(row.get("path", "")), _number(row["pid"]), _number(row["camid"]))


def _matches(ranked: pd.DataFrame, number: int) -> tuple[Match, ...]:
    rows = ranked[ranked["query"] == number].sort_values("rank")
    return tuple(
        Match(str(r.path), _number(r.pid), _number(r.camid), rank=int(r.rank), score=float(r.score))
        for r in rows.itertuples()
    )


def _number(value: object) -> int | None:
    return None if value is None or pd.isna(value) else int(value)  # type: ignore[call-overload]
