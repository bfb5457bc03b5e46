"""The working part of a server: embeds and searches in batches, and writes changes in one thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from rga_reid.data.columns import CAMERA, label_value
from rga_reid.data.images import MAX_PIXELS
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation import ReRanking
from rga_reid.gallery.answers import answers_to_json
from rga_reid.gallery.filters import ID, Filter, is_among, other_cameras, parse_filter
from rga_reid.gallery.gallery import SHORTLIST, WAIT, Gallery
from rga_reid.gallery.grouped_search import PER_GROUP
from rga_reid.gallery.location import open_store
from rga_reid.gallery.milvus_uri import SCHEME
from rga_reid.gallery.segments import MAINTAINED_ROWS
from rga_reid.gallery.validation import gallery_table, normalize_rows
from rga_reid.inference.embedder import Embedder
from rga_reid.runtime import keep_freed_memory
from rga_reid.serving.batching import Batcher, chain
from rga_reid.serving.metrics import Metrics
from rga_reid.serving.problems import Problem
from rga_reid.serving.uploads import COLUMN, Picture, UploadStore, decode_upload

MAX_BATCH = 64  #: images embedded, or queries searched, at once
MAX_COMMIT = 4096  #: images added by one commit
DECODING_WAIT = 0.005  #: seconds that a batch waits for images that are being decoded
LOCK_WAIT = 5.0  #: seconds to wait for another writer of a folder at the start
_REFRESHED = 1.0  # seconds after which a gallery on a server is looked at again
_DESCRIBED = 5.0  # seconds for which the description of a gallery that others may change is kept


class SearchSettings(NamedTuple):
    """Settings of a search, see ``Gallery.search``. Queries of equal ones are searched together."""

    top_k: int = 10
    where: str | None = None
    rerank: ReRanking | None = None
    shortlist: int | None = None  #: by default 100, or as many as are wanted
    exclude_camera: int | str | None = None
    group_by: str | None = None
    per_group: int = PER_GROUP
    threshold: float | None = None  #: least score of a match
    left_out: tuple[int, ...] = ()  #: ids of images to exclude
    rejected: tuple[int, ...] = ()  #: ids of images of other people, see ``SearchBody.not_ids``


@dataclass(frozen=True)
class Addition:
    """Images to add.

    Args:
        features: unit rows, float32 ``(n, d)``.
        rows: n objects with the values of their columns.
        pictures: n uploaded pictures; none for features.
    """

    features: np.ndarray
    rows: Sequence[dict[str, Any]]
    pictures: Sequence[Picture] = ()


class _ConflictError(InputError):
    """Additions that cannot be written together: one has text where another has numbers."""


class Engine:
    """Serves a gallery. Its methods may be called by many threads.

    The server of a folder is its only writer: it holds the lock until ``close``. Readers use a state that was
    committed, and see a commit as soon as it is durable.

    Args:
        location: of the gallery.
        embedder: embeds images; None for a server that takes features only.
        images_root: folder of pictures, see ``rga_reid.serving.uploads``.
        read_only: no changes; the gallery is not locked, and changes of other programs are seen.
        workers: threads that embed.
        max_pixels: limit of an uploaded picture.
        metrics: counts batches.

    Raises:
        InputError: no gallery there; another program is changing it.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        embedder: Embedder | None = None,
        *,
        images_root: Path | None = None,
        read_only: bool = False,
        workers: int = 1,
        max_pixels: int = MAX_PIXELS,
        metrics: Metrics | None = None,
    ) -> None:
        metrics = Metrics() if metrics is None else metrics
        self.embedder, self.read_only = embedder, read_only
        self.uploads = None if images_root is None else UploadStore(images_root)
        self._max_pixels = max_pixels
        # a Milvus server is shared with other programs, and a writer's view of it changes before it is committed
        self._is_shared = os.fspath(location).startswith(SCHEME)
        store = open_store(location)
        store.wait = WAIT if self._is_shared else LOCK_WAIT
        self._writer, self._reader = Gallery(store), open_store(location) if self._is_shared else store
        self._store = store
        self._stack, self._refreshing = ExitStack(), threading.Lock()
        if not read_only:
            self._stack.enter_context(store.exclusive())
            store.refresh()
            if self.uploads is not None:
                self.uploads.create()
                with self.uploads.changing():
                    self.uploads.recover(self._names_in_use)
        self._publish()
        self._refreshed, self._added = time.monotonic(), 0
        self._description: tuple[Gallery, float, dict[str, Any]] | None = None
        self._stack.enter_context(keep_freed_memory())
        self._decoders = ThreadPoolExecutor(max(2, workers), "decode")
        self._embedding: Batcher[np.ndarray, np.ndarray] = Batcher(
            "embed",
            self._embed_batch,
            threads=workers,
            max_size=MAX_BATCH,
            wait=DECODING_WAIT,
            observe=metrics.batches("embed"),
        )
        self._searching: Batcher[np.ndarray, list[dict[str, Any]]] = Batcher(
            "search",
            self._search_batch,
            threads=max(2, workers),
            max_size=MAX_BATCH,
            observe=metrics.batches("search"),
        )
        self._writing: Batcher[Any, Any] = Batcher(
            "write",
            self._write_batch,
            max_size=MAX_COMMIT,
            observe=metrics.batches("write"),
            split_on=_ConflictError,
        )
        metrics.watch("embed", lambda: self._embedding.rows_waiting)
        metrics.watch("search", lambda: self._searching.rows_waiting)
        metrics.watch("write", lambda: self._writing.rows_waiting)
        metrics.watch_images(lambda: len(self.gallery))

    def close(self) -> None:
        """Finish what was submitted, and release the gallery."""
        for batcher in (self._embedding, self._searching, self._writing):
            batcher.close()
        self._decoders.shutdown()
        self._stack.close()

    # ---------- reading ----------

    @property
    def gallery(self) -> Gallery:
        """The gallery as it was last committed; not to be changed."""
        self._refresh()
        return self._gallery

    def describe(self) -> dict[str, Any]:
        """Return ``Gallery.describe``, which reads all rows, at most every few seconds without a change."""
        gallery, now = self.gallery, time.monotonic()
        known = self._description
        if known is None or known[0] is not gallery or now - known[1] > _DESCRIBED:
            known = self._description = gallery, now, gallery.describe()
        return known[2]

    def find(self, ids: Sequence[int]) -> pd.DataFrame:
        """Return the rows of some images: the columns of the gallery, and ``id``.

        Raises:
            Problem: an id is not in the gallery.
        """
        return _find(self.gallery, ids)

    def list_images(
        self,
        after: int,
        *,
        where: str | None = None,
        exclude_camera: int | str | None = None,
        pids: Sequence[int | str] = (),
        paths: Sequence[str] = (),
        missing_ok: bool = False,
    ) -> pd.DataFrame:
        """Return the rows of a filter, of some persons and paths, or all, whose ids are larger than ``after``.

        Args:
            after: an id, or -1.
            where: a filter; without pids and paths.
            exclude_camera: leave out the images of this camera.
            pids, paths: see ``Gallery.find``.
            missing_ok: do not refuse those that have no image.
        """
        gallery = self.gallery
        condition = parse_filter(f"id > {after}", gallery.columns)
        if pids or paths:
            condition &= _named(gallery, where, pids, paths, missing_ok)
        elif where is not None:
            condition &= parse_filter(where, gallery.columns)
        if exclude_camera is not None:
            camera = label_value(exclude_camera, gallery.columns[CAMERA], "exclude_camera")
            condition &= other_cameras(camera, gallery.columns)
        return gallery.find(where=condition)

    def picture(self, id: int) -> Path | None:
        """Return the file of an image's picture below the images root; None if it does not exist.

        Raises:
            Problem: the id is not in the gallery.
        """
        (row,) = self.find([id]).to_dict("records")
        if self.uploads is None:
            return None
        upload = row.get(COLUMN)
        file = self.uploads.find(None if pd.isna(upload) else upload, row["path"])
        return file if file is not None and file.is_file() else None

    def features(self, ids: Sequence[int]) -> np.ndarray:
        """Return the vectors of some images, float32 ``(n, d)``.

        Raises:
            Problem: an id is not in the gallery.
        """
        self._refresh()
        store = self._reader.view()
        wanted = np.array(_find(Gallery(store), ids)["id"], np.int64)
        found = store.vectors(wanted)
        return found[np.searchsorted(wanted, np.asarray(ids, np.int64))]

    def decode(self, content: bytes, name: str) -> Future[Picture]:
        """Decode an uploaded picture to the size of the model; see ``decode_upload``."""
        embedder = self._require_embedder()
        return self._decoders.submit(self._decode, content, embedder.size, name)

    def embed(self, pixels: np.ndarray) -> Future[np.ndarray]:
        """Embed decoded pictures.

        Args:
            pixels: uint8 ``(n, 3, H, W)`` of the model's size.

        Returns:
            Unit rows, float32 ``(n, d)``.
        """
        self._require_embedder()
        return self._embedding.submit(pixels, len(pixels))

    def expect_images(self) -> Any:
        """Return the context in which a request decodes images, so that a batch waits for them."""
        return self._embedding.expect()

    def search(
        self, queries: np.ndarray | Future[np.ndarray], settings: SearchSettings
    ) -> Future[list[dict[str, Any]]]:
        """Search.

        Args:
            queries: unit rows, float32 ``(q, d)``, or the result of ``embed``. Images that are embedded together
                are then searched together.
            settings: of the search.

        Returns:
            For each query ``matches`` and ``groups``, see ``answers_to_json``.
        """
        if isinstance(queries, Future):
            return chain(queries, lambda rows: self._searching.submit(rows, len(rows), settings))
        return self._searching.submit(queries, len(queries), settings)

    def normalize(self, features: Any) -> np.ndarray:
        """Return unit rows, float32 ``(n, d)``.

        Raises:
            InputError: not numbers ``(n, d)`` of the gallery's dimension.
        """
        matrix = normalize_rows(features)
        if matrix.shape[1] != self.dimension:
            raise InputError(
                f"features: expected rows of {self.dimension} numbers, as in the gallery, found {matrix.shape[1]}"
            )
        return matrix

    @property
    def dimension(self) -> int:
        """Numbers of a feature; known without reading the gallery again, as it never changes."""
        return self._gallery.dimension

    # ---------- writing ----------

    def add(self, addition: Addition) -> Future[list[int]]:
        """Add images, together with those of other requests; the result is their ids, once they are durable.

        Raises:
            InputError: a column of another type than in the gallery.
        """
        gallery_table(_table(addition), self._gallery.columns, name="rows")  # before others wait for it
        return self._writing.submit(addition, len(addition.rows), "add")

    def label(
        self, pid: int | str | None, *, where: str | None = None, ids: Sequence[int] | None = None
    ) -> Future[int]:
        """Give the images of a filter, or of some ids, a pid or None; the result is the number that changed."""
        return self._change(lambda: self._writer.label(self._condition(where, ids), pid))

    def erase(
        self,
        *,
        where: str | None = None,
        ids: Sequence[int] | None = None,
        pid: int | str | None = None,
        pids: Sequence[int | str] = (),
        paths: Sequence[str] = (),
    ) -> Future[int]:
        """Erase the images of a filter, of some ids, of a person, or of persons and paths; the result is their number.

        Each of ``pids`` and ``paths`` must have an image, as for ``Gallery.remove``.
        """
        if pids or paths:
            return self._change(lambda: self._erase(_named(self._writer, where, pids, paths)))
        return self._change(lambda: self._erase(self._condition(where, ids, pid)))

    def update(self, ids: Sequence[int], rows: Sequence[dict[str, Any]]) -> Future[int]:
        """Change columns of some images, see ``Gallery.update``; the result is their number."""

        def work() -> int:
            _find(self._writer, ids)
            self._writer.update(ids, pd.DataFrame(rows, dtype=object))
            return len(ids)

        return self._change(work)

    def compact(self) -> Future[int]:
        """Join segments and rebuild their indexes, see ``Gallery.compact``; the result is the number of images."""

        def work() -> int:
            self._writer.compact()
            return len(self._writer)

        return self._change(work)

    def maintain(self) -> Future[int]:
        """Join small segments, see ``Gallery.maintain``; the result is the number of images."""

        def work() -> int:
            self._writer.maintain()
            return len(self._writer)

        return self._change(work)

    def check(self) -> Future[int]:
        """Read the gallery back, see ``Gallery.check``, while changes of this server wait.

        The result is the number of files or rows that were checked.
        """
        return self._change(lambda: self.gallery.check())

    def _change(self, work: Callable[[], int]) -> Future[int]:
        return self._writing.submit(work, 1, object())  # a key of its own, so a batch of its own

    def _write_batch(self, key: object, items: Sequence[Any]) -> Sequence[Any]:
        with nullcontext() if self.uploads is None or self.read_only else self.uploads.changing():
            if self._is_shared:
                self._store.refresh()  # filters may use columns, or texts as pids, that another server has added
            results = self._add(items) if key == "add" else [items[0]()]
        self._publish()
        if self._added >= MAINTAINED_ROWS:
            self._added = 0
            with suppress(Problem):  # the server is stopping
                self.maintain()
        return results

    def _add(self, additions: Sequence[Addition]) -> list[list[int]]:
        pictures = [picture for addition in additions for picture in addition.pictures]
        table = pd.concat([_table(addition) for addition in additions], ignore_index=True)
        if self.uploads is None:
            table[COLUMN] = ""
        if len(additions) > 1:
            try:
                gallery_table(table, self._writer.columns)
            except InputError as error:
                raise _ConflictError(str(error)) from None
        features = np.concatenate([addition.features for addition in additions])
        with nullcontext() if self.uploads is None else self.uploads.adding(pictures):
            ids = iter(self._writer.add(features, table).tolist())
        self._added += len(table)
        return [[next(ids) for _ in addition.rows] for addition in additions]

    def _erase(self, condition: Filter) -> int:
        if self.uploads is None or COLUMN not in self._writer.columns:
            return self._writer.remove(where=condition).images
        found = self._writer.find(where=condition)
        if found.empty:
            return 0
        same = is_among(ID, found["id"].tolist(), self._writer.columns)
        with self.uploads.erasing(found[COLUMN].dropna().unique(), self._names_in_use):
            return self._writer.remove(where=same).images

    def _condition(
        self, where: str | None, ids: Sequence[int] | None, pid: int | str | None = None
    ) -> Filter:
        columns = self._writer.columns
        if ids is not None:
            _find(self._writer, ids)
            return is_among(ID, list(ids), columns)
        if pid is not None:
            return is_among("pid", [label_value(pid, columns["pid"], "pid")], columns)
        return parse_filter(where or "", columns)

    def _names_in_use(self, names: Iterable[str]) -> set[str]:
        """Return those of some uploaded files that rows still have."""
        if COLUMN not in self._writer.columns:
            return set()
        return set(self._writer.find(where=is_among(COLUMN, list(names), self._writer.columns))[COLUMN])

    # ---------- in the threads ----------

    def _embed_batch(self, key: object, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        images = items[0] if len(items) == 1 else np.concatenate(items)
        embedder = self._require_embedder()
        features = np.asarray(embedder.embed(torch.from_numpy(images), batch_size=MAX_BATCH))
        stops = np.cumsum([len(item) for item in items])
        return np.split(normalize_rows(features, name="features of the images"), stops[:-1])

    def _search_batch(
        self, settings: SearchSettings, items: Sequence[np.ndarray]
    ) -> list[list[dict[str, Any]]]:
        queries, gallery = np.concatenate(items), self.gallery
        condition = None if settings.where is None else parse_filter(settings.where, gallery.columns)
        if settings.left_out:
            others = ~is_among(ID, settings.left_out, gallery.columns)
            condition = others if condition is None else condition & others
        most = settings.top_k * (2 if settings.rejected else 1)
        shortlist = SHORTLIST if settings.shortlist is None else settings.shortlist
        if settings.shortlist is not None and settings.rerank is not None:
            check_int("shortlist", shortlist, settings.top_k)
        found = gallery.search(
            queries,
            most,
            exclude_camera=settings.exclude_camera,
            where=condition,
            rerank=settings.rerank,
            shortlist=max(shortlist, most),
            with_ids=True,
            group_by=settings.group_by,
            per_group=settings.per_group,
        )
        if settings.rejected:
            found = self._without(found, settings)
        answers = answers_to_json(
            found, len(queries), group_by=settings.group_by, threshold=settings.threshold
        )
        stream = iter(answers)
        return [[{"groups": [], **next(stream)} for _ in item] for item in items]

    def _without(self, found: pd.DataFrame, settings: SearchSettings) -> pd.DataFrame:
        """Leave out matches that are more like a rejected image than like the query."""
        if found.empty:
            return found
        ids, place = np.unique(found["id"], return_inverse=True)
        likeness = (self.features(ids.tolist()) @ self.features(settings.rejected).T).max(axis=1)[place]
        kept = found[found["score"].to_numpy() >= likeness]
        ranks = kept.groupby("query")["rank"].rank("dense").astype("int64")
        return kept.assign(rank=ranks)[ranks <= settings.top_k].reset_index(drop=True)

    def _decode(self, content: bytes, size: tuple[int, int], name: str) -> Picture:
        return decode_upload(content, size, name, self._max_pixels)

    def _require_embedder(self) -> Embedder:
        if self.embedder is None:
            raise InputError(
                "this server has no model: the gallery was built from features, so send features"
            )
        return self.embedder

    def _publish(self) -> None:
        """Show readers the present state."""
        if self._is_shared:
            with suppress(InputError):  # the change was committed; the next refresh sees it
                self._reader.refresh()
        self._gallery = Gallery(self._reader.view())

    def _refresh(self) -> None:
        """See what other programs have written."""
        now = time.monotonic()
        if now - self._refreshed > _REFRESHED if self._is_shared else self.read_only:
            with self._refreshing:
                self._refreshed = now
                if self._reader.refresh():
                    self._publish()


def _table(addition: Addition) -> pd.DataFrame:
    """Return the table of images to add. Objects, so that whole numbers beside nulls stay whole numbers."""
    names = [picture.name for picture in addition.pictures] or [""] * len(addition.rows)
    rows = []
    for row, name, vector in zip(addition.rows, names, addition.features, strict=True):
        label = row.get("path") or name or f"features-{sha256(vector.tobytes()).hexdigest()[:16]}"
        rows.append({**row, "path": label, COLUMN: name})
    return pd.DataFrame(rows, dtype=object)


def _named(
    gallery: Gallery,
    where: str | None,
    pids: Sequence[int | str],
    paths: Sequence[str],
    missing_ok: bool = False,
) -> Filter:
    """Return the filter of the images of some persons and paths."""
    if not missing_ok or where is not None:
        found = gallery.find(pids=pids, paths=paths, where=where)
        return is_among(ID, found["id"].tolist(), gallery.columns)
    columns = gallery.columns
    persons = [label_value(pid, columns["pid"], "pid") for pid in pids]
    if not persons or not paths:
        return is_among("pid" if persons else "path", persons or paths, columns)
    return is_among("pid", persons, columns) | is_among("path", paths, columns)


def _find(gallery: Gallery, ids: Sequence[int]) -> pd.DataFrame:
    found = gallery.find(where=is_among(ID, list(ids), gallery.columns))
    if missing := set(ids) - set(found["id"]):
        raise Problem(404, f"image {min(missing)}: not in the gallery")
    return found
