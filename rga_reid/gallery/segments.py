"""Segments: the unit in which a gallery grows, is written and forgets."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from rga_reid.data.columns import Schema, cast
from rga_reid.errors import InputError
from rga_reid.files import checksum, sync
from rga_reid.gallery.index import Index, IndexConfig, Vectors
from rga_reid.gallery.manifest import FileRecord, IndexRecord, SegmentRecord
from rga_reid.gallery.store import DeletionRecord, Metadata, Rows, empty_table
from rga_reid.gallery.validation import normalized_blocks
from rga_reid.inference.feature_files import read_npy_header
from rga_reid.inputs import open_bytes, read_file, read_parquet, truncate

SEGMENT_ROWS = 65_536  #: maximum number of images in a segment that is searched exactly
INDEXED_ROWS = 1 << 20  #: maximum in a segment with an index: every index costs a search
INDEXED_BYTES = 1 << 32  #: maximum of its vectors: an index is built in memory
VECTORS, TABLE, INDEX = "vectors.npy", "table.parquet", "index.faiss"

_IN_MEMORY = 1 << 24  # bytes; smaller files are read, larger ones mapped, so small segments keep no file open
_CLASSES = {"hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat, "ivfpq": faiss.IndexIVFPQ}


@dataclass(frozen=True, eq=False)  # compared by identity: a segment never changes
class Segment:
    """Some images of a gallery, in their order.

    Args:
        read: returns the ids and the table; called once.
        vectors: unit rows, float32 ``(n, d)``; may be a mapped file.
        index: approximate index of the rows; None if they are searched exactly.
        record: its entry in the manifest; None if it is not on disk.
    """

    read: Callable[[], tuple[np.ndarray, pd.DataFrame]]
    vectors: np.ndarray
    index: Index | None = None
    record: SegmentRecord | None = None

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        vectors: np.ndarray,
        table: pd.DataFrame,
        index: Index | None = None,
        record: SegmentRecord | None = None,
    ) -> Segment:
        """Return a segment of these ids and this table."""
        return cls(lambda: (ids, table), vectors, index, record)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def _content(self) -> tuple[np.ndarray, pd.DataFrame]:
        return self.read()

    @property
    def ids(self) -> np.ndarray:
        """int64 ``(n,)``, increasing."""
        return self._content[0]

    @property
    def table(self) -> pd.DataFrame:
        """n rows of the gallery's columns, numbered from 0; it may lack newer ones, see ``VectorStore``."""
        return self._content[1]

    @property
    def dimension(self) -> int:
        """d."""
        return self.vectors.shape[1]

    @property
    def kind(self) -> str:
        """Kind of its index."""
        return "flat" if self.index is None else self.index.kind

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors, a block at a time."""
        for _, block in Vectors([self.vectors]).blocks():
            yield block

    def build_index(self, vectors: np.ndarray) -> Index | None:
        """Return the index, which exists already."""
        return self.index

    def in_memory(self) -> Segment:
        """Return the segment itself."""
        return self


@dataclass(frozen=True, eq=False)
class NewSegment:
    """Content of a new segment. Its vectors are read block by block.

    Args:
        ids, table: m rows, as in ``Segment``.
        vectors: unit rows, ``(n, d)``.
        config: of its index.
        keep: bool ``(n,)``, the m rows of ``vectors`` that belong to it; all by default.
    """

    ids: np.ndarray
    vectors: Vectors
    table: pd.DataFrame
    config: IndexConfig
    keep: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """d."""
        return self.vectors.dimension

    @property
    def kind(self) -> str:
        """Kind of index that was requested."""
        return self.config.kind

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the vectors, a block at a time."""
        for _, block in self.vectors.blocks(self.keep):
            yield block

    def build_index(self, vectors: np.ndarray) -> Index | None:
        """Return a new index of these vectors, which are the segment's."""
        return self.config.build(vectors)

    def in_memory(self) -> Segment:
        """Return the segment, without a file."""
        blocks = list(self.blocks())
        vectors = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return Segment.of(self.ids, vectors, self.table, self.build_index(vectors))


class NormalizedVectors(Vectors):
    """Rows of a feature matrix, normalised when they are read.

    Args:
        features: numbers ``(n, d)``; may be a mapped file.
        first_row: number of the first one in error messages.
    """

    def __init__(self, features: np.ndarray, first_row: int) -> None:
        super().__init__([features])
        self._first_row = first_row

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows, block in super().blocks(keep):
            for part, vectors in normalized_blocks(block, self._first_row + int(rows[0])):
                yield rows[part], vectors


def max_rows(config: IndexConfig, dimension: int) -> int:
    """Return the maximum number of images in a segment."""
    return SEGMENT_ROWS if config.kind == "flat" else min(INDEXED_ROWS, INDEXED_BYTES // (4 * dimension))


def repack(segments: Sequence[Segment], config: IndexConfig, columns: Schema) -> Iterator[NewSegment]:
    """Yield the rows of some segments as few new ones, with indexes by ``config`` and these columns."""
    if not segments:
        return
    vectors = Vectors([segment.vectors for segment in segments])
    ids = np.concatenate([segment.ids for segment in segments])
    table = pd.concat([cast(segment.table, columns) for segment in segments], ignore_index=True)
    step = max_rows(config, vectors.dimension)
    for start in range(0, len(ids), step):
        rows = slice(start, min(start + step, len(ids)))
        part = table[rows].reset_index(drop=True)
        yield NewSegment(ids[rows], vectors.span(rows.start, rows.stop), part, config)


def write_segment(folder: Path, segment: Segment | NewSegment) -> SegmentRecord:
    """Write a segment into a new folder, durably. An index is built from the file of its vectors.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    folder.mkdir(parents=True)
    files = {}
    with _Output(folder / VECTORS) as output:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(segment), segment.dimension)}
        np.lib.format.write_array_header_1_0(output, header)
        for block in segment.blocks():
            output.write(np.ascontiguousarray(block, dtype="<f4").data.cast("B"))
    files[VECTORS] = output.record
    files[TABLE] = _write_table(folder, segment.ids, segment.table)
    built = segment.build_index(_read_vectors(folder / VECTORS, (len(segment), segment.dimension)))
    index = None
    if built is not None:
        with _Output(folder / INDEX) as output:
            # faiss's own file writer only prints an error of its last write (a full disk)
            writer = faiss.PyCallbackIOWriter(output.write, 1 << 20)  # type: ignore[attr-defined]
            faiss.write_index(built.loaded, writer)
        files[INDEX] = output.record
        index = IndexRecord(dict(built.settings), built.recall)
    sync(folder)
    sync(folder.parent)
    return SegmentRecord(folder.name, len(segment), index, files)


def write_relabelled(folder: Path, old: Path, segment: Segment) -> Segment:
    """Write a segment on disk with another table into a new folder, durably. Its other files get a second name.

    Args:
        folder: new folder.
        old: folder of the segment.
        segment: the segment, with the new table.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    assert segment.record is not None
    folder.mkdir(parents=True)
    files = dict(segment.record.files)
    for name in files.keys() - {TABLE}:
        try:
            os.link(old / name, folder / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(old / name, folder / name)
            sync(folder / name)
    files[TABLE] = _write_table(folder, segment.ids, segment.table)
    sync(folder)
    sync(folder.parent)
    return replace(segment, record=replace(segment.record, name=folder.name, files=files))


def _write_table(folder: Path, ids: np.ndarray, table: pd.DataFrame) -> FileRecord:
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pandas(table.assign(id=ids), preserve_index=False), content)
    with _Output(folder / TABLE) as output:
        output.write(content.getbuffer())
    return output.record


def read_segment(
    folder: Path,
    record: SegmentRecord,
    dimension: int,
    kind: str,
    columns: Schema,
    *,
    mapped: bool = False,
    lazy: bool = False,
    written: Segment | NewSegment | None = None,
) -> Segment:
    """Open a segment: check sizes and headers, map the vectors, leave the index for the first search.

    Small files of vectors are read into memory, unless ``mapped``. What is open stays readable when another
    program removes the files. A ``lazy`` segment reads the file of its table now and parses it when it is needed. The
    table of a segment that was ``written`` just now is not read again.

    Raises:
        InputError: a file that is missing, damaged or not part of a gallery; the message names it.
    """
    for name, recorded in record.files.items():
        check_size(folder / name, recorded)
    vectors = _read_vectors(folder / VECTORS, (record.count, dimension), mapped=mapped)
    path, index = folder / TABLE, None
    if record.index is not None:
        loader = _IndexFile(folder / INDEX, record.files[INDEX].sha256, kind, (record.count, dimension))
        index = Index(kind, record.index.settings, loader.load, record.index.recall_at_10)
    if written is not None:
        return Segment.of(written.ids, vectors, cast(written.table, columns), index, record)
    if lazy and record.files[TABLE].bytes <= _IN_MEMORY:
        file = io.BytesIO(read_file(path, _IN_MEMORY))
        return Segment(partial(_read_table, path, record.count, columns, file), vectors, index, record)
    ids, table = _read_table(path, record.count, columns)
    return Segment.of(ids, vectors, table, index, record)


def check_size(path: Path, recorded: FileRecord) -> None:
    """Check the size of a file.

    Raises:
        InputError: it has another size, is missing or cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: missing from the gallery") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device may never end
        raise InputError(f"{path}: damaged: expected a file")
    if status.st_size != recorded.bytes:
        raise InputError(f"{path}: damaged: expected {recorded.bytes} bytes, found {status.st_size}")


class _Output:
    """A new file, measured and hashed while it is written, durable when its block ends."""

    def __init__(self, path: Path) -> None:
        self._path, self._bytes, self._digest = path, 0, hashlib.sha256()

    def __enter__(self) -> _Output:
        self._file: BinaryIO = open(self._path, "xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        sync(self._path)

    def write(self, data: Any) -> int:
        """Write data; return the number of bytes."""
        self._digest.update(data)
        written = self._file.write(data)
        self._bytes += written
        return written

    @property
    def record(self) -> FileRecord:
        """Size and checksum of the file."""
        return FileRecord(self._bytes, self._digest.hexdigest())


class _IndexFile:
    """An index file whose header was checked. It stays open, to be read even after it was removed."""

    def __init__(self, path: Path, sha256: str, kind: str, shape: tuple[int, int]) -> None:
        self._path, self._sha256, self._kind, self._shape = path, sha256, kind, shape
        self._lock = threading.Lock()
        self._loaded: faiss.Index | None = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - read when the index is first searched
            header = self._file.read(16)
        except OSError as error:
            raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
        if len(header) < 16 or struct.unpack("<iq", header[4:]) != shape[::-1]:
            raise InputError(f"{path}: damaged: not the header of a FAISS index of {shape[0]} x {shape[1]}")

    def load(self) -> faiss.Index:
        """Return the index. FAISS would follow damaged links out of memory, so the checksum comes first."""
        with self._lock:  # several threads may search a gallery for the first time
            if self._loaded is None:
                self._loaded = self._read()
            return self._loaded

    def _read(self) -> faiss.Index:
        try:
            self._file.seek(0)
            if checksum(self._file) != self._sha256:
                raise InputError(f"{self._path}: damaged: its checksum differs from the manifest")
            self._file.seek(0)
            reader = faiss.PyCallbackIOReader(self._file.read, 1 << 20)  # type: ignore[attr-defined]
            index = faiss.read_index(reader)
        except (OSError, RuntimeError):
            raise InputError(f"{self._path}: not a FAISS index, or one of an unknown kind") from None
        found = (type(index), index.ntotal, index.d, index.metric_type)
        if found != (_CLASSES[self._kind], *self._shape, faiss.METRIC_INNER_PRODUCT):
            count, dimension = self._shape
            raise InputError(
                f"{self._path}: expected an inner-product index of kind {self._kind}, {count} x {dimension}; "
                f"found {type(index).__name__}, {index.ntotal} x {index.d}"
            )
        self._file.close()  # left open after an error, so that the next search reports it too
        return index


def _read_vectors(path: Path, shape: tuple[int, int], *, mapped: bool = False) -> np.ndarray:
    try:
        with open_bytes(path) as file:
            found, in_columns, dtype = read_npy_header(file)
            if (found, dtype, in_columns and min(shape) > 1) != (shape, np.dtype("<f4"), False):
                raise InputError(f"{path}: expected float32 {shape}, found {dtype} {found}")
            start, size = file.tell(), 4 * shape[0] * shape[1]
            if os.fstat(file.fileno()).st_size != start + size:
                raise InputError(f"{path}: damaged: expected {size} bytes of numbers after its header")
            if size <= _IN_MEMORY and not mapped:
                return np.frombuffer(file.read(size), "<f4").reshape(shape).copy()
            # maps the open file, whose name may be gone by now
            return np.memmap(file, "<f4", "r", start, shape)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged: not an array of NumPy ({truncate(error)})") from None


def _read_table(
    path: Path, count: int, columns: Schema, file: BinaryIO | None = None
) -> tuple[np.ndarray, pd.DataFrame]:
    content = read_parquet(path, rows=count, file=file)
    try:
        ids = content.pop("id").to_numpy(dtype=np.int64)
        table = cast(content, columns)
        if table["path"].isna().any():
            raise ValueError("a path is null")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged: not a table of a gallery ({truncate(error)})") from None
    if (np.diff(ids) <= 0).any():
        raise InputError(f"{path}: damaged: its ids do not increase")
    return ids, table


SMALL_ROWS = 4096  #: fewer images that are added join segments at the end, up to this number together
LARGE_ROWS = 65_536  #: the limit where as many as that, or more, are added
#: sizes at which ``merge`` joins smaller segments at the end; an index of fewer rows would save little
MERGED_ROWS = (131_072, 16_384)
#: images after whose addition commands call ``Gallery.maintain``: the addition of a few must not wait for an index
MAINTAINED_ROWS = 1024

WriteSegment = Callable[[NewSegment], Segment]  #: stores a new segment and returns it opened


@dataclass(frozen=True)
class Snapshot:
    """A state of a gallery. It never changes; a change makes another one that shares segments with it.

    Args:
        metadata: metadata of the gallery.
        segments: in the order of the images.
        deletions: lines of the log of removals.
        log: name and record of the file of these lines; None if they are in no file.
    """

    metadata: Metadata = field(default_factory=Metadata)
    segments: tuple[Segment, ...] = ()
    deletions: tuple[DeletionRecord, ...] = ()
    log: tuple[str, FileRecord] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns of the gallery, one row per image, in their order."""
        columns = self.metadata.columns
        tables = [cast(segment.table, columns) for segment in self.segments] or [empty_table(columns)]
        return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)

    @cached_property
    def ids(self) -> np.ndarray:
        """int64, one per image, increasing."""
        return np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in self.segments)])


def append(snapshot: Snapshot, rows: Rows, write: WriteSegment) -> Snapshot:
    """Add images at the end. Nothing else is rewritten, except small segments without an index at the end.

    Such a segment is joined if it is no larger than what is added to it, like the digits of a binary
    counter. So images that come one by one leave few segments, and each image is rewritten a few times only.
    ``SMALL_ROWS`` limits what one image can cause to be rewritten, and fewer images get no index: they are
    searched exactly until ``merge`` or ``compact`` joins them.
    """
    kept, tail, count = list(snapshot.segments), [Segment.of(rows.ids, rows.vectors, rows.table)], len(rows)
    small = count < SMALL_ROWS
    limit = SMALL_ROWS if small else LARGE_ROWS
    while kept and kept[-1].index is None and len(kept[-1]) <= count and len(kept[-1]) + count <= limit:
        tail.insert(0, kept.pop())
        count += len(tail[0])
    metadata = snapshot.metadata
    config = IndexConfig() if small and kept else metadata.index
    new = [write(segment) for segment in repack(tail, config, metadata.columns)]
    return replace(snapshot, segments=(*kept, *new))


def merge(snapshot: Snapshot, write: WriteSegment) -> Snapshot:
    """Join small segments at the end once they have enough rows together, and index them.

    With the limits of ``MERGED_ROWS`` each row is rewritten at most twice, and a gallery of n rows has about
    n / 131,072 large segments and at most 8 of 16,384 rows and more.
    """
    metadata = snapshot.metadata
    for limit in MERGED_ROWS:
        limit = min(limit, max_rows(metadata.index, metadata.dimension))
        kept, tail = list(snapshot.segments), list[Segment]()
        while kept and len(kept[-1]) < limit:
            tail.insert(0, kept.pop())
        if len(tail) > 1 and sum(map(len, tail)) >= limit:
            new = [write(segment) for segment in repack(tail, metadata.index, metadata.columns)]
            return replace(snapshot, segments=(*kept, *new))
    return snapshot


def update(
    snapshot: Snapshot, ids: np.ndarray, values: pd.DataFrame, relabel: Callable[[Segment], Segment]
) -> Snapshot:
    """Change columns of some images. The vectors and indexes of their segments stay as they are.

    Args:
        snapshot: state of the gallery, with the columns and types of ``values``.
        ids, values: see ``VectorStore.update``.
        relabel: stores a segment whose table has changed, and returns it.
    """
    segments = []
    for segment in snapshot.segments:
        place = np.searchsorted(ids, segment.ids)
        place = np.minimum(place, len(ids) - 1)
        changed = ids[place] == segment.ids
        if changed.any():
            table = cast(segment.table, snapshot.metadata.columns).copy(deep=False)
            for column in values.columns:
                new = values[column].array.take(place)
                table[column] = table[column].array.copy()
                table.loc[changed, column] = new[changed]
            segment = relabel(Segment.of(segment.ids, segment.vectors, table, segment.index, segment.record))
        segments.append(segment)
    return replace(snapshot, segments=tuple(segments))


def delete(snapshot: Snapshot, ids: np.ndarray, write: WriteSegment) -> Snapshot:
    """Erase images.

    A segment with one of them is rewritten from its other images, and its index is rebuilt: an index cannot
    forget, and what it learned from the erased vectors (centroids, codebooks) would remain.
    """
    segments: list[Segment] = []
    for segment in snapshot.segments:
        keep = ~np.isin(segment.ids, ids)
        if keep.all():
            segments.append(segment)
        elif keep.any():
            table = segment.table[keep].reset_index(drop=True)
            vectors = Vectors([segment.vectors])
            new = NewSegment(segment.ids[keep], vectors, table, snapshot.metadata.index, keep)
            segments.append(write(new))
    return replace(snapshot, segments=tuple(segments))


def compact(snapshot: Snapshot, write: WriteSegment) -> Snapshot:
    """Join segments into as few as possible. Full ones at the beginning stay as they are."""
    index, full = snapshot.metadata.index, 0
    limit = max_rows(index, snapshot.metadata.dimension)
    while full < len(snapshot.segments) and len(snapshot.segments[full]) == limit:
        full += 1
    if len(snapshot.segments) - full <= 1:
        return snapshot
    new = [write(segment) for segment in repack(snapshot.segments[full:], index, snapshot.metadata.columns)]
    return replace(snapshot, segments=(*snapshot.segments[:full], *new))
