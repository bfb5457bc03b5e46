"""A vector store as a user might write it: lists in memory, named ``tests.gallery.list_store.ListStore:NAME``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pandas as pd

from rga_reid.data.columns import Schema
from rga_reid.errors import InputError
from rga_reid.gallery import VectorStore
from rga_reid.gallery.filters import Filter
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.store import DeletionRecord, Metadata, RemovalResult, Rows, SearchResults, empty_table
from rga_reid.inference import ModelFingerprint


class ListStore(VectorStore):
    """Finished stores by name are in ``finished``."""

    finished: ClassVar[dict[str, ListStore]] = {}

    def __init__(self, name: str, metadata: Metadata) -> None:
        self.name, self._metadata = name, metadata
        self._rows = Rows(np.empty(0, np.int64), empty_table(), np.empty((0, 0), np.float32))
        self._log: tuple[DeletionRecord, ...] = ()

    @classmethod
    def open(cls, name: str) -> ListStore:
        if name not in cls.finished:
            raise InputError(f"{name}: no such store")
        return cls.finished[name]

    @classmethod
    def create(
        cls, name: str, index: IndexConfig, model: ModelFingerprint | None, *, overwrite: bool, resume: bool
    ) -> ListStore:
        if name in cls.finished and not overwrite:
            raise InputError(f"{name}: exists already")
        return cls(name, Metadata(index=index, model=model))

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def search(self, queries: np.ndarray, top_k: int, where: Filter | None = None) -> SearchResults:
        kept = np.flatnonzero(
            np.ones(self.count()) if where is None else where.mask(self._rows.table, self._rows.ids)
        )
        found, scores = [np.empty(0, np.int64)], [np.empty(0)]
        for query in queries:
            cosines = (self._rows.vectors[kept] * query.astype(np.float64)).sum(axis=1)
            best = np.argsort(-cosines, kind="stable")[:top_k]
            found.append(kept[best])
            scores.append(cosines[best])
        rows, count = np.concatenate(found), min(top_k, len(kept))
        return SearchResults(
            np.full(len(queries), count),
            np.concatenate(scores),
            self._rows.ids[rows],
            self._rows.table.take(rows).reset_index(drop=True),
            lambda numbers: self._rows.vectors[rows[numbers]],
        )

    def append(self, rows: Rows) -> None:
        vectors = [self._rows.vectors, rows.vectors] if self.count() else [rows.vectors]
        table = pd.concat([self._rows.table, rows.table], ignore_index=True)
        self._rows = Rows(np.concatenate([self._rows.ids, rows.ids]), table, np.concatenate(vectors))
        self._metadata = replace(self._metadata, dimension=rows.vectors.shape[1])

    def set_columns(self, columns: Schema) -> None:
        self._metadata = replace(self._metadata, columns=columns)

    def delete(self, ids: np.ndarray) -> RemovalResult:
        keep = ~np.isin(self._rows.ids, ids)
        table = self._rows.table[keep].reset_index(drop=True)
        self._rows = Rows(self._rows.ids[keep], table, self._rows.vectors[keep])
        return RemovalResult(images=len(ids))

    def update(self, ids: np.ndarray, values: pd.DataFrame) -> None:
        table = self._rows.table.copy()
        for column in values.columns:
            old = table[column] if column in table else pd.Series(None, index=table.index)
            table[column] = old.astype(object)
            for number, value in zip(ids, values[column], strict=True):
                table.loc[self._rows.ids == number, column] = value
        self._rows = replace(self._rows, table=table)

    def rows(self, *, vectors: bool = False) -> Iterator[Rows]:
        yield self._rows

    def count(self, where: Filter | None = None) -> int:
        return len(self._rows) if where is None else int(where.mask(self._rows.table, self._rows.ids).sum())

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        self._metadata = metadata
        self._log += tuple(deletions)
        self.finished[self.name] = self

    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        return self._log
