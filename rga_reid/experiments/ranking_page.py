"""The page of ``test --html``: metrics, the space of features, and the ranked lists of telling queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.evaluation import RankingResult, ReRanking, ranked_lists
from rga_reid.evaluation.result import RANKS
from rga_reid.reports.feature_space import COLOURS, Group, feature_space_plot, flat_layout
from rga_reid.reports.pages import figure_uri
from rga_reid.reports.ranked_page import Match, Picture, ranked_page

EACH = 3  #: queries of the lowest, of middling and of the highest average precision
TOP_K = 10  #: matches of each
POINTS = 2000  #: images in the picture of the feature space
_MARKERS = {"lowest": "v", "middling": "o", "highest": "^"}  # triangles down and up, circles between


@dataclass(frozen=True)
class Telling:
    """A query to look at: its row among the queries, and why."""

    query: int
    why: str
    precision: float


@dataclass(frozen=True)
class Person:
    """The person of some of these queries, in the picture of the feature space.

    Args:
        pid: identity.
        queries: their numbers on the page, by their rows in the table of test images.
        colour, marker: how the images are drawn.
    """

    pid: int
    queries: dict[int, int]
    colour: str
    marker: str


def telling_queries(per_query: pd.DataFrame, each: int = EACH) -> list[Telling]:
    """Queries of the lowest, the middling and the highest average precision (step), in this order.

    Args:
        per_query: of ``RankingResult.to_frame``. Skipped queries are left out; of equal ones the earlier is
            the lower.
        each: how many of each kind, fewer where there are few.
    """
    valid = per_query[per_query["matches"] > 0]
    order = valid.sort_values("AP_step", kind="stable")
    count = min(each, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    chosen: dict[int, Telling] = {}
    for why, start in (("lowest", 0), ("highest", len(order) - count), ("middling", middle)):
        for row in order.iloc[start : start + count].itertuples():
            chosen.setdefault(int(row.query), Telling(int(row.query), why, float(row.AP_step)))
    return sorted(chosen.values(), key=lambda one: (list(_MARKERS).index(one.why), one.precision))


def ranking_page(
    features: np.ndarray,
    table: pd.DataFrame,
    result: RankingResult,
    *,
    junk_pids: Sequence[int] = (-1,),
    rerank: ReRanking | None = None,
    title: str = "Test",
    note: str = "",
    seed: int = 0,
) -> str:
    """One HTML page about a test. It holds pictures of the people in it.

    Args:
        features, table: as ``embed_test_images`` gives them.
        result: of ``rank_test_images`` for these, with the same ``junk_pids`` and ``rerank``.
        title: heading of the page.
        note: a sentence below it.
        seed: of the sample of images in the picture, and of their layout.

    Raises:
        InputError: scikit-learn is not installed.
    """
    table = table.reset_index(drop=True)
    asks = (table.split == "query").to_numpy()
    query, gallery = (table[part].reset_index(drop=True) for part in (asks, ~asks))
    told = telling_queries(result.to_frame())
    lists = ranked_lists(
        features[asks],
        features[~asks],
        query,
        gallery,
        [one.query for one in told],
        top_k=TOP_K,
        junk_pids=junk_pids,
        rerank=rerank,
    )
    matches = []
    for found in lists:
        pictures = [_labels(row) for row in gallery.iloc[found.rows].itertuples()]
        ranked = enumerate(zip(pictures, found.scores, strict=True), 1)
        matches.append([Match(**one, rank=rank, score=float(score)) for rank, (one, score) in ranked])
    space = table[~table.pid.isin(list(junk_pids))]
    people = _people(told, query, np.flatnonzero(asks))
    shown = space.iloc[_sample(space, [person.pid for person in people], seed)]
    groups = _groups(people, shown)
    plot = feature_space_plot(flat_layout(features[shown.index], seed=seed), groups)
    everything = len(shown) == len(space)
    return ranked_page(
        [Picture(**_labels(query.iloc[one.query])) for one in told],
        matches,
        title=title,
        note=note,
        captions=[f"{one.why} AP: {100 * one.precision:.1f} %" for one in told],
        template="ranking_page.html",
        plot=figure_uri(plot),
        shown=len(shown),
        sample=f"all {len(space):,}" if everything else f"a sample of {len(shown):,} of {len(space):,}",
        metrics=_metrics(result),
        people=[(person, len(group.points)) for person, group in zip(people, groups, strict=True)],
    )


def _labels(row: Any) -> dict[str, Any]:
    known = {name: getattr(row, name) for name in ("pid", "camid")}
    return {"path": row.path, **{name: None if pd.isna(one) else int(one) for name, one in known.items()}}


def _people(told: Sequence[Telling], query: pd.DataFrame, rows: np.ndarray) -> list[Person]:
    """One for each identity among the queries; ``rows`` are those of the queries in the table."""
    numbers: dict[int, list[int]] = {}
    for number, one in enumerate(told):
        numbers.setdefault(int(query.pid.iloc[one.query]), []).append(number)
    people = []
    for place, (pid, of_person) in enumerate(numbers.items()):
        queries = {int(rows[told[number].query]): number + 1 for number in of_person}
        marker = _MARKERS[told[of_person[0]].why]
        people.append(Person(pid, queries, COLOURS[place % len(COLOURS)], marker))
    return people


def _sample(space: pd.DataFrame, pids: Sequence[int], seed: int) -> np.ndarray:
    """Places in ``space``, ascending: all images of ``pids``, and others up to ``POINTS`` in all."""
    named = space.pid.isin(list(pids)).to_numpy(dtype=bool)
    others = np.flatnonzero(~named)
    count = min(len(others), max(0, POINTS - int(named.sum())))
    drawn = np.random.default_rng(seed).choice(others, count, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(named), drawn]))


def _groups(people: Sequence[Person], shown: pd.DataFrame) -> list[Group]:
    groups = []
    for person in people:
        points = np.flatnonzero((shown.pid == person.pid).to_numpy(dtype=bool))
        labels = {int(shown.index.get_loc(row)): str(number) for row, number in person.queries.items()}
        groups.append(Group(points, person.colour, person.marker, labels))
    return groups


def _metrics(result: RankingResult) -> list[tuple[str, str]]:
    values = result.to_dict()
    names = {"mAP": "mAP (step)", "mAP_trapezoid": "mAP (trapezoid)", "mINP": "mINP"}
    names |= {f"rank-{k}": f"rank-{k}" for k in RANKS}
    rows = [(shown, f"{100 * values[name]:.2f} %") for name, shown in names.items()]
    counts = [("queries with a match", result.valid_queries), ("queries skipped", result.skipped_queries)]
    return [*rows, *((name, f"{count:,}") for name, count in [*counts, ("gallery images", result.gallery)])]
