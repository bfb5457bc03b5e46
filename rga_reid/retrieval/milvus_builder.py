"""Galleries in Milvus, made from batches of rows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.retrieval.arrays import fitting_rows
from rga_reid.retrieval.contents import Removal
from rga_reid.retrieval.gallery import Gallery
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.milvus_gallery import MilvusGallery
from rga_reid.retrieval.milvus_server import MilvusServer
from rga_reid.retrieval.milvus_state import (
    CURRENT,
    UNFINISHED,
    State,
    clean,
    images_name,
    log_notes,
    unused_generation,
)
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.places import MilvusPlace
from rga_reid.retrieval.refusals import (
    require_dimension,
    require_finished,
    require_same_index,
    require_same_model,
    require_some,
)
from rga_reid.retrieval.team import BLOCK_ROWS, in_blocks


def save_rows(
    place: MilvusPlace,
    plan: IndexPlan,
    model: ModelRecord | None,
    rows: Iterable[tuple[np.ndarray, pd.DataFrame]],
    *,
    removals: Iterable[Removal] = (),
    overwrite: bool,
) -> Gallery:
    """Write rows to Milvus, a block at a time, and open the gallery of them, as ``Gallery.save`` does there.

    Args:
        place: in Milvus.
        plan, model: see ``Contents``.
        rows: blocks of features ``(n, d)`` and of the table.
        removals: lines that the log of removals gets.
        overwrite: see ``Gallery.save``.

    Raises:
        InputError: see ``MilvusBuilder``.
    """
    with MilvusBuilder(place, plan, model, overwrite=overwrite, resume=False) as builder:
        for features, table in rows:
            builder.add(features, table)
        return builder.finish(removals)


class MilvusBuilder:
    """Builds a gallery in Milvus from batches, as ``GalleryBuilder`` does in a folder."""

    def __init__(
        self,
        place: MilvusPlace,
        plan: IndexPlan,
        model: ModelRecord | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> None:
        self._plan, self._model = plan, model
        self._buffer: list[tuple[np.ndarray, pd.DataFrame]] = []
        self._server = require_free(place, overwrite=overwrite, resume=resume)
        notes = self._server.notes(place.collection)
        self._state = State.from_text(notes[UNFINISHED], place) if resume and notes.get(UNFINISHED) else None
        if self._state is not None:
            require_same_model(place, self._state.model, model)
            require_same_index(place, self._state.plan, plan)

    def __enter__(self) -> MilvusBuilder:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    @property
    def paths(self) -> set[str]:
        """Paths of the images that need not be added again."""
        if self._state is None:
            return set()
        self._server.load(self._images)
        rows = self._server.rows(self._images, self._state.next_id, ["path"])
        return {path for part in rows for path in part["path"]}

    @property
    def _images(self) -> str:
        assert self._state is not None  # asked for when there is one
        return images_name(self._server.place.collection, self._state.generation)

    def add(self, features: Any, table: pd.DataFrame) -> None:
        """Take some rows, see ``GalleryBuilder.add``."""
        vectors, kept = fitting_rows(features, table)
        if self._state is not None:
            require_dimension(vectors.shape[1], self._state.dimension)
        elif self._buffer:
            require_dimension(vectors.shape[1], self._buffer[0][0].shape[1])
        self._buffer.append((vectors, kept))
        if sum(len(rows) for rows, _ in self._buffer) >= BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Send what was taken."""
        for vectors, kept in in_blocks(iter(self._buffer)):
            self._send(vectors, kept)
        self._buffer = []

    def _send(self, vectors: np.ndarray, kept: pd.DataFrame) -> None:
        name = self._server.place.collection
        if self._state is None:
            self._plan.check_dimension(vectors.shape[1])
            self._server.create_notes(name)
            generation = unused_generation(self._server, name)
            self._state = State(generation, vectors.shape[1], self._plan, self._model)
            self._server.create_images(self._images, vectors.shape[1], self._plan)
        ids = np.arange(self._state.next_id, self._state.next_id + len(vectors))
        self._state = replace(self._state, next_id=self._state.next_id + len(vectors))
        self._server.write_notes(name, {UNFINISHED: self._state.to_text()})
        self._server.insert(self._images, ids, vectors, kept)

    def finish(self, removals: Iterable[Removal] = ()) -> Gallery:
        """Switch to the new gallery, and open it.

        Args:
            removals: lines that the log of removals gets at the same time.

        Raises:
            InputError: there were no rows.
        """
        self._flush()
        require_some(0 if self._state is None else self._state.next_id)
        assert self._state is not None  # it has rows
        name = self._server.place.collection
        self._server.flush(self._images)
        gallery = MilvusGallery(self._server, self._state)
        log = log_notes(self._server, name, removals)
        self._server.write_notes(name, {**log, CURRENT: self._state.to_text()})
        clean(self._server, self._state)
        return gallery


def require_free(place: MilvusPlace, *, overwrite: bool, resume: bool) -> MilvusServer:
    """A connection to a place where a gallery may be built; ``InputError`` if one is there."""
    existed = os.path.exists(place.uri)
    server = MilvusServer(place, create=True)
    notes = server.notes(place.collection) if existed or not place.embedded else {}
    require_finished(place, bool(notes.get(UNFINISHED)), overwrite=overwrite, resume=resume)
    if notes.get(CURRENT) and not overwrite and not (resume and notes.get(UNFINISHED)):
        raise InputError(f"{place}: exists already; choose another name or give --overwrite")
    if place.collection in server.collections() and not server.has_notes(place.collection):
        raise InputError(f"{place}: a collection of this name exists already, and is no gallery")
    return server
