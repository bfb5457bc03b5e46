"""Galleries in Milvus: embedded in this process (Milvus Lite), or on a cluster. See docs/milvus.md.

``NAME`` is a collection of notes: number 0 says what the gallery is and which collection holds its images,
``NAME_1``, ``NAME_2``, ...; number 1 is the same of an unfinished build; from 2 on they are the log of
removals. Replacing note 0 switches from one state to the next at once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.retrieval.arrays import fitting_rows, gallery_table
from rga_reid.retrieval.contents import Contents, Removal
from rga_reid.retrieval.exact import MARGIN, rescored, rounding_error
from rga_reid.retrieval.gallery import Erasure, Gallery, labels_of, persons_and_files
from rga_reid.retrieval.hits import Hits
from rga_reid.retrieval.indexes import IndexPlan
from rga_reid.retrieval.manifest import FORMAT, METRIC
from rga_reid.retrieval.milvus_filters import expression
from rga_reid.retrieval.milvus_server import LABELS, LIMIT, TRAINED_ROWS, MilvusServer
from rga_reid.retrieval.model_record import ModelRecord
from rga_reid.retrieval.places import MilvusPlace, place_of
from rga_reid.retrieval.vectors import Vectors

VERSION = 1  #: raised when an older program could no longer read the collections
_CURRENT, _UNFINISHED, _FIRST_REMOVAL = 0, 1, 2


@dataclass(frozen=True)
class State:
    """What note 0 says of a gallery.

    Args:
        generation: number of the collection of its images.
        dimension, plan, model, next_id: as in ``Contents``.
    """

    generation: int
    dimension: int
    plan: IndexPlan
    model: ModelRecord | None
    next_id: int = 0

    def to_text(self) -> str:
        """As JSON."""
        plan = {"kind": self.plan.kind, "settings": dict(self.plan.settings)}
        model = None if self.model is None else self.model.to_json()
        known = {"format": FORMAT, "version": VERSION, "metric": METRIC}
        return json.dumps({**known, **asdict(self), "plan": plan, "model": model})

    @classmethod
    def from_text(cls, text: str, place: MilvusPlace) -> State:
        """What ``to_text`` wrote.

        Raises:
            InputError: another text.
        """
        try:
            value = json.loads(text)
            if (value["format"], value["version"], value["metric"]) != (FORMAT, VERSION, METRIC):
                raise ValueError(f"version {value['version']}; this program reads {VERSION}")
            return cls(
                int(value["generation"]),
                int(value["dimension"]),
                IndexPlan(value["plan"]["kind"], value["plan"]["settings"]),
                None if value["model"] is None else ModelRecord.from_json(value["model"]),
                int(value["next_id"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{place}: not a gallery of this program ({error})") from None


class MilvusGallery(Gallery):
    """A gallery in Milvus. Searches see what others have written since it was opened."""

    def __init__(self, server: MilvusServer, state: State) -> None:
        self._server, self._state = server, state
        server.load(self._images)

    @classmethod
    def of(cls, place: MilvusPlace) -> MilvusGallery:
        """The gallery at a place; ``InputError`` as for ``Gallery.open``."""
        server = MilvusServer(place)
        notes = server.notes(place.collection)
        if _CURRENT not in notes:
            raise InputError(f"{place}: no gallery there")
        return cls(server, State.from_text(notes[_CURRENT], place))

    @property
    def _name(self) -> str:
        return self._server.place.collection

    @property
    def _images(self) -> str:
        return images_name(self._name, self._state.generation)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        if place_of(path) == self._server.place:
            raise InputError(f"{self._server.place}: the gallery is there already")
        state = self._state
        rows = list(self._server.rows(self._images, state.next_id, [*LABELS, "vector"], state.dimension))
        settings = dict(state.plan.settings)
        vectors = np.concatenate([np.stack(part["vector"].to_numpy()).astype(np.float32) for part in rows])
        table = gallery_table(pd.concat(rows, ignore_index=True))
        Gallery.build(vectors, table, index=state.plan.kind, model=state.model, **settings).save(
            path, overwrite
        )

    def add(self, features: Any, table: pd.DataFrame, *, model: ModelRecord | None = None) -> None:
        vectors, kept = fitting_rows(features, table)
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

    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> Erasure:
        persons, files = persons_and_files(pids, paths)
        state = self._now()
        self._state = state
        found = []
        for column, wanted in (("pid", list(map(int, persons))), ("path", files)):
            rows = self._server.found(self._images, column, wanted, ["pid", "path"]) if wanted else None
            for value in wanted:
                if rows is None or value not in set(rows[column].dropna()):
                    raise InputError(f"{column} {value}: the gallery has no image of it; nothing was removed")
            found += [] if rows is None else [rows]
        goes = pd.concat(found, ignore_index=True).drop_duplicates("id")
        rewritten = 0
        if self._server.place.embedded:
            # Milvus Lite keeps deleted rows in its files until it joins them by rules of its own
            rewritten = self._rewrite(set(goes["id"].tolist()))
        else:
            self._server.delete(self._images, goes["id"].tolist())
            clean(self._server, self._state)
        self._log(goes["pid"])
        return Erasure(len(goes), int(rewritten > 0), int(rewritten > 0), rewritten)

    def compact(self) -> None:
        self._state = self._now()
        if self._server.place.embedded:
            self._rewrite(set())
        else:
            self._server.compact(self._images)

    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        state, seen = self._now(), 0
        for rows in self._server.rows(self._images, state.next_id, [*LABELS, "vector"], state.dimension):
            vectors = np.stack(rows["vector"].to_numpy()).astype(np.float64)
            lengths = np.sqrt((vectors**2).sum(axis=1))
            wrong = ~(np.abs(lengths - 1) < 1e-5)
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
        return self._server.count(self._images)

    @property
    def dimension(self) -> int:
        return self._state.dimension

    @property
    def model(self) -> ModelRecord | None:
        return self._state.model

    @property
    def table(self) -> pd.DataFrame:
        return gallery_table(self._rows(LABELS))

    @property
    def ids(self) -> np.ndarray:
        return self._rows([])["id"].to_numpy(np.int64)

    @property
    def removals(self) -> tuple[Removal, ...]:
        notes = self._server.notes(self._name)
        return tuple(Removal.from_line(notes[key]) for key in sorted(notes) if key >= _FIRST_REMOVAL)

    def known_paths(self, paths: Iterable[str]) -> set[str]:
        return set(self._server.found(self._images, "path", list(paths), ["path"])["path"])

    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        return self._server.count(self._images, self._where(exclude_camera, where))

    def describe(self) -> dict[str, Any]:
        plan = self._state.plan
        return {
            "index": plan.kind,
            "settings": None if plan.kind == "flat" else plan.chosen(TRAINED_ROWS, self.dimension),
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

    def _find(self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None) -> Hits:
        condition = self._where(exclude_camera, where)
        found = [self._nearest(query, top_k, condition) for query in queries]
        empty = gallery_table(pd.DataFrame({"path": []}))
        vectors = np.concatenate([np.empty((0, self.dimension), np.float32), *(hit[3] for hit in found)])
        return Hits(
            np.array([len(hit[0]) for hit in found], np.int64),
            np.concatenate([np.empty(0), *(hit[1] for hit in found)]),
            np.concatenate([np.empty(0, np.int64), *(hit[0] for hit in found)]),
            pd.concat([empty, *(hit[2] for hit in found)], ignore_index=True),
            lambda some: vectors[some],
        )

    def _nearest(
        self, query: np.ndarray, top_k: int, condition: str
    ) -> tuple[np.ndarray, np.ndarray, pd.DataFrame, np.ndarray]:
        """Ids, scores, labels and vectors, best first; as ``nearest_rows`` where the index is exact."""
        plan = self._state.plan
        chosen = {} if plan.kind == "flat" else plan.chosen(TRAINED_ROWS, self.dimension)
        limit = top_k * chosen.get("refine", 1) + MARGIN
        if limit > LIMIT:
            raise InputError(f"top_k: Milvus gives at most {LIMIT:,} candidates, {limit:,} are needed")
        error = rounding_error(self.dimension)
        while True:
            settings = {"nprobe": chosen["nprobe"]} if "nprobe" in chosen else {}
            if "ef_search" in chosen:
                settings = {"ef": max(chosen["ef_search"], limit)}
            ((ids, table, vectors, lowest),) = self._server.search(
                self._images, query[None], limit, condition, settings
            )
            order = np.argsort(ids)
            ids, table, vectors = ids[order], table.take(order).reset_index(drop=True), vectors[order]
            rows, scores = np.arange(len(ids)), np.empty(0)
            if len(ids):
                rows, scores = rescored(Vectors([vectors]), query, rows, top_k)
            # a row that was not given may tie with the last one, or beat it
            if plan.kind != "flat" or not len(scores) or scores[-1] > lowest + error or limit == LIMIT:
                break
            if np.isinf(lowest):
                break
            limit = min(2 * limit, LIMIT)
        return ids[rows], scores, table.take(rows).reset_index(drop=True), vectors[rows]

    def _where(self, exclude_camera: int | None, where: str | None) -> str:
        parts = [] if where is None else [expression(where)]
        if exclude_camera is not None:
            if not self._server.count(self._images, "camid is not null"):
                raise InputError(
                    f"exclude_camera {exclude_camera}: this gallery knows the camera of no image"
                )
            parts.append(f"(camid is null or camid != {exclude_camera})")
        return " and ".join(parts)

    def _rows(self, columns: list[str]) -> pd.DataFrame:
        empty = pd.DataFrame({name: [] for name in ["id", *columns]})
        parts = list(self._server.rows(self._images, self._now().next_id, columns))
        return pd.concat(parts, ignore_index=True) if parts else empty

    def _now(self) -> State:
        """What the gallery is now, whoever wrote last."""
        notes = self._server.notes(self._name)
        if _CURRENT not in notes:
            raise InputError(f"{self._server.place}: the gallery is gone")
        state = State.from_text(notes[_CURRENT], self._server.place)
        if state.generation != self._state.generation:
            self._server.load(images_name(self._name, state.generation))
            self._state = state
        return state

    def _become(self, state: State) -> None:
        self._server.write_note(self._name, _CURRENT, state.to_text())
        self._state = state

    def _rewrite(self, without: set[int]) -> int:
        """Copy all rows but some to a new collection and switch to it; returns how many were copied."""
        old, copied = self._state, 0
        new = replace(old, generation=_unused(self._server, self._name))
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
        self._become(new)
        clean(self._server, new)
        return copied

    def _log(self, pids: pd.Series) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        number = max([_FIRST_REMOVAL - 1, *self._server.notes(self._name)]) + 1
        for pid, count in pids.astype("Int64").value_counts(dropna=False, sort=False).items():
            line = Removal(now, None if pid is pd.NA else int(pid), int(count)).to_line()
            self._server.write_note(self._name, number, line)
            number += 1


def images_name(name: str, generation: int) -> str:
    """The collection of a gallery's images."""
    return f"{name}_{generation}"


def clean(server: MilvusServer, state: State) -> None:
    """Delete the collections of images that a gallery's state does not name: of writes that were killed."""
    name = server.place.collection
    if server.notes(name).get(_UNFINISHED):
        server.write_note(name, _UNFINISHED, "")
    for other in server.collections():
        if re.fullmatch(rf"{re.escape(name)}_[0-9]+", other) and other != images_name(name, state.generation):
            server.drop(other)


def _unused(server: MilvusServer, name: str) -> int:
    numbers = [other.rpartition("_")[2] for other in server.collections() if other.startswith(f"{name}_")]
    return max([0, *(int(number) for number in numbers if number.isdecimal())]) + 1


def save_rows(place: MilvusPlace, contents: Contents, *, overwrite: bool) -> None:
    """Write a gallery's rows to Milvus; what ``Gallery.save`` does there."""
    builder = MilvusBuilder(place, contents.plan, contents.model, overwrite=overwrite, resume=False)
    with builder:
        for segment in contents.segments:
            builder.add(segment.vectors, segment.table)
        builder.finish()


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
        self._server = require_free(place, overwrite=overwrite, resume=resume)
        notes = self._server.notes(place.collection)
        self._state = (
            State.from_text(notes[_UNFINISHED], place) if resume and notes.get(_UNFINISHED) else None
        )
        if self._state is not None and not _same(self._state.model, model):
            raise InputError(f"{place}: the unfinished build used another model; --overwrite starts over")

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
        name = self._server.place.collection
        if self._state is None:
            self._plan.check_dimension(vectors.shape[1])
            self._server.create_notes(name)
            generation = _unused(self._server, name)
            self._state = State(generation, vectors.shape[1], self._plan, self._model)
            self._server.create_images(self._images, vectors.shape[1], self._plan)
        if vectors.shape[1] != self._state.dimension:
            raise InputError(
                f"features: of dimension {vectors.shape[1]}, but those before of {self._state.dimension}"
            )
        ids = np.arange(self._state.next_id, self._state.next_id + len(vectors))
        self._state = replace(self._state, next_id=self._state.next_id + len(vectors))
        self._server.write_note(name, _UNFINISHED, self._state.to_text())
        self._server.insert(self._images, ids, vectors, kept)

    def finish(self) -> Gallery:
        """Switch to the new gallery, and open it.

        Raises:
            InputError: there were no rows.
        """
        if self._state is None or not self._state.next_id:
            raise InputError("features: expected at least one row, got an empty gallery")
        name = self._server.place.collection
        self._server.flush(self._images)
        gallery = MilvusGallery(self._server, replace(self._state, plan=self._plan))
        self._server.write_note(name, _CURRENT, self._state.to_text())
        clean(self._server, self._state)
        return gallery


def require_free(place: MilvusPlace, *, overwrite: bool, resume: bool) -> MilvusServer:
    """A connection to a place where a gallery may be built; ``InputError`` if one is there."""
    existed = os.path.exists(place.uri)
    server = MilvusServer(place, create=True)
    notes = server.notes(place.collection) if existed or not place.embedded else {}
    if notes.get(_UNFINISHED) and not (overwrite or resume):
        raise InputError(f"{place}: holds an unfinished build; --resume goes on, --overwrite starts over")
    if notes.get(_CURRENT) and not overwrite and not (resume and notes.get(_UNFINISHED)):
        raise InputError(f"{place}: exists already; choose another name or give --overwrite")
    if not notes and place.collection in server.collections():
        raise InputError(f"{place}: a collection of this name exists already, and is no gallery")
    return server


def _same(old: ModelRecord | None, new: ModelRecord | None) -> bool:
    return old == new or (old is not None and new is not None and old.is_same(new))
