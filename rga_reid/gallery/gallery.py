"""Galleries: build one in memory, save it, open it, search it, add images, label and remove them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rga_reid._deprecated import renamed_method, renamed_property
from rga_reid.data.columns import (
    TYPES,
    Schema,
    cast,
    conform,
    is_whole,
    join_schemas,
    label_value,
    rename_camid,
    values_of,
)
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation import ReRanking
from rga_reid.gallery.filters import Filter, parse_filter
from rga_reid.gallery.grouped_search import PER_GROUP, search_groups
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import create_store, open_store
from rga_reid.gallery.segment_store import SegmentStore
from rga_reid.gallery.segments import Snapshot
from rga_reid.gallery.store import (
    METRIC,
    Addition,
    DeletionRecord,
    Metadata,
    Progress,
    RemovalResult,
    Rows,
    VectorStore,
    deletion_records,
    describe_labels,
    ignore_progress,
    read_all_rows,
    result_table,
    search_filter,
)
from rga_reid.gallery.validation import gallery_table, match_rows, normalize_rows, require_nonempty
from rga_reid.inference.feature_files import write_features
from rga_reid.models.checkpoints import ModelFingerprint

SHORTLIST = 100  #: images of each query that are re-ranked
WAIT = 30.0  #: seconds that writers wait for another one


class Gallery:
    """Images of people, searchable by appearance. Made by ``Gallery.build`` or ``Gallery.open``.

    A gallery that was built is in memory, and ``save`` writes a copy. One that was opened is on disk, in a
    folder (FAISS), in Milvus or in your own store: ``add``, ``remove`` and ``compact`` have changed it there
    when they return. A gallery in a folder searches the state that it opened or last wrote, whatever other
    programs write meanwhile.

    Args:
        store: keeps the rows.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store

    @classmethod
    def build(
        cls,
        features: Any,
        table: pd.DataFrame,
        *,
        index: str = "flat",
        model: ModelFingerprint | None = None,
        **settings: int,
    ) -> Gallery:
        """Build a gallery in memory.

        Args:
            features: numbers ``(n, d)``, of any length: they are L2-normalised.
            table: n rows in the same order: ``path`` (the files need not exist), optionally ``pid``,
                ``camera`` (or ``camid``) and ``track``, whole numbers or text, ``time`` with a time zone, and any
                other columns of text, numbers, booleans or times. All but ``path`` may be null.
            index: ``flat``, which searches exactly, or an approximate one: ``hnsw``, ``ivf``, ``ivfpq``. With
                fewer than 1,024 images, all of them search exactly.
            model: fingerprint of the model that embedded the images, see ``ModelFingerprint.of``; None if
                unknown.
            settings: index settings, instead of automatic ones: ``hnsw_m``, ``ef_construction``,
                ``ef_search``; ``nlist``, ``nprobe``; ``pq_m``, ``pq_bits``, ``refine``: see
                docs/gallery_storage.md.

        Raises:
            InputError: no rows, features and table that do not fit together, a row that cannot be normalised,
                an unknown index or setting.
        """
        config = IndexConfig(index, settings)
        vectors, kept, columns = match_rows(features, table)
        require_nonempty(len(vectors))
        config.check_dimension(vectors.shape[1])
        gallery = cls(SegmentStore(Snapshot(Metadata(vectors.shape[1], config, model))))
        gallery._append(vectors, kept, columns)
        return gallery

    @classmethod
    def open(cls, location: str | os.PathLike[str], *, wait: float = WAIT) -> Gallery:
        """Open the gallery at a location: a folder, ``NAME.db``, ``milvus://HOST:PORT/COLLECTION`` or
        ``my_module.MyStore:NAME``.

        For a folder, the manifest and the sizes and headers of all files are checked, but not every byte: see
        ``check``.

        Args:
            location: location of the gallery.
            wait: seconds that a change waits for another program that is changing the gallery.

        Raises:
            InputError: no gallery there, one of another version, or a file that is missing, damaged or not
                part of a gallery; the message names it. Milvus is not installed or does not answer.
        """
        store = open_store(location)
        store.wait = wait
        return cls(store)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, *, wait: float = WAIT) -> None:
        """Write a copy of the gallery: whole, or not at all.

        The deletion log of a gallery in memory is saved with it; that of an opened gallery is not copied.

        Args:
            path: a folder that does not exist or is empty, or another location.
            overwrite: replace an existing gallery. Its deletion log is kept.
            wait: seconds to wait for another program that is changing that gallery.

        Raises:
            InputError: the folder exists, contains other files than those of a gallery (they are never
                deleted), is being written by another program, or cannot be written. An old gallery does not change.
        """
        metadata = self._store.metadata
        target = create_store(path, metadata.index, metadata.model, overwrite=overwrite)
        target.wait = wait
        with target.transaction():
            target.set_columns(metadata.columns)
            target.copy_from(self._store)
            own = () if self._store.persistent else self._store.deletion_log()
            known = target.deletion_log()  # saved there before
            target.commit(metadata, [record for record in own if record not in known])

    def add(
        self,
        features: Any,
        table: pd.DataFrame,
        *,
        model: ModelFingerprint | None = None,
        columns: Schema | None = None,
    ) -> np.ndarray:
        """Add images at the end.

        In a folder they become a new segment. Nothing else is rewritten, except small segments without an index
        at the end, which are joined with it (up to 4,096 images; up to 65,536 if 4,096 or more are added).

        Args:
            features: numbers ``(n, d)``, as for ``build``.
            table: n rows, as for ``build``. A path may occur more than once. Columns that the gallery does not
                have are added to it, null for the images before. Labels that were whole numbers become text if the
                table has text.
            model: fingerprint of the model that embedded them; None if it is known to be the same.
            columns: columns and types of a larger table of which ``table`` is a part.

        Returns:
            Ids of the images, int64 ``(n,)``.

        Raises:
            InputError: another dimension, another model, a column of another type than in the gallery, and as for
                ``build``; for an opened gallery also as for ``save``.
        """
        schema = self._joined(columns)
        vectors, kept, new = match_rows(features, table, schema)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)
        expected = self.model if model is None else model
        if not len(vectors):
            return np.empty(0, np.int64)
        with self._store.adding(Addition(kept, vectors, new, expected)) as first:
            if first is not None:  # another writer has added them with its own
                return np.arange(first, first + len(vectors))
            # another program may have replaced the gallery since it was opened, or added columns
            self._require_dimension("features", vectors)
            if expected is not None:
                self.require_model(expected)
            if (now := self._joined(columns)) != schema:
                kept, new = gallery_table(table, now)
            return self._append(vectors, kept, new)

    def _joined(self, columns: Schema | None) -> dict[str, str]:
        """Return the columns of the gallery and others."""
        return join_schemas(self.columns, {} if columns is None else columns)

    def _append(self, vectors: np.ndarray, table: pd.DataFrame, columns: Schema) -> np.ndarray:
        metadata = self._store.metadata
        if columns != metadata.columns:
            self._store.set_columns(columns)
        ids = np.arange(metadata.next_id, metadata.next_id + len(vectors))
        self._store.append(Rows(ids, table, vectors))
        self._store.commit(replace(metadata, next_id=metadata.next_id + len(ids), columns=columns))
        return ids

    def remove(
        self,
        *,
        pids: int | str | Iterable[int | str] = (),
        paths: str | Iterable[str] = (),
        where: str | Filter | None = None,
    ) -> RemovalResult:
        """Erase all images of some persons, the images of some paths, or those that a filter keeps.

        When it returns, no file of a gallery on this machine contains their vectors and rows; for a Milvus
        server see docs/milvus.md. The segments that contained them are rewritten, and their indexes rebuilt: an
        index cannot forget. The deletion log gets a line for each person: time, pid and number of images.

        Args:
            pids: one or more.
            paths: one or more, as in ``table``.
            where: a filter, see docs/galleries.md, such as ``time < now - 30d``; without pids and paths.

        Returns:
            What was removed, and how much was rewritten for it.

        Raises:
            InputError: nothing given; a pid or path without an image (nothing is removed then); for an opened
                gallery also as for ``save``.
        """
        with self._store.transaction():
            gone = self._find(pids, paths, where)
            if gone.empty:
                return RemovalResult(0)
            result = self._store.delete(gone["id"].to_numpy(np.int64))
            self._store.commit(self._store.metadata, deletion_records(gone["pid"]))
        return result

    def find(
        self,
        *,
        pids: int | str | Iterable[int | str] = (),
        paths: str | Iterable[str] = (),
        where: str | Filter | None = None,
    ) -> pd.DataFrame:
        """Return the rows of ``table`` that ``remove`` would erase, with a column ``id``, by increasing id.

        Raises:
            InputError: as for ``remove``.
        """
        found = self._find(pids, paths, where)
        return result_table(found, self.columns).assign(id=found["id"])

    def _find(
        self, pids: int | str | Iterable[int | str], paths: str | Iterable[str], where: str | Filter | None
    ) -> pd.DataFrame:
        persons = [pids] if isinstance(pids, int | np.integer | str) else list(pids)
        files = [paths] if isinstance(paths, str) else list(paths)
        if bool(persons or files) == (where is not None):
            raise InputError("remove: expected pids or paths, or a filter")
        if where is not None:
            return self._store.select(parse_filter(where, self.columns))
        persons = [label_value(pid, self.columns["pid"], "pid") for pid in persons]
        found = []
        for column, wanted in (("pid", persons), ("path", files)):
            found.append(self._store.find(column, wanted))
            known = set(found[-1][column].dropna())
            missing = [value for value in wanted if value not in known]
            if missing:
                raise InputError(f"{column} {missing[0]}: not in the gallery; nothing was removed")
        return pd.concat(found, ignore_index=True).drop_duplicates("id").sort_values("id")

    def label(self, where: str | Filter, pid: int | str | None) -> int:
        """Label the images that a filter keeps with a pid. The log gets a line for each old pid among them.

        Args:
            where: a filter, see docs/galleries.md.
            pid: whole number or text, or None for unlabelled. With text, all pids of the gallery become text.

        Returns:
            Number of images whose pid has changed.

        Raises:
            InputError: an invalid filter or pid; for an opened gallery also as for ``save``.
        """
        with self._store.transaction():
            metadata, columns = self._store.metadata, dict(self.columns)
            if isinstance(pid, str) and not is_whole(pid):
                columns["pid"] = "string"
            value = None if pid is None else label_value(pid, columns["pid"], "pid")
            if value == "":
                raise InputError("pid: expected a whole number or text, got ''")
            found = self._store.select(parse_filter(where, self.columns))
            old = values_of(found, "pid", columns["pid"])
            other = old.notna() if value is None else old.isna() | (old != value)
            changed = other.to_numpy(dtype=bool, na_value=True)
            if not changed.any():
                return 0
            if columns != metadata.columns:
                self._store.set_columns(columns)
            pids = pd.Series([value] * int(changed.sum()), dtype=TYPES[columns["pid"]])
            self._store.update(found["id"].to_numpy(np.int64)[changed], pd.DataFrame({"pid": pids}))
            label = "" if value is None else value
            self._store.commit(replace(metadata, columns=columns), deletion_records(old[changed], label))
        return int(changed.sum())

    def update(self, ids: Any, table: pd.DataFrame) -> None:
        """Change columns of some images, or add columns to the gallery.

        Args:
            ids: ids of n images, see ``ids``.
            table: n rows of the columns to change, except ``path`` and ``pid`` (see ``label``). In the other images
                new columns are null.

        Raises:
            InputError: an unknown id, or one given twice; a column of another type than in the gallery; for an
                opened gallery also as for ``save``.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        if reserved := {"path", "pid"} & set(table.columns):
            raise InputError(
                f"update: column '{min(reserved)}': cannot be changed here; pids are changed by label"
            )
        if len(wanted) != len(table) or (np.diff(wanted[order]) == 0).any():
            raise InputError(f"update: expected {len(table)} different ids, one for each row")
        with self._store.transaction():
            metadata = self._store.metadata
            kept, columns = conform(table, metadata.columns)
            if not np.isin(wanted, self.ids).all():
                raise InputError("update: an id is not in the gallery; nothing was changed")
            if len(wanted):
                if columns != metadata.columns:
                    self._store.set_columns(columns)
                values = kept[list(rename_camid(table).columns)].take(order).reset_index(drop=True)
                self._store.update(wanted[order], values)
                self._store.commit(replace(metadata, columns=columns))

    def merge(self, other: Gallery, *, skip_known: bool = False, same_features: bool = False) -> int:
        """Add all images of another gallery at the end, with new ids. The other gallery does not change.

        Args:
            other: gallery of the same model.
            skip_known: leave out images whose paths are in this gallery already.
            same_features: trust that the features are of one model where only one of the galleries knows its own.

        Returns:
            Number of images added.

        Raises:
            InputError: another dimension or model, a column of another type, or a path that this gallery has
                already; for an opened gallery also as for ``save``.
        """
        if other._store is self._store or (
            self._store.persistent and other._store.location == self._store.location
        ):
            raise InputError(f"merge: {self._store.location}: expected another gallery")
        if other.dimension != self.dimension:
            raise InputError(
                f"merge: features of dimension {other.dimension}, but the gallery's have {self.dimension}"
            )
        if other.model is not None:
            self.require_model(other.model)
        if (other.model is None) != (self.model is None) and not same_features:
            raise InputError(
                "merge: one of the galleries was built from features, so its model is unknown; --same-features says "
                "that it is that of the other one"
            )
        with self._store.transaction():
            metadata, added = self._store.metadata, 0
            columns = join_schemas(metadata.columns, other.columns, name="merge")
            # before anything is written: not every store can take back what it has added
            shared: set[str] = set()
            for rows in other._store.rows():
                shared |= self.known_paths(rows.table["path"])
            if shared and not skip_known:
                raise InputError(f"{min(shared)}: in both galleries; --skip-known leaves it out")
            if columns != metadata.columns:
                self._store.set_columns(columns)
            for rows in other._store.rows(vectors=True):
                new = ~rows.table["path"].isin(shared).to_numpy(bool)
                count = int(new.sum())
                if count:
                    table = cast(rows.table[new].reset_index(drop=True), columns)
                    ids = np.arange(metadata.next_id + added, metadata.next_id + added + count)
                    self._store.append(Rows(ids, table, rows.vectors[new]))
                    added += count
            if added:
                self._store.commit(replace(metadata, next_id=metadata.next_id + added, columns=columns))
        return added

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write features and table to an ``.npz`` file, from which a gallery can be built again.

        Raises:
            InputError: the file cannot be written.
        """
        rows = read_all_rows(self._store, vectors=True)
        write_features(path, rows.vectors, rows.table, self.model)

    def compact(self) -> None:
        """Join the segments that ``add`` and ``remove`` left, and rebuild their indexes.

        Raises:
            InputError: for an opened gallery as for ``save``.
        """
        with self._store.transaction():
            self._store.compact()
            self._store.commit(self._store.metadata)

    def maintain(self) -> None:
        """Join small segments that ``add`` left, if they have enough images together, and build their index.

        A program that adds images for a long time calls it now and then; see "Compaction" in docs/gallery_storage.md.

        Raises:
            InputError: for an opened gallery as for ``save``.
        """
        with self._store.transaction():
            self._store.merge()
            self._store.commit(self._store.metadata)

    def check(self, progress: Progress = ignore_progress) -> int:
        """Check what is on disk now: every byte of every file of a folder, every row of a gallery in Milvus.

        Args:
            progress: called with the fraction that is done.

        Returns:
            Number of files, or rows, checked; 0 for a gallery in memory.

        Raises:
            InputError: the names of damaged and missing files; or a writer changed the gallery meanwhile.
        """
        return self._store.check(progress)

    def search(
        self,
        features: Any,
        top_k: int = 10,
        *,
        exclude_camera: int | str | None = None,
        where: str | Filter | None = None,
        rerank: ReRanking | None = None,
        shortlist: int = SHORTLIST,
        with_ids: bool = False,
        group_by: str | None = None,
        per_group: int = PER_GROUP,
    ) -> pd.DataFrame:
        """Return the nearest images to each query, or the nearest groups of images.

        The score is the cosine: the float64 dot product of the two float32 rows, L2-normalised. Images of equal
        score are in gallery order. With a flat index the result does not depend on other queries, the number
        of threads or the machine. An approximate index may miss a match (``describe`` reports its recall), but
        scores are exact.

        Args:
            features: numbers ``(q, d)``, one row per query.
            top_k: matches, or groups, per query; all where the gallery has fewer.
            exclude_camera: leave out the images of this camera. Images of unknown cameras stay.
            where: search only the images that this filter keeps, such as
                ``camera == 3 and time >= now - 2h``: see docs/galleries.md.
            rerank: sort each query's shortlist by k-reciprocal re-ranking among the query and the shortlist.
                Scores remain cosines, so they no longer decrease with rank.
            shortlist: how many of the nearest images are re-ranked; at least ``top_k``.
            with_ids: add the ids of the images as a last column ``id``.
            group_by: return the nearest groups by ``track`` (of a camera), ``camera``, ``pid`` or another column. An
                image that does not have it forms a separate group.
            per_group: images of each group, the best ones.

        Returns:
            Columns ``query`` (from 0), ``rank`` (from 1; of the group), ``score``, and those of ``table``, sorted by
            ``query``, then ``rank``.

        Raises:
            InputError: features of another dimension, a row that cannot be normalised, ``top_k`` below 1, a
                shortlist shorter than it, a camera to exclude from a gallery without any known camera, an
                invalid filter, an unknown column.
        """
        top_k, condition = check_int("top_k", top_k), search_filter(self._store, exclude_camera, where)
        queries = normalize_rows(features, name="query features")
        self._require_dimension("query features", queries)
        if rerank is not None:
            check_int("shortlist", shortlist, top_k)
        if group_by is not None:
            results = search_groups(
                self._store, queries, top_k, group_by, per_group, condition, rerank, shortlist
            )
            return results.to_frame(self.columns, with_ids=with_ids)
        if rerank is None:
            return self._store.search(queries, top_k, condition).to_frame(self.columns, with_ids=with_ids)
        results = self._store.search(queries, shortlist, condition)
        return results.rerank(queries, rerank, top_k).to_frame(self.columns, with_ids=with_ids)

    def count(self, *, exclude_camera: int | str | None = None, where: str | Filter | None = None) -> int:
        """Return how many images a search with these limits compares; ``InputError`` as for ``search``."""
        return self._store.count(search_filter(self._store, exclude_camera, where))

    def require_model(self, model: ModelFingerprint) -> None:
        """Refuse features of another model, or of another preprocessing.

        Raises:
            InputError: the gallery remembers a model, and it is not this one.
        """
        own = self.model
        if own is not None and not own.is_same(model):
            raise InputError(
                f"model {model.checkpoint}: the gallery was built with another model: {own.checkpoint}, "
                f"SHA-256 {own.sha256[:12]}..., or with other preprocessing"
            )

    def _require_dimension(self, name: str, matrix: np.ndarray) -> None:
        if matrix.shape[1] != self.dimension:
            raise InputError(
                f"{name}: of dimension {matrix.shape[1]}, but the gallery's have {self.dimension}: "
                "another model made them"
            )

    def __repr__(self) -> str:
        return f"Gallery({len(self):,} images, {self.dimension} dimensions)"

    def __len__(self) -> int:
        """Return the number of images."""
        return self._store.count()

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return self._store.metadata.dimension

    @property
    def model(self) -> ModelFingerprint | None:
        """Fingerprint of the model that embedded the images; None if unknown."""
        return self._store.metadata.model

    @property
    def columns(self) -> Schema:
        """Names of the columns of the table, and their types, see ``rga_reid.data.columns``."""
        return self._store.metadata.columns

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table, one row per image.

        Columns ``path``, ``pid``, ``camera``, ``camid`` (the same as ``camera``), ``time``, ``track``, null where
        unknown, and the other columns of the tables that were added.
        """
        return result_table(read_all_rows(self._store).table, self.columns)

    @property
    def ids(self) -> np.ndarray:
        """A number for each row of ``table``, int64 ``(n,)``: in the order of adding, never reused."""
        return np.concatenate([np.empty(0, np.int64), *(rows.ids for rows in self._store.rows())])

    @property
    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        """Time, pid and number of images of each removal."""
        return self._store.deletion_log()

    removals = renamed_property("Gallery.removals", "deletion_log")
    verify = renamed_method("Gallery.verify", "check")

    def known_paths(self, paths: Iterable[str]) -> set[str]:
        """Return those of some paths of which the gallery has an image."""
        return set(self._store.find("path", list(paths))["path"])

    def describe(self) -> dict[str, Any]:
        """Return what the gallery contains, as a JSON object.

        ``identities`` counts distinct pids without junk (−1), ``unlabelled`` the images of unknown pid;
        ``cameras`` lists the known ones, ``times`` the first and the last time; ``without_camera`` and
        ``without_time`` count the other images. ``settings`` are those of the index of the largest segment, null if
        all are searched exactly; ``recall_at_10`` is the mean over images of the recall that was measured against
        exact search, see docs/gallery_storage.md.
        """
        metadata, table, index = self._store.metadata, self.table, self._store.describe()
        return {
            "index": metadata.index.kind,
            "settings": index["settings"],
            "recall_at_10": index["recall_at_10"],
            "metric": METRIC,
            "count": len(table),
            "dimension": metadata.dimension,
            "segments": index["segments"],
            **describe_labels(table),
            "columns": dict(metadata.columns),
            "removals": sum(record.label is None for record in self.deletion_log),
            "model": None if metadata.model is None else metadata.model.to_json(),
        }

    def size_on_disk(self) -> int | None:
        """Return the bytes of its files; None in memory and on a server."""
        return self._store.size_on_disk()
