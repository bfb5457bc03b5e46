"""Positions of the correct matches, by counting instead of sorting.

The position of a correct match is the number of items that score better. So the gallery needs no sorting, and
no more than a tile of scores is held at a time: each item of a tile is only asked which of the query's *own
items* (those of its identity, few) it beats, in four steps of which each leaves less to the next:

1. An item that scores less than all own items beats none. In a good ranking most items end here.
2. The others fall into a histogram of the query's scores, whose bins tell which own items they beat.
3. Items in a bin that an own item touches are listed, and compared by score.
4. All this goes by the scores of a float32 product. The items whose score lies within its error of an own
   item are scored exactly, and that own item too; equal scores go by gallery order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from rga_reid.evaluation.histograms import Histograms
from rga_reid.evaluation.precision import full_precision
from rga_reid.evaluation.scores import Scores, entries_reaching, tiles
from rga_reid.evaluation.truth import GroundTruth

_QUERIES = 4096  # at a time: each holds a histogram
_TOGETHER = 32  # queries whose own items are scored in one product
_TILE = 2**19  # scores, own items or listed items at a time


class MatchPositions(NamedTuple):
    """Where the correct matches of some queries rank."""

    queries: np.ndarray  #: rows of the queries, each with at least one match
    owner: np.ndarray  #: for each match, its query's number in ``queries``, ascending
    position: np.ndarray  #: how many items, the removed left out, rank before it; ascending within a query


class _Pairs(NamedTuple):
    query: np.ndarray  # number within the block
    column: np.ndarray
    score: np.ndarray  # approximate, float64


def match_positions(
    scores: Scores,
    truth: GroundTruth,
    *,
    block_size: int,
    progress: Callable[[float], None] | None = None,
) -> Iterator[MatchPositions]:
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
            with full_precision(scores.device):
                found = _Block(scores, truth, queries[valid], block_size).positions(report)
            yield found
        done += len(queries)
        report(1.0)


class _Block:
    """Some queries, each with at least one match, against the whole gallery."""

    def __init__(self, scores: Scores, truth: GroundTruth, queries: np.ndarray, block_size: int) -> None:
        self.scores, self.truth, self.queries, self.block_size = scores, truth, queries, block_size
        own = truth.own_items(queries)
        self.match = own.match
        self.own = _Pairs(own.query, own.column, self._own_scores(own.query, own.column))
        # entries that lie farther apart than this, by approximate scores, are in the right order
        own_error = scores.error(torch.float64)
        self.radius, self.own_radius = scores.error(scores.dtype) + own_error, 2 * own_error

    def positions(self, report: Callable[[float], None]) -> MatchPositions:
        real = np.float32 if self.scores.dtype == torch.float32 else np.float64
        histograms = Histograms(self.own.query, self.own.score, self.radius, real)
        others_before = np.zeros(len(self.match), dtype=np.int64)
        listed: list[_Pairs] = []
        for tile, first_query, first_column in tiles(
            self.scores, self.queries, self.truth.gallery_rows, self.block_size, size=_TILE
        ):
            lowest = histograms.lowest[first_query : first_query + len(tile), None]
            query, column, score = entries_reaching(tile, lowest)
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
        return MatchPositions(self.queries, owner, position[order])

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
