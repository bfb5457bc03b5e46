"""Relevance of gallery items for each query: correct matches and removed items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rga_reid.data.labels import align_labels, is_label
from rga_reid.errors import InputError
from rga_reid.evaluation.features import expand_ranges, split_by_count


@dataclass(frozen=True)
class SameIdentityItems:
    """The gallery items of the same identity or the same file as each of n queries, one entry per pair.

    Every other gallery item is a wrong answer.
    """

    query: np.ndarray  #: 0 to n − 1, ascending
    column: np.ndarray  #: column of the gallery without junk, ascending within a query
    match: np.ndarray  #: bool: a correct match; otherwise the item is removed for this query


@dataclass(frozen=True)
class MatchRule:
    """Which gallery items of the query's identity are correct matches; the others of its identity are removed.

    Args:
        differ: columns in which a match differs from the query; an unknown value differs from every value.
        agree: columns in which a match has the query's value.
    """

    differ: tuple[str, ...] = ("camid",)
    agree: tuple[str, ...] = ()


MARKET = MatchRule()  #: Market-1501: a match is from another camera


class Relevance:
    """Relevance by the single-query protocol of Market-1501 (Zheng et al., ICCV 2015).

    Gallery items of a junk identity are left out for all queries. For each query, the items of its identity
    and its camera are removed, and so is the query's own file; the other items of its identity are correct
    matches. A gallery item of unknown identity is a wrong answer, a query of unknown identity is skipped. An
    unknown camera differs from every camera.

    Args:
        query, gallery: tables as from ``label_table``: ``pid`` and ``camid`` (nullable integers or text) and
            ``file`` (nullable strings); and the columns of ``rule``.
        junk_pids: identities to leave out.
        drawn: bool ``(g,)``, gallery items to rank; all by default.
        rule: items of the query's identity that are removed.
    """

    def __init__(
        self,
        query: pd.DataFrame,
        gallery: pd.DataFrame,
        junk_pids: Sequence[int | str],
        drawn: np.ndarray | None = None,
        rule: MatchRule = MARKET,
    ) -> None:
        self.rule = rule
        junk = list(junk_pids)
        ranked = ~is_label(gallery["pid"], junk).to_numpy(bool)
        #: rows of the gallery that are ranked, ascending: column c is row gallery_rows[c]
        self.gallery_rows = np.flatnonzero(ranked if drawn is None else ranked & drawn)
        gallery = gallery.iloc[self.gallery_rows]
        query_pids = query["pid"].mask(is_label(query["pid"], junk))
        self._query_pids, self._gallery_pids = _common_codes(query_pids, gallery["pid"])
        self._query_camids, self._gallery_camids = _common_codes(query["camid"], gallery["camid"])
        self._query_files, self._gallery_files = _common_codes(query["file"], gallery["file"])
        self._differ = [_common_codes(query[column], gallery[column]) for column in rule.differ]
        self._agree = [_common_codes(query[column], gallery[column]) for column in rule.agree]
        self._by_pid, self._by_file = _Lookup(self._gallery_pids), _Lookup(self._gallery_files)

    @property
    def has_cameras(self) -> bool:
        """True if a camera is known on each side."""
        return bool((self._query_camids >= 0).any() and (self._gallery_camids >= 0).any())

    def query_blocks(
        self, max_queries: int, max_items: int, *, include_unmatched: bool = False
    ) -> Iterator[np.ndarray]:
        """Split the queries whose identity is in the gallery into blocks, sorted by identity.

        Args:
            max_queries: queries of a block.
            max_items: same-identity items of a block's queries together (a single query may have more).
            include_unmatched: also yield queries of a known identity that is not in the gallery.

        Yields:
            Rows of the queries.
        """
        counts = self._by_pid.count(self._query_pids)
        order = np.argsort(self._query_pids, kind="stable")
        wanted = self._query_pids >= 0 if include_unmatched else counts > 0
        order = order[wanted[order]]
        for part in split_by_count(counts[order], max_items, max_queries):
            yield order[part]

    def same_identity_items(self, queries: np.ndarray) -> SameIdentityItems:
        """Return the items of the same identity or file as each of these rows of the query set."""
        query, column = self._by_pid.find(self._query_pids[queries])
        rows = queries[query]
        removed = self._query_files[rows] == self._gallery_files[column]
        for of_query, of_gallery in self._differ:
            removed |= of_query[rows] == of_gallery[column]
        for of_query, of_gallery in self._agree:
            removed |= of_query[rows] != of_gallery[column]
        # the query's own file is removed even if the gallery labels it differently
        file_query, file_column = self._by_file.find(self._query_files[queries])
        mislabelled = self._query_pids[queries[file_query]] != self._gallery_pids[file_column]
        query = np.concatenate([query, file_query[mislabelled]])
        column = np.concatenate([column, file_column[mislabelled]])
        match = np.concatenate([~removed, np.zeros(int(mislabelled.sum()), dtype=bool)])
        order = np.lexsort((column, query))
        return SameIdentityItems(query[order], column[order], match[order])

    def split_by_identity(self, queries: np.ndarray, max_queries: int) -> Iterator[slice]:
        """Split queries of a block into slices that separate no identity.

        Args:
            queries: rows of the queries.
            max_queries: queries of a slice, unless a single identity has more.
        """
        starts = np.flatnonzero(np.diff(self._query_pids[queries], prepend=-1))
        sizes = np.diff(starts, append=len(queries))
        for part in split_by_count(sizes, max_queries):
            yield slice(int(starts[part][0]), int(starts[part][-1] + sizes[part][-1]))

    def is_same_identity(self, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """For pairs of query rows and columns, return whether they are among the same-identity items."""
        same_person = self._query_pids[queries] == self._gallery_pids[columns]
        return same_person | (self._query_files[queries] == self._gallery_files[columns])

    def no_match_error(self, without_cameras: str = "leave out the camids") -> InputError:
        """Return an error that explains why no query has a correct match.

        Args:
            without_cameras: what to do where there is one camera only.
        """
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
        if not self.has_cameras:
            return InputError(
                "gallery: no query has a correct match left: the only item of its identity is its own file"
            )
        columns = [column for column in (*self.rule.differ, *self.rule.agree) if column != "camid"]
        if columns:
            return InputError(
                f"{', '.join(columns)}: no query has a correct match left by the rule of this protocol"
            )
        return InputError(
            "cameras: no query has a correct match left: each item of its identity is from the query's own "
            f"camera, or its own file; {without_cameras} to rank without cameras"
        )


class _Lookup:
    """Positions of each code."""

    def __init__(self, codes: np.ndarray) -> None:
        self._order = np.argsort(codes, kind="stable")
        self._sorted = codes[self._order]

    def count(self, codes: np.ndarray) -> np.ndarray:
        first, last = self._range(codes)
        return last - first

    def find(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all pairs (index of a wanted code, position), positions ascending for each code."""
        first, last = self._range(codes)
        number, place = expand_ranges(first, last - first)
        return number, self._order[place]

    def _range(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.searchsorted(self._sorted, codes, "left"), np.searchsorted(self._sorted, codes, "right")


def _common_codes(query: pd.Series, gallery: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Encode labels of both sides as integers; unknown ones, −1 in queries and −2 in the gallery, differ."""
    query, gallery = align_labels(query, gallery)
    codes = pd.factorize(pd.concat([query, gallery], ignore_index=True))[0]
    query_codes, gallery_codes = codes[: len(query)], codes[len(query) :]
    return query_codes, np.where(gallery_codes < 0, -2, gallery_codes)
