"""Read a gallery folder: open it, see what others have written since, check every byte."""

from __future__ import annotations

from pathlib import Path

from rga_reid.errors import InputError
from rga_reid.files import checksum
from rga_reid.gallery.manifest import MANIFEST, FileRecord, Manifest, SegmentRecord, read_manifest
from rga_reid.gallery.segments import VECTORS, Segment, Snapshot, check_size, read_segment
from rga_reid.gallery.store import DeletionRecord, Progress, ignore_progress
from rga_reid.gallery.validation import is_normalized
from rga_reid.inputs import open_text, read_file, truncate

SEGMENTS = "segments"  #: folder of the segments


def read_gallery(folder: Path, known: Snapshot | None = None) -> Snapshot:
    """Read the gallery in a folder; check its manifest, and the sizes and headers of all files.

    Args:
        folder: folder of the gallery.
        known: an earlier state, whose segments are not opened again; tables of others are parsed when needed.

    Raises:
        InputError: no gallery there, one of another version, or a file that is missing, damaged or not part
            of a gallery; the message names it.
    """
    manifest = read_manifest(folder / MANIFEST)
    while True:
        try:
            return read_snapshot(folder, manifest, known=known)
        except InputError:
            # a writer may have removed the segments of this manifest since; then there is a newer one
            newer = read_manifest(folder / MANIFEST)
            if newer == manifest:
                raise
            manifest = newer


def read_snapshot(
    folder: Path, manifest: Manifest, *, mapped: bool = False, known: Snapshot | None = None
) -> Snapshot:
    """Open what a manifest names; for ``mapped`` see ``read_segment``, for ``known`` ``read_gallery``."""
    metadata = manifest.metadata
    opened = (
        {}
        if known is None
        else {segment.record.name: segment for segment in known.segments if segment.record}
    )

    def read(record: SegmentRecord) -> Segment:
        segment = opened.get(record.name)
        if segment is not None and segment.record == record:
            return segment
        path = folder / SEGMENTS / record.name
        return read_segment(
            path,
            record,
            metadata.dimension,
            metadata.index.kind,
            metadata.columns,
            mapped=mapped or known is not None,
            lazy=known is not None,
        )

    segments = tuple(map(read, manifest.segments))
    if manifest.log is None:
        return Snapshot(metadata, segments)
    if known is not None and known.log == manifest.log:
        return Snapshot(metadata, segments, known.deletions, known.log)
    return Snapshot(metadata, segments, read_log(folder / manifest.log[0], manifest.log[1]), manifest.log)


def find_manifest(folder: Path) -> Manifest | None:
    """Read a manifest; return None if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    read_file(path)  # an error of the disk does not mean that it is damaged
    try:
        return read_manifest(path)
    except InputError:
        return None


def check_folder(folder: Path, progress: Progress = ignore_progress) -> int:
    """Check every byte of every file of a gallery.

    Args:
        folder: folder of the gallery.
        progress: called with the fraction of the bytes that is done.

    Returns:
        Number of files checked.

    Raises:
        InputError: the names of all damaged and missing files; or the gallery was changed meanwhile.
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
        raise InputError(f"{folder}: the gallery was changed while it was checked; check it again")
    if problems:
        raise InputError("; ".join(problems))
    for segment, described in zip(read_snapshot(folder, manifest).segments, manifest.segments, strict=True):
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
        raise InputError(f"{path}: damaged: its checksum differs from the manifest")


def read_log(path: Path, record: FileRecord) -> tuple[DeletionRecord, ...]:
    """Read the deletion log, however long: it grows with each removal, and is never cut."""
    _check_bytes(path, record)
    try:
        with open_text(path) as lines:
            return tuple(map(DeletionRecord.from_line, lines))
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged: not a deletion log ({truncate(error)})") from None
