"""Galleries: build one from features, save it, open it, ask who is nearest, add and forget."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.retrieval.arrays import fitting_rows, unit_rows
from rga_reid.retrieval.contents import Contents, Put, Removal, added, compacted, removed
from rga_reid.retrieval.exact import Found, nearest_rows
from rga_reid.retrieval.filters import rows_where
from rga_reid.retrieval.gallery_folder import (
    folder_of,
    read_gallery,
    require_replaceable,
    update,
    verify_folder,
    writing,
)
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.manifest import METRIC
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.segments import Segment
from rga_reid.retrieval.vectors import Vectors


@dataclass(frozen=True)
class Erasure:
    """What a removal did."""

    images: int  #: removed
    segments: int  #: made again without them
    indexes: int  #: of those segments, made anew
    rewritten: int  #: other images in those segments


class Gallery:
    """Images of people, searchable by appearance. Made by ``Gallery.build`` or ``Gallery.open``.

    A gallery that was built is in memory, and ``save`` writes a copy. One that was opened is on disk: what
    ``add``, ``remove`` and ``compact`` do is on disk when they return. It searches the state that it opened
    or last wrote, whatever other programs write meanwhile.
    """

    def __init__(self, contents: Contents, folder: Path | None = None) -> None:
        self._contents, self._folder = contents, folder

    @classmethod
    def build(
        cls,
        features: Any,
        table: pd.DataFrame,
        *,
        index: str = "flat",
        model: ModelRecord | None = None,
        **settings: int,
    ) -> Gallery:
        """A gallery in memory.

        Args:
            features: numbers ``(n, d)``, of any length: they are L2-normalised.
            table: n rows in the same order: ``path`` (the files need not exist), optionally ``pid`` and
                ``camid``, whole numbers, null where unknown.
            index: ``flat``, which searches exactly, or an approximate one: ``hnsw``, ``ivf``, ``ivfpq``. With
                fewer than 1,024 images all search exactly.
            model: what embedded the images, see ``ModelRecord.of``; None if unknown.
            settings: of the index, in place of those chosen by its size: ``hnsw_m``, ``ef_construction``,
                ``ef_search``; ``nlist``, ``nprobe``; ``pq_m``, ``pq_bits``, ``refine``: see
                docs/galleries.md.

        Raises:
            InputError: no rows, features and table that do not fit together, a row without a direction, an
                unknown index or setting.
        """
        plan = IndexPlan(index, settings)
        vectors, kept = fitting_rows(features, table)
        if len(vectors) == 0:
            raise InputError("features: expected at least one row, got an empty gallery")
        plan.check_dimension(vectors.shape[1])
        empty = Contents(vectors.shape[1], plan, model)
        return cls(added(empty, vectors, kept, _in_memory))

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Gallery:
        """The gallery in a folder that ``save`` wrote.

        The manifest, the sizes and the headers of all files are checked, not every byte: see ``verify``.

        Raises:
            InputError: no gallery there, one of another version, or a file that is missing, damaged or
                foreign: the message names it.
        """
        folder = folder_of(location)
        return cls(read_gallery(folder), folder)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a copy of the gallery to a folder: whole, or not at all.

        Args:
            path: a folder that does not exist, or is empty.
            overwrite: replace the gallery that is there; its log of removals is kept.

        Raises:
            InputError: the folder exists, or holds other things than a gallery (they are never deleted), is
                being written by another program, or cannot be written. An old gallery stays as it was.
        """
        require_replaceable(path, overwrite=overwrite)  # before a folder is made
        with writing(folder_of(path), create=True) as writer:
            require_replaceable(path, overwrite=overwrite)  # and nobody was faster
            segments = tuple(writer.put(segment) for segment in self._contents.segments)
            writer.commit(replace(self._contents, segments=segments, removals=writer.removals))

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelRecord | None = None) -> None:
        """Add images at the end.

        Their segment is new; what is there is not written again, except small segments at the end, which are
        joined with it (up to 4,096 images).

        Args:
            features: numbers ``(n, d)``, as for ``build``.
            table: n rows, as for ``build``. A path may occur more than once.
            model: what embedded them; None is taken on trust.

        Raises:
            InputError: another dimension, another model, and as for ``build``; for an opened gallery also as
                for ``save``.
        """
        vectors, kept = fitting_rows(features, table)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)
        if len(vectors):
            self._change(lambda old, put: added(old, vectors, kept, put))

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> Erasure:
        """Erase all images of some persons, and those of some paths.

        When it returns, their vectors and rows are in no file of the gallery. The segments that held them are
        made again, and their indexes too: no index can forget. The log of removals gets a line for each
        person: time, pid and number of images.

        Args:
            pids: one or more.
            paths: one or more, as in ``table``.

        Returns:
            What was removed, and how much was written again for it.

        Raises:
            InputError: nothing given; a pid or path without an image (nothing is removed then); for an opened
                gallery also as for ``save``.
        """
        persons = [pids] if isinstance(pids, int | np.integer) else list(pids)
        files = [paths] if isinstance(paths, str) else list(paths)
        if not persons and not files:
            raise InputError("remove: expected pids or paths")
        old, new = self._change(lambda contents, put: removed(contents, persons, files, put))
        made = [segment for segment in new.segments if segment not in old.segments]
        indexes = sum(segment.index is not None for segment in made)
        return Erasure(len(old) - len(new), len(made), indexes, sum(map(len, made)))

    def compact(self) -> None:
        """Join the segments that ``add`` and ``remove`` left, and make their indexes anew.

        Raises:
            InputError: for an opened gallery as for ``save``.
        """
        self._change(compacted)

    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        """Check every byte of every file of an opened gallery, as it is on disk now.

        Args:
            progress: told the share that is done.

        Returns:
            Number of files checked; 0 for a gallery in memory.

        Raises:
            InputError: files that are damaged or missing, by name; or a writer changed the gallery meanwhile.
        """
        return 0 if self._folder is None else verify_folder(self._folder, progress)

    def search(
        self,
        features: Any,
        top_k: int = 10,
        *,
        exclude_camera: int | None = None,
        where: str | None = None,
        with_ids: bool = False,
    ) -> pd.DataFrame:
        """The nearest images to each query.

        The score is the cosine: the float64 dot product of the two float32 rows, L2-normalised. Ties go to
        the earlier gallery row. With a flat index the answer depends on no other query, thread count or
        machine; an approximate index may miss a match (``describe`` tells its recall), never its score.

        Args:
            features: numbers ``(q, d)``, one row per query.
            top_k: matches per query; where the gallery has fewer, all of them.
            exclude_camera: leave out the images of this camera. An image of an unknown camera stays.
            where: search only the images that this filter keeps, such as ``camid == 3 and pid in (1, 2)``,
                over ``pid``, ``camid`` and ``path``: see docs/galleries.md.
            with_ids: give the ids of the images in a last column ``id``.

        Returns:
            Columns ``query`` (from 0), ``rank`` (from 1), ``score``, ``path``, ``pid``, ``camid``, sorted by
            ``query``, then ``rank``.

        Raises:
            InputError: features of another dimension, a row without a direction, ``top_k`` below 1, a camera
                to leave out of a gallery without any known camera, a filter that cannot be understood.
        """
        try:
            wanted = operator.index(top_k)
        except TypeError:
            wanted = 0
        if wanted < 1:
            raise InputError(f"top_k: expected a whole number of at least 1, got {top_k!r}")
        queries = unit_rows(features, name="query features")
        self._require_dimension("query features", queries)
        found = list(self._nearest(queries, wanted, self._kept(exclude_camera, where)))
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
        matches = self._contents.table.take(rows).reset_index(drop=True)
        matches.insert(0, "query", np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found]))
        matches.insert(1, "rank", matches.groupby("query").cumcount() + 1)
        matches.insert(2, "score", np.concatenate([np.empty(0), *(scores for _, scores in found)]))
        return matches.assign(id=self._contents.ids[rows]) if with_ids else matches

    def require_model(self, model: ModelRecord) -> None:
        """Refuse features of another model, or of another preprocessing.

        Raises:
            InputError: ``model`` is not the one that this gallery remembers, if it remembers one.
        """
        own = self.model
        if own is not None and not own.is_same(model):
            raise InputError(
                f"model {model.checkpoint}: the gallery was built with another model: {own.checkpoint}, "
                f"SHA-256 {own.sha256[:12]}..., or with other preprocessing"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._contents)

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return self._contents.dimension

    @property
    def model(self) -> ModelRecord | None:
        """What embedded the images; None if unknown."""
        return self._contents.model

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table ``path, pid, camid``, one row per image."""
        return self._contents.table.copy()

    @property
    def ids(self) -> np.ndarray:
        """A number for each row of ``table``, int64: given once, in the order of adding, and never again."""
        return self._contents.ids.copy()

    @property
    def removals(self) -> tuple[Removal, ...]:
        """The log of removals: time, pid and number of images of each."""
        return self._contents.removals

    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        """How many images a search with these limits looks at; ``InputError`` as for ``search``."""
        kept = self._kept(exclude_camera, where)
        return len(self) if kept is None else int(kept.sum())

    def describe(self) -> dict[str, Any]:
        """What the gallery holds, as a JSON object.

        ``identities`` counts distinct pids without junk (−1), ``unlabelled`` the images of unknown pid;
        ``cameras`` lists the known ones. ``settings`` are those of the index of the largest segment, null
        if all are searched exactly; ``recall_at_10`` is the mean over images of what was measured against the
        exact search, see docs/galleries.md.
        """
        contents = self._contents
        pids, camids = contents.table["pid"], contents.table["camid"]
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
            "identities": int(pids[pids >= 0].nunique()),
            "unlabelled": int(pids.isna().sum()),
            "cameras": sorted(int(camera) for camera in camids.dropna().unique()),
            "removals": len(contents.removals),
            "model": None if contents.model is None else contents.model.to_json(),
        }

    def _change(self, change: Callable[[Contents, Put], Contents]) -> tuple[Contents, Contents]:
        """Go to another state, on disk if the gallery is there; returns the state before and the new one."""
        if self._folder is None:
            states = self._contents, change(self._contents, _in_memory)
        else:
            states = update(self._folder, change)
        self._contents = states[1]
        return states

    def _require_dimension(self, name: str, matrix: np.ndarray) -> None:
        if matrix.shape[1] != self.dimension:
            raise InputError(
                f"{name}: of dimension {matrix.shape[1]}, but the gallery's have {self.dimension}: "
                "another model made them"
            )

    def _kept(self, exclude_camera: int | None, where: str | None) -> np.ndarray | None:
        """Which rows may be found, bool ``(n,)``; None for all."""
        kept = None
        if exclude_camera is not None:
            camids = self._contents.table["camid"]
            if camids.isna().all():
                raise InputError(
                    f"exclude_camera {exclude_camera}: this gallery knows the camera of no image"
                )
            kept = (camids != exclude_camera).fillna(True).to_numpy(dtype=bool)
        if where is not None:
            chosen = rows_where(self._contents.table, where)
            kept = chosen if kept is None else kept & chosen
        return kept

    def _nearest(self, queries: np.ndarray, top_k: int, keep: np.ndarray | None) -> Iterator[Found]:
        """Row numbers and scores for each query: the best of what the segments' searches find."""
        groups: list[tuple[np.ndarray, Iterator[Found]]] = []
        plain: list[tuple[np.ndarray, Segment]] = []  # all segments without an index are searched as one
        start = 0
        for segment in self._contents.segments:
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
        for _ in queries:
            answers = [(rows[found], scores) for rows, search in groups for found, scores in [next(search)]]
            found = np.concatenate([np.empty(0, np.int64), *(found for found, _ in answers)])
            scores = np.concatenate([np.empty(0), *(scores for _, scores in answers)])
            order = np.lexsort((found, -scores))[:top_k]
            yield found[order], scores[order]


def _in_memory(segment: Segment) -> Segment:
    return segment
