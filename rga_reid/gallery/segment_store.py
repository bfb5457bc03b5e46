"""A vector store in memory, made of segments that FAISS searches. ``FolderStore`` puts them on disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import Schema
from rga_reid.gallery.filters import Filter
from rga_reid.gallery.index import Found, Vectors, search_exact
from rga_reid.gallery.segments import NewSegment, Segment, Snapshot, append, compact, delete, merge, update
from rga_reid.gallery.store import (
    DeletionRecord,
    Metadata,
    Progress,
    RemovalResult,
    Rows,
    SearchResults,
    VectorStore,
    ignore_progress,
)


class SegmentStore(VectorStore):
    """A gallery in memory.

    Args:
        snapshot: its state.
    """

    location = "the gallery in memory"
    persistent = False

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def metadata(self) -> Metadata:
        return self._snapshot.metadata

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Segments, in the order of the images."""
        return self._snapshot.segments

    def search(self, queries: np.ndarray, top_k: int, where: Filter | None = None) -> SearchResults:
        snapshot = self._snapshot  # one state, whatever another thread changes meanwhile
        keep = None if where is None else where.mask(snapshot.table, snapshot.ids)
        found = list(_nearest(snapshot, queries, top_k, keep))
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
        vectors = Vectors([segment.vectors for segment in snapshot.segments])
        return SearchResults(
            np.array([len(rows) for rows, _ in found], np.int64),
            np.concatenate([np.empty(0), *(scores for _, scores in found)]),
            snapshot.ids[rows],
            snapshot.table.take(rows).reset_index(drop=True),
            lambda numbers: vectors.take(rows[numbers]),
        )

    def rows(self, *, vectors: bool = False) -> Iterator[Rows]:
        for segment in self._snapshot.segments:
            if not vectors:
                yield Rows(segment.ids, segment.table, np.empty((len(segment), 0), np.float32))
                continue
            start = 0
            for block in segment.blocks():
                rows = slice(start, start + len(block))
                yield Rows(segment.ids[rows], segment.table[rows].reset_index(drop=True), block)
                start += len(block)

    def count(self, where: Filter | None = None) -> int:
        snapshot = self._snapshot
        return len(snapshot) if where is None else int(where.mask(snapshot.table, snapshot.ids).sum())

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        snapshot = self._snapshot
        if not len(ids):
            return np.empty((0, self.metadata.dimension), np.float32)
        rows = np.searchsorted(snapshot.ids, ids)
        return Vectors([segment.vectors for segment in snapshot.segments]).take(rows)

    def view(self) -> SegmentStore:
        return copy.copy(self)  # it has the same snapshot, which never changes

    def append(self, rows: Rows) -> None:
        self._snapshot = append(self._snapshot, rows, self._write)

    def delete(self, ids: np.ndarray) -> RemovalResult:
        old = self._snapshot
        self._snapshot = delete(old, ids, self._write)
        new = [segment for segment in self.segments if segment not in old.segments]
        indexes = sum(segment.index is not None for segment in new)
        return RemovalResult(len(old) - len(self._snapshot), len(new), indexes, sum(map(len, new)))

    def set_columns(self, columns: Schema) -> None:
        self._snapshot = replace(self._snapshot, metadata=replace(self.metadata, columns=columns))

    def update(self, ids: np.ndarray, values: pd.DataFrame) -> None:
        self._snapshot = update(self._snapshot, ids, values, self._relabel)

    def compact(self) -> None:
        self._snapshot = compact(self._snapshot, self._write)

    def merge(self) -> None:
        self._snapshot = merge(self._snapshot, self._write)

    def copy_from(self, source: VectorStore) -> None:
        if isinstance(source, SegmentStore):  # with their indexes
            copied = tuple(self._write(segment) for segment in source.segments)
            self._snapshot = replace(self._snapshot, segments=(*self.segments, *copied))
        else:
            super().copy_from(source)

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        self._snapshot = replace(self._snapshot, metadata=metadata)
        if deletions:
            log = (*self._snapshot.deletions, *deletions)
            self._snapshot = replace(self._snapshot, deletions=log, log=None)

    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        return self._snapshot.deletions

    @contextmanager
    def transaction(self, *, resumable: bool = False) -> Iterator[None]:
        before = self._snapshot
        try:
            yield
        except BaseException:
            self._snapshot = before
            raise

    def check(self, progress: Progress = ignore_progress) -> int:
        return 0

    def describe(self) -> dict[str, Any]:
        indexed = [segment for segment in self.segments if segment.index is not None]
        largest = max(indexed, key=len).index if indexed else None
        missed = sum(len(segment) * (1 - segment.index.recall) for segment in indexed if segment.index)
        return {
            "settings": None if largest is None else dict(largest.settings),
            "recall_at_10": None if largest is None else 1 - missed / len(self._snapshot),
            "segments": len(self.segments),
        }

    def _write(self, segment: Segment | NewSegment) -> Segment:
        """Store a new segment, or one of another store."""
        return segment.in_memory()

    def _relabel(self, segment: Segment) -> Segment:
        """Store a segment whose table has changed."""
        return segment


def _nearest(snapshot: Snapshot, queries: np.ndarray, top_k: int, keep: np.ndarray | None) -> Iterator[Found]:
    """Yield row numbers and scores for each query: the best of what the segments' searches find."""
    groups: list[tuple[np.ndarray, Iterator[Found]]] = []
    plain: list[tuple[np.ndarray, Segment]] = []  # segments without an index are searched together
    start = 0
    for segment in snapshot.segments:
        rows = np.arange(start, start + len(segment))
        start += len(segment)
        if segment.index is None:
            plain.append((rows, segment))
        else:
            kept = None if keep is None else keep[rows]
            groups.append((rows, segment.index.nearest(Vectors([segment.vectors]), queries, top_k, kept)))
    if plain:
        rows = np.concatenate([rows for rows, _ in plain])
        vectors = Vectors([segment.vectors for _, segment in plain])
        groups.append((rows, search_exact(vectors, queries, top_k, None if keep is None else keep[rows])))
    if len(groups) == 1:  # its answers are in order
        yield from ((rows[found], scores) for rows, search in groups for found, scores in search)
        return
    for _ in queries:
        answers = [(rows[found], scores) for rows, search in groups for found, scores in [next(search)]]
        found = np.concatenate([np.empty(0, np.int64), *(found for found, _ in answers)])
        scores = np.concatenate([np.empty(0), *(scores for _, scores in answers)])
        order = np.lexsort((found, -scores))[:top_k]
        yield found[order], scores[order]
