"""A vector store in Milvus: embedded in this process (Milvus Lite), or on a server. See docs/milvus.md.

A gallery is a collection of numbered texts, its notes, and a collection of images. Note 0 names the collection
of images, so that replacing the note switches to another one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from rga_reid.data.columns import Schema, cast
from rga_reid.errors import InputError
from rga_reid.evaluation.similarity import product_error
from rga_reid.gallery.filters import Filter
from rga_reid.gallery.index import MARGIN, IndexConfig, Vectors, rescore_batch
from rga_reid.gallery.manifest import FORMAT, columns_from_json
from rga_reid.gallery.milvus_client import LIMIT, TRAINED_ROWS, Candidates, MilvusServer, among
from rga_reid.gallery.milvus_fields import Fields, UnsupportedFilterError, literal
from rga_reid.gallery.milvus_lock import WriterLock
from rga_reid.gallery.milvus_uri import IMAGES, MilvusURI
from rga_reid.gallery.store import (
    METRIC,
    DeletionRecord,
    Metadata,
    Progress,
    RemovalResult,
    Rows,
    SearchResults,
    VectorStore,
    empty_table,
    ignore_progress,
    require_unreplaced,
)
from rga_reid.gallery.validation import require_finished, require_same_model
from rga_reid.inputs import truncate
from rga_reid.models.checkpoints import ModelFingerprint

VERSION = 3  #: incremented when older programs could no longer read the collections
OLD_VERSION = 2  #: of rga-reid 1.0, whose collections have fields that may be null
CURRENT, UNFINISHED, FIRST_DELETION = 0, 1, 2  #: numbers of notes

T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """State of a gallery, as note 0 stores it.

    Args:
        generation: number of the collection of its images; 0 before it is created.
        metadata: metadata of the gallery.
        version: version of the collection of its images.
    """

    generation: int
    metadata: Metadata
    version: int = VERSION

    def to_text(self) -> str:
        """Return the state as JSON."""
        metadata = self.metadata
        return json.dumps(
            {
                "format": FORMAT,
                "version": self.version,
                "metric": METRIC,
                "generation": self.generation,
                "dimension": metadata.dimension,
                "plan": {"kind": metadata.index.kind, "settings": dict(metadata.index.settings)},
                "model": None if metadata.model is None else metadata.model.to_json(),
                "next_id": metadata.next_id,
                "columns": dict(metadata.columns),
            }
        )

    @classmethod
    def from_text(cls, text: str, location: MilvusURI) -> State:
        """Parse what ``to_text`` wrote.

        Raises:
            InputError: another text.
        """
        try:
            value = json.loads(text)
            version = value["version"]
            if (value["format"], value["metric"]) != (FORMAT, METRIC) or version not in (
                OLD_VERSION,
                VERSION,
            ):
                raise ValueError(f"version {version}; this program reads {OLD_VERSION} and {VERSION}")
            metadata = Metadata(
                int(value["dimension"]),
                IndexConfig(value["plan"]["kind"], value["plan"]["settings"]),
                None if value["model"] is None else ModelFingerprint.from_json(value["model"]),
                int(value["next_id"]),
                columns_from_json(value.get("columns", {})),
            )
            return cls(int(value["generation"]), metadata, version)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{location}: not a gallery of this program ({truncate(error)})") from None


class MilvusStore(VectorStore):
    """A gallery in Milvus. Searches see what others have written since it was opened."""

    _lock: WriterLock | None = None

    def __init__(self, server: MilvusServer, state: State) -> None:
        self._server, self._state = server, state
        self.location = str(server.location)
        server.load(self._images)

    @classmethod
    def open(cls, location: MilvusURI) -> MilvusStore:
        """Open a gallery.

        Raises:
            InputError: no gallery there, or Milvus cannot be reached.
        """
        server = MilvusServer(location)
        notes = server.notes(location.collection)
        if not notes.get(CURRENT):
            raise InputError(f"{location}: no gallery there")
        return cls(server, State.from_text(notes[CURRENT], location))

    @classmethod
    def create(
        cls,
        location: MilvusURI,
        index: IndexConfig,
        model: ModelFingerprint | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> MilvusDraft:
        """Return a new gallery to be filled, see ``StoreFactory.create``."""
        return MilvusDraft(location, index, model, overwrite=overwrite, resume=resume)

    @property
    def metadata(self) -> Metadata:
        return self._state.metadata

    @property
    def _name(self) -> str:
        return self._server.location.collection

    @property
    def _images(self) -> str:
        return images_name(self._name, self._state.generation)

    @property
    def _fields(self) -> Fields:
        state = self._state
        return Fields(state.metadata.columns, state.version == OLD_VERSION, self._server.version)

    def _expression(self, where: Filter | None) -> str:
        """Return a filter as Milvus reads it; evaluate it here, and list the ids, if the server is too old for it."""
        try:
            return self._fields.expression(where)
        except UnsupportedFilterError:
            ids: list[int] = []
            for rows in self._stored_rows(vectors=False):
                assert where is not None
                ids += rows.ids[where.mask(cast(rows.table, self.metadata.columns), rows.ids)].tolist()
            return f"id in {literal(ids)}" if ids else "id < 0"

    def count(self, where: Filter | None = None) -> int:
        return self._retry(lambda: self._server.count(self._images, self._expression(where)))

    def rows(self, *, vectors: bool = False) -> Iterator[Rows]:
        self._refresh()
        yield from self._stored_rows(vectors=vectors)

    def _stored_rows(self, *, vectors: bool) -> Iterator[Rows]:
        metadata, fields = self.metadata, self._fields
        names, dimension = ([*fields.names, "vector"], metadata.dimension) if vectors else (fields.names, 0)
        for part in self._server.rows(self._images, metadata.next_id, names, dimension):
            ids = np.array([row["id"] for row in part], np.int64)
            matrix = np.array([row["vector"] if vectors else [] for row in part], np.float32)
            yield Rows(ids, fields.table(part), matrix)

    def find(self, column: str, values: Sequence[Any]) -> pd.DataFrame:
        self._refresh()
        name = self._fields.name(column)
        return self._found([] if name is None else among(name, values))

    def select(self, where: Filter) -> pd.DataFrame:
        self._refresh()
        return self._found([self._expression(where)])

    def _found(self, expressions: Iterable[str]) -> pd.DataFrame:
        """Return the table of the rows that one of some expressions keeps, with a column ``id``."""
        stop, names = self.metadata.next_id, self._fields.names
        found = [row for where in expressions for row in self._server.find(self._images, where, names, stop)]
        ids = np.array([row["id"] for row in found], np.int64)
        table = self._fields.table(found) if found else empty_table(self.metadata.columns)
        return table.assign(id=ids)

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        dimension, stop = self.metadata.dimension, self.metadata.next_id
        parts = (
            self._server.find(self._images, where, ["vector"], stop, dimension)
            for where in among("id", ids.tolist())
        )
        found = [row["vector"] for rows in parts for row in rows]
        return np.array(found, np.float32).reshape(-1, dimension)

    def search(self, queries: np.ndarray, top_k: int, where: Filter | None = None) -> SearchResults:
        return self._retry(lambda: self._search(queries, top_k, self._expression(where)))

    def _search(self, queries: np.ndarray, top_k: int, condition: str) -> SearchResults:
        limit = self._candidates(top_k)
        answers = self._ask(queries, limit, condition)
        best = [
            self._best(query, top_k, condition, limit, found)
            for query, found in zip(queries, answers, strict=True)
        ]
        vectors = np.concatenate(
            [np.empty((0, self.metadata.dimension), np.float32), *(found.vectors for found, _ in best)]
        )
        return SearchResults(
            np.array([len(scores) for _, scores in best], np.int64),
            np.concatenate([np.empty(0), *(scores for _, scores in best)]),
            np.concatenate([np.empty(0, np.int64), *(found.ids for found, _ in best)]),
            pd.concat(
                [empty_table(self.metadata.columns), *(found.table for found, _ in best)], ignore_index=True
            ),
            lambda numbers: vectors[numbers],
        )

    def _best(
        self, query: np.ndarray, top_k: int, condition: str, limit: int, found: Candidates
    ) -> tuple[Candidates, np.ndarray]:
        """Return the best candidates and their exact scores.

        Where the index is exact, so is the result: as long as a row that Milvus did not return could tie with
        the last one, or beat it, more candidates are requested.
        """
        error = product_error(self.metadata.dimension, torch.float32)
        while True:
            order = np.argsort(found.ids)
            vectors = found.vectors[order]
            ((rows, scores),) = rescore_batch(
                Vectors([vectors]), query[None], np.arange(len(order))[None], top_k
            )
            done = self.metadata.index.kind != "flat" or np.isinf(found.lowest) or limit == LIMIT
            if done or scores[-1] > found.lowest + error:
                table = found.table.take(order[rows]).reset_index(drop=True)
                return Candidates(found.ids[order[rows]], table, vectors[rows], found.lowest), scores
            limit = min(2 * limit, LIMIT)
            (found,) = self._ask(query[None], limit, condition)

    def _ask(self, queries: np.ndarray, limit: int, condition: str) -> Iterator[Candidates]:
        return self._server.search(
            self._images, queries, limit, condition, self._settings(limit), self._fields
        )

    def _resolved_settings(self) -> dict[str, int]:
        index = self.metadata.index
        return {} if index.kind == "flat" else index.resolve(TRAINED_ROWS, self.metadata.dimension)

    def _candidates(self, top_k: int) -> int:
        """Return how many rows to request from Milvus."""
        limit = top_k * self._resolved_settings().get("refine", 1) + MARGIN
        if limit > LIMIT:
            raise InputError(f"top_k: {limit:,} candidates are needed, but Milvus returns at most {LIMIT:,}")
        return limit

    def _settings(self, limit: int) -> dict[str, int]:
        settings = self._resolved_settings()
        if "ef_search" in settings:
            return {"ef": max(settings["ef_search"], limit)}
        return {"nprobe": settings["nprobe"]} if "nprobe" in settings else {}

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Wait for other writers, and keep them waiting. Milvus Lite has a lock of its own."""
        if self._server.location.embedded:
            yield
            return
        with WriterLock(self._server, self._name, self.wait) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    @contextmanager
    def transaction(self, *, resumable: bool = False) -> Iterator[None]:
        with self._exclusive():
            self._refresh()
            before = self._committed = self._written = self._state
            try:
                if self._state.version == OLD_VERSION:
                    self._rewrite(np.empty(0, np.int64))
                yield
            except BaseException:
                self._state = before
                raise

    def append(self, rows: Rows) -> None:
        # first the ids, then the rows: no id is used twice, even after an interruption
        self._write_state(replace(self.metadata, next_id=int(rows.ids[-1]) + 1))
        self._server.insert(self._images, rows.ids, rows.vectors, rows.table, self._fields)
        self._server.persist(self._images)

    def set_columns(self, columns: Schema) -> None:
        self._rewrite(np.empty(0, np.int64), columns)

    def update(self, ids: np.ndarray, values: pd.DataFrame) -> None:
        self._write_state(self.metadata)
        for rows in self._stored_rows(vectors=True):
            changed = np.isin(rows.ids, ids)
            if changed.any():
                table = rows.table[changed].reset_index(drop=True)
                place = np.searchsorted(ids, rows.ids[changed])
                table = table.assign(
                    **{column: values[column].array.take(place) for column in values.columns}
                )
                self._server.insert(
                    self._images, rows.ids[changed], rows.vectors[changed], table, self._fields, replace=True
                )
        self._server.persist(self._images)

    def delete(self, ids: np.ndarray) -> RemovalResult:
        if self._server.location.embedded:
            # Milvus Lite keeps deleted rows in its files until it compacts them at times of its choice
            rewritten = self._rewrite(ids)
            return RemovalResult(len(ids), int(rewritten > 0), int(rewritten > 0), rewritten)
        self._require_lock()
        self._server.delete(self._images, ids.tolist())
        return RemovalResult(len(ids))

    def compact(self) -> None:
        if self._server.location.embedded:
            self._rewrite(np.empty(0, np.int64))
        else:
            self._server.flush(self._images)
            self._server.compact(self._images)

    def _rewrite(self, without: np.ndarray, columns: Schema | None = None) -> int:
        """Copy all rows but some to a new collection, with new columns if given; return how many were copied."""
        old, copied = self._state, 0
        metadata = old.metadata if columns is None else replace(old.metadata, columns=columns)
        new = State(unused_generation(self._server, self._name), metadata)
        name = images_name(self._name, new.generation)
        fields = Fields(metadata.columns)
        self._server.create_images(name, metadata.dimension, metadata.index, fields)
        for rows in self._stored_rows(vectors=True):
            keep = ~np.isin(rows.ids, without)
            if keep.any():
                table = cast(rows.table[keep].reset_index(drop=True), metadata.columns)
                self._server.insert(name, rows.ids[keep], rows.vectors[keep], table, fields)
            copied += int(keep.sum())
        self._server.flush(name)
        self._server.load(name)
        self._state = new
        return copied

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        self._write_state(metadata, log_notes(self._server, self._name, deletions) if deletions else {})
        if deletions or self._committed.generation != self._state.generation:
            self._collect_garbage()

    def _collect_garbage(self) -> None:
        with suppress(InputError):  # the change is done; the next one tries again
            collect_garbage(self._server, self._state)

    def _write_state(self, metadata: Metadata, log: Mapping[int, str] | None = None) -> None:
        """Switch to another state, and add to the deletion log at the same time."""
        state = replace(self._state, metadata=metadata)
        if log or state != self._written:
            self._require_lock()
            self._server.write_notes(self._name, {**(log or {}), CURRENT: state.to_text()})
        self._state = self._written = state

    def _require_lock(self) -> None:
        if self._lock is not None:
            self._lock.require()

    def check(self, progress: Progress = ignore_progress) -> int:
        before = self._server.notes(self._name)
        try:
            return super().check(progress)
        except InputError:
            if self._server.notes(self._name) == before and not self._server.marks(self._name):
                raise
            raise InputError(f"{self.location}: changed by another program meanwhile; check again") from None

    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        return read_log(self._server.notes(self._name), self._server.location)

    def describe(self) -> dict[str, Any]:
        return {"settings": self._resolved_settings() or None, "recall_at_10": None, "segments": None}

    def size_on_disk(self) -> int | None:
        return self._server.size()

    def refresh(self) -> bool:
        before = self._state
        self._refresh()
        return self._state != before

    def _refresh(self) -> None:
        """Read the state, which other programs may have changed."""
        notes = self._server.notes(self._name)
        if not notes.get(CURRENT):
            raise InputError(f"{self.location}: the gallery is gone")
        state = State.from_text(notes[CURRENT], self._server.location)
        if state.generation != self._state.generation:
            require_unreplaced(self.location, self.metadata, state.metadata)
            self._server.load(images_name(self._name, state.generation))
        self._state = state

    def _retry(self, ask: Callable[[], T]) -> T:
        """Return an answer, even where another program has replaced the gallery since it was opened."""
        generation = self._state.generation
        try:
            return ask()
        except InputError:
            self._refresh()
            if self._state.generation == generation:
                raise
            return ask()


class MilvusDraft(MilvusStore):
    """A new gallery in Milvus. An old one stays until ``commit``."""

    def __init__(
        self,
        location: MilvusURI,
        index: IndexConfig,
        model: ModelFingerprint | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> None:
        self._target, self.location = location, str(location)
        self._overwrite, self._resume = overwrite, resume
        self._state = State(0, Metadata(0, index, model))
        if not location.embedded or os.path.exists(location.uri):
            self._connect()
        elif not os.path.isdir(os.path.dirname(location.uri)):
            raise InputError(f"{location}: cannot write there: its folder does not exist")

    def _connect(self) -> None:
        """Connect to Milvus; ``InputError`` where a gallery may not be built."""
        existed = os.path.exists(self._target.uri)
        self._server = MilvusServer(self._target, create=True)
        if existed or not self._target.embedded:
            self._require_replaceable()

    def _require_replaceable(self) -> dict[int, str]:
        """Return the notes; ``InputError`` where a gallery may not be built."""
        location = self._target
        notes = self._server.notes(location.collection)
        unfinished = bool(notes.get(UNFINISHED))
        require_finished(location, unfinished, overwrite=self._overwrite, resume=self._resume)
        if notes.get(CURRENT) and not self._overwrite and not (self._resume and unfinished):
            raise InputError(f"{location}: exists already; choose another name or give --overwrite")
        if location.collection in self._server.collections() and not self._server.has_notes(self._name):
            raise InputError(f"{location}: a collection of this name exists already, and is not a gallery")
        return notes

    @contextmanager
    def transaction(self, *, resumable: bool = False) -> Iterator[None]:
        self._connect()
        if not self._target.embedded:
            self._server.create_notes(self._name)  # where writers leave their marks
        with self._exclusive():
            notes = self._require_replaceable()
            self._resumable = resumable
            if self._resume and notes.get(UNFINISHED):
                self._restore(State.from_text(notes[UNFINISHED], self._target))
            try:
                yield
            except BaseException:
                if self._state.generation and not resumable:
                    with suppress(InputError):  # the error of the block is the one to report
                        self._server.drop(self._images)
                raise

    def _restore(self, state: State) -> None:
        """Continue an interrupted build."""
        require_same_model(self._target, state.metadata.model, self.metadata.model)
        old = state.metadata.index
        if old != self.metadata.index:  # Milvus builds the index with the first rows
            settings = ", ".join([old.kind, *(f"{name} {value}" for name, value in old.settings.items())])
            raise InputError(
                f"{self.location}: the unfinished build has index {settings}; --overwrite starts over"
            )
        self._state = state
        self._server.load(self._images)

    def append(self, rows: Rows) -> None:
        metadata = replace(self.metadata, dimension=rows.vectors.shape[1], next_id=int(rows.ids[-1]) + 1)
        self._create_collections(metadata)
        self._state = replace(self._state, metadata=metadata)
        if self._resumable:
            self._require_lock()
            self._server.write_notes(self._name, {UNFINISHED: self._state.to_text()})
        self._server.insert(self._images, rows.ids, rows.vectors, rows.table, self._fields)

    def set_columns(self, columns: Schema) -> None:
        if self._state.generation:
            super().set_columns(columns)
        else:
            self._state = replace(self._state, metadata=replace(self.metadata, columns=columns))

    def _create_collections(self, metadata: Metadata) -> None:
        if not self._state.generation:
            self._server.create_notes(self._name)
            if not self._server.notes(self._name):
                self._server.write_notes(self._name, {CURRENT: "", UNFINISHED: ""})
            self._state = State(unused_generation(self._server, self._name), metadata)
            self._server.create_images(self._images, metadata.dimension, metadata.index, self._fields)

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        self._create_collections(metadata)
        self._server.flush(self._images)
        self._server.load(self._images)
        self._state = replace(self._state, metadata=metadata)
        log = log_notes(self._server, self._name, deletions)
        self._require_lock()
        self._server.write_notes(self._name, {**log, CURRENT: self._state.to_text()})
        self._collect_garbage()

    def _refresh(self) -> None:
        """Do nothing: nobody else writes the new collection."""

    def rows(self, *, vectors: bool = False) -> Iterator[Rows]:
        return super().rows(vectors=vectors) if self._state.generation else iter(())


def images_name(name: str, generation: int) -> str:
    """Return the name of the collection of a gallery's images."""
    return f"{name}{IMAGES}{generation}"


def unused_generation(server: MilvusServer, name: str) -> int:
    """Return a number that no collection of a gallery's images has."""
    prefix = name + IMAGES
    numbers = [other.removeprefix(prefix) for other in server.collections() if other.startswith(prefix)]
    return max([0, *(int(number) for number in numbers if number.isdecimal())]) + 1


def collect_garbage(server: MilvusServer, state: State) -> None:
    """Delete the collections of images that no state names: those of writers that were killed."""
    name = server.location.collection
    if server.notes(name).get(UNFINISHED):
        server.write_notes(name, {UNFINISHED: ""})
    own = re.compile(rf"{re.escape(name + IMAGES)}[0-9]+")  # no other gallery has such a name
    for other in server.collections():
        if own.fullmatch(other) and other != images_name(name, state.generation):
            server.drop(other)


def log_notes(server: MilvusServer, name: str, deletions: Iterable[DeletionRecord]) -> dict[int, str]:
    """Return the notes that continue the deletion log."""
    first = max([FIRST_DELETION - 1, *server.notes(name)]) + 1
    return {number: record.to_line() for number, record in enumerate(deletions, first)}


def read_log(notes: Mapping[int, str], location: MilvusURI) -> tuple[DeletionRecord, ...]:
    """Parse the deletion log.

    Raises:
        InputError: a note that ``log_notes`` did not write.
    """
    try:
        return tuple(DeletionRecord.from_line(notes[key]) for key in sorted(notes) if key >= FIRST_DELETION)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{location}: damaged: not a deletion log ({truncate(error)})") from None
