"""Galleries on FAISS: in memory, or in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.files import size_of
from rga_reid.retrieval.arrays import fitting_rows
from rga_reid.retrieval.contents import Contents, Put, Removal, added, compacted, removed
from rga_reid.retrieval.exact import Found, nearest_rows
from rga_reid.retrieval.filters import rows_where
from rga_reid.retrieval.gallery import Erasure, Gallery, camera_number, labels_of, persons_and_files
from rga_reid.retrieval.gallery_folder import (
    read_gallery,
    require_replaceable,
    update,
    verify_folder,
    writing,
)
from rga_reid.retrieval.hits import Hits
from rga_reid.retrieval.manifest import METRIC
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.places import MilvusPlace, place_of
from rga_reid.retrieval.refusals import no_camera_known
from rga_reid.retrieval.segments import Rows, Segment
from rga_reid.retrieval.vectors import Vectors


class FolderGallery(Gallery):
    """A gallery whose segments are in memory, or files of a folder.

    Args:
        contents: what it holds.
        folder: where it is on disk; None if it is in memory.
    """

    def __init__(self, contents: Contents, folder: Path | None = None) -> None:
        self._contents, self._folder = contents, folder

    @classmethod
    def of(cls, folder: Path) -> FolderGallery:
        """The gallery in a folder; ``InputError`` as for ``Gallery.open``."""
        return cls(read_gallery(folder), folder)

    @classmethod
    def of_rows(cls, empty: Contents, vectors: np.ndarray, table: pd.DataFrame) -> FolderGallery:
        """A gallery in memory, of unit rows and their table."""
        return cls(added(empty, vectors, table, _in_memory))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        place = place_of(path)
        if isinstance(place, MilvusPlace):
            from rga_reid.retrieval.milvus_builder import save_rows

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

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelRecord | None = None) -> None:
        vectors, kept = fitting_rows(features, table)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)

        def change(old: Contents, put: Put) -> Contents:
            # another program may have put another gallery into the folder since this one was opened
            there = FolderGallery(old)
            there._require_dimension("features", vectors)
            model_of_rows = self.model if model is None else model
            if model_of_rows is not None:
                there.require_model(model_of_rows)
            return added(old, vectors, kept, put)

        if len(vectors):
            self._change(change)

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> Erasure:
        persons, files = persons_and_files(pids, paths)
        old, new = self._change(lambda contents, put: removed(contents, persons, files, put))
        made = [segment for segment in new.segments if segment not in old.segments]
        indexes = sum(segment.index is not None for segment in made)
        return Erasure(len(old) - len(new), len(made), indexes, sum(map(len, made)))

    def compact(self) -> None:
        self._change(compacted)

    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        return 0 if self._folder is None else verify_folder(self._folder, progress)

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def dimension(self) -> int:
        return self._contents.dimension

    @property
    def model(self) -> ModelRecord | None:
        return self._contents.model

    @property
    def table(self) -> pd.DataFrame:
        return self._contents.table.copy()

    @property
    def ids(self) -> np.ndarray:
        return self._contents.ids.copy()

    @property
    def _own_removals(self) -> tuple[Removal, ...]:
        """What was removed in memory, of which there is no log as yet."""
        return self._contents.removals if self._folder is None else ()

    @property
    def removals(self) -> tuple[Removal, ...]:
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

    def _change(self, change: Callable[[Contents, Put], Contents]) -> tuple[Contents, Contents]:
        """Go to another state, on disk if the gallery is there; returns the state before and the new one."""
        if self._folder is None:
            states = self._contents, change(self._contents, _in_memory)
        else:
            states = update(self._folder, change)
        self._contents = states[1]
        return states

    def _find(self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None) -> Hits:
        contents = self._contents  # one state, whatever another thread changes meanwhile
        found = list(_nearest(contents, queries, top_k, _kept(contents, exclude_camera, where)))
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
        vectors = Vectors([segment.vectors for segment in contents.segments])
        return Hits(
            np.array([len(rows) for rows, _ in found], np.int64),
            np.concatenate([np.empty(0), *(scores for _, scores in found)]),
            contents.ids[rows],
            contents.table.take(rows).reset_index(drop=True),
            lambda some: vectors.take(rows[some]),
        )


def _kept(contents: Contents, exclude_camera: int | None, where: str | None) -> np.ndarray | None:
    """Which rows may be found, bool ``(n,)``; None for all."""
    kept = None
    if exclude_camera is not None:
        camids = contents.table["camid"]
        if camids.isna().all():
            raise no_camera_known(exclude_camera)
        kept = (camids != exclude_camera).fillna(True).to_numpy(dtype=bool)
    if where is not None:
        chosen = rows_where(contents.table, where)
        kept = chosen if kept is None else kept & chosen
    return kept


def _nearest(contents: Contents, queries: np.ndarray, top_k: int, keep: np.ndarray | None) -> Iterator[Found]:
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
        groups.append((rows, nearest_rows(vectors, queries, top_k, None if keep is None else keep[rows])))
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
