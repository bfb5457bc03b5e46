"""Follow a folder, and add its present and future images to a gallery."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rga_reid.data import ImageError
from rga_reid.data.columns import Schema
from rga_reid.data.images import find_images, image_suffixes, is_ignored_file
from rga_reid.errors import InputError
from rga_reid.gallery.gallery import Gallery
from rga_reid.gallery.segments import MAINTAINED_ROWS
from rga_reid.inference.distributed import iter_blocks
from rga_reid.models.checkpoints import ModelFingerprint

SETTLED = 0.5  #: seconds without a change after which a file is complete
RETRIES = (1.0, 4.0, 15.0)  #: seconds to wait before an unreadable file is read again
RESCANNED = 60.0  #: seconds between two scans of the whole folder: notices of changes may be lost
MAX_IMAGES = 1024  #: images embedded and added at once
_TICK = 200  # milliseconds to wait for a change before files are looked at again
_GROUPED = 400  # milliseconds for which changes are collected

#: returns the table of some images, and the schema with its new columns
Describe = Callable[[Sequence[Path], Schema], tuple[pd.DataFrame, Schema]]
#: yields features and rows of the images of a table; appends the errors of unreadable ones, which it leaves out
Embed = Callable[[pd.DataFrame, list[ImageError]], Iterable[tuple[np.ndarray, pd.DataFrame]]]

_State = tuple[int, int, int]  # size, time of the last change in nanoseconds, inode


@dataclass(frozen=True)
class _File:
    """An image file that was not given out yet."""

    state: _State
    since: float  #: when it was first seen in this state
    tries: int = 0  #: how often it was unreadable in this state
    due: float = 0.0  #: not read again before


class Arrivals:
    """Image files of a folder, each given out once it is complete.

    A file is complete if it has not changed for a short time, so one that was written elsewhere and renamed is given
    out at once.

    Args:
        folder: folder, followed with its subfolders; an absolute path.
        known: returns those of some paths that need not be given out.
        settled: see ``SETTLED``.
        retries: see ``RETRIES``.
    """

    def __init__(
        self,
        folder: Path,
        known: Callable[[Sequence[str]], set[str]],
        *,
        settled: float = SETTLED,
        retries: Sequence[float] = RETRIES,
    ) -> None:
        self._folder, self._known, self._settled, self._retries = folder, known, settled, retries
        self._waiting: dict[str, _File] = {}
        self._given: dict[str, _File] = {}  # the last batch
        self._done: set[str] = set()
        self._refused: dict[str, _State] = {}

    def __iter__(self) -> Iterator[list[Path]]:
        """Yield batches of complete files, for ever; an empty one now and then while nothing is to be done.

        Raises:
            InputError: the folder cannot be followed, or is gone.
            KeyboardInterrupt: a signal asked the program to stop.
        """
        from watchfiles import watch

        due = 0.0  # the first scan comes after the start, so that nothing is missed in between
        changes = watch(
            self._folder, watch_filter=None, debounce=_GROUPED, rust_timeout=_TICK, yield_on_timeout=True
        )
        while True:
            try:
                changed = next(changes)
            except (OSError, RuntimeError) as error:  # of watchfiles, such as a name that is not valid UTF-8
                raise InputError(f"{self._folder}: cannot follow this folder ({error})") from None
            scanned: list[Path] | None = None
            if time.monotonic() >= due:
                try:
                    scanned, _ = find_images(self._folder, allow_none=True)
                except InputError:
                    # a subfolder may have been removed during the scan; the next one is in a minute
                    if not due or not self._folder.is_dir():
                        raise
                due = time.monotonic() + RESCANNED
            if scanned is None:
                scanned = [path for _, name in changed for path in self._images_at(Path(name))]
            self._notice(scanned)
            while batch := self._complete():
                yield batch
            yield []

    def retry(self, path: str) -> bool:
        """Give a file of the last batch out again later, or when it changes; return False for the latter."""
        file = self._given[path]
        self._done.discard(path)
        if file.tries == len(self._retries):
            self._refused[path] = file.state
            return False
        due = time.monotonic() + self._retries[file.tries]
        self._waiting[path] = _File(file.state, file.since, file.tries + 1, due)
        return True

    def refuse(self, path: str) -> None:
        """Give a file of the last batch out again only when it changes."""
        self._done.discard(path)
        self._refused[path] = self._given[path].state

    def _images_at(self, path: Path) -> list[Path]:
        """Return the image at a path, or the images of a new subfolder."""
        if not path.is_relative_to(self._folder):
            return []
        if any(map(is_ignored_file, path.relative_to(self._folder).parts)):
            return []
        if path.is_dir():
            try:
                return find_images(path, allow_none=True)[0]
            except InputError:  # removed meanwhile
                return []
        return [path] if path.suffix.lower() in image_suffixes() else []

    def _notice(self, paths: Iterable[Path]) -> None:
        """Wait for the files among some paths that are new."""
        new = [name for name in map(str, paths) if name not in self._done and name not in self._waiting]
        if new:
            self._done |= self._known(new)
        for name in new:
            state = _state(name)
            if name not in self._done and state is not None and self._refused.get(name) != state:
                self._waiting[name] = _File(state, time.monotonic())

    def _complete(self) -> list[Path]:
        """Take the files that are complete, up to ``MAX_IMAGES``."""
        self._given = {}
        for name, file in list(self._waiting.items()):
            state, now = _state(name), time.monotonic()
            if state is None:
                del self._waiting[name]
                continue
            if state != file.state:
                file = self._waiting[name] = _File(state, now)
            unchanged = max(now - file.since, time.time() - state[1] / 1e9)
            if unchanged >= self._settled and now >= file.due:
                self._given[name] = self._waiting.pop(name)
                if len(self._given) == MAX_IMAGES:
                    break
        self._done.update(self._given)
        return list(map(Path, self._given))


def _state(path: str) -> _State | None:
    """Return the state of a file; None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    regular = stat.S_ISREG(status.st_mode)
    return (status.st_size, status.st_mtime_ns, status.st_ino) if regular else None


@dataclass(frozen=True)
class WatchedBatch:
    """Outcome of ``watch_folder`` for some images."""

    added: list[str]  #: paths of the images that the gallery has now
    refused: list[str]  #: errors of images that are left out


def watch_folder(
    gallery: Gallery,
    arrivals: Arrivals,
    describe: Describe,
    embed: Embed,
    *,
    model: ModelFingerprint | None = None,
) -> Iterator[WatchedBatch]:
    """Add images to an opened gallery as they arrive; keep its segments in order while nothing arrives.

    Args:
        gallery: gallery to add to.
        arrivals: where the images come from.
        describe, embed: see ``Describe`` and ``Embed``.
        model: fingerprint of the model that ``embed`` uses.

    Yields:
        Each batch once it is committed.

    Raises:
        InputError: see ``Gallery.add`` and ``Arrivals``.
    """
    added = 0  # since the last maintenance
    for paths in arrivals:
        if paths:
            batch = _add(gallery, arrivals, paths, describe, embed, model)
            added += len(batch.added)
            if batch.added or batch.refused:
                yield batch
        elif added >= MAINTAINED_ROWS:
            gallery.maintain()
            added = 0


def _add(
    gallery: Gallery,
    arrivals: Arrivals,
    paths: Sequence[Path],
    describe: Describe,
    embed: Embed,
    model: ModelFingerprint | None,
) -> WatchedBatch:
    schema, refused = gallery.columns, list[str]()
    try:
        table, columns = describe(paths, schema)
    except InputError:  # one of the names; the others are added
        valid = []
        for path in paths:
            try:
                _, schema = describe([path], schema)
                valid.append(path)
            except InputError as error:
                arrivals.refuse(str(path))
                refused.append(str(error))
        if not valid:
            return WatchedBatch([], refused)
        table, columns = describe(valid, schema)
    unreadable: list[ImageError] = []
    added: list[str] = []
    for features, rows in iter_blocks(embed(table, unreadable)):
        gallery.add(features, rows, model=model, columns=columns)
        added += rows["path"].tolist()
    missing = table["path"][~table["path"].isin(added)]
    refused += [
        str(error) for path, error in zip(missing, unreadable, strict=True) if not arrivals.retry(path)
    ]
    return WatchedBatch(added, refused)
