"""Galleries that are built at a location, from batches of features or from a file of them."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import Schema, cast, join_schemas
from rga_reid.errors import InputError
from rga_reid.gallery.gallery import WAIT, Gallery
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import create_store
from rga_reid.gallery.store import Metadata, Rows
from rga_reid.gallery.validation import gallery_table, match_rows, require_nonempty, require_row_each
from rga_reid.models.checkpoints import ModelFingerprint

SHARD_ROWS = 8192  #: images that a build keeps in memory before it writes them


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
        columns: columns and types of the whole table, whose rows are added in parts.
        wait: seconds to wait for another program that is changing the gallery.

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
        columns: Schema | None = None,
        wait: float = WAIT,
        **settings: int,
    ) -> None:
        self._location, self._config, self._columns = location, IndexConfig(index, settings), columns
        self._store = create_store(location, self._config, model, overwrite=overwrite, resume=resume)
        self._store.wait = wait
        self._buffer: list[tuple[np.ndarray, pd.DataFrame]] = []
        self._stack = ExitStack()

    def __enter__(self) -> GalleryBuilder:
        with self._stack:  # the lock is released if anything fails
            self._stack.enter_context(self._store.transaction(resumable=True))
            metadata = self._store.metadata
            self._metadata = replace(metadata, columns=join_schemas(metadata.columns, self._columns or {}))
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
        vectors, kept, columns = match_rows(features, table, self._metadata.columns)
        dimension = self._metadata.dimension
        if dimension and vectors.shape[1] != dimension:
            raise InputError(f"features: of dimension {vectors.shape[1]}, but those before of {dimension}")
        self._config.check_dimension(vectors.shape[1])
        self._metadata = replace(self._metadata, dimension=vectors.shape[1], columns=columns)
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
            stop, columns = self._metadata.next_id + count, self._metadata.columns
            vectors = np.concatenate([rows for rows, _ in self._buffer])
            table = pd.concat([cast(rows, columns) for _, rows in self._buffer], ignore_index=True)
            if columns != self._store.metadata.columns:
                self._store.set_columns(columns)
            self._store.append(Rows(np.arange(stop - count, stop), table, vectors))
            self._metadata, self._buffer = replace(self._metadata, next_id=stop), []


def save_features(
    location: str | os.PathLike[str],
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    index: str = "flat",
    model: ModelFingerprint | None = None,
    overwrite: bool = False,
    wait: float = WAIT,
    **settings: int,
) -> Gallery:
    """Build a gallery at a location from a matrix that need not fit in memory, and open it.

    Args:
        location: see ``Gallery.open``.
        features: floating-point numbers ``(n, d)``; may be a mapped file.
        table, index, model, settings: see ``Gallery.build``.
        overwrite, wait: see ``Gallery.save``.

    Raises:
        InputError: as for ``Gallery.build`` and ``Gallery.save``.
    """
    config, (count, dimension) = IndexConfig(index, settings), features.shape
    kept, columns = gallery_table(table)
    require_nonempty(count)
    require_row_each(count, kept)
    config.check_dimension(dimension)
    store = create_store(location, config, model, overwrite=overwrite)
    store.wait = wait
    with store.transaction():
        store.set_columns(columns)
        store.append_features(features, kept)
        store.commit(Metadata(dimension, config, model, count, columns))
    return Gallery.open(location)
