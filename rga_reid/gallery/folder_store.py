"""A gallery on disk: segments that never change, and a manifest that is switched when all of them are there.

A process that is killed leaves the old gallery or the new one. What it had begun lies about unnamed; the
next writer removes it (over a gallery that cannot be read, the next that succeeds). Readers need no lock:
what they have open stays readable.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rga_reid.data.images import is_ignored_file
from rga_reid.errors import InputError
from rga_reid.files import DiskError, checksum, require_new, sync
from rga_reid.gallery.manifest import (
    MANIFEST,
    SEGMENT_NAME,
    FileRecord,
    Manifest,
    read_manifest,
    write_manifest,
)
from rga_reid.gallery.segments import (
    VECTORS,
    DeletionRecord,
    Put,
    Rows,
    Segment,
    Snapshot,
    check_size,
    read_segment,
    write_segment,
)
from rga_reid.gallery.validation import is_normalized, require_finished
from rga_reid.inputs import open_text, read_file, truncate
from rga_reid.process import NoLocksError, defer_signals, lock

UNFINISHED = "unfinished.json"  #: manifest of a build that was interrupted
SEGMENTS = "segments"
LOCK = "lock"
_LOG = "removals-{generation}.jsonl"
_OWN_FILES = re.compile(
    r"(manifest|unfinished)\.json|\.(manifest|unfinished)\.json\.[0-9a-f]{12}\.json"  # and drafts of them
    r"|segments|lock|removals-[0-9]+\.jsonl"
)


def require_replaceable(folder: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse a place where a gallery may not be saved, before any work is done.

    Args:
        folder: the place.
        overwrite: a gallery may be there.
        resume: an unfinished build may be there.

    Raises:
        InputError: something else is there.
    """
    with _disk_errors(folder):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        inner = sorted(os.listdir(folder / SEGMENTS)) if (folder / SEGMENTS).is_dir() else []
    foreign = [name for name in names if not _OWN_FILES.fullmatch(name) and not is_ignored_file(name)]
    foreign += [
        f"{SEGMENTS}/{name}"
        for name in inner
        if not SEGMENT_NAME.fullmatch(name) and not is_ignored_file(name)
    ]
    require_finished(folder, UNFINISHED in names, overwrite=overwrite, resume=resume)
    if names and not foreign and MANIFEST not in names:
        return  # no gallery, but what a killed write left
    require_new(folder, overwrite=overwrite or (UNFINISHED in names and resume))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not replaced: expected a gallery, found a file")
    if foreign:
        raise InputError(f"{folder}: not replaced: it holds {foreign[0]!r}, which is no part of a gallery")


def read_gallery(folder: Path) -> Snapshot:
    """The gallery in a folder, its manifest, sizes and headers checked.

    Raises:
        InputError: no gallery there, one of another version, or a file that is missing, damaged or foreign:
            the message names it.
    """
    manifest = read_manifest(folder / MANIFEST)
    while True:
        try:
            return read_contents(folder, manifest)
        except InputError:
            # a writer may have removed the segments of this manifest since: then there is a newer one
            newer = read_manifest(folder / MANIFEST)
            if newer == manifest:
                raise
            manifest = newer


def read_contents(folder: Path, manifest: Manifest, *, mapped: bool = False) -> Snapshot:
    """What a manifest names; ``mapped``: see ``read_segment``."""
    place, plan = folder / SEGMENTS, manifest.plan
    segments = [
        read_segment(place / record.name, record, manifest.dimension, plan.kind, mapped=mapped)
        for record in manifest.segments
    ]
    removals: tuple[DeletionRecord, ...] = ()
    if manifest.log is not None:
        removals = _read_log(folder / manifest.log[0], manifest.log[1])
    return Snapshot(manifest.dimension, plan, manifest.model, tuple(segments), manifest.next_id, removals)


class Writer:
    """The one program that may change a gallery folder, while it holds the lock.

    Args:
        folder: of the gallery.
        mapped: the vectors of segments that are put are never held in memory.
    """

    def __init__(self, folder: Path, *, mapped: bool = False) -> None:
        self.folder, self.mapped = folder, mapped
        old = _readable_manifest(folder)
        self.generation = 1 if old is None else old.generation + 1
        if old is None and (folder / UNFINISHED).exists():  # begun when the gallery could be read
            self.generation = read_manifest(folder / UNFINISHED).generation
        #: the log of the gallery that is there
        self.removals = () if old is None or old.log is None else _read_log(folder / old.log[0], old.log[1])
        places = (folder / SEGMENTS / f"{self.generation:06d}-{number}" for number in itertools.count())
        self._places = (place for place in places if not place.exists())

    def put(self, segment: Segment | Rows) -> Segment:
        """Write a new segment to the disk, unnamed as yet."""
        place = next(self._places)
        with _disk_errors(self.folder):
            record = write_segment(place, segment)
        return read_segment(place, record, segment.dimension, segment.kind, mapped=self.mapped)

    def commit(self, contents: Snapshot) -> None:
        """Switch to new contents, all of whose segments were put or were there."""
        with _disk_errors(self.folder):
            log = self._write_log(contents) if contents.removals else None
            write_manifest(self._manifest(contents, log), self.folder / MANIFEST)

    def keep_unfinished(self, contents: Snapshot) -> None:
        """Note how far a build has come, so that another can go on from there."""
        with _disk_errors(self.folder):
            write_manifest(self._manifest(contents), self.folder / UNFINISHED)

    def _manifest(self, contents: Snapshot, log: tuple[str, FileRecord] | None = None) -> Manifest:
        return Manifest(
            generation=self.generation,
            dimension=contents.dimension,
            next_id=contents.next_id,
            plan=contents.plan,
            model=contents.model,
            segments=tuple(segment.record for segment in contents.segments if segment.record is not None),
            log=log,
        )

    def _write_log(self, contents: Snapshot) -> tuple[str, FileRecord]:
        name = _LOG.format(generation=self.generation)
        path = self.folder / name
        path.touch(exist_ok=False)  # never through a link that lies there
        path.write_text("".join(removal.to_line() for removal in contents.removals), encoding="utf-8")
        sync(path)
        with open(path, "rb") as file:
            return name, FileRecord(path.stat().st_size, checksum(file))


@contextmanager
def writing(
    folder: Path, *, create: bool = False, building: bool = False, resume: bool = False
) -> Iterator[Writer]:
    """Hold the lock of a gallery folder, and leave nothing but a gallery there.

    Args:
        folder: of the gallery.
        create: make the folder if there is none, and replace a gallery that is damaged.
        building: keep what the block noted as unfinished, if it fails, and hold no vectors in memory.
        resume: keep what an earlier one noted so; otherwise it is removed.

    Raises:
        InputError: no gallery there, another program is writing, the disk is full or cannot be written.
    """
    created = create and not folder.exists()
    if create:
        with _disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    else:
        read_manifest(folder / MANIFEST)  # before a lock is left in a folder of other things
    with _locked(folder):
        # a gallery that cannot be read, damaged or of another version, stays until there is one in its place
        unreadable = (folder / MANIFEST).exists() and _readable_manifest(folder) is None
        old = frozenset(_parts(folder) if unreadable else ())
        collect_garbage(folder, keep_unfinished=resume, old=old)
        try:
            yield Writer(folder, mapped=building)
        finally:
            with defer_signals():
                collect_garbage(folder, keep_unfinished=building, old=old)
                if created and not any((folder / name).exists() for name in (MANIFEST, UNFINISHED)):
                    shutil.rmtree(folder)


def update(folder: Path, change: Callable[[Snapshot, Put], Snapshot]) -> tuple[Snapshot, Snapshot]:
    """Change a gallery on disk, from what it is now, whoever wrote last.

    Returns:
        What it held before and what it holds now. Both are on disk when this returns, or none is.

    Raises:
        InputError: see ``writing`` and ``read_gallery``; what ``change`` raises.
    """
    with writing(folder) as writer:
        old = read_gallery(folder)
        new = change(old, writer.put)
        if new is not old:
            writer.commit(new)
    return old, new


def collect_garbage(folder: Path, *, keep_unfinished: bool = False, old: Collection[Path] = ()) -> None:
    """Remove what no manifest names. For the holder of the lock only; ``old``: see ``leftovers``.

    Nothing is removed where something named is missing: it may be what lies there under another name.
    """
    with _disk_errors(folder):
        if not keep_unfinished:
            (folder / UNFINISHED).unlink(missing_ok=True)
        for path in orphaned_files(folder, old):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for place in (folder / SEGMENTS, folder):
            if place.is_dir():
                sync(place)


def orphaned_files(folder: Path, old: Collection[Path] = ()) -> list[Path]:
    """What lies in a gallery's folder and is named by no manifest: of a write that was killed.

    Empty where a segment that a manifest names is missing. As long as the manifest of the gallery itself
    cannot be read, what it may name, ``old``, is left out.
    """
    named = {folder / name for name in (MANIFEST, UNFINISHED, LOCK, SEGMENTS)}
    segments: set[Path] = set()
    manifest = _readable_manifest(folder)
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
    return sorted(path for path in _parts(folder) if path not in named | segments)


def _parts(folder: Path) -> list[Path]:
    """What lies in a gallery's folder and among its segments, by names that nothing else has."""
    inner = (folder / SEGMENTS).iterdir() if (folder / SEGMENTS).is_dir() else ()
    found = [path for path in folder.iterdir() if _OWN_FILES.fullmatch(path.name)]
    return found + [path for path in inner if SEGMENT_NAME.fullmatch(path.name)]


def verify_folder(folder: Path, progress: Callable[[float], None] = lambda share: None) -> int:
    """Check every byte of every file of a gallery.

    Args:
        folder: of the gallery.
        progress: told the share of the bytes that is done.

    Returns:
        Number of files checked.

    Raises:
        InputError: all files that are damaged or missing, by name; or the gallery was changed meanwhile.
    """
    manifest = read_manifest(folder / MANIFEST)
    records = [
        (folder / SEGMENTS / segment.name / name, record)
        for segment in manifest.segments
        for name, record in segment.files.items()
    ]
    if manifest.log is not None:
        records.append((folder / manifest.log[0], manifest.log[1]))
    total, done, problems = sum(record.bytes for _, record in records), 0, []
    for path, record in records:
        try:
            _check_bytes(path, record)
        except InputError as error:
            problems.append(str(error))
        done += record.bytes
        progress(done / total)
    if read_manifest(folder / MANIFEST) != manifest:
        raise InputError(f"{folder}: the gallery was changed while it was verified; verify it again")
    if problems:
        raise InputError("; ".join(problems))
    for segment, described in zip(read_contents(folder, manifest).segments, manifest.segments, strict=True):
        if not all(is_normalized(block).all() for block in segment.blocks()):
            raise InputError(f"{folder / SEGMENTS / described.name / VECTORS}: rows that are not of length 1")
        if segment.index is not None:
            segment.index.load()
    return len(records) + 1


def _check_bytes(path: Path, record: FileRecord) -> None:
    check_size(path, record)
    try:
        with open(path, "rb") as file:
            found = checksum(file)
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
    if found != record.sha256:
        raise InputError(f"{path}: damaged: its checksum is not the one in the manifest")


def _read_log(path: Path, record: FileRecord) -> tuple[DeletionRecord, ...]:
    """The log of removals, however long: it grows with each erasure, and is never cut."""
    _check_bytes(path, record)
    try:
        with open_text(path) as lines:
            return tuple(map(DeletionRecord.from_line, lines))
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: not a log of removals ({truncate(error)})") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock; the system releases it when the process ends, in whatever way."""
    if (folder / SEGMENTS).is_symlink():  # what is cleaned up behind a link may be anybody's
        raise InputError(f"{folder / SEGMENTS}: a link, expected a folder: this gallery can only be read")
    with _disk_errors(folder):
        try:
            handle = lock(folder / LOCK, create=True)
        except NoLocksError as error:
            raise InputError(
                f"{folder}: its file system has no locks ({error.strerror}): a gallery there can only be read"
            ) from None
    if handle is None:
        raise InputError(
            f"{folder}: locked: another program is changing this gallery; try again when it has finished"
        )
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Tell a full or read-only disk in one line."""
    try:
        yield
    except DiskError as error:
        raise InputError(f"{folder}: cannot write the gallery ({error.reason})") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot write the gallery ({error.strerror or error})") from None


def _readable_manifest(folder: Path) -> Manifest | None:
    """The manifest of a gallery; None where there is none, or one that is damaged or of another version."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    read_file(path)  # one that the disk does not give now may be whole
    try:
        return read_manifest(path)
    except InputError:
        return None
