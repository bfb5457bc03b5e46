"""Galleries on FAISS: in memory, or in a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.files import size_of
from rga_reid.gallery.filters import rows_where
from rga_reid.gallery.folder_store import (
    UNFINISHED,
    read_contents,
    read_gallery,
    require_replaceable,
    update,
    verify_folder,
    writing,
)
from rga_reid.gallery.gallery import (
    Gallery,
    RemovalResult,
    SearchResults,
    camera_number,
    labels_of,
    parse_targets,
)
from rga_reid.gallery.index import Found, IndexConfig, Vectors, search_exact
from rga_reid.gallery.location import MilvusURI, parse_location
from rga_reid.gallery.manifest import METRIC, read_manifest
from rga_reid.gallery.segments import (
    DeletionRecord,
    Put,
    Rows,
    Segment,
    Snapshot,
    append,
    compact,
    delete,
    max_rows,
    repack,
)
from rga_reid.gallery.validation import (
    NormalizedRows,
    gallery_table,
    match_rows,
    no_camera_error,
    require_dimension,
    require_nonempty,
    require_row_each,
    require_same_model,
)
from rga_reid.models.checkpoints import ModelFingerprint

if TYPE_CHECKING:
    from rga_reid.gallery.milvus import MilvusBuilder


class FolderGallery(Gallery):
    """A gallery whose segments are in memory, or files of a folder.

    Args:
        contents: what it holds.
        folder: where it is on disk; None if it is in memory.
    """

    def __init__(self, contents: Snapshot, folder: Path | None = None) -> None:
        self._contents, self._folder = contents, folder

    @classmethod
    def of(cls, folder: Path) -> FolderGallery:
        """The gallery in a folder; ``InputError`` as for ``Gallery.open``."""
        return cls(read_gallery(folder), folder)

    @classmethod
    def of_rows(cls, empty: Snapshot, vectors: np.ndarray, table: pd.DataFrame) -> FolderGallery:
        """A gallery in memory, of unit rows and their table."""
        return cls(append(empty, vectors, table, _in_memory))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        place = parse_location(path)
        if isinstance(place, MilvusURI):
            from rga_reid.gallery.milvus import save_rows

            rows = ((segment.vectors, segment.table) for segment in self._contents.segments)
            plan, model, own = self._contents.plan, self._contents.model, self._own_removals
            save_rows(place, plan, model, rows, removals=own, overwrite=overwrite)
            return
        require_replaceable(place, overwrite=overwrite)  # before a folder is made
        with writing(place, create=True) as writer:
            require_replaceable(place, overwrite=overwrite)  # and nobody was faster
            segments = tuple(writer.put(segment) for segment in self._contents.segments)
            log = writer.removals
            log += tuple(line for line in self._own_removals if line not in log)  # saved there before
            writer.commit(replace(self._contents, segments=segments, removals=log))

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelFingerprint | None = None) -> None:
        vectors, kept = match_rows(features, table)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)

        def change(old: Snapshot, put: Put) -> Snapshot:
            # another program may have put another gallery into the folder since this one was opened
            there = FolderGallery(old)
            there._require_dimension("features", vectors)
            model_of_rows = self.model if model is None else model
            if model_of_rows is not None:
                there.require_model(model_of_rows)
            return append(old, vectors, kept, put)

        if len(vectors):
            self._change(change)

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> RemovalResult:
        persons, files = parse_targets(pids, paths)
        old, new = self._change(lambda contents, put: delete(contents, persons, files, put))
        made = [segment for segment in new.segments if segment not in old.segments]
        indexes = sum(segment.index is not None for segment in made)
        return RemovalResult(len(old) - len(new), len(made), indexes, sum(map(len, made)))

    def compact(self) -> None:
        self._change(compact)

    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        return 0 if self._folder is None else verify_folder(self._folder, progress)

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def dimension(self) -> int:
        return self._contents.dimension

    @property
    def model(self) -> ModelFingerprint | None:
        return self._contents.model

    @property
    def table(self) -> pd.DataFrame:
        return self._contents.table.copy()

    @property
    def ids(self) -> np.ndarray:
        return self._contents.ids.copy()

    @property
    def _own_removals(self) -> tuple[DeletionRecord, ...]:
        """What was removed in memory, of which there is no log as yet."""
        return self._contents.removals if self._folder is None else ()

    @property
    def removals(self) -> tuple[DeletionRecord, ...]:
        return self._contents.removals

    def known_paths(self, paths: Iterable[str]) -> set[str]:
        return set(paths) & set(self._contents.table["path"])

    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        kept = _kept(self._contents, camera_number(exclude_camera), where)
        return len(self) if kept is None else int(kept.sum())

    def describe(self) -> dict[str, Any]:
        contents = self._contents
        indexed = [segment for segment in contents.segments if segment.index is not None]
        largest = max(indexed, key=len).index if indexed else None
        missed = sum(len(segment) * (1 - segment.index.recall) for segment in indexed if segment.index)
        return {
            "index": contents.plan.kind,
            "settings": None if largest is None else dict(largest.settings),
            "recall_at_10": None if largest is None else 1 - missed / len(contents),
            "metric": METRIC,
            "count": len(contents),
            "dimension": contents.dimension,
            "segments": len(contents.segments),
            **labels_of(contents.table),
            "removals": len(contents.removals),
            "model": None if contents.model is None else contents.model.to_json(),
        }

    def size_on_disk(self) -> int | None:
        return None if self._folder is None else size_of(self._folder)

    def _change(self, change: Callable[[Snapshot, Put], Snapshot]) -> tuple[Snapshot, Snapshot]:
        """Go to another state, on disk if the gallery is there; returns the state before and the new one."""
        if self._folder is None:
            states = self._contents, change(self._contents, _in_memory)
        else:
            states = update(self._folder, change)
        self._contents = states[1]
        return states

    def _find(
        self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None
    ) -> SearchResults:
        contents = self._contents  # one state, whatever another thread changes meanwhile
        found = list(_nearest(contents, queries, top_k, _kept(contents, exclude_camera, where)))
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
        vectors = Vectors([segment.vectors for segment in contents.segments])
        return SearchResults(
            np.array([len(rows) for rows, _ in found], np.int64),
            np.concatenate([np.empty(0), *(scores for _, scores in found)]),
            contents.ids[rows],
            contents.table.take(rows).reset_index(drop=True),
            lambda some: vectors.take(rows[some]),
        )


def _kept(contents: Snapshot, exclude_camera: int | None, where: str | None) -> np.ndarray | None:
    """Which rows may be found, bool ``(n,)``; None for all."""
    kept = None
    if exclude_camera is not None:
        camids = contents.table["camid"]
        if camids.isna().all():
            raise no_camera_error(exclude_camera)
        kept = (camids != exclude_camera).fillna(True).to_numpy(dtype=bool)
    if where is not None:
        chosen = rows_where(contents.table, where)
        kept = chosen if kept is None else kept & chosen
    return kept


def _nearest(contents: Snapshot, queries: np.ndarray, top_k: int, keep: np.ndarray | None) -> Iterator[Found]:
    """Row numbers and scores for each query: the best of what the segments' searches find."""
    groups: list[tuple[np.ndarray, Iterator[Found]]] = []
    plain: list[tuple[np.ndarray, Segment]] = []  # all segments without an index are searched as one
    start = 0
    for segment in contents.segments:
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


def _in_memory(rows: Rows) -> Segment:
    return rows.in_memory()


SHARD_ROWS = 8192  #: images after which a build is safe on disk


def gallery_builder(
    location: str | os.PathLike[str],
    *,
    index: str = "flat",
    model: ModelFingerprint | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **settings: int,
) -> GalleryBuilder | MilvusBuilder:
    """What builds a gallery at a location: a ``GalleryBuilder``, or its like for Milvus.

    Args:
        location: a folder, ``NAME.db`` or ``milvus://HOST:PORT/COLLECTION``.
        index, model, overwrite, resume, settings: see ``GalleryBuilder``.

    Raises:
        InputError: see ``GalleryBuilder``; Milvus is not installed or does not answer.
    """
    place = parse_location(location)
    if isinstance(place, MilvusURI):
        from rga_reid.gallery.milvus import MilvusBuilder

        plan = IndexConfig(index, settings)
        return MilvusBuilder(place, plan, model, overwrite=overwrite, resume=resume)
    return GalleryBuilder(place, index=index, model=model, overwrite=overwrite, resume=resume, **settings)


def require_place(location: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse a location where no gallery may be built, before any work is done; nothing is written.

    Raises:
        InputError: something is there that ``overwrite`` and ``resume`` do not allow, or Milvus is not
            installed or does not answer.
    """
    place = parse_location(location)
    if not isinstance(place, MilvusURI):
        require_replaceable(place, overwrite=overwrite, resume=resume)
        return
    from rga_reid.gallery.milvus import require_free

    if not place.embedded or os.path.exists(place.uri):
        require_free(place, overwrite=overwrite, resume=resume)
    elif not os.path.isdir(os.path.dirname(place.uri)):
        raise InputError(f"{place}: cannot write there: its folder does not exist")


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
        location: see ``gallery_builder``.
        features: floating-point numbers ``(n, d)``; may be a mapped file.
        table, index, settings: see ``Gallery.build``.
        overwrite: see ``Gallery.save``.

    Raises:
        InputError: as for ``Gallery.build`` and ``Gallery.save``.
    """
    place = parse_location(location)
    plan, kept, (count, dimension) = IndexConfig(index, settings), gallery_table(table), features.shape
    require_nonempty(count)
    require_row_each(count, kept)
    plan.check_dimension(dimension)
    if isinstance(place, MilvusURI):
        from rga_reid.gallery.milvus import save_rows

        rows = NormalizedRows(features, 0, count)
        deque(rows.blocks(), maxlen=0)  # a row without a direction is told before any is sent
        blocks = ((vectors, kept.iloc[numbers]) for numbers, vectors in rows.blocks())
        return save_rows(place, plan, None, blocks, overwrite=overwrite)
    require_replaceable(place, overwrite=overwrite)  # before a folder is made
    with writing(place, create=True) as writer:
        require_replaceable(place, overwrite=overwrite)  # and nobody was faster
        segments, step = [], max_rows(plan, dimension)
        for start in range(0, count, step):
            part = kept[start : start + step].reset_index(drop=True)
            vectors = NormalizedRows(features, start, start + step)
            segments.append(writer.put(Rows(np.arange(start, start + len(part)), vectors, part, plan)))
        contents = Snapshot(dimension, plan, None, tuple(segments), count, writer.removals)
        writer.commit(contents)
    return FolderGallery(contents, place)


class GalleryBuilder:
    """Builds a gallery on disk from batches of features. A context manager, which holds the gallery's lock.

    Up to 8,192 rows are kept in memory, then written. ``finish`` joins what was written, makes the indexes
    and switches to the new gallery at once; until then an old one stays as it is. Where a build failed or was
    killed, ``resume`` goes on from what it had written; any other write to the same gallery removes that.

    Args:
        location: folder of the gallery.
        index, model, settings: see ``Gallery.build``.
        overwrite: replace the gallery that is there, when this one is finished.
        resume: go on with the build that was interrupted there, if there is one.

    Raises:
        InputError: a place where no gallery may be written, see ``Gallery.save``; an unknown index or
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
        self._folder, self._plan, self._model = Path(location), IndexConfig(index, settings), model
        self._check = partial(require_replaceable, self._folder, overwrite=overwrite, resume=resume)
        self._check()  # before a folder is made
        self._resume = resume and (self._folder / UNFINISHED).exists()
        self._contents: Snapshot | None = None
        self._buffer: list[Segment] = []
        self._stack = ExitStack()

    def __enter__(self) -> GalleryBuilder:
        with self._stack:  # unless all goes well, the lock is not kept
            self._writer = self._stack.enter_context(
                writing(self._folder, create=True, building=True, resume=self._resume)
            )
            self._check()  # and nobody was faster
            if self._resume:
                self._contents = self._unfinished()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def paths(self) -> set[str]:
        """Paths of the images that need not be added again."""
        return set() if self._contents is None else set(self._contents.table["path"])

    def add(self, features: Any, table: pd.DataFrame) -> None:
        """Take some rows.

        Args:
            features: numbers ``(n, d)``, d always the same.
            table: n rows, see ``Gallery.build``.

        Raises:
            InputError: rows that do not fit, as ``Gallery.add``; the disk is full.
        """
        vectors, kept = match_rows(features, table)
        if self._contents is None:
            self._plan.check_dimension(vectors.shape[1])
            self._contents = Snapshot(vectors.shape[1], IndexConfig(), self._model)  # shards need no index
        require_dimension(vectors.shape[1], self._contents.dimension)
        buffered = sum(map(len, self._buffer))
        first = self._contents.next_id + buffered
        self._buffer.append(Segment(np.arange(first, first + len(vectors)), vectors, kept))
        if buffered + len(vectors) >= SHARD_ROWS:
            self._flush()

    def finish(self) -> Gallery:
        """Make the gallery of all rows, and open it.

        Raises:
            InputError: there were none; the disk is full.
        """
        rows = [] if self._contents is None else [*self._contents.segments, *self._buffer]
        require_nonempty(sum(map(len, rows)))
        assert self._contents is not None  # it has rows
        segments = tuple(self._writer.put(segment) for segment in repack(rows, self._plan))
        next_id = int(segments[-1].ids[-1]) + 1
        contents = Snapshot(
            self._contents.dimension, self._plan, self._model, segments, next_id, self._writer.removals
        )
        self._writer.commit(contents)
        (self._folder / UNFINISHED).unlink(missing_ok=True)
        return FolderGallery(contents, self._folder)

    def _flush(self) -> None:
        """Write the buffer, and note that it is there."""
        assert self._contents is not None  # `add` has seen to it
        shards = tuple(self._writer.put(segment) for segment in repack(self._buffer, self._contents.plan))
        self._contents = replace(
            self._contents,
            segments=(*self._contents.segments, *shards),
            next_id=int(shards[-1].ids[-1]) + 1,
        )
        self._writer.keep_unfinished(self._contents)
        self._buffer = []

    def _unfinished(self) -> Snapshot:
        """What an interrupted build had written."""
        manifest = read_manifest(self._folder / UNFINISHED)
        if manifest.generation != self._writer.generation:
            (self._folder / UNFINISHED).unlink()
            raise InputError(f"{self._folder}: nothing to resume: the build was finished")
        require_same_model(self._folder, manifest.model, self._model)
        self._plan.check_dimension(manifest.dimension)
        return read_contents(self._folder, manifest, mapped=True)
