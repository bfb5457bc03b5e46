"""Galleries larger than memory: rows stream in, a folder comes out, an interruption loses little."""

from __future__ import annotations

import os
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.retrieval.arrays import UnitRows, fitting_rows, gallery_table, require_row_each
from rga_reid.retrieval.contents import Contents
from rga_reid.retrieval.folder_gallery import FolderGallery
from rga_reid.retrieval.gallery import Gallery
from rga_reid.retrieval.gallery_folder import (
    UNFINISHED,
    read_contents,
    require_replaceable,
    writing,
)
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.manifest import read_manifest
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.places import MilvusPlace, place_of
from rga_reid.retrieval.refusals import require_dimension, require_same_model, require_some
from rga_reid.retrieval.segments import Rows, Segment, most_rows, packed

if TYPE_CHECKING:
    from rga_reid.retrieval.milvus_builder import MilvusBuilder

SHARD_ROWS = 8192  #: images after which a build is safe on disk


def gallery_builder(
    location: str | os.PathLike[str],
    *,
    index: str = "flat",
    model: ModelRecord | None = None,
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
    place = place_of(location)
    if isinstance(place, MilvusPlace):
        from rga_reid.retrieval.milvus_builder import MilvusBuilder

        plan = IndexPlan(index, settings)
        return MilvusBuilder(place, plan, model, overwrite=overwrite, resume=resume)
    return GalleryBuilder(place, index=index, model=model, overwrite=overwrite, resume=resume, **settings)


def require_place(location: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse a location where no gallery may be built, before any work is done; nothing is written.

    Raises:
        InputError: something is there that ``overwrite`` and ``resume`` do not allow, or Milvus is not
            installed or does not answer.
    """
    place = place_of(location)
    if not isinstance(place, MilvusPlace):
        require_replaceable(place, overwrite=overwrite, resume=resume)
        return
    from rga_reid.retrieval.milvus_builder import require_free

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
    place = place_of(location)
    plan, kept, (count, dimension) = IndexPlan(index, settings), gallery_table(table), features.shape
    require_some(count)
    require_row_each(count, kept)
    plan.check_dimension(dimension)
    if isinstance(place, MilvusPlace):
        from rga_reid.retrieval.milvus_builder import save_rows

        rows = UnitRows(features, 0, count)
        deque(rows.blocks(), maxlen=0)  # a row without a direction is told before any is sent
        blocks = ((vectors, kept.iloc[numbers]) for numbers, vectors in rows.blocks())
        return save_rows(place, plan, None, blocks, overwrite=overwrite)
    require_replaceable(place, overwrite=overwrite)  # before a folder is made
    with writing(place, create=True) as writer:
        require_replaceable(place, overwrite=overwrite)  # and nobody was faster
        segments, step = [], most_rows(plan, dimension)
        for start in range(0, count, step):
            part = kept[start : start + step].reset_index(drop=True)
            vectors = UnitRows(features, start, start + step)
            segments.append(writer.put(Rows(np.arange(start, start + len(part)), vectors, part, plan)))
        contents = Contents(dimension, plan, None, tuple(segments), count, writer.removals)
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
        model: ModelRecord | None = None,
        overwrite: bool = False,
        resume: bool = False,
        **settings: int,
    ) -> None:
        self._folder, self._plan, self._model = Path(location), IndexPlan(index, settings), model
        self._check = partial(require_replaceable, self._folder, overwrite=overwrite, resume=resume)
        self._check()  # before a folder is made
        self._resume = resume and (self._folder / UNFINISHED).exists()
        self._contents: Contents | None = None
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
        vectors, kept = fitting_rows(features, table)
        if self._contents is None:
            self._plan.check_dimension(vectors.shape[1])
            self._contents = Contents(vectors.shape[1], IndexPlan(), self._model)  # shards need no index
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
        require_some(sum(map(len, rows)))
        assert self._contents is not None  # it has rows
        segments = tuple(self._writer.put(segment) for segment in packed(rows, self._plan))
        next_id = int(segments[-1].ids[-1]) + 1
        contents = Contents(
            self._contents.dimension, self._plan, self._model, segments, next_id, self._writer.removals
        )
        self._writer.commit(contents)
        (self._folder / UNFINISHED).unlink(missing_ok=True)
        return FolderGallery(contents, self._folder)

    def _flush(self) -> None:
        """Write the buffer, and note that it is there."""
        assert self._contents is not None  # `add` has seen to it
        shards = tuple(self._writer.put(segment) for segment in packed(self._buffer, self._contents.plan))
        self._contents = replace(
            self._contents,
            segments=(*self._contents.segments, *shards),
            next_id=int(shards[-1].ids[-1]) + 1,
        )
        self._writer.keep_unfinished(self._contents)
        self._buffer = []

    def _unfinished(self) -> Contents:
        """What an interrupted build had written."""
        manifest = read_manifest(self._folder / UNFINISHED)
        if manifest.generation != self._writer.generation:
            (self._folder / UNFINISHED).unlink()
            raise InputError(f"{self._folder}: nothing to resume: the build was finished")
        require_same_model(self._folder, manifest.model, self._model)
        self._plan.check_dimension(manifest.dimension)
        return read_contents(self._folder, manifest, mapped=True)
