"""A vector store on disk: segments that never change, and a manifest that is replaced once they are written.

A process that is killed leaves the old gallery or the new one. The next writer removes the files that the killed
one had begun; over a gallery that cannot be read, the next writer that succeeds does. Readers need no lock:
what they have open stays readable.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from rga_reid.data.columns import Schema
from rga_reid.data.images import is_ignored_file
from rga_reid.errors import InputError, UnavailableError
from rga_reid.files import DiskError, checksum, require_new, size_of, sync
from rga_reid.gallery.additions import (
    ADDITION_FILE,
    WaitingAddition,
    answer_additions,
    is_alive,
    take_additions,
)
from rga_reid.gallery.folder_reader import (
    SEGMENTS,
    check_folder,
    find_manifest,
    read_gallery,
    read_log,
    read_snapshot,
)
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.manifest import (
    MANIFEST,
    SEGMENT_NAME,
    FileRecord,
    Manifest,
    read_manifest,
    write_manifest,
)
from rga_reid.gallery.segment_store import SegmentStore
from rga_reid.gallery.segments import (
    SMALL_ROWS,
    NewSegment,
    NormalizedVectors,
    Segment,
    Snapshot,
    max_rows,
    read_segment,
    repack,
    write_relabelled,
    write_segment,
)
from rga_reid.gallery.store import (
    Addition,
    DeletionRecord,
    Metadata,
    Progress,
    RemovalResult,
    Rows,
    ignore_progress,
    join_rows,
    require_unreplaced,
)
from rga_reid.gallery.validation import require_finished, require_same_model
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.process import LockedError, NoLocksError, defer_signals, hold_lock, lock, unlock

UNFINISHED = "unfinished.json"  #: manifest of a build that was interrupted
LOCK = "lock"
_POLL = 0.002  # seconds between looks whether an addition was answered
_LOG = "removals-{generation}.jsonl"
_OWN_FILES = re.compile(
    r"(manifest|unfinished)\.json|\.(manifest|unfinished)\.json\.[0-9a-f]{12}\.json"  # and their drafts
    rf"|segments|lock|removals-[0-9]+\.jsonl|{ADDITION_FILE.pattern}"
)


class FolderStore(SegmentStore):
    """A gallery in a folder. It shows the state that it opened or last wrote.

    Args:
        folder: folder of the gallery.

    Raises:
        InputError: see ``read_gallery``.
    """

    persistent = True

    def __init__(self, folder: Path) -> None:
        super().__init__(read_gallery(folder))
        self._folder, self.location = folder, str(folder)
        self._locked = False  # by ``exclusive``
        # threads that add may see what others of this process have written
        self._changing = threading.RLock()
        self._appended: list[Rows] = []
        self._seen: tuple[int, int] | None = None  # the manifest that ``refresh`` has read

    @classmethod
    def open(cls, folder: Path) -> FolderStore:
        """Open a gallery; see ``read_gallery`` for errors."""
        return cls(folder)

    @classmethod
    def create(
        cls,
        folder: Path,
        index: IndexConfig,
        model: ModelFingerprint | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> FolderDraft:
        """Return a new gallery to be filled, see ``StoreFactory.create``."""
        return FolderDraft(folder, index, model, overwrite=overwrite, resume=resume)

    @contextmanager
    def transaction(self, *, resumable: bool = False) -> Iterator[None]:
        with ExitStack() as stack:
            if not self._locked:
                read_manifest(self._folder / MANIFEST)  # before a lock is left in a folder of other things
                stack.enter_context(_locked(self._folder, self.wait))
            stack.enter_context(self._change())
            yield

    @contextmanager
    def adding(self, addition: Addition) -> Iterator[int | None]:
        if self._locked or len(addition) >= SMALL_ROWS:
            with self.transaction():
                yield None
            return
        with _locked_or_added(self._folder, addition, self.wait) as first:
            if first is None:
                with self._change():
                    yield None
                return
        with self._changing:
            self._snapshot = self._committed = read_gallery(self._folder, self._snapshot)
        yield first

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Enclose a change by the holder of the lock."""
        with self._changing, super().transaction(), writing(self._folder, locked=True) as self._writer:
            # others may have written since
            self._snapshot = self._committed = read_gallery(self._folder, self._snapshot)
            self._writer.erases, self._appended = False, []
            yield

    def append(self, rows: Rows) -> None:
        self._appended.append(rows)  # written by ``commit``, with those of others

    def delete(self, ids: np.ndarray) -> RemovalResult:
        self._writer.erases = True
        return super().delete(ids)

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        added = {}
        if self._appended:
            parts, next_id = self._appended, metadata.next_id
            room = SMALL_ROWS - 1 - sum(map(len, parts))
            for name, addition in take_additions(self._folder, metadata, room):
                ids = np.arange(next_id, next_id + len(addition))
                parts.append(Rows(ids, addition.table, addition.vectors))
                added[name], next_id = next_id, next_id + len(addition)
            super().append(join_rows(parts))
            metadata = replace(metadata, next_id=next_id)
        super().commit(metadata, deletions)
        if self._snapshot != self._committed:
            self._snapshot = self._committed = self._writer.commit(self._snapshot, added)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        with _locked(self._folder, self.wait):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def refresh(self) -> bool:
        with _disk_errors(self._folder):
            status = os.stat(self._folder / MANIFEST)
        seen = (status.st_ino, status.st_mtime_ns)
        if seen == self._seen:  # each change writes another file
            return False
        with self._changing:
            found = read_gallery(self._folder, self._snapshot)
            require_unreplaced(self.location, self._snapshot.metadata, found.metadata)
            self._snapshot = self._committed = found
        self._seen = seen
        return True

    def check(self, progress: Progress = ignore_progress) -> int:
        return check_folder(self._folder, progress)

    def size_on_disk(self) -> int | None:
        return size_of(self._folder)

    def _write(self, segment: Segment | NewSegment) -> Segment:
        return self._writer.write(segment, self.metadata.columns)

    def _relabel(self, segment: Segment) -> Segment:
        return self._writer.relabel(segment)


class FolderDraft(SegmentStore):
    """A new gallery in a folder. An old one stays until ``commit``.

    ``append`` writes the rows as they come, without an index and without keeping them in memory; ``commit``
    joins them to segments and builds the indexes. ``append_features`` and ``copy_from`` write segments directly.
    """

    persistent = True

    def __init__(
        self,
        folder: Path,
        index: IndexConfig,
        model: ModelFingerprint | None,
        *,
        overwrite: bool,
        resume: bool,
    ) -> None:
        super().__init__(Snapshot(Metadata(0, index, model)))
        self._folder, self.location = folder, str(folder)
        self._overwrite, self._resume = overwrite, resume
        self._parts: list[Segment] = []  # appended, to be joined
        self._require_replaceable()  # before a folder is made

    @contextmanager
    def transaction(self, *, resumable: bool = False) -> Iterator[None]:
        self._resumable = resumable
        resume = self._resume and (self._folder / UNFINISHED).exists()
        with (
            super().transaction(),
            writing(self._folder, create=True, keep=resumable, resume=resume, wait=self.wait) as writer,
        ):
            self._require_replaceable()  # nobody was faster
            self._writer = writer
            self.deletion_log()  # refuses a damaged one early
            if resume:
                self._restore()
            yield

    def append(self, rows: Rows) -> None:
        segment = Segment.of(rows.ids, rows.vectors, rows.table)
        part = self._writer.write(segment, self.metadata.columns, mapped=True)
        self._parts.append(part)
        self._show_parts(replace(self.metadata, dimension=part.dimension, next_id=int(rows.ids[-1]) + 1))
        if self._resumable:
            self._writer.keep_unfinished(self._snapshot)

    def append_features(self, features: np.ndarray, table: pd.DataFrame) -> None:
        index = self.metadata.index
        step = max_rows(index, features.shape[1])
        for start in range(0, len(features), step):
            vectors = NormalizedVectors(features[start : start + step], start)
            ids, part = np.arange(start, start + len(vectors)), table[start : start + step]
            segment = self._write(NewSegment(ids, vectors, part.reset_index(drop=True), index))
            self._snapshot = replace(self._snapshot, segments=(*self.segments, segment))

    def commit(self, metadata: Metadata, deletions: Sequence[DeletionRecord] = ()) -> None:
        copied = self.segments[: len(self.segments) - len(self._parts)]
        if len(self._parts) > 1 or metadata.index.kind != "flat":  # one part is already a segment
            new = repack(self._parts, metadata.index, metadata.columns)
            self._parts = [self._write(segment) for segment in new]
        log = (*self._writer.deletions, *deletions)
        self._snapshot = self._writer.commit(Snapshot(metadata, (*copied, *self._parts), log))
        (self._folder / UNFINISHED).unlink(missing_ok=True)

    def deletion_log(self) -> tuple[DeletionRecord, ...]:
        return self._writer.deletions

    def _write(self, segment: Segment | NewSegment) -> Segment:
        return self._writer.write(segment, self.metadata.columns)

    def _restore(self) -> None:
        """Continue with what an interrupted build had written."""
        manifest = read_manifest(self._folder / UNFINISHED)
        if manifest.generation != self._writer.generation:
            (self._folder / UNFINISHED).unlink()
            raise InputError(f"{self._folder}: nothing to resume: the build was finished")
        require_same_model(self._folder, manifest.metadata.model, self.metadata.model)
        self._parts = list(read_snapshot(self._folder, manifest, mapped=True).segments)
        metadata = manifest.metadata
        self._show_parts(replace(metadata, index=self.metadata.index, model=self.metadata.model))

    def _show_parts(self, metadata: Metadata) -> None:
        self._snapshot = Snapshot(metadata, tuple(self._parts))

    def _require_replaceable(self) -> None:
        """Check that the folder contains nothing but what may be replaced, or continued."""
        folder, resume = self._folder, self._resume
        with _disk_errors(folder):
            found, own = _list_files(folder), _own_files(folder)
        unfinished = folder / UNFINISHED in own
        foreign = [path for path in found if path not in own and not is_ignored_file(path.name)]
        require_finished(folder, unfinished, overwrite=self._overwrite, resume=resume)
        if found and not foreign and folder / MANIFEST not in own:
            return  # no gallery, only files of a killed writer
        require_new(folder, overwrite=self._overwrite or (unfinished and resume))
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: not replaced: expected a gallery, found a file")
        if foreign:
            name = str(foreign[0].relative_to(folder))
            raise InputError(f"{folder}: not replaced: {name!r} in it is not part of a gallery")


class Writer:
    """The one program that may change a gallery folder, while it holds the lock.

    Args:
        folder: folder of the gallery.
    """

    def __init__(self, folder: Path) -> None:
        self.erases = True  #: whether what the old gallery had must not come back after a power failure
        self._folder = folder
        self._old = old = find_manifest(folder)
        self.generation = 1 if old is None else old.generation + 1
        if old is None and (folder / UNFINISHED).exists():  # started while the gallery could be read
            self.generation = read_manifest(folder / UNFINISHED).generation
        names = (folder / SEGMENTS / f"{self.generation:06d}-{number}" for number in itertools.count())
        self._unused = (name for name in names if not name.exists())

    @cached_property
    def deletions(self) -> tuple[DeletionRecord, ...]:
        """Deletion log of the old gallery."""
        old = self._old
        return () if old is None or old.log is None else read_log(self._folder / old.log[0], old.log[1])

    def write(self, segment: Segment | NewSegment, columns: Schema, *, mapped: bool = False) -> Segment:
        """Write a segment that no manifest names yet; return it opened, see ``read_segment``."""
        path = next(self._unused)
        with _disk_errors(self._folder):
            record = write_segment(path, segment)
        return read_segment(
            path, record, segment.dimension, segment.kind, columns, mapped=mapped, written=segment
        )

    def relabel(self, segment: Segment) -> Segment:
        """Write a segment on disk whose table has changed, see ``write_relabelled``."""
        assert segment.record is not None
        with _disk_errors(self._folder):
            return write_relabelled(
                next(self._unused), self._folder / SEGMENTS / segment.record.name, segment
            )

    def commit(self, snapshot: Snapshot, added: Mapping[str, int] | None = None) -> Snapshot:
        """Switch to a new state, all of whose segments are on the disk; return it with the file of its log.

        Args:
            snapshot: the new state.
            added: see ``Manifest``.
        """
        with _disk_errors(self._folder):
            if snapshot.deletions and snapshot.log is None:
                snapshot = replace(snapshot, log=self._write_log(snapshot))
            write_manifest(replace(self._manifest(snapshot), added=added or {}), self._folder / MANIFEST)
        return snapshot

    def keep_unfinished(self, snapshot: Snapshot) -> None:
        """Record the progress of a build, so that it can be resumed."""
        with _disk_errors(self._folder):
            write_manifest(self._manifest(snapshot), self._folder / UNFINISHED)

    def _manifest(self, snapshot: Snapshot) -> Manifest:
        records = tuple(segment.record for segment in snapshot.segments if segment.record is not None)
        return Manifest(self.generation, snapshot.metadata, records, snapshot.log)

    def _write_log(self, snapshot: Snapshot) -> tuple[str, FileRecord]:
        name = _LOG.format(generation=self.generation)
        path = self._folder / name
        path.touch(exist_ok=False)  # never through a link
        path.write_text("".join(record.to_line() for record in snapshot.deletions), encoding="utf-8")
        sync(path)
        with open(path, "rb") as file:
            return name, FileRecord(path.stat().st_size, checksum(file))


@contextmanager
def writing(
    folder: Path,
    *,
    create: bool = False,
    keep: bool = False,
    resume: bool = False,
    wait: float = 0.0,
    locked: bool = False,
) -> Iterator[Writer]:
    """Hold the lock of a gallery folder, and leave nothing but a gallery in it.

    Args:
        folder: folder of the gallery.
        create: create the folder if necessary, and replace a damaged gallery.
        keep: keep the unfinished build of the block, if it fails.
        resume: keep the unfinished build of an earlier block; otherwise it is removed.
        wait: seconds to wait for another program that is writing.
        locked: the caller holds the lock.

    Raises:
        InputError: no gallery there, another program is still writing, the disk is full or cannot be written.
    """
    created = create and not folder.exists()
    if create:
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        read_manifest(folder / MANIFEST)  # before a lock is left in a folder of other things
    with nullcontext() if locked else _locked(folder, wait):
        # a gallery that cannot be read, damaged or of another version, stays until another replaces it
        unreadable = (folder / MANIFEST).exists() and find_manifest(folder) is None
        old = frozenset(_own_files(folder) if unreadable else ())
        collect_garbage(folder, keep_unfinished=resume, old=old)
        writer = Writer(folder)
        try:
            yield writer
        finally:
            with defer_signals():
                collect_garbage(folder, keep_unfinished=keep, old=old, durably=writer.erases)
                if created and not any((folder / name).exists() for name in (MANIFEST, UNFINISHED)):
                    shutil.rmtree(folder)


def collect_garbage(
    folder: Path, *, keep_unfinished: bool = False, old: Collection[Path] = (), durably: bool = True
) -> None:
    """Remove files that no manifest names. Only for the holder of the lock.

    Args:
        folder: folder of the gallery.
        keep_unfinished: keep an unfinished build.
        old: see ``orphaned_files``.
        durably: wait for the disk. Otherwise the next writer may have to remove them again after a power failure.
    """
    with _disk_errors(folder):
        if (manifest := find_manifest(folder)) is not None:
            answer_additions(folder, manifest.added)
        changed = not keep_unfinished and (folder / UNFINISHED).exists()
        if changed:
            (folder / UNFINISHED).unlink()
        for path in orphaned_files(folder, old):
            changed = True
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # an addition that was withdrawn
        for directory in (folder / SEGMENTS, folder) if changed and durably else ():
            if directory.is_dir():
                sync(directory)


def orphaned_files(folder: Path, old: Collection[Path] = ()) -> list[Path]:
    """Return the files of a gallery that no manifest names: those of a writer that was killed.

    None where a segment that a manifest names is missing: it may be one of these files under another name.

    Args:
        folder: folder of the gallery.
        old: files that an unreadable manifest may name. They are left out until it is replaced.
    """
    named = {folder / name for name in (MANIFEST, UNFINISHED, LOCK, SEGMENTS)}
    segments: set[Path] = set()
    manifest = find_manifest(folder)
    if manifest is None:
        named |= set(old)
    manifests = [] if manifest is None else [manifest]
    if (folder / UNFINISHED).exists():
        manifests.append(read_manifest(folder / UNFINISHED))
    for manifest in manifests:
        segments |= {folder / SEGMENTS / record.name for record in manifest.segments}
        named |= {folder / manifest.log[0]} if manifest.log else set()
    if not all(segment.is_dir() for segment in segments):
        return []
    orphans = sorted(path for path in _own_files(folder) if path not in named | segments)
    return [path for path in orphans if not (ADDITION_FILE.fullmatch(path.name) and is_alive(path))]


def _own_files(folder: Path) -> list[Path]:
    """Return what is in a gallery folder under the names that galleries use."""
    return [
        path
        for path in _list_files(folder)
        if (_OWN_FILES if path.parent == folder else SEGMENT_NAME).fullmatch(path.name)
    ]


def _list_files(folder: Path) -> list[Path]:
    places = [place for place in (folder, folder / SEGMENTS) if place.is_dir()]
    return [path for place in places for path in sorted(place.iterdir())]


@contextmanager
def _locked(folder: Path, wait: float) -> Iterator[None]:
    """Hold the lock. The system releases it when the process ends, in whatever way."""
    _refuse_link(folder)
    with ExitStack() as stack:
        with _disk_errors(folder):
            try:
                stack.enter_context(hold_lock(folder / LOCK, wait=wait))
            except LockedError:
                raise _locked_error(folder, wait) from None
        yield


@contextmanager
def _locked_or_added(folder: Path, addition: Addition, wait: float) -> Iterator[int | None]:
    """Hold the lock, or wait until its holder has added some rows: then yield the id of the first, without the lock."""
    read_manifest(folder / MANIFEST)  # before a lock is left in a folder of other things
    _refuse_link(folder)
    first = None
    with ExitStack() as stack:
        with _disk_errors(folder):
            try:
                handle = lock(folder / LOCK, create=True)
            except NoLocksError:
                stack.enter_context(_locked(folder, wait))
            else:
                if handle is None:
                    handle, first = _wait_for_lock(folder, addition, wait)
                if handle is not None:
                    stack.callback(unlock, handle)
        yield first


def _wait_for_lock(folder: Path, addition: Addition, wait: float) -> tuple[int | None, int | None]:
    """Wait for the lock or an answer: return the handle of the lock, or the id of the first row that was added."""
    until, waiting = time.monotonic() + wait, None
    with ExitStack() as stack:
        if wait > 0:
            with suppress(OSError):  # a full disk, for example; then it waits for the lock only
                waiting = WaitingAddition(folder, addition)
                stack.callback(waiting.close)
        while True:
            if waiting is not None and (first := waiting.answer()) is not None:
                return None, first
            if (handle := lock(folder / LOCK, create=True)) is not None:
                break
            # one that was taken will be answered soon
            if time.monotonic() > until and (waiting is None or waiting.withdraw()):
                raise _locked_error(folder, wait)
            time.sleep(_POLL)
        with ExitStack() as locked:
            locked.callback(unlock, handle)
            if waiting is not None:
                # a writer that was killed may have added the rows, and may not have waited for the disk
                sync(folder)
                answer_additions(folder, read_manifest(folder / MANIFEST).added)
                if (first := waiting.answer()) is not None:
                    return None, first
            locked.pop_all()
            return handle, None


def _refuse_link(folder: Path) -> None:
    if (folder / SEGMENTS).is_symlink():  # files behind a link may be anybody's, and are never removed
        raise InputError(
            f"{folder / SEGMENTS}: expected a folder, found a link; this gallery can only be read"
        )


def _locked_error(folder: Path, wait: float) -> UnavailableError:
    return UnavailableError(
        f"{folder}: locked: another program is changing this gallery, and did not finish in {wait:g} s; "
        "--wait SECONDS waits longer; a server without --read-only keeps the lock until it ends: use "
        "its HTTP API (POST, PATCH and DELETE /v1/images)"
    )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Report a full or read-only disk in one line."""
    try:
        yield
    except DiskError as error:
        raise UnavailableError(f"{folder}: cannot write the gallery ({error.reason})") from None
    except OSError as error:
        raise UnavailableError(f"{folder}: cannot write the gallery ({error.strerror or error})") from None
