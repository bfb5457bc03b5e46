"""Galleries: build one from features, save it, open it, search it, add images and remove them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rga_reid._deprecated import renamed_method, renamed_property
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation import ReRanking
from rga_reid.gallery.filters import CAMERA_KNOWN, Filter, other_cameras, parse_filter
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import create_store, open_store
from rga_reid.gallery.segment_store import SegmentStore
from rga_reid.gallery.segments import Snapshot
from rga_reid.gallery.store import (
    METRIC,
    DeletionRecord,
    Metadata,
    Progress,
    RemovalResult,
    Rows,
    VectorStore,
    deletion_records,
    empty_table,
    ignore_progress,
)
from rga_reid.gallery.validation import (
    gallery_table,
    match_rows,
    normalize_rows,
    require_nonempty,
    require_row_each,
)
from rga_reid.models.checkpoints import ModelFingerprint

SHORTLIST = 100  #: images of each query that are re-ranked
SHARD_ROWS = 8192  #: images that a build keeps in memory before it writes them


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
            table: n rows in the same order: ``path`` (the files need not exist), optionally ``pid`` and
                ``camid``, whole numbers, null where unknown.
            index: ``flat``, which searches exactly, or an approximate one: ``hnsw``, ``ivf``, ``ivfpq``. With
                fewer than 1,024 images, all of them search exactly.
            model: fingerprint of the model that embedded the images, see ``ModelFingerprint.of``; None if
                unknown.
            settings: index settings, instead of automatic ones: ``hnsw_m``, ``ef_construction``,
                ``ef_search``; ``nlist``, ``nprobe``; ``pq_m``, ``pq_bits``, ``refine``: see
                docs/galleries.md.

        Raises:
            InputError: no rows, features and table that do not fit together, a row that cannot be normalised,
                an unknown index or setting.
        """
        config = IndexConfig(index, settings)
        vectors, kept = match_rows(features, table)
        require_nonempty(len(vectors))
        config.check_dimension(vectors.shape[1])
        gallery = cls(SegmentStore(Snapshot(Metadata(vectors.shape[1], config, model))))
        gallery._append(vectors, kept)
        return gallery

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Gallery:
        """Open the gallery at a location: a folder, ``NAME.db``, ``milvus://HOST:PORT/COLLECTION`` or
        ``my_module.MyStore:NAME``.

        For a folder, the manifest and the sizes and headers of all files are checked, but not every byte: see
        ``check``.

        Raises:
            InputError: no gallery there, one of another version, or a file that is missing, damaged or not
                part of a gallery; the message names it. Milvus is not installed or does not answer.
        """
        return cls(open_store(location))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a copy of the gallery: whole, or not at all.

        The deletion log of a gallery in memory is saved with it; that of an opened gallery is not copied.

        Args:
            path: a folder that does not exist or is empty, or another location.
            overwrite: replace an existing gallery. Its deletion log is kept.

        Raises:
            InputError: the folder exists, contains other files than those of a gallery (they are never
                deleted), is being written by another program, or cannot be written. An old gallery does not change.
        """
        metadata = self._store.metadata
        target = create_store(path, metadata.index, metadata.model, overwrite=overwrite)
        with target.transaction():
            target.copy_from(self._store)
            own = () if self._store.persistent else self._store.deletion_log()
            known = target.deletion_log()  # saved there before
            target.commit(metadata, [record for record in own if record not in known])

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelFingerprint | None = None) -> None:
        """Add images at the end.

        In a folder they become a new segment. Nothing else is rewritten, except small segments at the end,
        which are joined with it (up to 4,096 images; up to 65,536 if 4,096 or more are added).

        Args:
            features: numbers ``(n, d)``, as for ``build``.
            table: n rows, as for ``build``. A path may occur more than once.
            model: fingerprint of the model that embedded them; None if it is known to be the same.

        Raises:
            InputError: another dimension, another model, and as for ``build``; for an opened gallery also as
                for ``save``.
        """
        vectors, kept = match_rows(features, table)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)
        expected = self.model if model is None else model
        if len(vectors):
            with self._store.transaction():
                # another program may have replaced the gallery since it was opened
                self._require_dimension("features", vectors)
                if expected is not None:
                    self.require_model(expected)
                self._append(vectors, kept)

    def _append(self, vectors: np.ndarray, table: pd.DataFrame) -> None:
        metadata = self._store.metadata
        stop = metadata.next_id + len(vectors)
        self._store.append(Rows(np.arange(metadata.next_id, stop), table, vectors))
        self._store.commit(replace(metadata, next_id=stop))

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> RemovalResult:
        """Erase all images of some persons, and the images of some paths.

        When it returns, no file of a gallery on this machine contains their vectors and rows; for a Milvus
        server see docs/milvus.md. The segments that contained them are rewritten, and their indexes rebuilt: an
        index cannot forget. The deletion log gets a line for each person: time, pid and number of images.

        Args:
            pids: one or more.
            paths: one or more, as in ``table``.

        Returns:
            What was removed, and how much was rewritten for it.

        Raises:
            InputError: nothing given; a pid or path without an image (nothing is removed then); for an opened
                gallery also as for ``save``.
        """
        persons = [pids] if isinstance(pids, int | np.integer) else list(pids)
        files = [paths] if isinstance(paths, str) else list(paths)
        if not persons and not files:
            raise InputError("remove: expected pids or paths")
        with self._store.transaction():
            found = []
            for column, wanted in (("pid", list(map(int, persons))), ("path", files)):
                found.append(self._store.find(column, wanted))
                known = set(found[-1][column].dropna())
                missing = [value for value in wanted if value not in known]
                if missing:
                    raise InputError(f"{column} {missing[0]}: not in the gallery; nothing was removed")
            gone = pd.concat(found, ignore_index=True).drop_duplicates("id").sort_values("id")
            result = self._store.delete(gone["id"].to_numpy(np.int64))
            self._store.commit(self._store.metadata, deletion_records(gone["pid"]))
        return result

    def compact(self) -> None:
        """Join the segments that ``add`` and ``remove`` left, and rebuild their indexes.

        Raises:
            InputError: for an opened gallery as for ``save``.
        """
        with self._store.transaction():
            self._store.compact()
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
        exclude_camera: int | None = None,
        where: str | None = None,
        rerank: ReRanking | None = None,
        shortlist: int = SHORTLIST,
        with_ids: bool = False,
    ) -> pd.DataFrame:
        """Return the nearest images to each query.

        The score is the cosine: the float64 dot product of the two float32 rows, L2-normalised. Images of equal
        score are in gallery order. With a flat index the result does not depend on other queries, the number
        of threads or the machine. An approximate index may miss a match (``describe`` reports its recall), but
        scores are exact.

        Args:
            features: numbers ``(q, d)``, one row per query.
            top_k: matches per query; all images where the gallery has fewer.
            exclude_camera: leave out the images of this camera. Images of unknown cameras stay.
            where: search only the images that this filter keeps, such as ``camid == 3 and pid in (1, 2)``,
                over ``pid``, ``camid`` and ``path``: see docs/galleries.md.
            rerank: sort each query's shortlist by k-reciprocal re-ranking among the query and the shortlist.
                Scores remain cosines, so they no longer decrease with rank.
            shortlist: how many of the nearest images are re-ranked; at least ``top_k``.
            with_ids: add the ids of the images as a last column ``id``.

        Returns:
            Columns ``query`` (from 0), ``rank`` (from 1), ``score``, ``path``, ``pid``, ``camid``, sorted by
            ``query``, then ``rank``.

        Raises:
            InputError: features of another dimension, a row that cannot be normalised, ``top_k`` below 1, a
                shortlist shorter than it, a camera to exclude from a gallery without any known camera, an
                invalid filter.
        """
        top_k, condition = check_int("top_k", top_k), self._filter(exclude_camera, where)
        queries = normalize_rows(features, name="query features")
        self._require_dimension("query features", queries)
        if rerank is None:
            return self._store.search(queries, top_k, condition).to_frame(with_ids=with_ids)
        results = self._store.search(queries, check_int("shortlist", shortlist, top_k), condition)
        return results.rerank(queries, rerank, top_k).to_frame(with_ids=with_ids)

    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        """Return how many images a search with these limits compares; ``InputError`` as for ``search``."""
        return self._store.count(self._filter(exclude_camera, where))

    def _filter(self, exclude_camera: int | None, where: str | None) -> Filter | None:
        condition = None if where is None else parse_filter(where)
        if exclude_camera is None:
            return condition
        camera = check_int("exclude_camera", exclude_camera, -(2**63), 2**63 - 1)
        if not self._store.count(CAMERA_KNOWN):
            raise InputError(f"exclude_camera {camera}: this gallery does not know the camera of any image")
        others = other_cameras(camera)
        return others if condition is None else others & condition

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
    def table(self) -> pd.DataFrame:
        """A copy of the table ``path, pid, camid``, one row per image."""
        return pd.concat([empty_table(), *(rows.table for rows in self._store.rows())], ignore_index=True)

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
        ``cameras`` lists the known ones. ``settings`` are those of the index of the largest segment, null if
        all are searched exactly; ``recall_at_10`` is the mean over images of the recall that was measured
        against exact search, see docs/galleries.md.
        """
        metadata, table, index = self._store.metadata, self.table, self._store.describe()
        known = table["pid"].dropna()
        return {
            "index": metadata.index.kind,
            "settings": index["settings"],
            "recall_at_10": index["recall_at_10"],
            "metric": METRIC,
            "count": len(table),
            "dimension": metadata.dimension,
            "segments": index["segments"],
            "identities": int(known[known != -1].nunique()),
            "unlabelled": len(table) - len(known),
            "cameras": sorted(map(int, table["camid"].dropna().unique())),
            "removals": len(self.deletion_log),
            "model": None if metadata.model is None else metadata.model.to_json(),
        }

    def size_on_disk(self) -> int | None:
        """Return the bytes of its files; None in memory and on a server."""
        return self._store.size_on_disk()


class GalleryBuilder:
    """Builds a gallery at a location from batches of features. A context manager that holds the gallery's lock.

    Up to 8,192 rows are kept in memory, then written. ``finish`` joins what was written, builds the indexes and
    switches to the new gallery at once; until then an old one does not change. Where a build failed or was
    killed, ``resume`` continues from what it had written; any other write to the same gallery removes that.

    Args:
        location: location of the gallery, see ``Gallery.open``.
        index, model, settings: see ``Gallery.build``.
        overwrite: replace an existing gallery when this one is finished.
        resume: continue the build that was interrupted there, if there is one.

    Raises:
        InputError: a location where no gallery may be written, see ``Gallery.save``; an unknown index or
            setting; an interrupted build with another model.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        index: str = "flat",
        model: ModelFingerprint | None = None,
        overwrite: bool = False,
        resume: bool = False,
        **settings: int,
    ) -> None:
        self._location, self._config = location, IndexConfig(index, settings)
        self._store = create_store(location, self._config, model, overwrite=overwrite, resume=resume)
        self._buffer: list[tuple[np.ndarray, pd.DataFrame]] = []
        self._stack = ExitStack()

    def __enter__(self) -> GalleryBuilder:
        with self._stack:  # the lock is released if anything fails
            self._stack.enter_context(self._store.transaction(resumable=True))
            self._metadata = self._store.metadata
            if self._metadata.dimension:
                self._config.check_dimension(self._metadata.dimension)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def paths(self) -> set[str]:
        """Paths of the images that need not be added again."""
        return {path for rows in self._store.rows() for path in rows.table["path"]}

    def add(self, features: Any, table: pd.DataFrame) -> None:
        """Add some rows.

        Args:
            features: numbers ``(n, d)``, d always the same.
            table: n rows, see ``Gallery.build``.

        Raises:
            InputError: rows that do not fit, as ``Gallery.add``; the disk is full.
        """
        vectors, kept = match_rows(features, table)
        dimension = self._metadata.dimension
        if dimension and vectors.shape[1] != dimension:
            raise InputError(f"features: of dimension {vectors.shape[1]}, but those before of {dimension}")
        self._config.check_dimension(vectors.shape[1])
        self._metadata = replace(self._metadata, dimension=vectors.shape[1])
        self._buffer.append((vectors, kept))
        if sum(len(rows) for rows, _ in self._buffer) >= SHARD_ROWS:
            self._flush()

    def finish(self) -> Gallery:
        """Finish the gallery of all rows, and open it.

        Raises:
            InputError: there were no rows; the disk is full.
        """
        self._flush()
        require_nonempty(self._metadata.next_id)
        self._store.commit(self._metadata)
        return Gallery.open(self._location)

    def _flush(self) -> None:
        """Write the buffer."""
        count = sum(len(rows) for rows, _ in self._buffer)
        if count:
            stop = self._metadata.next_id + count
            vectors = np.concatenate([rows for rows, _ in self._buffer])
            table = pd.concat([rows for _, rows in self._buffer], ignore_index=True)
            self._store.append(Rows(np.arange(stop - count, stop), table, vectors))
            self._metadata, self._buffer = replace(self._metadata, next_id=stop), []


def save_features(
    location: str | os.PathLike[str],
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    index: str = "flat",
    overwrite: bool = False,
    **settings: int,
) -> Gallery:
    """Build a gallery at a location from a matrix that need not fit in memory, and open it.

    Args:
        location: see ``Gallery.open``.
        features: floating-point numbers ``(n, d)``; may be a mapped file.
        table, index, settings: see ``Gallery.build``.
        overwrite: see ``Gallery.save``.

    Raises:
        InputError: as for ``Gallery.build`` and ``Gallery.save``.
    """
    config, kept, (count, dimension) = IndexConfig(index, settings), gallery_table(table), features.shape
    require_nonempty(count)
    require_row_each(count, kept)
    config.check_dimension(dimension)
    store = create_store(location, config, overwrite=overwrite)
    with store.transaction():
        store.append_features(features, kept)
        store.commit(Metadata(dimension, config, None, count))
    return Gallery.open(location)
