"""Who is a correct match for whom, and what is left out of whose ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.evaluation.features import expand_ranges, parts


@dataclass(frozen=True)
class SameIdentityItems:
    """For n queries, the gallery items of the same identity or the same file: one entry for each pair.

    All that a ranking needs to know about identity is here. Every other item is simply wrong.
    """

    query: np.ndarray  #: 0 to n − 1, ascending
    column: np.ndarray  #: of the gallery without junk, ascending within a query
    match: np.ndarray  #: bool: a correct match; otherwise the item is removed for this query


class Relevance:
    """The single-query protocol of Market-1501 (Zheng et al., ICCV 2015).

    Items of the gallery with a junk identity are left out for all. For a query, items of its identity and its
    camera are removed, and so is the query's own file; the other items of its identity are correct matches.
    An unknown identity matches nothing: such a gallery item is a wrong answer, such a query is skipped. An
    unknown camera equals no camera.

    Args:
        query, gallery: columns ``pid`` and ``camid`` (nullable integers) and ``path`` (text), null where
            unknown.
        junk_pids: identities that take no part.
        chosen: bool ``(g,)``, gallery items that take part; all by default.
    """

    def __init__(
        self,
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        junk_pids: Sequence[int],
        chosen: np.ndarray | None = None,
    ) -> None:
        junk = list(junk_pids)
        part = ~gallery["pid"].isin(junk).to_numpy()
        #: rows of the gallery that take part, ascending: column c is row gallery_rows[c]
        self.gallery_rows = np.flatnonzero(part if chosen is None else part & chosen)
        gallery = gallery.iloc[self.gallery_rows]
        query_pids = query["pid"].mask(query["pid"].isin(junk))
        self._query_pids, self._gallery_pids = _common_codes(query_pids, gallery["pid"])
        self._query_camids, self._gallery_camids = _common_codes(query["camid"], gallery["camid"])
        self._query_files, self._gallery_files = _common_codes(query["path"], gallery["path"])
        self._by_pid, self._by_file = _Lookup(self._gallery_pids), _Lookup(self._gallery_files)

    @property
    def has_cameras(self) -> bool:
        """Whether cameras are known on both sides."""
        return bool((self._query_camids >= 0).any() and (self._gallery_camids >= 0).any())

    def blocks(self, queries: int, entries: int, *, strangers: bool = False) -> Iterator[np.ndarray]:
        """The queries whose identity the gallery has, in blocks; equal identities lie side by side.

        Args:
            queries: how many a block may have.
            entries: how many own items the queries of a block may have together (one query may have more).
            strangers: also the queries of a known identity that the gallery lacks.

        Yields:
            Rows of the queries.
        """
        counts = self._by_pid.count(self._query_pids)
        order = np.argsort(self._query_pids, kind="stable")
        wanted = self._query_pids >= 0 if strangers else counts > 0
        order = order[wanted[order]]
        for part in parts(counts[order], entries, most=queries):
            yield order[part]

    def own_items(self, queries: np.ndarray) -> SameIdentityItems:
        """The pairs that are special for these queries (rows of the query set)."""
        query, column = self._by_pid.find(self._query_pids[queries])
        removed = (self._query_camids[queries[query]] == self._gallery_camids[column]) | (
            self._query_files[queries[query]] == self._gallery_files[column]
        )
        same_file, twin = self._by_file.find(self._query_files[queries])
        other = self._query_pids[queries[same_file]] != self._gallery_pids[twin]
        query = np.concatenate([query, same_file[other]])
        column = np.concatenate([column, twin[other]])
        match = np.concatenate([~removed, np.zeros(int(other.sum()), dtype=bool)])
        order = np.lexsort((column, query))
        return SameIdentityItems(query[order], column[order], match[order])

    def identities(self, queries: np.ndarray, most: int) -> Iterator[slice]:
        """Slices of these queries, a part of a block, of whole identities.

        Args:
            queries: rows of the queries.
            most: queries of a slice, unless one identity alone has more.
        """
        starts = np.flatnonzero(np.diff(self._query_pids[queries], prepend=-1))
        sizes = np.diff(starts, append=len(queries))
        for part in parts(sizes, most):
            yield slice(int(starts[part][0]), int(starts[part][-1] + sizes[part][-1]))

    def is_own(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """For pairs of query rows and columns: whether they are among the own items."""
        same_person = self._query_pids[queries] == self._gallery_pids[columns]
        return same_person | (self._query_files[queries] == self._gallery_files[columns])

    def explain_no_match(self) -> InputError:
        """Why not one query has a correct match."""
        if not len(self.gallery_rows):
            return InputError("gallery_pids: every item is junk; there is nothing to rank")
        wanted = np.unique(self._query_pids[self._query_pids >= 0])
        offered = np.unique(self._gallery_pids[self._gallery_pids >= 0])
        if not len(wanted):
            return InputError("query_pids: every query is junk or of unknown identity; nothing to look for")
        if not np.intersect1d(wanted, offered).size:
            return InputError(
                f"query_pids, gallery_pids: identities do not overlap: none of the {len(wanted)} of the "
                f"queries is among the {len(offered)} of the gallery"
            )
        cameras = np.union1d(self._query_camids, self._gallery_camids)
        if (cameras >= 0).sum() == 1:
            return InputError(
                "query_camids, gallery_camids: there is one camera only, and items of the query's identity "
                "and camera are removed; leave the camera ids out to rank without them"
            )
        return InputError(
            "no query has a correct match left: each item of its identity is from the query's own camera, or "
            "the query's own file"
        )


class _Lookup:
    """Where each label occurs."""

    def __init__(self, codes: np.ndarray) -> None:
        self._order = np.argsort(codes, kind="stable")
        self._sorted = codes[self._order]

    def count(self, codes: np.ndarray) -> np.ndarray:
        first, last = self._range(codes)
        return last - first

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pairs (number of a wanted code, place where it occurs), the places ascending for each."""
        first, last = self._range(codes)
        number, place = expand_ranges(first, last - first)
        return number, self._order[place]

    def _range(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(self._sorted, codes, "left"), np.searchsorted(self._sorted, codes, "right")


def _common_codes(query: pd.Series, gallery: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, equal for equal labels on both sides. Null is -1 on one and -2 on the other: never equal."""
    codes = pd.factorize(pd.concat([query, gallery], ignore_index=True))[0]
    query_codes, gallery_codes = codes[: len(query)], codes[len(query) :]
    return query_codes, np.where(gallery_codes < 0, -2, gallery_codes)
