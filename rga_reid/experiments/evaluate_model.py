"""Evaluate a model on the test images of a data set, and make a page of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from rga_reid.data import Card, ImageError, load_card
from rga_reid.data.duplicates import describe_duplicate, find_duplicates, is_never_ranked
from rga_reid.data.labels import is_label, plain_label
from rga_reid.data.readers import is_csv
from rga_reid.errors import InputError
from rga_reid.evaluation import (
    PROTOCOLS,
    IgnoreCameras,
    LabelledFeatures,
    MatchRule,
    RankingResult,
    RepeatedResult,
    ReRanking,
    Tracklets,
    evaluate_features,
    top_matches,
)
from rga_reid.evaluation.metrics import RANKS
from rga_reid.evaluation.protocols import Protocol
from rga_reid.evaluation.relevance import MARKET
from rga_reid.evaluation.tracklets import Pooling, pool_batches, sort_tracks
from rga_reid.inference import Embedder, stream_features
from rga_reid.inference.embed import collect
from rga_reid.reports.ablation_stats import Evaluation, camera_matrix
from rga_reid.reports.charts import camera_rows, cmc_chart, precision_chart
from rga_reid.reports.feature_map import CROP, Group, feature_map
from rga_reid.reports.language import Text
from rga_reid.reports.plots import COLOURS
from rga_reid.reports.ranked_page import Match, Picture, ranked_page


def evaluate_model(
    model: Embedder,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    batch_size: int = 64,
    device: str | torch.device | None = None,
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    protocol: Protocol | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult | RepeatedResult:
    """Rank the gallery images of ``table`` for each of its queries, by default in the protocol of Market-1501.

    Args:
        model: embeds the images.
        table: columns path, pid, camid and split, as from ``read_table``.
        junk_pids: gallery images of these identities are left out.
        batch_size, device: as for ``extract_features``.
        max_rank: length of the CMC curve.
        rerank: re-rank by k-reciprocal neighbours.
        protocol: such as ``PROTOCOLS["mars"]``; by default that of Market-1501, with the cameras that are known.
        progress: called with the fraction of the ranking that is done.

    Raises:
        InputError: no query or no gallery images; no query with a correct match.
    """
    sides = split_sides(
        *embed_test_images(model, table, batch_size=batch_size, device=device, protocol=protocol)
    )
    evaluate = evaluate_features if protocol is None else protocol.evaluate
    return evaluate(*sides, junk_pids=tuple(junk_pids), max_rank=max_rank, rerank=rerank, progress=progress)


def card_protocol(root: str, card: str | Card) -> str | None:
    """Return the name of the protocol that the card of a data set gives; None for a CSV file.

    Raises:
        InputError: the card gives an unknown protocol.
    """
    if is_csv(root):
        return None
    found = load_card(card)
    if found.protocol is not None and found.protocol not in PROTOCOLS:
        raise InputError(
            f"card {found.name}: protocol: expected one of {', '.join(PROTOCOLS)}, got {found.protocol!r}"
        )
    return found.protocol


def find_protocol(name: str | None) -> Protocol | None:
    """Return a protocol by its name."""
    return None if name is None else PROTOCOLS[name]


def embed_test_images(
    model: Embedder,
    table: pd.DataFrame,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    refused: list[ImageError] | None = None,
    pooling: Pooling | None = None,
    protocol: Protocol | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the features ``(n, d)`` of the query and gallery images, and their rows of the table.

    Arguments are those of ``extract_features``. With ``pooling``, see ``pool_tracks``, a row is a track; by default if
    the protocol ranks tracks. A protocol that ignores cameras leaves ``camid`` unknown.

    Raises:
        InputError: no query or no gallery images.
    """
    for split in ("query", "gallery"):
        if not (table.split == split).any():
            raise InputError(f"testing needs images of the split '{split}': this data set has none")
    table = table[table.split != "train"].reset_index(drop=True)
    if pooling is None and isinstance(protocol, Tracklets):
        pooling = protocol.pooling
    if pooling is not None:
        table = sort_tracks(table)
    batches = stream_features(model, table, batch_size, device, refused=refused)
    if pooling is not None:
        batches = pool_batches(batches, pooling)
    features, table = collect(batches, table, model.dimension)
    if isinstance(protocol, IgnoreCameras):
        table = table.assign(camid=table["camid"].where(table["camid"].isna()))
    return features, table


def split_sides(features: np.ndarray, table: pd.DataFrame) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Split the output of ``embed_test_images`` into queries and gallery."""
    is_query = (table["split"] == "query").to_numpy()
    return (
        LabelledFeatures.from_table(features[is_query], table[is_query], name="query"),
        LabelledFeatures.from_table(features[~is_query], table[~is_query], name="gallery"),
    )


def rank_test_images(
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    protocol: Protocol | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank the output of ``embed_test_images``; arguments as for ``evaluate_model``.

    Raises:
        InputError: as ``evaluate_model``; the protocol draws galleries at random.
    """
    evaluate = evaluate_features if protocol is None else protocol.evaluate
    result = evaluate(
        *split_sides(features, table),
        junk_pids=tuple(junk_pids),
        max_rank=max_rank,
        rerank=rerank,
        progress=progress,
    )
    if isinstance(result, RepeatedResult):
        raise InputError(f"protocol {type(protocol).__name__}: draws galleries at random, see evaluate_model")
    return result


def tabulate_top_matches(
    features: np.ndarray,
    table: pd.DataFrame,
    count: int = 10,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    rule: MatchRule = MARKET,
) -> pd.DataFrame:
    """Return the ``top_matches`` of every query as a table.

    Args:
        features, table: the output of ``embed_test_images``.
        count: gallery images for each query, fewer if the gallery has fewer.
        junk_pids: identities to leave out.
        rule: which images of a query's person are correct matches.

    Returns:
        Columns ``query`` and ``gallery`` (row numbers within their splits), ``rank`` (from 1), ``score``, and
        ``path``, ``pid``, ``camid`` of the match.
    """
    query, gallery = split_sides(features, table)
    lists = top_matches(query, gallery, top_k=count, junk_pids=junk_pids, rule=rule)
    sizes = [len(ranked.rows) for ranked in lists]
    found = np.concatenate([ranked.rows for ranked in lists])
    return pd.DataFrame(
        {
            "query": np.repeat([ranked.query for ranked in lists], sizes),
            "rank": np.concatenate([np.arange(1, size + 1) for size in sizes]),
            "gallery": found,
            "score": np.concatenate([ranked.scores for ranked in lists]),
            **gallery.table[["path", "pid", "camid"]].iloc[found].reset_index(drop=True),
        }
    )


def rank_between_cameras(
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    rule: MatchRule = MARKET,
) -> pd.DataFrame:
    """Rank the gallery of each camera alone for the queries of each camera.

    Args:
        features, table: the output of ``embed_test_images``.
        junk_pids: identities to leave out.
        rule: which images of a query's person are correct matches.

    Returns:
        A row for each pair of cameras with a correct match: ``query_camera`` and ``gallery_camera`` as text,
        ``queries`` with a correct match from that camera, and ``rank1``, the fraction whose best match is correct.
        Empty without camera labels.
    """
    query, gallery = split_sides(features, table)
    rows = []
    for camera in gallery.table["camid"].dropna().unique():
        side = gallery.select((gallery.table["camid"] == camera).to_numpy(dtype=bool))
        try:
            result = evaluate_features(query, side, junk_pids=tuple(junk_pids), rule=rule)
        except InputError:  # no query has a correct match from this camera
            continue
        found = result.to_frame()
        found = found[(found["matches"] > 0) & found["camid"].notna()]
        for other, group in found.groupby("camid"):
            first = float((group["first_match"] == 1).mean())
            rows.append((str(other), str(camera), len(group), first))
    return pd.DataFrame(rows, columns=["query_camera", "gallery_camera", "queries", "rank1"])


def describe_identical_files(table: pd.DataFrame, junk_pids: Sequence[int | str] = (-1,)) -> str | None:
    """Return a warning if files of the same content falsify a test, otherwise None.

    Args:
        table: images of all splits, as from ``read_table``.
        junk_pids: identities to leave out.
    """
    duplicates = find_duplicates(table[~is_label(table.pid, junk_pids)])
    groups = [rows for rows in duplicates if not is_never_ranked(rows)]
    if not groups:
        return None
    count = "1 image occurs" if len(groups) == 1 else f"{len(groups):,} images occur"
    return (
        f"warning: {count} in two splits or under two identities, such as {groups[0].path.iloc[0]}, "
        f"{describe_duplicate(groups[0])}; rga-reid data check lists all"
    )


EACH = 3  #: example queries of each kind: lowest, middling and highest average precision
TOP_K = 10  #: matches shown for each
MAX_POINTS = 2000  #: images on the feature map
_MARKERS = {"lowest": "v", "middling": "o", "highest": "^"}  # triangles down and up, circles between


@dataclass(frozen=True)
class Example:
    """A query to look at."""

    query: int  #: its row among the queries
    kind: str  #: lowest, middling or highest
    precision: float  #: its average precision


@dataclass(frozen=True)
class Person:
    """A person on the feature map."""

    pid: int | str
    queries: dict[int, int]  #: row in the table of test images -> number of the query on the page
    colour: str
    marker: str


def example_queries(per_query: pd.DataFrame, each: int = EACH) -> list[Example]:
    """Return the queries of the lowest, the middling and the highest average precision (step), in this order.

    Args:
        per_query: from ``RankingResult.to_frame``. Skipped queries are left out; ties are in query order.
        each: queries of each kind, fewer if there are not enough.
    """
    valid = per_query[per_query["matches"] > 0]
    order = valid.sort_values("AP_step", kind="stable")
    count = min(each, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    examples: dict[int, Example] = {}
    for kind, start in (("lowest", 0), ("highest", len(order) - count), ("middling", middle)):
        for row in order.iloc[start : start + count].itertuples():
            examples.setdefault(int(row.query), Example(int(row.query), kind, float(row.AP_step)))
    return sorted(examples.values(), key=lambda one: (list(_MARKERS).index(one.kind), one.precision))


def ranking_page(
    features: np.ndarray,
    table: pd.DataFrame,
    result: RankingResult,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    rerank: ReRanking | None = None,
    protocol: Protocol | None = None,
    title: str = "",
    facts: Sequence[tuple[str, Text | str]] = (),
    lang: str | None = None,
    seed: int = 0,
) -> str:
    """Return an HTML page about a test. It contains pictures of the people in it.

    Args:
        features, table: the output of ``embed_test_images``.
        result: their ranking, with the same ``junk_pids``, ``rerank`` and ``protocol``.
        title: name of the tested model.
        facts: keys of texts of the section ``test`` and values, shown below the heading.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.
        seed: random seed of the sample of images on the map, and of their layout.

    Raises:
        InputError: scikit-learn is not installed.
    """
    table = table.reset_index(drop=True)
    query, gallery = split_sides(features, table)
    examples = example_queries(result.to_frame())
    rows = [one.query for one in examples]
    rule = MARKET if protocol is None else protocol.rule
    lists = top_matches(query, gallery, rows, top_k=TOP_K, junk_pids=junk_pids, rerank=rerank, rule=rule)
    matches = []
    for found in lists:
        pictures = [_labels(row) for row in gallery.table.iloc[found.rows].itertuples()]
        ranked = enumerate(zip(pictures, found.scores, strict=True), 1)
        matches.append([Match(**one, rank=rank, score=float(score)) for rank, (one, score) in ranked])
    space = table[~is_label(table.pid, junk_pids)]
    people = _people(examples, query.pids, np.flatnonzero(table.split == "query"))
    shown = space.iloc[_sample(space, [person.pid for person in people], seed)]
    groups = _groups(people, shown)
    space_map, sheet = feature_map(features[shown.index], shown, groups, seed=seed)
    evaluation = Evaluation("", None, result.to_dict(), tuple(result.cmc), result.to_frame())
    charts = [
        chart for chart in (cmc_chart([evaluation]), precision_chart([evaluation])) if chart is not None
    ]
    cameras = rank_between_cameras(features, table, junk_pids=junk_pids, rule=rule)
    evaluation = replace(evaluation, cameras=cameras)
    return ranked_page(
        [Picture(**_labels(query.table.iloc[row])) for row in rows],
        matches,
        title=Text("test_of", {"name": title}),
        captions=[Text(f"ap_{one.kind}", {"value": f"{100 * one.precision:.1f}"}) for one in examples],
        lang=lang,
        template="ranking_page.html",
        sections=["test", "charts"],
        scripts=["charts.js", "feature_map.js"],
        data={"charts": [chart.to_json() for chart in charts], "map": space_map},
        facts=facts,
        metrics=_metrics(result),
        charts=[chart.name for chart in charts],
        cameras=camera_rows(camera_matrix([evaluation])),
        reranked=rerank is not None,
        sheet=sheet,
        crop=CROP,
        shown=len(shown),
        count=len(space),
        people=[
            (person, _describe(person, len(group.points)))
            for person, group in zip(people, groups, strict=True)
        ],
    )


def _describe(person: Person, images: int) -> Text:
    queries = ", ".join(map(str, person.queries.values()))
    key = "member" if len(person.queries) == 1 else "members"
    return Text(key, {"queries": queries, "count": images, "pid": person.pid})


def _labels(row: Any) -> dict[str, Any]:
    return {"path": row.path, **{name: plain_label(getattr(row, name)) for name in ("pid", "camid")}}


def _people(examples: Sequence[Example], pids: pd.Series, rows: np.ndarray) -> list[Person]:
    """Return the people of the example queries; ``rows`` are the rows of all queries in the table."""
    numbers: dict[Any, list[int]] = {}
    for number, one in enumerate(examples):
        numbers.setdefault(plain_label(pids.iloc[one.query]), []).append(number)
    people = []
    for place, (pid, of_person) in enumerate(numbers.items()):
        queries = {int(rows[examples[number].query]): number + 1 for number in of_person}
        marker = _MARKERS[examples[of_person[0]].kind]
        people.append(Person(pid, queries, COLOURS[place % len(COLOURS)], marker))
    return people


def _sample(space: pd.DataFrame, pids: Sequence[int | str], seed: int) -> np.ndarray:
    """Return positions in ``space``, ascending: all images of ``pids``, then others up to ``MAX_POINTS``."""
    named = is_label(space.pid, pids).to_numpy(dtype=bool)
    others = np.flatnonzero(~named)
    count = min(len(others), max(0, MAX_POINTS - int(named.sum())))
    drawn = np.random.default_rng(seed).choice(others, count, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(named), drawn]))


def _groups(people: Sequence[Person], shown: pd.DataFrame) -> list[Group]:
    groups = []
    for person in people:
        points = np.flatnonzero((shown.pid == person.pid).to_numpy(dtype=bool))
        labels = {int(shown.index.get_loc(row)): str(number) for row, number in person.queries.items()}
        groups.append(Group(points, person.colour, person.marker, labels))
    return groups


def _metrics(result: RankingResult) -> list[tuple[Text, str]]:
    values = result.to_dict()
    texts = {
        "mAP": Text("metric_map"),
        "rank-1": Text("metric_rank", {"k": 1}),
        "mINP": Text("metric_minp"),
        "mAP_trapezoid": Text("metric_map_trapezoid"),
        **{f"rank-{k}": Text("metric_rank", {"k": k}) for k in RANKS},
    }
    rows = [(text, f"{100 * values[name]:.2f} %") for name, text in texts.items()]
    counts = {"valid": result.valid_queries, "skipped": result.skipped_queries, "gallery": result.gallery}
    return [*rows, *((Text(f"metric_{name}"), f"{count:,}") for name, count in counts.items())]
