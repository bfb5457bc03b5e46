"""Segments: the unit in which a gallery grows, is written, and forgets."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.files import checksum, sync
from rga_reid.gallery.index import Blocks, Index, IndexConfig, Vectors
from rga_reid.gallery.manifest import FileRecord, IndexRecord, SegmentRecord
from rga_reid.gallery.validation import gallery_table, require_present
from rga_reid.inference.feature_files import read_header
from rga_reid.inputs import open_bytes, read_parquet, truncate
from rga_reid.models.checkpoints import ModelFingerprint

SEGMENT_ROWS = 65_536  #: images at most in a segment that is searched exactly
INDEXED_ROWS = 1 << 20  #: the same where an index is searched: each one more is one more search
INDEXED_BYTES = 1 << 32  #: of the vectors of such a segment at most: an index is built in memory
VECTORS, TABLE, INDEX = "vectors.npy", "table.parquet", "index.faiss"

_IN_MEMORY = 1 << 24  # bytes: smaller files are read, larger ones mapped, so that small segments hold no file
_CLASSES = {"hnsw": faiss.IndexHNSWFlat, "ivf": faiss.IndexIVFFlat, "ivfpq": faiss.IndexIVFPQ}


@dataclass(frozen=True, eq=False)  # compared by identity: a segment never changes
class Segment:
    """Some images of a gallery, in their order.

    Args:
        ids: int64 ``(n,)``, increasing.
        vectors: unit rows, float32 ``(n, d)``; may be a mapped file.
        table: n rows ``path, pid, camid``, numbered from 0.
        index: approximate index of the rows; None if they are searched exactly.
        record: what the manifest says of it; None if it is not on disk.
    """

    ids: np.ndarray
    vectors: np.ndarray
    table: pd.DataFrame
    index: Index | None = None
    record: SegmentRecord | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """d."""
        return self.vectors.shape[1]

    @property
    def kind(self) -> str:
        """Of its index."""
        return "flat" if self.index is None else self.index.kind

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors, some at a time."""
        for _, block in Vectors([self.vectors]).blocks():
            yield block

    def index_of(self, vectors: np.ndarray) -> Index | None:
        """The index, whose rows are those vectors."""
        return self.index


@dataclass(frozen=True, eq=False)
class Rows:
    """What a new segment is to hold: its vectors are not in memory, but come block by block.

    Args:
        ids, table: as a segment's; n rows, m of them if some are left out.
        vectors: unit rows, ``(n, d)``.
        plan: what indexes them.
        keep: bool ``(n,)``, the m rows of ``vectors`` that belong to it; all by default.
    """

    ids: np.ndarray
    vectors: Blocks
    table: pd.DataFrame
    plan: IndexConfig
    keep: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """d."""
        return self.vectors.dimension

    @property
    def kind(self) -> str:
        """Of the index that is wanted."""
        return self.plan.kind

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors, some at a time."""
        for _, block in self.vectors.blocks(self.keep):
            yield block

    def index_of(self, vectors: np.ndarray) -> Index | None:
        """A new index of those vectors, which are these."""
        return self.plan.build(vectors)

    def in_memory(self) -> Segment:
        """The segment, without a file."""
        blocks = list(self.blocks())
        vectors = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return Segment(self.ids, vectors, self.table, self.index_of(vectors))


def max_rows(plan: IndexConfig, dimension: int) -> int:
    """Images in a segment at most."""
    return SEGMENT_ROWS if plan.kind == "flat" else min(INDEXED_ROWS, INDEXED_BYTES // (4 * dimension))


def repack(segments: Sequence[Segment], plan: IndexConfig) -> Iterator[Rows]:
    """The rows of some segments in as few as can be, to be indexed by ``plan``."""
    if not segments:
        return
    vectors = Vectors([segment.vectors for segment in segments])
    ids = np.concatenate([segment.ids for segment in segments])
    table = pd.concat([segment.table for segment in segments], ignore_index=True)
    step = max_rows(plan, segments[0].vectors.shape[1])
    for start in range(0, len(ids), step):
        rows = slice(start, min(start + step, len(ids)))
        yield Rows(ids[rows], vectors.span(rows.start, rows.stop), table[rows].reset_index(drop=True), plan)


def write_segment(folder: Path, segment: Segment | Rows) -> SegmentRecord:
    """Write a segment into a new folder, to the disk. An index is built from the file of its vectors.

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
    with _Output(folder / TABLE) as output:
        table = io.BytesIO()
        segment.table.assign(id=segment.ids).to_parquet(table, index=False)
        output.write(table.getbuffer())
    files[TABLE] = output.record
    made, index = segment.index_of(_read_vectors(folder / VECTORS, (len(segment), segment.dimension))), None
    if made is not None:
        with _Output(folder / INDEX) as output:
            # faiss's own file writer only prints an error of its last write (a full disk)
            writer = faiss.PyCallbackIOWriter(output.write, 1 << 20)  # type: ignore[attr-defined]
            faiss.write_index(made.loaded, writer)
        files[INDEX] = output.record
        index = IndexRecord(dict(made.settings), made.recall)
    sync(folder)
    sync(folder.parent)
    return SegmentRecord(folder.name, len(segment), index, files)


def read_segment(
    folder: Path, record: SegmentRecord, dimension: int, kind: str, *, mapped: bool = False
) -> Segment:
    """Open a segment: sizes and headers are checked, the vectors mapped, the index left for the first search.

    Few vectors are read into memory, unless all are to be ``mapped``.

    What is open stays readable when another program removes the files.

    Raises:
        InputError: a file that is missing, damaged or foreign: the message names it.
    """
    for name, recorded in record.files.items():
        check_size(folder / name, recorded)
    vectors = _read_vectors(folder / VECTORS, (record.count, dimension), mapped=mapped)
    ids, table = _read_table(folder / TABLE, record.count)
    index = None
    if record.index is not None:
        file = _IndexFile(folder / INDEX, record.files[INDEX].sha256, kind, (record.count, dimension))
        index = Index(kind, record.index.settings, file.load, record.index.recall_at_10)
    return Segment(ids, vectors, table, index, record)


def check_size(path: Path, recorded: FileRecord) -> None:
    """Refuse a file of another size.

    Raises:
        InputError: so, or it is missing or cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: missing from the gallery") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device may have no end
        raise InputError(f"{path}: damaged: expected a file")
    if status.st_size != recorded.bytes:
        raise InputError(f"{path}: damaged: expected {recorded.bytes} bytes, found {status.st_size}")


class _Output:
    """A new file that is on the disk when its block ends, measured and hashed as it is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._bytes, self._digest = path, 0, hashlib.sha256()

    def __enter__(self) -> _Output:
        self._file: BinaryIO = open(self._path, "xb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        sync(self._path)

    def write(self, data: Any) -> int:
        """As a file's; returns the number of bytes."""
        self._digest.update(data)
        written = self._file.write(data)
        self._bytes += written
        return written

    @property
    def record(self) -> FileRecord:
        """Size and checksum of what was written."""
        return FileRecord(self._bytes, self._digest.hexdigest())


class _IndexFile:
    """An index file, its header checked; open, so that it can be read after its name is gone."""

    def __init__(self, path: Path, sha256: str, kind: str, shape: tuple[int, int]) -> None:
        self._path, self._sha256, self._kind, self._shape = path, sha256, kind, shape
        self._once = threading.Lock()
        self._loaded: faiss.Index | None = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - read when the index is first searched
            header = self._file.read(16)
        except OSError as error:
            raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
        if len(header) < 16 or struct.unpack("<iq", header[4:]) != shape[::-1]:
            raise InputError(f"{path}: damaged: not the header of a FAISS index of {shape[0]} x {shape[1]}")

    def load(self) -> faiss.Index:
        """The index. A damaged one is refused before FAISS sees it: wrong links would lead out of memory."""
        with self._once:  # several threads may search a gallery for the first time
            if self._loaded is None:
                self._loaded = self._read()
            return self._loaded

    def _read(self) -> faiss.Index:
        try:
            self._file.seek(0)
            if checksum(self._file) != self._sha256:
                raise InputError(f"{self._path}: damaged: its checksum is not the one in the manifest")
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
        self._file.close()  # one that was refused is refused again
        return index


def _read_vectors(path: Path, shape: tuple[int, int], *, mapped: bool = False) -> np.ndarray:
    try:
        with open_bytes(path) as file:
            header = read_header(file)
            found = header.shape, header.dtype, header.in_columns and min(shape) > 1
            if found != (shape, np.dtype("<f4"), False):
                raise InputError(f"{path}: expected float32 {shape}, found {header.dtype} {header.shape}")
            if os.fstat(file.fileno()).st_size != header.start + header.size:
                raise InputError(f"{path}: damaged: expected {header.size} bytes of numbers after its header")
            if header.size <= _IN_MEMORY and not mapped:
                return np.frombuffer(file.read(header.size), "<f4").reshape(shape).copy()
            # of the open file: its name may be gone by now
            return np.memmap(file, "<f4", "r", header.start, shape)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged: not an array of NumPy ({truncate(error)})") from None


def _read_table(path: Path, count: int) -> tuple[np.ndarray, pd.DataFrame]:
    content = read_parquet(path, rows=count)
    try:
        table = gallery_table(content, name=str(path))
        ids = content["id"].to_numpy(dtype=np.int64)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged: not a table of a gallery ({truncate(error)})") from None
    if (np.diff(ids) <= 0).any():
        raise InputError(f"{path}: damaged: its ids do not increase")
    return ids, table


SMALL_ROWS = 4096  #: added images, if fewer, join segments at the end as long as they have no more together
LARGE_ROWS = 65_536  #: the same for as many as that, or more

Put = Callable[[Rows], Segment]  #: stores a new segment, and gives the one to go on with


@dataclass(frozen=True)
class DeletionRecord:
    """A line of the log of removals: never a path, never a vector."""

    time: str  #: UTC, ISO 8601
    pid: int | None  #: null: images of unknown pid
    count: int  #: images

    def to_line(self) -> str:
        """As JSON, with its line end."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> DeletionRecord:
        """The line that ``to_line`` wrote.

        Raises:
            ValueError, TypeError: another text.
        """
        removal = cls(**json.loads(line))
        known = isinstance(removal.time, str), removal.pid is None or type(removal.pid) is int
        if not all(known) or type(removal.count) is not int:
            raise TypeError("expected a time, a pid or null, and a count")
        return removal


@dataclass(frozen=True)
class Snapshot:
    """A state of a gallery. It never changes: a change makes another one, with the segments that stay."""

    dimension: int
    plan: IndexConfig
    model: ModelFingerprint | None = None
    segments: tuple[Segment, ...] = ()
    next_id: int = 0
    removals: tuple[DeletionRecord, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns ``path, pid, camid``, a row per image, in their order."""
        empty = gallery_table(pd.DataFrame({"path": []}))
        tables = [segment.table for segment in self.segments] or [empty]
        return pd.concat(tables, ignore_index=True)

    @cached_property
    def ids(self) -> np.ndarray:
        """int64, one per image, increasing."""
        return np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in self.segments)])


def append(contents: Snapshot, vectors: np.ndarray, table: pd.DataFrame, put: Put) -> Snapshot:
    """With more images at the end. What is there is not written again, except small segments at the end.

    Like a counter in binary, a segment at the end is joined if it is no larger than what is added to it: so
    images that come one by one leave few segments, and each is written again a few times only. What one image
    may cause to be written again is bounded by ``SMALL_ROWS``; ``compact`` joins the rest.

    Args:
        contents: the state before.
        vectors: unit rows, float32 ``(n, d)``.
        table: n rows, as ``gallery_table`` gives.
        put: stores a segment.
    """
    ids = np.arange(contents.next_id, contents.next_id + len(vectors))
    stay, tail, rows = list(contents.segments), [Segment(ids, vectors, table)], len(vectors)
    most = SMALL_ROWS if rows < SMALL_ROWS else LARGE_ROWS
    while stay and len(stay[-1]) <= rows and len(stay[-1]) + rows <= most:
        tail.insert(0, stay.pop())
        rows += len(tail[0])
    new = [put(segment) for segment in repack(tail, contents.plan)]
    return replace(contents, segments=(*stay, *new), next_id=contents.next_id + len(vectors))


def delete(contents: Snapshot, pids: Sequence[int], paths: Sequence[str], put: Put) -> Snapshot:
    """Without the images of some persons or paths, and a line in the log for each person.

    A segment that holds one of them is made again from the others, its index too: an index cannot forget,
    and what it learned of the removed vectors (centroids, codebooks) would stay.

    Raises:
        InputError: a pid or a path of which there is no image; nothing is removed then.
    """
    table = contents.table
    for column, wanted in (("pid", pids), ("path", paths)):
        require_present(column, wanted, table[column].dropna())
    goes = (table["pid"].isin(pids) | table["path"].isin(paths)).to_numpy(dtype=bool)
    segments: list[Segment] = []
    start = 0
    for segment in contents.segments:
        keep = ~goes[start : start + len(segment)]
        start += len(segment)
        if keep.all():
            segments.append(segment)
        elif keep.any():
            rest = segment.table[keep].reset_index(drop=True)
            vectors = Vectors([segment.vectors])
            segments.append(put(Rows(segment.ids[keep], vectors, rest, contents.plan, keep)))
    removals = (*contents.removals, *append_log(table["pid"][goes]))
    return replace(contents, segments=tuple(segments), removals=removals)


def append_log(pids: pd.Series) -> list[DeletionRecord]:
    """Lines of the log for images that are removed now: one for each person.

    Args:
        pids: of the images, Int64, null where unknown.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    counts = pids.value_counts(dropna=False, sort=False)
    return [
        DeletionRecord(now, None if pid is pd.NA else int(pid), int(count)) for pid, count in counts.items()
    ]


def compact(contents: Snapshot, put: Put) -> Snapshot:
    """With as few segments as can be. Full ones at the beginning stay; the same state if all is well."""
    stay = 0
    most = max_rows(contents.plan, contents.dimension)
    while stay < len(contents.segments) and len(contents.segments[stay]) == most:
        stay += 1
    if len(contents.segments) - stay <= 1:
        return contents
    new = [put(segment) for segment in repack(contents.segments[stay:], contents.plan)]
    return replace(contents, segments=(*contents.segments[:stay], *new))
