"""A model on the test images of a data set: features, then the ranking of the gallery for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import RankingResult, ReRanking, evaluate_ranking, ranked_lists
from rga_reid.evaluation.metrics import RANKS
from rga_reid.inference import extract_features
from rga_reid.inference.embed import Embedder
from rga_reid.reports.html import figure_uri
from rga_reid.reports.plots import COLOURS, Group, feature_space_plot, flat_layout
from rga_reid.reports.ranked_page import Match, Picture, ranked_page


def evaluate_model(
    model: Embedder,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int] = (-1,),
    batch_size: int = 64,
    device: str | torch.device | None = None,
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank all gallery images of ``table`` for each of its queries, in the protocol of Market-1501.

    Args:
        model: what embeds the images.
        table: columns path, pid, camid and split, as ``read_table`` gives.
        junk_pids: gallery images with these pids count neither as right nor as wrong.
        batch_size, device: of the embedding.
        max_rank: length of the CMC curve.
        rerank: re-rank by k-reciprocal neighbours.
        progress: told the share of the ranking that is done.

    Raises:
        InputError: no query or no gallery images; no query with a match.
    """
    features, table = embed_test_images(model, table, batch_size=batch_size, device=device)
    return rank_test_images(
        features, table, junk_pids=junk_pids, max_rank=max_rank, rerank=rerank, progress=progress
    )


def embed_test_images(
    model: Embedder,
    table: pd.DataFrame,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Features ``(n, d)`` of the images that are not for training, and their rows of the table.

    Raises:
        InputError: no query or no gallery images.
    """
    for split in ("query", "gallery"):
        if not (table.split == split).any():
            raise InputError(f"testing needs images of the split '{split}': this data set has none")
    return extract_features(model, table[table.split != "train"], batch_size, device)


def rank_test_images(
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int] = (-1,),
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """The second half of ``evaluate_model``, from what ``embed_test_images`` gave."""
    asks = (table.split == "query").to_numpy()
    query, gallery = table[asks], table[~asks]
    cameras = table.camid.notna().any()
    return evaluate_ranking(
        features[asks],
        features[~asks],
        query.pid,
        gallery.pid,
        query.camid if cameras else None,
        gallery.camid if cameras else None,
        junk_pids=tuple(junk_pids),
        max_rank=max_rank,
        query_paths=query.path,
        gallery_paths=gallery.path,
        rerank=rerank,
        progress=progress,
    )


def top_matches(
    features: np.ndarray, table: pd.DataFrame, count: int = 10, *, junk_pids: Sequence[int] = (-1,)
) -> pd.DataFrame:
    """The gallery images that rank first for each query, without those that the evaluation leaves out.

    Args:
        features: float32 ``(n, d)``.
        table: their n rows, of the splits query and gallery, with path, pid and camid.
        count: images for each query, fewer where there are not as many.
        junk_pids: identities that are left out.

    Returns:
        Columns ``query`` and ``gallery`` (numbers within their splits), ``rank`` (from 1), ``score``, and
        ``path``, ``pid``, ``camid`` of the match. Equal scores go by gallery order.
    """
    asks = (table["split"] == "query").to_numpy()
    query, gallery = table[asks].reset_index(drop=True), table[~asks].reset_index(drop=True)
    lists = ranked_lists(
        features[asks], features[~asks], query, gallery, range(len(query)), top_k=count, junk_pids=junk_pids
    )
    sizes = [len(ranked.rows) for ranked in lists]
    found = np.concatenate([ranked.rows for ranked in lists])
    return pd.DataFrame(
        {
            "query": np.repeat([ranked.query for ranked in lists], sizes),
            "rank": np.concatenate([np.arange(1, size + 1) for size in sizes]),
            "gallery": found,
            "score": np.concatenate([ranked.scores for ranked in lists]),
            **gallery[["path", "pid", "camid"]].iloc[found].reset_index(drop=True),
        }
    )


EACH = 3  #: queries of the lowest, of middling and of the highest average precision
TOP_K = 10  #: matches of each
POINTS = 2000  #: images in the picture of the feature space
_MARKERS = {"lowest": "v", "middling": "o", "highest": "^"}  # triangles down and up, circles between


@dataclass(frozen=True)
class Example:
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


def example_queries(per_query: pd.DataFrame, each: int = EACH) -> list[Example]:
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
    chosen: dict[int, Example] = {}
    for why, start in (("lowest", 0), ("highest", len(order) - count), ("middling", middle)):
        for row in order.iloc[start : start + count].itertuples():
            chosen.setdefault(int(row.query), Example(int(row.query), why, float(row.AP_step)))
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
    told = example_queries(result.to_frame())
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


def _people(told: Sequence[Example], query: pd.DataFrame, rows: np.ndarray) -> list[Person]:
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
