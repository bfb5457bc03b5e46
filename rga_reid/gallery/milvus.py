"""Galleries in Milvus: embedded in this process (Milvus Lite), or on a cluster. See docs/milvus.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.gallery.gallery import (
    Gallery,
    RemovalResult,
    SearchResults,
    camera_number,
    labels_of,
    parse_targets,
)
from rga_reid.gallery.index import MARGIN, IndexConfig, Vectors, rescore, rounding_error
from rga_reid.gallery.location import MilvusURI, parse_location
from rga_reid.gallery.manifest import METRIC
from rga_reid.gallery.milvus_client import (
    CURRENT,
    LABELS,
    LIMIT,
    TRAINED_ROWS,
    UNFINISHED,
    Answer,
    MilvusServer,
    State,
    collect_garbage,
    expression,
    images_name,
    log_notes,
    read_log,
    unused_generation,
)
from rga_reid.gallery.segments import DeletionRecord, append_log
from rga_reid.gallery.validation import (
    gallery_table,
    is_normalized,
    match_rows,
    no_camera_error,
    require_dimension,
    require_finished,
    require_nonempty,
    require_present,
    require_same_index,
    require_same_model,
)
from rga_reid.inference.distributed import BLOCK_ROWS, iter_blocks
from rga_reid.models.checkpoints import ModelFingerprint

T = TypeVar("T")


class MilvusGallery(Gallery):
    """A gallery in Milvus. Searches see what others have written since it was opened."""

    def __init__(self, server: MilvusServer, state: State) -> None:
        self._server, self._state = server, state
        server.load(self._images)

    @classmethod
    def of(cls, place: MilvusURI) -> MilvusGallery:
        """The gallery at a place; ``InputError`` as for ``Gallery.open``."""
        server = MilvusServer(place)
        notes = server.notes(place.collection)
        if not notes.get(CURRENT):
            raise InputError(f"{place}: no gallery there")
        return cls(server, State.from_text(notes[CURRENT], place))

    @property
    def _name(self) -> str:
        return self._server.place.collection

    @property
    def _images(self) -> str:
        return images_name(self._name, self._state.generation)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        if parse_location(path) == self._server.place:
            raise InputError(f"{self._server.place}: the gallery is there already")
        place, state = parse_location(path), self._now()
        rows = self._server.rows(self._images, state.next_id, [*LABELS, "vector"], state.dimension)
        blocks = (
            (np.stack(part["vector"].to_numpy()).astype(np.float32), gallery_table(part)) for part in rows
        )
        if isinstance(place, MilvusURI):
            save_rows(place, state.plan, state.model, blocks, overwrite=overwrite)
            return
        parts = list(blocks)
        require_nonempty(len(parts))
        vectors = np.concatenate([features for features, _ in parts])
        table = pd.concat([part for _, part in parts], ignore_index=True)
        settings = dict(state.plan.settings)
        Gallery.build(vectors, table, index=state.plan.kind, model=state.model, **settings).save(
            path, overwrite
        )

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelFingerprint | None = None) -> None:
        vectors, kept = match_rows(features, table)
        self._require_dimension("features", vectors)
        if model is not None:
            self.require_model(model)
        if not len(vectors):
            return
        state = self._now()
        ids = np.arange(state.next_id, state.next_id + len(vectors))
        # first the ids, then the rows: no id is given twice, whenever this is interrupted
        self._become(replace(state, next_id=state.next_id + len(vectors)))
        self._server.insert(self._images, ids, vectors, kept)
        self._server.flush(self._images)

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> RemovalResult:
        persons, files = parse_targets(pids, paths)
        state = self._now()
        self._state = state
        found = []
        for column, wanted in (("pid", list(map(int, persons))), ("path", files)):
            if wanted:
                rows = self._found(column, wanted, ["pid", "path"])
                require_present(column, wanted, rows[column].dropna())
                found.append(rows)
        goes = pd.concat(found, ignore_index=True).drop_duplicates("id")
        rewritten = 0
        if self._server.place.embedded:
            # Milvus Lite keeps deleted rows in its files until it joins them by rules of its own
            rewritten = self._rewrite(set(goes["id"].tolist()), self._log_of(goes["pid"]))
        else:
            self._server.delete(self._images, goes["id"].tolist())
            collect_garbage(self._server, self._state)
            self._server.write_notes(self._name, self._log_of(goes["pid"]))
        return RemovalResult(len(goes), int(rewritten > 0), int(rewritten > 0), rewritten)

    def compact(self) -> None:
        self._state = self._now()
        if self._server.place.embedded:
            self._rewrite(set(), {})
        else:
            self._server.compact(self._images)

    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        state, seen = self._now(), 0
        for rows in self._server.rows(self._images, state.next_id, [*LABELS, "vector"], state.dimension):
            vectors = np.stack(rows["vector"].to_numpy())
            wrong = ~is_normalized(vectors)
            if vectors.shape[1] != state.dimension or wrong.any():
                bad = int(rows["id"][int(np.argmax(wrong))])
                raise InputError(f"{self._server.place}: damaged: image {bad} has no vector of length 1")
            gallery_table(rows, name=str(self._server.place))
            seen += len(rows)
            progress(float(rows["id"].iloc[-1] + 1) / state.next_id)
        if seen != len(self):
            raise InputError(f"{self._server.place}: {len(self):,} images counted, {seen:,} found")
        return seen

    def __len__(self) -> int:
        return self._asked(lambda: self._server.count(self._images))

    @property
    def dimension(self) -> int:
        return self._state.dimension

    @property
    def model(self) -> ModelFingerprint | None:
        return self._state.model

    @property
    def table(self) -> pd.DataFrame:
        return gallery_table(self._rows(LABELS))

    @property
    def ids(self) -> np.ndarray:
        return self._rows([])["id"].to_numpy(np.int64)

    @property
    def removals(self) -> tuple[DeletionRecord, ...]:
        return read_log(self._server.notes(self._name), self._server.place)

    def known_paths(self, paths: Iterable[str]) -> set[str]:
        self._state = self._now()
        return set(self._found("path", list(paths), ["path"])["path"])

    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        camera = camera_number(exclude_camera)
        return self._asked(lambda: self._server.count(self._images, self._where(camera, where)))

    def describe(self) -> dict[str, Any]:
        plan = self._state.plan
        return {
            "index": plan.kind,
            "settings": self._chosen() or None,
            "recall_at_10": None,
            "metric": METRIC,
            "count": len(self),
            "dimension": self.dimension,
            "segments": None,
            **labels_of(gallery_table(self._rows(["pid", "camid"]).assign(path=""))),
            "removals": len(self.removals),
            "model": None if self.model is None else self.model.to_json(),
        }

    def size_on_disk(self) -> int | None:
        return self._server.size()

    def _find(
        self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None
    ) -> SearchResults:
        return self._asked(lambda: self._hits(queries, top_k, exclude_camera, where))

    def _hits(
        self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None
    ) -> SearchResults:
        condition, limit = self._where(exclude_camera, where), self._candidates(top_k)
        answers = self._server.search(self._images, queries, limit, condition, self._settings(limit))
        found = [
            self._best(query, top_k, condition, limit, answer)
            for query, answer in zip(queries, answers, strict=True)
        ]
        empty = gallery_table(pd.DataFrame({"path": []}))
        vectors = np.concatenate([np.empty((0, self.dimension), np.float32), *(hit.vectors for hit in found)])
        return SearchResults(
            np.array([len(hit.ids) for hit in found], np.int64),
            np.concatenate([np.empty(0), *(hit.scores for hit in found)]),
            np.concatenate([np.empty(0, np.int64), *(hit.ids for hit in found)]),
            pd.concat([empty, *(hit.table for hit in found)], ignore_index=True),
            lambda some: vectors[some],
        )

    def _chosen(self) -> dict[str, int]:
        plan = self._state.plan
        return {} if plan.kind == "flat" else plan.chosen(TRAINED_ROWS, self.dimension)

    def _candidates(self, top_k: int) -> int:
        """How many rows to ask of Milvus."""
        limit = top_k * self._chosen().get("refine", 1) + MARGIN
        if limit > LIMIT:
            raise InputError(f"top_k: Milvus gives at most {LIMIT:,} candidates, {limit:,} are needed")
        return limit

    def _settings(self, limit: int) -> dict[str, int]:
        chosen = self._chosen()
        if "ef_search" in chosen:
            return {"ef": max(chosen["ef_search"], limit)}
        return {"nprobe": chosen["nprobe"]} if "nprobe" in chosen else {}

    def _best(self, query: np.ndarray, top_k: int, condition: str, limit: int, answer: Answer) -> Answer:
        """The best of an answer by their exact scores, which come in place of the lowest product.

        As ``search_exact`` where the index is exact: a row that was not given may tie with the last one, or
        beat it; then more are asked for.
        """
        error = rounding_error(self.dimension)
        while True:
            order = np.argsort(answer.ids)
            vectors = answer.vectors[order]
            rows, scores = rescore(Vectors([vectors]), query, np.arange(len(order)), top_k)
            done = self._state.plan.kind != "flat" or np.isinf(answer.lowest) or limit == LIMIT
            if done or scores[-1] > answer.lowest + error:
                table = answer.table.take(order[rows]).reset_index(drop=True)
                return Answer(answer.ids[order[rows]], table, vectors[rows], answer.lowest, scores)
            limit = min(2 * limit, LIMIT)
            (answer,) = self._server.search(
                self._images, query[None], limit, condition, self._settings(limit)
            )

    def _where(self, exclude_camera: int | None, where: str | None) -> str:
        parts = [] if where is None else [expression(where)]
        if exclude_camera is not None:
            if not self._server.count(self._images, "camid is not null"):
                raise no_camera_error(exclude_camera)
            parts.append(f"(camid is null or camid != {exclude_camera})")
        return " and ".join(parts)

    def _found(self, column: str, values: list[Any], columns: list[str]) -> pd.DataFrame:
        return self._server.found(self._images, column, values, columns, self._state.next_id)

    def _rows(self, columns: list[str]) -> pd.DataFrame:
        empty = pd.DataFrame({name: [] for name in ["id", *columns]})
        state = self._now()  # which may be in another collection
        parts = list(self._server.rows(self._images, state.next_id, columns))
        return pd.concat(parts, ignore_index=True) if parts else empty

    def _now(self) -> State:
        """What the gallery is now, whoever wrote last."""
        notes = self._server.notes(self._name)
        if not notes.get(CURRENT):
            raise InputError(f"{self._server.place}: the gallery is gone")
        state = State.from_text(notes[CURRENT], self._server.place)
        if state.generation != self._state.generation:
            if not state.is_like(self._state):  # features that were made for this one would find nonsense
                raise InputError(
                    f"{self._server.place}: replaced, since it was opened, by a gallery of another model"
                )
            self._server.load(images_name(self._name, state.generation))
            self._state = state
        return state

    def _asked(self, ask: Callable[[], T]) -> T:
        """An answer of the gallery, also where another program has replaced it since it was opened."""
        generation = self._state.generation
        try:
            return ask()
        except InputError:
            if self._now().generation == generation:
                raise
            return ask()

    def _become(self, state: State, log: Mapping[int, str] = MappingProxyType({})) -> None:
        """Switch to another state, and log at the same time what was removed."""
        self._server.write_notes(self._name, {**log, CURRENT: state.to_text()})
        self._state = state

    def _rewrite(self, without: set[int], log: Mapping[int, str]) -> int:
        """Copy all rows but some to a new collection and switch to it; returns how many were copied."""
        old, copied = self._state, 0
        new = replace(old, generation=unused_generation(self._server, self._name))
        name = images_name(self._name, new.generation)
        self._server.create_images(name, old.dimension, old.plan)
        for rows in self._server.rows(self._images, old.next_id, [*LABELS, "vector"], old.dimension):
            rest = rows[~rows["id"].isin(without)].reset_index(drop=True)
            if len(rest):
                vectors = np.stack(rest["vector"].to_numpy()).astype(np.float32)
                self._server.insert(name, rest["id"].to_numpy(np.int64), vectors, gallery_table(rest))
            copied += len(rest)
        self._server.flush(name)
        self._server.load(name)
        self._become(new, log)
        collect_garbage(self._server, new)
        return copied

    def _log_of(self, pids: pd.Series) -> dict[int, str]:
        """Notes that say of what persons images are removed."""
        return log_notes(self._server, self._name, append_log(pids.astype("Int64")))


def save_rows(
    place: MilvusURI,
    plan: IndexConfig,
    model: ModelFingerprint | None,
    rows: Iterable[tuple[np.ndarray, pd.DataFrame]],
    *,
    removals: Iterable[DeletionRecord] = (),
    overwrite: bool,
) -> Gallery:
    """Write rows to Milvus, a block at a time, and open the gallery of them, as ``Gallery.save`` does there.

    Args:
        place: in Milvus.
        plan, model: see ``Snapshot``.
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
        place: MilvusURI,
        plan: IndexConfig,
        model: ModelFingerprint | None,
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
        vectors, kept = match_rows(features, table)
        if self._state is not None:
            require_dimension(vectors.shape[1], self._state.dimension)
        elif self._buffer:
            require_dimension(vectors.shape[1], self._buffer[0][0].shape[1])
        self._buffer.append((vectors, kept))
        if sum(len(rows) for rows, _ in self._buffer) >= BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Send what was taken."""
        for vectors, kept in iter_blocks(iter(self._buffer)):
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

    def finish(self, removals: Iterable[DeletionRecord] = ()) -> Gallery:
        """Switch to the new gallery, and open it.

        Args:
            removals: lines that the log of removals gets at the same time.

        Raises:
            InputError: there were no rows.
        """
        self._flush()
        require_nonempty(0 if self._state is None else self._state.next_id)
        assert self._state is not None  # it has rows
        name = self._server.place.collection
        self._server.flush(self._images)
        gallery = MilvusGallery(self._server, self._state)
        log = log_notes(self._server, name, removals)
        self._server.write_notes(name, {**log, CURRENT: self._state.to_text()})
        collect_garbage(self._server, self._state)
        return gallery


def require_free(place: MilvusURI, *, overwrite: bool, resume: bool) -> MilvusServer:
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
