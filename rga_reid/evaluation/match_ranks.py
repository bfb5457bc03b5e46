"""Fast exact ranks of the correct matches, without sorting the gallery.

Ranks are those of a stable sort by float64 scores. For each query, a float32 product counts the items that
score higher than its correct matches, in a histogram; only pairs that score closer to a match than the error
of the product are scored exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rga_reid.evaluation.metrics import MatchRanks, count_before
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import Scores, flat_nonzero, tiles, use_full_precision

_QUERIES = 4096  # queries ranked at a time: each holds a histogram
_TOGETHER = 64  # queries whose same-identity items are scored in one product
#: if histograms cannot place more than this part of the first gallery block, the rest is multiplied in float64, which
#: takes as long as exact scores of 1 % of the pairs
_MANY_UNDECIDED = 0.01
_TILE = 2**20  # scores, same-identity items or candidates held at a time


class _Pairs(NamedTuple):
    query: np.ndarray  # number within the block
    column: np.ndarray
    score: np.ndarray  # approximate, float64


def match_ranks(
    scores: Scores,
    relevance: Relevance,
    *,
    block_size: int,
    progress: Callable[[float], None] | None = None,
) -> Iterator[MatchRanks]:
    """Rank the gallery for every query that has a correct match.

    Memory, apart from labels, does not grow with the number of queries, gallery rows or matches. Exact
    duplicates cost some operations for each pair that ties, for rows of any length.

    Args:
        scores: scores of the pairs.
        relevance: correct matches and removed items.
        block_size: gallery rows held at a time; changes no result.
        progress: called with the fraction of the work that is done.

    Yields:
        The ranks of the matches of some queries; each query once, in no particular order.
    """
    blocks = list(relevance.query_blocks(_QUERIES, _TILE))
    done, total = 0, sum(map(len, blocks))
    for queries in blocks:

        def report(part: float, done: int = done, count: int = len(queries)) -> None:
            if progress is not None:
                progress((done + part * count) / total)

        items = relevance.same_identity_items(queries)
        valid = np.unique(items.query[items.match])
        if len(valid):
            with use_full_precision(scores.device):
                found = _Block(scores, relevance, queries[valid], block_size).rank_matches(report)
            yield found
        done += len(queries)
        report(1.0)


class _Block:
    """Some queries, each with at least one match, against the whole gallery.

    The same-identity items of a query are its matches and the items removed for it. All other items are
    distractors: what counts is how many of them rank before each match.
    """

    def __init__(self, scores: Scores, relevance: Relevance, queries: np.ndarray, block_size: int) -> None:
        self.scores, self.relevance, self.queries = scores, relevance, queries
        self.block_size = block_size
        items = relevance.same_identity_items(queries)
        self.match = items.match
        self.items = _Pairs(items.query, items.column, self._score_items(items.query, items.column))
        self.item_error = scores.error(torch.float64)

    def rank_matches(self, report: Callable[[float], None]) -> MatchRanks:
        before = np.zeros(len(self.match), dtype=np.int64)  # distractors before each same-identity item
        close: list[_Pairs] = []  # distractors that histograms cannot place
        dtype, rows = self.scores.dtype, self.relevance.gallery_rows
        histograms, radius = self._histograms(dtype)
        probe, undecided = min(self.block_size, len(rows)), 0
        for part in (slice(0, probe), slice(probe, len(rows))):
            if undecided > _MANY_UNDECIDED * len(self.queries) * probe and self.scores.error(dtype):
                before += self._count_exactly(close, radius)[0] + histograms.count_higher()
                close, dtype = [], torch.float64
                histograms, radius = self._histograms(dtype)
            for tile, first_query, first in tiles(
                self.scores, self.queries, rows[part], self.block_size, dtype=dtype, size=_TILE
            ):
                query, column, score = histograms.add(tile, first_query)
                close.append(self._distractors(query, column + part.start + first, score))
                undecided += len(close[-1].query)
                if sum(len(pairs.query) for pairs in close) > _TILE:
                    before += self._count_exactly(close, radius)[0]
                    close = []
                report((part.start + first) / len(rows))
        close_before, matches_before = self._count_exactly(close, radius)
        rank = 1 + matches_before + before + close_before + histograms.count_higher()
        owner, rank = self.items.query[self.match], rank[self.match]
        return MatchRanks(self.queries, owner, rank[np.lexsort((rank, owner))])

    def _histograms(self, dtype: torch.dtype) -> tuple[Histograms, float]:
        """Return empty histograms for products of a type, and from which difference scores are in the right order."""
        radius = self.scores.error(dtype) + self.item_error
        real = np.float32 if dtype == torch.float32 else np.float64
        items = self.items
        return Histograms(items.query, items.score, radius, real, device=self.scores.device), radius

    def _score_items(self, query: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Score the same-identity items by products in float64: queries of one identity share most of them.

        A product for several identities computes more scores than needed, but is faster than one small
        product for each.
        """
        scores = np.empty(len(query))
        for group in self.relevance.split_by_identity(self.queries, _TOGETHER):
            left = self.scores.queries(self.queries[group], torch.float64)
            entries = slice(*np.searchsorted(query, [group.start, group.stop]))
            columns, place = np.unique(column[entries], return_inverse=True)
            for start in range(0, len(columns), self.block_size):
                rows = self.relevance.gallery_rows[columns[start : start + self.block_size]]
                product = self.scores.approximate(left, self.scores.gallery(rows, torch.float64))
                inside = (place >= start) & (place < start + self.block_size)
                pairs = query[entries][inside] - group.start, place[inside] - start
                found = product[tuple(torch.from_numpy(side).to(product.device) for side in pairs)]
                scores[entries][inside] = found.cpu().numpy()
        return scores

    def _distractors(self, query: np.ndarray, column: np.ndarray, score: np.ndarray) -> _Pairs:
        """Return these pairs without the same-identity items."""
        distractor = ~self.relevance.is_same_identity(self.queries[query], column)
        return _Pairs(query[distractor], column[distractor], score[distractor].astype(np.float64))

    def _count_exactly(self, distractors: list[_Pairs], radius: float) -> list[np.ndarray]:
        """For each same-identity item, count the distractors and the matches that rank before it.

        Scores of distractors are farther than ``radius`` from an item, or of uncertain order.
        """
        query, column, score = map(np.concatenate, zip(self.items, *distractors, strict=True))
        is_item = np.arange(len(query)) < len(self.match)
        uncertain = _has_uncertain_order(query, score, is_item, radius, 2 * self.item_error)
        rows = self.queries[query[uncertain]], self.relevance.gallery_rows[column[uncertain]]
        score[uncertain] = self.scores.exact(*rows)

        match = np.zeros(len(query), dtype=bool)
        match[is_item] = self.match
        return [counts[is_item] for counts in count_before(query, score, column, ~is_item, match)]


def _has_uncertain_order(
    query: np.ndarray, score: np.ndarray, is_item: np.ndarray, radius: float, item_radius: float
) -> np.ndarray:
    """Find the pairs that need an exact score.

    These are a same-identity item and a distractor of its query within ``radius``, and two same-identity
    items within ``item_radius``.
    """
    order = np.lexsort((score, query))
    query, score, is_item = query[order], score[order], is_item[order]
    uncertain = np.empty(len(order), dtype=bool)
    uncertain[order] = np.where(
        is_item,
        _has_neighbour(query, score, ~is_item, radius) | _has_neighbour(query, score, is_item, item_radius),
        _has_neighbour(query, score, is_item, radius),
    )
    return uncertain


def _has_neighbour(query: np.ndarray, score: np.ndarray, kind: np.ndarray, radius: float) -> np.ndarray:
    """For entries sorted by query and score: is another entry of ``kind`` of its query within ``radius``?"""
    found = np.zeros(len(query), dtype=bool)
    for step in (1, -1):  # the nearest one before each entry; then, in reverse, the nearest one after it
        q, s = query[::step], score[::step]
        nearest = np.maximum.accumulate(np.where(kind[::step], np.arange(len(q)), -1))[:-1]
        close = (nearest >= 0) & (q[nearest] == q[1:]) & (abs(s[nearest] - s[1:]) <= radius)
        found[::step][1:] |= close
    return found


_BINS = 1024
_FEW = 0.1  # up to this part of a tile, copying scores and finding their bins is faster than finding all bins
_HISTOGRAM_QUERIES = 64  # queries summed at a time: their bins fit into the processor's cache


class Histograms:
    """Histograms of scores, for each query from its lowest to its highest same-identity item.

    A bin is *uncertain* if it contains scores within ``radius`` of a same-identity item. Scores in the other
    bins are certainly higher than the same-identity items of lower bins and lower than those of higher bins.

    Args:
        owner: for each same-identity item its query, ascending; each query from 0 to n − 1 has at least one.
        scores: scores of these items, float64.
        radius: distance from which the order of a score and an item is certain.
        real: float32 or float64, type of the scores to count.
        device: device of the scores to count, where they stay.
    """

    def __init__(
        self,
        owner: np.ndarray,
        scores: np.ndarray,
        radius: float,
        real: type[np.floating],
        device: torch.device | str = "cpu",
    ) -> None:
        # rounded outwards, so that rounding to `real` makes no uncertain order certain
        lower = np.nextafter((scores - radius).astype(real), real(-np.inf))
        upper = np.nextafter((scores + radius).astype(real), real(np.inf))
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        lowest = np.minimum.reduceat(lower, starts)  # lower scores rank after all items of the query
        highest = np.maximum.reduceat(upper, starts)
        # wide enough that neither the width nor its reciprocal underflows or overflows
        width = np.maximum((highest - lowest) / real(_BINS - 2), np.finfo(real).tiny)
        scale = (1 / width).astype(real)

        self._owner = owner
        of_items = [torch.from_numpy(values[owner]) for values in (lowest, scale)]
        self._first, last = (_find_bins(torch.from_numpy(edge), *of_items).numpy() for edge in (lower, upper))
        self._uncertain = np.empty((len(starts), _BINS), dtype=bool)
        for queries, items in self._parts():
            edges = np.zeros((len(self._uncertain[queries]), _BINS + 1), dtype=np.int64)
            np.add.at(edges, (owner[items] - queries.start, self._first[items]), 1)
            np.add.at(edges, (owner[items] - queries.start, last[items] + 1), -1)
            self._uncertain[queries] = np.cumsum(edges[:, :_BINS], axis=1) > 0
        first_bins = _BINS * np.arange(len(starts), dtype=np.int32)
        columns = (lowest, scale, first_bins)
        self._of_queries = [torch.from_numpy(values)[:, None].to(device) for values in columns]
        self._uncertain_on_device = torch.from_numpy(self._uncertain.reshape(-1)).to(device)
        self._counts = torch.zeros(len(starts) * _BINS, dtype=torch.int32, device=device)

    def add(self, tile: Tensor, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count the scores of a tile ``(m, columns)`` whose first row is that of query ``first``.

        Returns:
            Query, column and score of those in uncertain bins. Their counts are ignored.
        """
        uncertain = self._uncertain_on_device
        lowest, scale, starts = (values[first : first + len(tile)] for values in self._of_queries)
        place = flat_nonzero(tile >= lowest)
        if len(place) < _FEW * tile.numel():
            row = place.div(tile.shape[1], rounding_mode="floor")
            lowest, scale, starts = (
                values.flatten().index_select(0, row) for values in (lowest, scale, starts)
            )
            bins = _find_bins(tile.flatten().index_select(0, place), lowest, scale).add_(starts).long()
        else:
            bins = _find_bins(tile, lowest, scale).add_(starts).flatten().index_select(0, place).long()
        self._counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))
        place = place[flat_nonzero(uncertain.index_select(0, bins))]
        score = tile.flatten()[place].cpu().numpy()
        query, column = np.divmod(place.cpu().numpy(), tile.shape[1])
        return query + first, column, score

    def count_higher(self) -> np.ndarray:
        """For each same-identity item, count the higher scores in bins that are not uncertain."""
        higher = np.empty(len(self._owner), dtype=np.int64)
        counts = self._counts.cpu().numpy().reshape(-1, _BINS)
        for queries, items in self._parts():
            certain = np.where(self._uncertain[queries], 0, counts[queries])
            up_to_bin = np.cumsum(certain, axis=1, dtype=np.int64)
            owner, first = self._owner[items] - queries.start, self._first[items]
            higher[items] = up_to_bin[owner, -1] - up_to_bin[owner, first]
        return higher

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Yield slices of the queries and of their same-identity items."""
        for start in range(0, len(self._uncertain), _HISTOGRAM_QUERIES):
            items = np.searchsorted(self._owner, [start, start + _HISTOGRAM_QUERIES])
            yield slice(start, start + _HISTOGRAM_QUERIES), slice(*items)


def _find_bins(scores: Tensor, lowest: Tensor, scale: Tensor) -> Tensor:
    """Return the bin of each score, int32. Each step is monotonic with rounding: higher scores, no lower bin."""
    return (scores - lowest).mul_(scale).clamp_(0, _BINS - 1).int()
