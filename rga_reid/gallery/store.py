"""Vector stores: what a ``Gallery`` needs from the place that keeps its rows, and the values passed between them.

``FolderStore`` (FAISS), ``SegmentStore`` (FAISS, in memory) and ``MilvusStore`` are the stores of this package. A
user's store is a class with the methods of ``VectorStore`` and the two class methods of ``StoreFactory``. A
location ``my_module.MyStore:NAME`` names it, see ``rga_reid.gallery.location``.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np
import pandas as pd

from rga_reid.data.columns import CAMERA, CAMERA_ALIAS, RESERVED, Schema, cast, label_value
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking, re_ranked_distances
from rga_reid.gallery.filters import Filter, is_among, is_known, other_cameras, parse_filter
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.validation import is_normalized, non_finite_error, normalized_blocks
from rga_reid.models.checkpoints import ModelFingerprint, is_same_model

METRIC = "cosine"  #: inner product of unit rows

Progress = Callable[[float], None]  #: called with the fraction that is done, now and then


def ignore_progress(fraction: float) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Metadata:
    """Metadata of a gallery.

    Args:
        dimension: d, length of a feature; 0 before the first row.
        index: kind of index and its settings, as requested.
        model: fingerprint of the model that embedded the images; None if unknown.
        next_id: id of the image that is added next. Ids are never reused.
        columns: columns of the table and their types, see ``rga_reid.data.columns``.
    """

    dimension: int = 0
    index: IndexConfig = field(default_factory=IndexConfig)
    model: ModelFingerprint | None = None
    next_id: int = 0
    columns: Mapping[str, str] = field(default_factory=lambda: dict(RESERVED))


@dataclass(frozen=True)
class DeletionRecord:
    """A line of the log of removals and of new labels. It never contains a path or a vector."""

    time: str  #: UTC, ISO 8601
    pid: int | str | None  #: null for images of unknown pid
    count: int  #: number of images
    #: the pid that the images have since, '' if it was taken off; null if they were removed
    label: int | str | None = None

    def to_line(self) -> str:
        """Return the record as a line of JSON."""
        fields = asdict(self)
        if self.label is None:
            del fields["label"]
        return json.dumps(fields) + "\n"

    @classmethod
    def from_line(cls, line: str) -> DeletionRecord:
        """Parse a line that ``to_line`` wrote.

        Raises:
            ValueError, TypeError: another text.
        """
        record = cls(**json.loads(line))
        valid = [isinstance(record.time, str), type(record.count) is int]
        valid += [label is None or type(label) in (int, str) for label in (record.pid, record.label)]
        if not all(valid):
            raise TypeError("expected a time, a pid or null, and a count")
        return record


def deletion_records(pids: pd.Series, label: int | str | None = None) -> list[DeletionRecord]:
    """Return the lines of the log for images that are removed or labelled now: one for each person.

    Args:
        pids: pids that the images had, null where unknown.
        label: pid that they get, '' for none; None if they are removed.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    counts = pids.value_counts(dropna=False, sort=False)
    return [
        DeletionRecord(
            now, None if pd.isna(pid) else pid if isinstance(pid, str) else int(pid), int(count), label
        )
        for pid, count in counts.items()
    ]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some images of a gallery.

    Args:
        ids: int64 ``(n,)``, increasing.
        table: n rows of the gallery's columns, numbered from 0.
        vectors: unit rows, float32 ``(n, d)``; ``(n, 0)`` where they were not asked for.
    """

    ids: np.ndarray
    table: pd.DataFrame
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([part.ids for part in parts]),
        pd.concat([part.table for part in parts], ignore_index=True),
        np.concatenate([part.vectors for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Addition:
    """Images to be added to a gallery.

    Args:
        table: n rows of the columns ``columns``, numbered from 0.
        vectors: unit rows, float32 ``(n, d)``.
        columns: columns of the gallery with those of the table, and their types.
        model: fingerprint of the model that embedded them; None if unknown.
    """

    table: pd.DataFrame
    vectors: np.ndarray
    columns: Schema
    model: ModelFingerprint | None

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class RemovalResult:
    """Result of a removal."""

    images: int  #: images removed
    segments: int = 0  #: segments rewritten without them
    indexes: int = 0  #: indexes rebuilt for those segments
    rewritten: int = 0  #: other images in those segments


@dataclass(frozen=True)
class SearchResults:
    """Images found for some queries, one query after the other, best first.

    Args:
        counts: int64 ``(q,)``, number of images found for each query; n in all.
        scores: float64 ``(n,)``.
        ids: int64 ``(n,)``.
        table: n rows of the gallery's columns, numbered from 0.
        vectors: returns the vectors of some of the n rows, given their numbers: float32 ``(len(numbers), d)``.
        ranks: int64 ``(n,)``, ranks of the groups of the images; by default each image has the next rank.

    Raises:
        InputError: a score is NaN or infinite, so the gallery's vectors are too.
    """

    counts: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    table: pd.DataFrame
    vectors: Callable[[np.ndarray], np.ndarray]
    ranks: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.scores).all():
            raise non_finite_error()

    def rerank(self, queries: np.ndarray, settings: ReRanking, top_k: int) -> SearchResults:
        """Return the best results of each query in the order of k-reciprocal re-ranking.

        Neighbours are searched among the query and its own results, so other queries do not matter. Results
        of equal re-ranked distance keep their order.

        Args:
            queries: unit rows, float32 ``(q, d)``.
            settings: ``k1`` and ``k2`` are limited to the number of results of a query.
            top_k: results to keep for each query.
        """
        kept = [np.empty(0, np.int64)]
        for query, stop, count in zip(queries, self.counts.cumsum(), self.counts, strict=True):
            if count:
                rows = np.arange(stop - count, stop)
                distances = re_ranked_distances(
                    query[None],
                    self.vectors(rows),
                    k1=min(settings.k1, int(count)),
                    k2=min(settings.k2, int(count) + 1),
                    lambda_value=settings.lambda_value,
                )
                kept.append(rows[np.argsort(distances[0], kind="stable")[:top_k]])
        rows = np.concatenate(kept)
        return SearchResults(
            np.minimum(self.counts, top_k),
            self.scores[rows],
            self.ids[rows],
            self.table.take(rows).reset_index(drop=True),
            lambda numbers: self.vectors(rows[numbers]),
        )

    def to_frame(self, columns: Schema, *, with_ids: bool = False) -> pd.DataFrame:
        """Return the table that ``Gallery.search`` returns; ``columns`` are those of the gallery."""
        starts = self.counts.cumsum() - self.counts
        order = np.arange(len(self.ids)) - np.repeat(starts, self.counts) + 1
        shown: dict[str, Any] = {
            "query": np.repeat(np.arange(len(self.counts)), self.counts),
            "rank": order if self.ranks is None else self.ranks,
            "score": self.scores,
            **{name: values.array for name, values in result_table(self.table, columns).items()},
        }
        return pd.DataFrame(shown | {"id": self.ids} if with_ids else shown)


def empty_table(columns: Schema = RESERVED) -> pd.DataFrame:
    """Return a table of a gallery without rows."""
    return cast(pd.DataFrame({"path": pd.Series([], dtype="str")}), columns)


def describe_labels(table: pd.DataFrame) -> dict[str, Any]:
    """Return what ``Gallery.describe`` says about persons, cameras and times."""
    known, times = table["pid"].dropna(), table["time"].dropna()
    return {
        "identities": int(known[known.astype("string") != "-1"].nunique()),
        "unlabelled": len(table) - len(known),
        "cameras": sorted(table["camera"].dropna().unique().tolist()),
        "without_camera": int(table["camera"].isna().sum()),
        "times": [times.min().isoformat(), times.max().isoformat()] if len(times) else None,
        "without_time": len(table) - len(times),
    }


def result_table(table: pd.DataFrame, columns: Schema) -> pd.DataFrame:
    """Return the columns of a gallery as users see them: beside ``camera``, with its other name ``camid``."""
    shown = cast(table, columns)
    place = shown.columns.get_loc(CAMERA) + 1
    shown = shown.copy(deep=False)
    shown.insert(place, CAMERA_ALIAS, shown[CAMERA])
    return shown


class VectorStore(Protocol):
    """Keeps the rows of a gallery and searches them. Derive a store from this class.

    Changes happen inside ``transaction``: ``append``, ``delete``, ``update`` and ``compact``, then ``commit``. A
    change that was not committed may be lost, and must not be visible to whoever opens the store.

    Tables that a store is given have all columns of the gallery at that time. Tables that it returns may lack newer
    columns, and have labels as integers that are text by now.
    """

    location: str = "the gallery"  #: what messages call it
    wait: float = 30.0  #: seconds that ``transaction`` waits for another writer
    persistent: bool = True  #: whether other programs can open it

    @property
    @abstractmethod
    def metadata(self) -> Metadata:
        """Metadata as it was last committed."""

    @abstractmethod
    def search(self, queries: np.ndarray, top_k: int, where: Filter | None = None) -> SearchResults:
        """Return the nearest images to each query, best first, equal scores by id.

        Args:
            queries: unit rows, float32 ``(q, d)``.
            top_k: images per query; fewer where there are no more.
            where: search only the rows that this filter keeps.
        """

    @abstractmethod
    def append(self, rows: Rows) -> None:
        """Add rows at the end. Their ids are larger than those of all rows before."""

    @abstractmethod
    def delete(self, ids: np.ndarray) -> RemovalResult:
        """Erase rows.

        Args:
            ids: int64 ``(n,)``, increasing; all of them exist.
        """

    @abstractmethod
    def rows(self, *, vectors: bool = False) -> Iterator[Rows]:
        """Yield all rows by increasing id, a block at a time.

        Args:
            vectors: with their vectors.
        """

    @abstractmethod
    def count(self, where: Filter | None = None) -> int:
        """Return the number of rows, or of those that a filter keeps."""

    @abstractmethod
    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        """Make the changes permanent.

        Args:
            metadata: new metadata of the gallery.
            deletions: lines to append to the deletion log.
        """

    @abstractmethod
    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        """Return all lines of the deletion log, the oldest first."""

    def transaction(self, *, resumable: bool = False) -> AbstractContextManager[None]:
        """Enclose a change: refuse a second writer, see what others have written, clean up after an error.

        Args:
            resumable: keep what was appended to a new gallery if the block fails, so that ``create`` can
                resume it.
        """
        return nullcontext()

    def adding(self, addition: Addition) -> AbstractContextManager[int | None]:
        """Enclose an addition: as ``transaction``, unless another writer can add its rows together with its own.

        Args:
            addition: what will be added.

        Returns:
            A block whose value is None, or, if the rows have been added already, the id of the first one.
        """
        return self.transaction()

    def exclusive(self) -> AbstractContextManager[None]:
        """Refuse other writers until the block ends, also between the transactions of this one."""
        return nullcontext()

    def refresh(self) -> bool:
        """See what others have written since; return whether there was something."""
        return False

    def view(self) -> VectorStore:
        """Return a store with the present state, which other threads can read while this one is changed."""
        return self

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows: unit rows, float32 ``(n, d)``.

        Args:
            ids: int64 ``(n,)``, increasing; all of them exist.
        """
        found = [rows.vectors[np.isin(rows.ids, ids)] for rows in self.rows(vectors=True)]
        return np.concatenate([np.empty((0, self.metadata.dimension), np.float32), *found])

    def set_columns(self, columns: Schema) -> None:
        """Prepare for new columns, or for labels that are text from now on; ``append`` or ``update`` follows.

        Args:
            columns: all columns of the gallery from now on, and their types.
        """
        return

    def find(self, column: str, values: Sequence[Any]) -> pd.DataFrame:
        """Return the rows whose ``pid`` or ``path`` is among some values: the gallery's columns, and ``id``."""
        return self.select(is_among(column, values, self.metadata.columns))

    def select(self, where: Filter) -> pd.DataFrame:
        """Return the rows that a filter keeps: the gallery's columns, and ``id``."""
        columns = self.metadata.columns
        found = []
        for rows in self.rows():
            kept = where.mask(rows.table, rows.ids)
            if kept.any():
                found.append(cast(rows.table[kept], columns).assign(id=rows.ids[kept]))
        if not found:
            return empty_table(columns).assign(id=np.empty(0, np.int64))
        return pd.concat(found, ignore_index=True)

    def update(self, ids: np.ndarray, values: pd.DataFrame) -> None:
        """Change columns of some rows.

        Args:
            ids: int64 ``(n,)``, increasing; all of them exist.
            values: n rows of the columns to change, numbered from 0.

        Raises:
            InputError: this store cannot change labels.
        """
        raise InputError(f"{self.location}: this store cannot change labels")

    def copy_from(self, source: VectorStore) -> None:
        """Append all rows of another store, with their ids."""
        for rows in source.rows(vectors=True):
            self.append(rows)

    def append_features(self, features: np.ndarray, table: pd.DataFrame) -> None:
        """Normalise all rows of an empty store, and append them.

        Args:
            features: numbers ``(n, d)``; may be a mapped file that does not fit in memory.
            table: n rows of the gallery's columns, numbered from 0.

        Raises:
            InputError: a row that cannot be normalised.
        """
        for rows, vectors in normalized_blocks(features):
            self.append(Rows(np.arange(rows.start, rows.stop), table[rows].reset_index(drop=True), vectors))

    def compact(self) -> None:
        """Tidy up what many changes left, where that makes searches faster."""

    def merge(self) -> None:
        """Do a part of what ``compact`` does, where it is due by the number of images that were added."""
        return

    def check(self, progress: Progress = ignore_progress) -> int:
        """Read everything back.

        Returns:
            Number of rows, or of files, checked.

        Raises:
            InputError: something is damaged or missing.
        """
        total, checked = self.count(), 0
        for rows in self.rows(vectors=True):
            valid = is_normalized(rows.vectors)
            if rows.vectors.shape[1] != self.metadata.dimension or not valid.all():
                image = rows.ids[np.argmin(valid)]
                raise InputError(f"{self.location}: damaged: the vector of image {image} is not of length 1")
            checked += len(rows)
            progress(min(1.0, checked / max(1, total)))
        if checked != total:
            raise InputError(f"{self.location}: {total:,} images counted, {checked:,} found")
        return checked

    def describe(self) -> dict[str, Any]:
        """Return what the store knows about its index, see ``Gallery.describe``."""
        return {"settings": None, "recall_at_10": None, "segments": None}

    def size_on_disk(self) -> int | None:
        """Return the bytes of all files on this machine; None without files."""
        return None


class StoreFactory(Protocol):
    """Class methods of a store that a location can name."""

    def open(self, name: Any, /) -> VectorStore:
        """Open the store of that name; ``InputError`` if it does not exist."""

    def create(
        self,
        name: Any,
        /,
        index: IndexConfig,
        model: ModelFingerprint | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> VectorStore:
        """Return a store to be filled, which replaces the one of that name when it is committed.

        Nothing is written before its transaction begins.

        Args:
            name: name of the store.
            index, model: index and model of the new gallery.
            overwrite: a finished gallery may be replaced. Its deletion log is kept.
            resume: continue an unfinished one, whose rows are then there.

        Raises:
            InputError: the location is in use and may not be replaced.
        """


def search_filter(
    store: VectorStore, exclude_camera: int | str | None, where: str | Filter | None
) -> Filter | None:
    """Return the filter of the rows that a search compares, see ``Gallery.search``; None for all rows.

    Raises:
        InputError: an invalid filter or camera; no row of the store has a known camera to exclude.
    """
    columns = store.metadata.columns
    condition = None if where is None else parse_filter(where, columns)
    if exclude_camera is None:
        return condition
    camera = label_value(exclude_camera, columns[CAMERA], "exclude_camera")
    if not store.count(is_known(CAMERA, columns)):
        raise InputError(f"exclude_camera {camera}: this gallery does not know the camera of any image")
    others = other_cameras(camera, columns)
    return others if condition is None else others & condition


def require_unreplaced(location: object, old: Metadata, new: Metadata) -> None:
    """Refuse a gallery of another model in the place of an opened one: queries would find nonsense."""
    if new.dimension != old.dimension or not is_same_model(new.model, old.model):
        raise InputError(f"{location}: replaced, since it was opened, by a gallery of another model")


def read_all_rows(store: VectorStore, *, vectors: bool = False) -> Rows:
    """Return all rows of a store together, with all columns of the gallery; ``vectors`` as in ``VectorStore.rows``."""
    columns, parts = store.metadata.columns, list(store.rows(vectors=vectors))
    ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)])
    tables = [cast(part.table, columns) for part in parts] or [empty_table(columns)]
    matrices = [np.empty((0, store.metadata.dimension), np.float32), *(part.vectors for part in parts)]
    matrix = np.concatenate(matrices) if vectors else np.empty((len(ids), 0), np.float32)
    return Rows(ids, pd.concat(tables, ignore_index=True), matrix)
