"""Search for groups of images: tracks, cameras, persons, or images that share the value of any other column.

A group is as near as its nearest image. With an exact index the result is that of sorting all images, whatever the
sizes of the groups: a group that fills the first results is excluded from the next search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain
from operator import and_, or_
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import CAMERA, CAMERA_ALIAS, Schema, cast, find_columns
from rga_reid.errors import check_int
from rga_reid.evaluation import ReRanking
from rga_reid.gallery.filters import Filter, is_among, is_known
from rga_reid.gallery.store import SearchResults, VectorStore, empty_table

PER_GROUP = 3  #: images of a group that are returned

_ROUND = 1000  # images per search, unless more are needed: Milvus with ivfpq returns few more
_FIRST = 16  # images per group in the first search

Key = tuple[Any, ...] | int  #: values that a group shares; the id of an image of an unknown group


def group_columns(group_by: str) -> tuple[str, ...]:
    """Return the columns whose values a group shares: a track is identified by camera and track together."""
    column = CAMERA if group_by == CAMERA_ALIAS else group_by
    return (CAMERA, "track") if column == "track" else (column,)


def search_groups(
    store: VectorStore,
    queries: np.ndarray,
    top_k: int,
    group_by: str,
    per_group: int = PER_GROUP,
    where: Filter | None = None,
    rerank: ReRanking | None = None,
    shortlist: int = 0,
) -> SearchResults:
    """Return the best images of the nearest groups of each query.

    An image whose group is unknown forms a separate group. If the store knows no camera, a track is identified by its
    number alone.

    Args:
        store: store to search.
        queries: unit rows, float32 ``(q, d)``.
        top_k: groups per query; fewer where there are no more.
        group_by: column of the store.
        per_group: images per group, the best ones.
        where: search only the rows that this filter keeps.
        rerank: re-rank the shortlist of each query and the images of its nearest groups together; then
            the groups are those of the first images.
        shortlist: how many of the nearest images are re-ranked.

    Returns:
        Images by the ranks of their groups.

    Raises:
        InputError: an unknown column, ``per_group`` below 1.
    """
    (column,) = find_columns([group_by], store.metadata.columns, "group_by")
    search = _GroupSearch(store, column, top_k, check_int("per_group", per_group), where)
    wanted = max(top_k, min(_FIRST * top_k, _ROUND), shortlist if rerank else 0)
    first = store.search(queries, wanted, where)
    answers = []
    for number, found in enumerate(_split(first)):
        query = queries[number : number + 1]
        nearest = search.nearest(query, found, exhausted=len(found.ids) < wanted)
        if rerank is not None:
            candidates = _join(
                [_take(found, np.arange(min(shortlist, len(found.ids)))), nearest], search.columns
            )
            nearest = search.best(candidates.rerank(query, rerank, len(candidates.ids)))
        answers.append(nearest)
    return _concatenate(answers, search.columns)


class _GroupSearch:
    """The groups of a store, and the search for the nearest ones."""

    def __init__(
        self, store: VectorStore, group_by: str, top_k: int, per_group: int, where: Filter | None
    ) -> None:
        self._store, self._top_k, self._per_group, self._where = store, top_k, per_group, where
        self.columns = store.metadata.columns
        self._keys = group_columns(group_by)
        if len(self._keys) > 1 and not store.count(is_known(CAMERA, self.columns)):
            self._keys = self._keys[1:]
        self._known = reduce(and_, (is_known(column, self.columns) for column in self._keys))
        self._size = max(_ROUND, top_k * per_group)

    def nearest(self, query: np.ndarray, found: SearchResults, *, exhausted: bool) -> SearchResults:
        """Return the best images of the nearest groups.

        Args:
            query: one row.
            found: its nearest images.
            exhausted: whether there are no others.
        """
        if not exhausted:
            found = self._complete(query, self._find_groups(query, found))
        return self.best(found)

    def best(self, found: SearchResults) -> SearchResults:
        """Return the best images of the first groups among images in order of rank."""
        groups: dict[Key, list[int]] = {}
        for row, key in enumerate(self._group_keys(found)):
            if key in groups or len(groups) < self._top_k:
                groups.setdefault(key, []).append(row)
        members = [rows[: self._per_group] for rows in groups.values()]
        ranks = np.repeat(np.arange(1, len(members) + 1), list(map(len, members)))
        return _take(found, np.array(list(chain.from_iterable(members)), np.int64), ranks)

    def _find_groups(self, query: np.ndarray, found: SearchResults) -> SearchResults:
        """Search on until the nearest groups are among the images found."""
        nulls: SearchResults | None = None
        last = _place(found)  # images that are not found, of groups that are not found, come later
        while True:
            keys = self._group_keys(found)
            places = zip(-found.scores, found.ids, strict=True)
            before = {key for key, place in zip(keys, places, strict=True) if place <= last}
            if len(before) >= self._top_k:
                return found
            if nulls is None:
                nulls = self._search(query, self._top_k, ~self._known)
            seen = [key for key in dict.fromkeys(keys) if isinstance(key, tuple)]
            more = self._search(query, self._size, self._known & ~self._among(seen))
            found = _join([found, nulls, more], self.columns)
            if len(more.ids) < self._size:
                return found
            last = _place(more)

    def _complete(self, query: np.ndarray, found: SearchResults) -> SearchResults:
        """Search on until the best images of the nearest groups are among the images found."""
        while True:
            keys = self._group_keys(self.best(found))
            counts = Counter(key for key in keys if isinstance(key, tuple))
            short = [key for key, count in counts.items() if count < self._per_group]
            if not short:
                return found
            more = self._search(query, self._size, self._among(short))
            found = _join([found, more], self.columns)
            if len(more.ids) < self._size:
                return found

    def _search(self, query: np.ndarray, count: int, condition: Filter) -> SearchResults:
        return self._store.search(query, count, condition if self._where is None else self._where & condition)

    def _group_keys(self, found: SearchResults) -> list[Key]:
        """Return the values that identify the group of each image."""
        table = cast(found.table, self.columns)
        values = zip(*(table[column].tolist() for column in self._keys), strict=True)
        return [
            number if any(value is pd.NA or value is pd.NaT for value in key) else key
            for key, number in zip(values, found.ids.tolist(), strict=True)
        ]

    def _among(self, keys: Sequence[tuple[Any, ...]]) -> Filter:
        """Return the filter that keeps the images of some groups."""
        (*cameras, column) = self._keys
        if not cameras:
            return is_among(column, [value for (value,) in keys], self.columns)
        tracks: dict[Any, list[Any]] = {}
        for camera, track in keys:
            tracks.setdefault(camera, []).append(track)
        parts = [
            is_among(CAMERA, [camera], self.columns) & is_among(column, values, self.columns)
            for camera, values in tracks.items()
        ]
        return reduce(or_, parts, is_among(column, [], self.columns))


def _place(found: SearchResults) -> tuple[float, int]:
    """Return the place of the last image in the order of ranks: by decreasing score, then by id."""
    return -float(found.scores[-1]), int(found.ids[-1])


def _split(results: SearchResults) -> Iterator[SearchResults]:
    """Yield the results of each query."""
    for stop, count in zip(results.counts.cumsum(), results.counts, strict=True):
        yield _take(results, np.arange(stop - count, stop))


def _take(results: SearchResults, rows: np.ndarray, ranks: np.ndarray | None = None) -> SearchResults:
    """Return some results, as those of one query."""
    return SearchResults(
        np.array([len(rows)]),
        results.scores[rows],
        results.ids[rows],
        results.table.take(rows).reset_index(drop=True),
        lambda numbers: results.vectors(rows[numbers]),
        ranks,
    )


def _join(parts: Sequence[SearchResults], columns: Schema) -> SearchResults:
    """Return the results of several searches for one query together, best first, each image once."""
    joined = _concatenate(parts, columns)
    ids, rows = np.unique(joined.ids, return_index=True)
    return _take(joined, rows[np.lexsort((ids, -joined.scores[rows]))])


def _concatenate(parts: Sequence[SearchResults], columns: Schema) -> SearchResults:
    """Return results one after the other."""

    def vectors(numbers: np.ndarray) -> np.ndarray:
        return np.concatenate([part.vectors(np.arange(len(part.ids))) for part in parts])[numbers]

    ranks = [part.ranks for part in parts if part.ranks is not None]
    return SearchResults(
        np.array([len(part.ids) for part in parts], np.int64),
        np.concatenate([np.empty(0), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)]),
        pd.concat([empty_table(columns), *(cast(part.table, columns) for part in parts)], ignore_index=True),
        vectors,
        np.concatenate(ranks) if ranks else None,
    )
