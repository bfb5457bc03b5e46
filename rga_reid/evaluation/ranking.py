"""Exact ranking metrics and best matches for the features of any model, or for a matrix of distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch

from rga_reid.data.labels import align_labels
from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_choice, check_int
from rga_reid.evaluation.features import (
    LabelledFeatures,
    check_cameras,
    check_pair,
    distance_matrix,
    label_pair,
    label_table,
)
from rga_reid.evaluation.match_ranks import match_ranks
from rga_reid.evaluation.metrics import RankingResult, summarize, tabulate_queries
from rga_reid.evaluation.relevance import MARKET, MatchRule, Relevance
from rga_reid.evaluation.rerank import ReRankedScores, ReRanking
from rga_reid.evaluation.similarity import (
    BLOCK_SIZE,
    METRICS,
    DistanceScores,
    Metric,
    Scores,
    tiles,
    use_full_precision,
)
from rga_reid.evaluation.topk import TopK

MAX_CMC_RANK = 1_000_000  #: length of a CMC curve
AveragePrecision = Literal["step", "trapezoid"]


def evaluate_ranking(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    metric: Metric = "cosine",
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int | str] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank the gallery for each query and compute mAP, mINP and CMC in the protocol of Market-1501.

    For each query, items of its identity and its camera are removed, and so is its own file; the other items
    of its identity are correct matches, all others are wrong. Ranks are those of a stable sort by the float64
    score of each pair. They do not depend on the block size, the number of threads or the device. The q x g
    scores are never held at once.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors, with rows of any length; ranked as float32.
        query_pids, gallery_pids: identities, whole numbers or text ``(q,)`` and ``(g,)``, null (None, NaN, NA)
            where unknown: such a query is skipped, such a gallery item is a wrong answer for every query.
        query_camids, gallery_camids: cameras, whole numbers or text, null where unknown: items and queries of unknown
            camera are never removed for their camera. None: no camera is known.
        metric: "cosine", the dot product of the rows scaled to length 1, or "euclidean", the distance of the
            unscaled rows.
        average_precision: rule of ``mAP`` and ``average_precisions``; the result has the means by both rules.
        max_rank: length of the CMC curve.
        junk_pids: gallery items of these identities are left out, such queries are skipped.
        query_paths, gallery_paths: files, null where unknown. A query's own file is recognised in the gallery
            under any spelling of its path, and as a link.
        rerank: re-rank by k-reciprocal neighbours among all queries and the gallery without junk, and rank by
            the re-ranked distances, which are never held at once either.
        device: device of the products, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: called with the fraction of the work that is done.

    Raises:
        InputError: features, labels and paths that do not fit together; a row of features with NaN, infinity,
            or, for cosines, only zeros; no query with a correct match; fewer items than neighbours for
            re-ranking.
    """
    query, gallery = label_pair(
        query_features,
        gallery_features,
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    return evaluate_features(
        query,
        gallery,
        metric=metric,
        average_precision=average_precision,
        max_rank=max_rank,
        junk_pids=junk_pids,
        rerank=rerank,
        device=device,
        block_size=block_size,
        progress=progress,
    )


def evaluate_features(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    *,
    metric: Metric = "cosine",
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int | str] = (-1,),
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
    rule: MatchRule = MARKET,
) -> RankingResult:
    """Rank the gallery for each query, see ``evaluate_ranking``.

    Args:
        query, gallery: features and labels.
        metric, average_precision, max_rank, junk_pids, rerank, device, block_size, progress: as for
            ``evaluate_ranking``.
        rule: which items of a query's identity are correct matches.

    Raises:
        InputError: as ``evaluate_ranking``.

    Example:
        >>> query = LabelledFeatures([[1.0, 0.0]], pids=[7], camids=[1])
        >>> gallery = LabelledFeatures([[0.9, 0.1], [0.8, 0.3], [0.0, 1.0]], pids=[7, 8, 7], camids=[1, 1, 2])
        >>> result = evaluate_features(query, gallery)  # the first item is of the query's camera: removed
        >>> result.mAP, result.rank(1), result.rank(2)
        (0.5, 0.0, 1.0)
    """
    check_choice("metric", metric, get_args(Metric))
    settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    check_pair(query, gallery)
    relevance = Relevance(query.table, gallery.table, settings["junk_pids"], rule=rule)
    scores: Scores = METRICS[metric](query.features, gallery.features, where)
    if rerank is not None:
        rows = relevance.gallery_rows
        # in products: half of all pairs of items, then the queries with the gallery
        search = (len(query) + len(rows)) ** 2 / 2
        share = search / (search + len(query) * len(rows))
        searching = _partial_progress(progress, 0, share)
        scores = ReRankedScores(
            query.features, gallery.features, rows, metric, rerank, where, block_size, searching
        )
        progress = _partial_progress(progress, share, 1)
        settings |= {"reranked": True, **asdict(rerank)}
    return _evaluate(scores, relevance, query.table, settings, block_size, progress)


def evaluate_distances(
    distances: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int | str] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Compute the metrics of ``evaluate_ranking`` from a matrix of distances.

    Args:
        distances: real numbers ``(q, g)``, smaller for a better match: an array (a memory map too) or a
            tensor. Compared without conversion; equal distances rank in gallery order.
        query_pids, gallery_pids, query_camids, gallery_camids: as for ``evaluate_ranking``.
        average_precision, max_rank, junk_pids, query_paths, gallery_paths: as for ``evaluate_ranking``.
        block_size: columns read at a time; changes no result.
        progress: called with the fraction of the work that is done.

    Raises:
        InputError: as ``evaluate_ranking``.
    """
    settings = ranking_settings("distances", average_precision, max_rank, junk_pids)
    check_int("block_size", block_size)
    matrix = distance_matrix(distances)
    check_cameras(query_camids, gallery_camids)
    queries, items = matrix.shape
    query = label_table(queries, query_pids, query_camids, query_paths, prefix="query_")
    gallery = label_table(items, gallery_pids, gallery_camids, gallery_paths, prefix="gallery_")
    relevance = Relevance(query, gallery, settings["junk_pids"])
    return _evaluate(DistanceScores(matrix), relevance, query, settings, block_size, progress)


def _evaluate(
    scores: Scores,
    relevance: Relevance,
    query: pd.DataFrame,
    settings: dict[str, Any],
    block_size: int,
    progress: Callable[[float], None] | None,
) -> RankingResult:
    settings["cameras"] = "given" if relevance.has_cameras else "none"
    found = match_ranks(scores, relevance, block_size=block_size, progress=progress)
    table = tabulate_queries(query, found)
    if not table["matches"].any():
        raise relevance.no_match_error("use --protocol no_cameras (in Python, leave out the camids)")
    return summarize(table, len(relevance.gallery_rows), settings)


def ranking_settings(
    metric: str, average_precision: str, max_rank: int, junk_pids: Sequence[int | str]
) -> dict[str, Any]:
    """Check the settings of a ranking and return those that a result records."""
    check_choice("average_precision", average_precision, get_args(AveragePrecision))
    check_int("max_rank", max_rank)
    if max_rank > MAX_CMC_RANK:
        raise InputError(f"max_rank: expected at most {MAX_CMC_RANK:,}, found {max_rank}")
    return {
        "metric": metric,
        "average_precision": average_precision,
        "max_rank": max_rank,
        "junk_pids": tuple(pid if isinstance(pid, str) else int(pid) for pid in junk_pids),
        "reranked": False,
    }


def _partial_progress(
    progress: Callable[[float], None] | None, start: float, stop: float
) -> Callable[[float], None] | None:
    """Return a callback for the part of the work from ``start`` to ``stop``."""
    return None if progress is None else lambda fraction: progress(start + fraction * (stop - start))


_QUERIES = 4096  # queries searched at a time
_PERSON_SCORES = 2**22  # scores held at a time to rank persons


@dataclass(frozen=True, eq=False)
class RankedList:
    """The best gallery items for one query."""

    query: int  #: row of the query
    rows: np.ndarray  #: int64 (n,), rows of the gallery, best first
    scores: np.ndarray  #: float64 (n,), scores of the metric, also if the order is that of a re-ranking


def ranked_lists(
    query_features: Any,
    gallery_features: Any,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    chosen: Sequence[int],
    *,
    top_k: int = 10,
    metric: Metric = "cosine",
    junk_pids: Sequence[int | str] = (-1,),
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
) -> list[RankedList]:
    """Return the best matches of some queries, see ``top_matches``.

    Args:
        query_features, gallery_features: as for ``evaluate_ranking``.
        query, gallery: tables with the columns ``pid``, ``camid`` and ``path``, null where unknown.
        chosen: rows of the queries.
        top_k, metric, junk_pids, rerank, device: as for ``top_matches``.
    """
    return top_matches(
        LabelledFeatures.from_table(query_features, query, name="query"),
        LabelledFeatures.from_table(gallery_features, gallery, name="gallery"),
        chosen,
        top_k=top_k,
        metric=metric,
        junk_pids=junk_pids,
        rerank=rerank,
        device=device,
    )


def top_matches(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    rows: Sequence[int] | None = None,
    *,
    top_k: int = 10,
    metric: Metric = "cosine",
    junk_pids: Sequence[int | str] = (-1,),
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
    rule: MatchRule = MARKET,
) -> list[RankedList]:
    """Return the best gallery items of each query, in the order of ``evaluate_ranking``.

    Items that the evaluation removes are left out. Re-ranking searches the neighbours of all images again.

    Args:
        query, gallery: features and labels; queries need no correct match.
        rows: rows of the queries; all by default.
        top_k: length of a list; a smaller gallery gives shorter lists.
        metric, junk_pids, rerank, device: as for ``evaluate_ranking``.
        rule: as for ``evaluate_features``.

    Raises:
        InputError: as ``evaluate_ranking``, or every gallery item is junk.
    """
    check_int("top_k", top_k)
    check_choice("metric", metric, get_args(Metric))
    where = choose_device(device, types=EXACT_TYPES)
    check_pair(query, gallery)
    relevance = Relevance(query.table, gallery.table, junk_pids, rule=rule)
    gallery_rows = relevance.gallery_rows
    if not len(gallery_rows):
        raise relevance.no_match_error()
    plain: Scores = METRICS[metric](query.features, gallery.features, where)
    order: Scores = plain
    if rerank is not None:
        order = ReRankedScores(
            query.features, gallery.features, gallery_rows, metric, rerank, where, BLOCK_SIZE, None
        )
    queries = np.arange(len(query)) if rows is None else np.asarray(rows, dtype=np.int64)
    lists = []
    with use_full_precision(where):
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            for number, (columns, scores) in zip(part, _search(order, relevance, part, top_k), strict=True):
                found = gallery_rows[columns]
                if rerank is not None:
                    scores = plain.exact(np.full_like(found, number), found)
                lists.append(RankedList(int(number), found, scores))
    return lists


def person_ranks(
    scores: Scores, relevance: Relevance, query: pd.DataFrame, gallery: pd.DataFrame
) -> pd.Series:
    """Return the rank of each query's first match in a list that names each person once, by the best item.

    Args:
        scores: scores of all pairs.
        relevance: correct matches and removed items.
        query, gallery: tables of ``relevance``.

    Returns:
        Int64 ``(q,)``, null for queries without a match. Each item of an unknown identity counts as a person.
    """
    wanted, offered = align_labels(query["pid"], gallery["pid"].iloc[relevance.gallery_rows])
    person = pd.factorize(pd.concat([offered, wanted], ignore_index=True))[0]
    own, person = person[len(offered) :], person[: len(offered)]
    person[person < 0] = person.max(initial=0) + 1 + np.arange(np.count_nonzero(person < 0))
    groups, person = np.unique(person, return_inverse=True)
    order = np.argsort(person, kind="stable")
    starts = np.searchsorted(person[order], np.arange(len(groups)))
    ranks = pd.Series(pd.NA, index=range(len(query)), dtype="Int64")
    height = max(1, _PERSON_SCORES // max(1, len(person)))
    for queries in relevance.query_blocks(height, _PERSON_SCORES):
        items = relevance.same_identity_items(queries)
        valid = np.unique(items.query[items.match])
        if not len(valid):
            continue
        with use_full_precision(scores.device):
            left = scores.queries(queries, torch.float64)
            right = scores.gallery(relevance.gallery_rows, torch.float64)
            table = scores.approximate(left, right).cpu().numpy()
        table[items.query[~items.match], items.column[~items.match]] = -np.inf
        best = np.maximum.reduceat(table[:, order], starts, axis=1)
        for row in valid:
            mine = int(np.searchsorted(groups, own[queries[row]]))
            ranks.iloc[queries[row]] = _person_rank(
                scores, relevance, int(queries[row]), table[row], best[row], person, mine
            )
    return ranks


def _person_rank(
    scores: Scores,
    relevance: Relevance,
    query: int,
    approximate: np.ndarray,
    best: np.ndarray,
    person: np.ndarray,
    mine: int,
) -> int:
    """Return the rank of one person in a list that names each person once.

    Args:
        query: row of the query.
        approximate: score of each gallery item, ``(g,)``.
        best: score of each person's best item.
        person: number of each item's person, ``(g,)``.
        mine: number of the query's person.
    """
    radius = 2 * scores.error(torch.float64)
    before = int(np.count_nonzero(best > best[mine] + radius))
    close = np.flatnonzero(np.abs(best - best[mine]) <= radius)
    if len(close) > 1:  # near ties: exact scores decide, then the order of the gallery
        columns = np.flatnonzero(np.isin(person, close) & (approximate >= best[mine] - 2 * radius))
        exact = scores.exact(np.full(len(columns), query), relevance.gallery_rows[columns])
        ranked = person[columns[np.lexsort((columns, -exact))]]
        before += len(np.unique(ranked[: int(np.argmax(ranked == mine))]))
    return before + 1


def _search(
    scores: Scores, relevance: Relevance, queries: np.ndarray, top_k: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the best columns of each query, without the items removed for it, and their scores."""
    items = relevance.same_identity_items(queries)
    removed_query, removed_column = items.query[~items.match], items.column[~items.match]

    def exact(query: np.ndarray, column: np.ndarray) -> np.ndarray:
        return scores.exact(queries[query], relevance.gallery_rows[column])

    best = TopK(len(queries), top_k, scores.error(scores.dtype), exact, scores.dtype)
    for tile, row, column in tiles(scores, queries, relevance.gallery_rows, BLOCK_SIZE):
        down, across = removed_query - row, removed_column - column
        inside = (down >= 0) & (down < tile.shape[0]) & (across >= 0) & (across < tile.shape[1])
        tile[down[inside], across[inside]] = -torch.inf
        if column == 0:
            best.raise_threshold(tile, row)
        best.add(tile, row, column)
    return best.results()
