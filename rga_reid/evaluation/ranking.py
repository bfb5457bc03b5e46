"""Exact ranking metrics for features of any model, or for a matrix of distances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_choice, check_int
from rga_reid.evaluation.features import distance_matrix, feature_pair, label_tables
from rga_reid.evaluation.metrics import MatchRanks, RankingResult, per_query_metrics, summarize
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.rerank import ReRankedScores, ReRanking
from rga_reid.evaluation.similarity import (
    BLOCK_SIZE,
    METRICS,
    DistanceScores,
    Metric,
    Scores,
    above_threshold,
    tiles,
    use_full_precision,
)

MAX_CMC_RANK = 1_000_000  #: ranks of a CMC curve
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
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank the gallery for each query and compare with the truth, in the protocol of Market-1501.

    For each query, items of its identity and its camera are removed, and so is its own file; the other items
    of its identity are correct matches, all the rest is wrong. Ranks are those of a stable sort by the
    float64 score of each pair, whatever the block size, the number of threads and the device. The q x g
    scores are never held at a time.

    Args:
        query_features, gallery_features: floating-point numbers ``(q, d)`` and ``(g, d)``, arrays (memory
            maps too) or tensors, their rows of any length; ranked as float32.
        query_pids, gallery_pids: identities, whole numbers ``(q,)`` and ``(g,)``. Null (None, NaN, NA) where
            unknown: such a query is skipped, such a gallery item is a wrong answer for all.
        query_camids, gallery_camids: cameras, likewise. An item or query of unknown camera is never removed
            for its camera. None: no camera is known.
        metric: "cosine", the dot product of the rows scaled to length 1, or "euclidean" for the rows as they
            are.
        average_precision: which rule ``mAP`` and ``average_precisions`` follow; the result has both means.
        max_rank: length of the CMC curve.
        junk_pids: gallery items of these identities are left out, such queries are skipped.
        query_paths, gallery_paths: files, null where unknown: a query is known in the gallery by its path.
        rerank: re-rank by k-reciprocal neighbours among all queries and the gallery without junk, and rank by
            the re-ranked distances; they are never held either.
        device: where the products are computed, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: features, labels and paths that do not fit together; a row of features with NaN, infinity,
            or, for cosines, only zeros; no query with a correct match; a re-ranking that asks for more
            neighbours than there are items.
    """
    check_choice("metric", metric, get_args(Metric))
    settings = ranking_settings(metric, average_precision, max_rank, junk_pids)
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    query, gallery = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(query), len(gallery)),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    truth = Relevance(*tables, settings["junk_pids"])
    scores: Scores = METRICS[metric](query, gallery, where)
    if rerank is not None:
        rows = truth.gallery_rows
        # in products: half of all items with each other, then the queries with the gallery
        search = (len(query) + len(rows)) ** 2 / 2
        share = search / (search + len(query) * len(rows))
        scores = ReRankedScores(
            query, gallery, rows, metric, rerank, where, block_size, _part(progress, 0, share)
        )
        progress = _part(progress, share, 1)
        settings |= {"reranked": True, **asdict(rerank)}
    return _evaluate(scores, truth, tables[0], settings, block_size, progress)


def evaluate_distances(
    distances: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    average_precision: AveragePrecision = "step",
    max_rank: int = 50,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """The same as ``evaluate_ranking`` for distances that are there already.

    Args:
        distances: real numbers ``(q, g)``, smaller for a better fit: an array (a memory map too) or a tensor.
            Compared as they are; equal ones go by gallery order.
        query_pids, gallery_pids, query_camids, gallery_camids: as for ``evaluate_ranking``.
        average_precision, max_rank, junk_pids, query_paths, gallery_paths: likewise.
        block_size: columns looked at at a time; changes no result.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: as for ``evaluate_ranking``.
    """
    settings = ranking_settings("distances", average_precision, max_rank, junk_pids)
    check_int("block_size", block_size)
    matrix = distance_matrix(distances)
    tables = label_tables(
        matrix.shape, query_pids, gallery_pids, query_camids, gallery_camids, query_paths, gallery_paths
    )
    truth = Relevance(*tables, settings["junk_pids"])
    return _evaluate(DistanceScores(matrix), truth, tables[0], settings, block_size, progress)


def _evaluate(
    scores: Scores,
    truth: Relevance,
    query: pd.DataFrame,
    settings: dict[str, Any],
    block_size: int,
    progress: Callable[[float], None] | None,
) -> RankingResult:
    settings["cameras"] = "given" if truth.has_cameras else "none"
    query.insert(0, "query", range(len(query)))
    if query["path"].isna().all():
        query = query.drop(columns="path")
    found = match_ranks(scores, truth, block_size=block_size, progress=progress)
    table = per_query_metrics(query, found)
    if not table["matches"].any():
        raise truth.explain_no_match()
    return summarize(table, len(truth.gallery_rows), settings)


def ranking_settings(
    metric: str, average_precision: str, max_rank: int, junk_pids: Sequence[int]
) -> dict[str, Any]:
    """The settings of a result, checked."""
    check_choice("average_precision", average_precision, get_args(AveragePrecision))
    check_int("max_rank", max_rank)
    if max_rank > MAX_CMC_RANK:
        raise InputError(f"max_rank: expected at most {MAX_CMC_RANK:,}, found {max_rank}")
    return {
        "metric": metric,
        "average_precision": average_precision,
        "max_rank": max_rank,
        "junk_pids": tuple(int(pid) for pid in junk_pids),
        "reranked": False,
    }


def _part(
    progress: Callable[[float], None] | None, start: float, stop: float
) -> Callable[[float], None] | None:
    """What tells ``progress`` of a part of the work."""
    return None if progress is None else lambda fraction: progress(start + fraction * (stop - start))


_QUERIES = 4096  # at a time: each holds a histogram
_TOGETHER = 32  # queries whose own items are scored in one product
_TILE = 2**19  # scores, own items or listed items at a time


class _Pairs(NamedTuple):
    query: np.ndarray  # number within the block
    column: np.ndarray
    score: np.ndarray  # approximate, float64


def match_ranks(
    scores: Scores,
    truth: Relevance,
    *,
    block_size: int,
    progress: Callable[[float], None] | None = None,
) -> Iterator[MatchRanks]:
    """Rank the gallery for every query that has a correct match.

    Memory, apart from labels, does not grow with the number of queries, gallery rows or matches. Exact
    duplicates cost some operations for each pair that ties, whatever the length of a row.

    Args:
        scores: how well the pairs fit.
        truth: which pairs are correct matches, and which are removed.
        block_size: gallery rows held at a time; changes no result.
        progress: told the fraction that is done, now and then.

    Yields:
        The matches of some of the queries; each query once, in no certain order.
    """
    blocks = list(truth.blocks(_QUERIES, _TILE))
    done, total = 0, sum(map(len, blocks))
    for queries in blocks:

        def report(part: float, done: int = done, count: int = len(queries)) -> None:
            if progress is not None:
                progress((done + part * count) / total)

        own = truth.own_items(queries)
        valid = np.unique(own.query[own.match])
        if len(valid):
            with use_full_precision(scores.device):
                found = _Block(scores, truth, queries[valid], block_size).positions(report)
            yield found
        done += len(queries)
        report(1.0)


class _Block:
    """Some queries, each with at least one match, against the whole gallery."""

    def __init__(self, scores: Scores, truth: Relevance, queries: np.ndarray, block_size: int) -> None:
        self.scores, self.truth, self.queries, self.block_size = scores, truth, queries, block_size
        own = truth.own_items(queries)
        self.match = own.match
        self.own = _Pairs(own.query, own.column, self._own_scores(own.query, own.column))
        # entries that lie farther apart than this, by approximate scores, are in the right order
        own_error = scores.error(torch.float64)
        self.radius, self.own_radius = scores.error(scores.dtype) + own_error, 2 * own_error

    def positions(self, report: Callable[[float], None]) -> MatchRanks:
        real = np.float32 if self.scores.dtype == torch.float32 else np.float64
        histograms = Histograms(self.own.query, self.own.score, self.radius, real)
        others_before = np.zeros(len(self.match), dtype=np.int64)
        listed: list[_Pairs] = []
        for tile, first_query, first_column in tiles(
            self.scores, self.queries, self.truth.gallery_rows, self.block_size, size=_TILE
        ):
            lowest = histograms.lowest[first_query : first_query + len(tile), None]
            query, column, score = above_threshold(tile, lowest)
            query += first_query
            near = histograms.add(query, score)
            listed.append(self._others(query[near], column[near] + first_column, score[near]))
            if sum(len(pairs.query) for pairs in listed) > _TILE:
                others_before += self._settled(listed)[0]
                listed = []
            report(first_column / len(self.truth.gallery_rows))
        last_others, matches_before = self._settled(listed)
        position = histograms.better() + others_before + last_others + matches_before
        owner, position = self.own.query[self.match], position[self.match]
        order = np.lexsort((position, owner))
        return MatchRanks(self.queries, owner, position[order])

    def _own_scores(self, query: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Scores of the own items, by products in float64: queries of one identity share most of them.

        A product of some identities together computes more scores than are wanted, and is still quicker than
        one for each: they are small.
        """
        scores = np.empty(len(query))
        for group in self.truth.identities(self.queries, _TOGETHER):
            left = self.scores.queries(self.queries[group], torch.float64)
            entries = slice(*np.searchsorted(query, [group.start, group.stop]))
            columns, place = np.unique(column[entries], return_inverse=True)
            for start in range(0, len(columns), self.block_size):
                rows = self.truth.gallery_rows[columns[start : start + self.block_size]]
                product = self.scores.approximate(left, self.scores.gallery(rows, torch.float64))
                inside = (place >= start) & (place < start + self.block_size)
                chosen = product.cpu().numpy()[query[entries][inside] - group.start, place[inside] - start]
                scores[entries][inside] = chosen
        return scores

    def _others(self, query: np.ndarray, column: np.ndarray, score: np.ndarray) -> _Pairs:
        """These pairs without the own items."""
        other = ~self.truth.is_own(self.queries[query], column)
        return _Pairs(query[other], column[other], score[other].astype(np.float64))

    def _settled(self, listed: list[_Pairs]) -> tuple[np.ndarray, np.ndarray]:
        """For each own item, how many of the listed pairs, and of the matches, rank before it."""
        query, column, score = map(np.concatenate, zip(self.own, *listed, strict=True))
        own = np.arange(len(query)) < len(self.match)
        contested = _contested(query, score, own, self.radius, self.own_radius)
        rows = self.queries[query[contested]], self.truth.gallery_rows[column[contested]]
        score[contested] = self.scores.exact(*rows)

        order = np.lexsort((column, -score, query))
        first = np.searchsorted(query[order], self.own.query)  # where the query of each own item begins
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        match = np.zeros(len(order), dtype=bool)
        match[: len(self.match)] = self.match
        counts = []
        for kind in (~own, match):
            before = np.concatenate([[0], np.cumsum(kind[order])])
            counts.append(before[place[own]] - before[first])
        return counts[0], counts[1]


def _contested(
    query: np.ndarray, score: np.ndarray, own: np.ndarray, radius: float, own_radius: float
) -> np.ndarray:
    """Which entries need an exact score: an own item and another item of its query within ``radius``, or two
    own items within ``own_radius``."""
    order = np.lexsort((score, query))
    query, score, own = query[order], score[order], own[order]
    contested = np.empty(len(order), dtype=bool)
    contested[order] = np.where(
        own,
        _has_neighbour(query, score, ~own, radius) | _has_neighbour(query, score, own, own_radius),
        _has_neighbour(query, score, own, radius),
    )
    return contested


def _has_neighbour(query: np.ndarray, score: np.ndarray, kind: np.ndarray, radius: float) -> np.ndarray:
    """For each entry, sorted by query and score: is one of ``kind`` within ``radius``, itself not counted?"""
    found = np.zeros(len(query), dtype=bool)
    for step in (1, -1):  # the nearest one before each entry; then, in reverse, the nearest one after it
        q, s = query[::step], score[::step]
        nearest = np.maximum.accumulate(np.where(kind[::step], np.arange(len(q)), -1))[:-1]
        close = (nearest >= 0) & (q[nearest] == q[1:]) & (abs(s[nearest] - s[1:]) <= radius)
        found[::step][1:] |= close
    return found


_BINS = 1024
_HISTOGRAM_QUERIES = 64  # at a time where numbers are summed: they fit into the processor's cache


class Histograms:
    """Histograms from the lowest to the highest own item of each query.

    A bin is *near* if it holds a score within ``radius`` of an own item. An item in any other bin is certain
    to be better than the own items of all lower bins, and worse than those of all higher bins.

    Args:
        owner: for each own item its query, ascending; each of the queries 0 to n − 1 has at least one.
        scores: of the own items, float64.
        radius: how far from an own item a score must be to be certain.
        real: float32 or float64, the type of the scores to be counted.
    """

    def __init__(self, owner: np.ndarray, scores: np.ndarray, radius: float, real: type[np.floating]) -> None:
        # rounded outwards, so that the rounding to `real` makes nothing certain
        floor = np.nextafter((scores - radius).astype(real), real(-np.inf))
        ceiling = np.nextafter((scores + radius).astype(real), real(np.inf))
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        #: (n,): an item of a lower score is worse than all own items of the query, and need not be counted
        self.lowest = np.minimum.reduceat(floor, starts)
        highest = np.maximum.reduceat(ceiling, starts)
        # wide enough that neither it nor its reciprocal vanishes or overflows
        width = np.maximum((highest - self.lowest) / real(_BINS - 2), np.finfo(real).tiny)
        self._scale = (1 / width).astype(real)

        self._owner, self._first = owner, self._bins(owner, floor)
        self._near = np.empty((len(starts), _BINS), dtype=bool)
        last = self._bins(owner, ceiling)
        for queries, own in self._parts():
            edges = np.zeros((len(self._near[queries]), _BINS + 1), dtype=np.int64)
            np.add.at(edges, (owner[own] - queries.start, self._first[own]), 1)
            np.add.at(edges, (owner[own] - queries.start, last[own] + 1), -1)
            self._near[queries] = np.cumsum(edges[:, :_BINS], axis=1) > 0
        self._counts = np.zeros((len(starts), _BINS), dtype=np.int32)

    def add(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Count some scores, each not below the lowest of its query.

        Returns:
            Which of them fell into a near bin, so that their count settles nothing: ascending places.
        """
        bins = queries * _BINS + self._bins(queries, scores)
        one = self._counts.dtype.type(1)  # of another type it would take NumPy's slow path
        np.add.at(self._counts.reshape(-1), bins, one)
        return np.flatnonzero(self._near.reshape(-1)[bins])

    def better(self) -> np.ndarray:
        """For each own item, how many of the scores in bins that are not near are better."""
        better = np.empty(len(self._owner), dtype=np.int64)
        for queries, own in self._parts():
            certain = np.where(self._near[queries], 0, self._counts[queries])
            up_to_here = np.cumsum(certain, axis=1, dtype=np.int64)
            owner, first = self._owner[own] - queries.start, self._first[own]
            better[own] = up_to_here[owner, -1] - up_to_here[owner, first]
        return better

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Some of the queries, and their own items."""
        for start in range(0, len(self._near), _HISTOGRAM_QUERIES):
            own = np.searchsorted(self._owner, [start, start + _HISTOGRAM_QUERIES])
            yield slice(start, start + _HISTOGRAM_QUERIES), slice(*own)

    def _bins(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Bin of each score. Each step is monotonic, rounding included: no higher score is in a lower bin."""
        height = (scores - self.lowest[queries]) * self._scale[queries]
        return np.minimum(height, _BINS - 1).astype(np.int64)


_SCORES = 2**22  # approximate scores at a time


@dataclass(frozen=True, eq=False)
class RankedList:
    """The best gallery items for one query."""

    query: int  #: row of the query
    rows: np.ndarray  #: int64 (n,), rows of the gallery, best first
    scores: np.ndarray  #: float64 (n,), of the metric, also where the order is that of a re-ranking


def ranked_lists(
    query_features: Any,
    gallery_features: Any,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    chosen: Sequence[int],
    *,
    top_k: int = 10,
    metric: Metric = "cosine",
    junk_pids: Sequence[int] = (-1,),
    rerank: ReRanking | None = None,
    device: str | torch.device = "cpu",
) -> list[RankedList]:
    """The ranking of ``evaluate_ranking`` for some queries, item by item: the same order, the same left out.

    A re-ranking searches the neighbours of all images once more, as the evaluation did.

    Args:
        query_features, gallery_features: as for ``evaluate_ranking``.
        query, gallery: columns ``pid``, ``camid`` (null where unknown) and ``path``.
        chosen: rows of the queries.
        top_k: items in a list; fewer if the gallery has fewer.
        metric, junk_pids, rerank, device: as for ``evaluate_ranking``.

    Raises:
        InputError: as for ``evaluate_ranking``, but queries need no correct match; a gallery of junk alone.
    """
    check_int("top_k", top_k)
    check_choice("metric", metric, tuple(METRICS))
    where = choose_device(device, types=EXACT_TYPES)
    left, right = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(left), len(right)), query.pid, gallery.pid, query.camid, gallery.camid, query.path, gallery.path
    )
    truth = Relevance(*tables, junk_pids)
    if not len(truth.gallery_rows):
        raise truth.explain_no_match()
    plain: Scores = METRICS[metric](left, right, where)
    order: Scores = plain
    if rerank is not None:
        order = ReRankedScores(left, right, truth.gallery_rows, metric, rerank, where, BLOCK_SIZE, None)
    step = max(1, _SCORES // max(1, len(truth.gallery_rows)))
    with use_full_precision(where):
        parts = [
            list(_some(plain, order, truth, np.asarray(chosen[start : start + step], dtype=np.int64), top_k))
            for start in range(0, len(chosen), step)
        ]
    return [ranked for part in parts for ranked in part]


def _some(
    plain: Scores, order: Scores, truth: Relevance, queries: np.ndarray, top_k: int
) -> Iterator[RankedList]:
    """Lists of some queries: a product tells which items can be in them, exact scores in which order."""
    real = np.float32 if order.dtype == torch.float32 else np.float64
    rough = np.empty((len(queries), len(truth.gallery_rows)), real)
    for tile, row, column in tiles(order, queries, truth.gallery_rows, BLOCK_SIZE):
        rough[row : row + tile.shape[0], column : column + tile.shape[1]] = tile.cpu().numpy()
    own = truth.own_items(queries)
    rough[own.query[~own.match], own.column[~own.match]] = -np.inf
    last = min(top_k, rough.shape[1]) - 1
    floor = -np.partition(-rough, last, axis=1)[:, last] - 2 * order.error(order.dtype)
    for number, scores, lowest in zip(queries, rough, floor, strict=True):
        rows = truth.gallery_rows[(scores >= lowest) & (scores > -np.inf)]
        exact = order.exact(np.full_like(rows, number), rows)
        rows = rows[np.argsort(-exact, kind="stable")[:top_k]]
        yield RankedList(int(number), rows, plain.exact(np.full_like(rows, number), rows))
