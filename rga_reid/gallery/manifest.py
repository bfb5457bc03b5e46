"""The manifest of a gallery folder: what the gallery is, and all files that belong to it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rga_reid import __version__
from rga_reid.data.columns import RESERVED, TYPES
from rga_reid.errors import InputError, short_repr
from rga_reid.files import atomic_file, sync
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.store import METRIC, Metadata
from rga_reid.inputs import read_file, reject_surrogates, truncate
from rga_reid.models.checkpoints import ModelFingerprint

FORMAT = "rga-reid gallery"
VERSION = 3  #: incremented when older programs could no longer read the folder
READABLE = (2, VERSION)  #: version 2, of rga-reid 1.0, has no columns but path, pid and camid
MANIFEST = "manifest.json"

SEGMENT_NAME = re.compile(r"[0-9]{6,}-[0-9]+")
ADDITION_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{12}")
_LOG_NAME = re.compile(r"removals-[0-9]+\.jsonl")
_MAX_COUNT = 2**62
_NO_CHECKSUM = "0" * 64  # in place of the manifest's own checksum while it is computed


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file."""

    bytes: int
    sha256: str  #: in hex

    @classmethod
    def from_json(cls, value: Any) -> FileRecord:
        """Parse what ``asdict`` wrote."""
        return cls(_count(value["bytes"]), _text(value["sha256"]))


@dataclass(frozen=True)
class IndexRecord:
    """The approximate index of a segment."""

    settings: Mapping[str, int]
    recall_at_10: float  #: against exact search, measured when it was built

    @classmethod
    def from_json(cls, value: Any) -> IndexRecord:
        """Parse what ``asdict`` wrote."""
        settings = {_text(name): _count(number) for name, number in value["settings"].items()}
        recall = float(value["recall_at_10"])
        if not 0 <= recall <= 1:
            raise ValueError(f"recall_at_10: expected 0 to 1, found {recall}")
        return cls(settings, recall)


@dataclass(frozen=True)
class SegmentRecord:
    """A folder of files that never change: vectors and table of some images, and their index."""

    name: str
    count: int  #: number of images
    index: IndexRecord | None  #: None if the segment is searched exactly
    files: Mapping[str, FileRecord]

    @classmethod
    def from_json(cls, value: Any) -> SegmentRecord:
        """Parse what ``asdict`` wrote."""
        name = _text(value["name"], SEGMENT_NAME)
        index = None if value["index"] is None else IndexRecord.from_json(value["index"])
        expected = {"vectors.npy", "table.parquet"} | ({"index.faiss"} if index else set())
        if value["files"].keys() != expected:
            raise ValueError(f"segment {name}: expected the files {', '.join(sorted(expected))}")
        files = {file: FileRecord.from_json(record) for file, record in value["files"].items()}
        return cls(name, _count(value["count"]), index, files)


@dataclass(frozen=True)
class Manifest:
    """The state of a gallery folder.

    Args:
        generation: number of this state, from 1; each change increments it.
        metadata: metadata of the gallery.
        segments: in the order of the images.
        log: name and record of the deletion log; None if nothing was ever removed.
        added: first ids of the waiting additions that became part of it, by their names, see ``additions``.
    """

    generation: int
    metadata: Metadata
    segments: tuple[SegmentRecord, ...]
    log: tuple[str, FileRecord] | None = None
    added: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(segment.count for segment in self.segments)

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """Parse what ``to_json`` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: a value of another form.
        """
        if value["metric"] != METRIC:
            raise ValueError(f"metric: expected {METRIC}, found {short_repr(value['metric'])}")
        log = value["removals"]
        manifest = cls(
            generation=_count(value["generation"]),
            metadata=Metadata(
                _count(value["dimension"]),
                IndexConfig(value["index"]["kind"], dict(value["index"]["settings"])),
                None if value["model"] is None else ModelFingerprint.from_json(value["model"]),
                _count(value["next_id"]),
                columns_from_json(value.get("columns", {})),
            ),
            segments=tuple(map(SegmentRecord.from_json, value["segments"])),
            log=None if log is None else (_text(log["name"], _LOG_NAME), FileRecord.from_json(log)),
            added={
                _text(name, ADDITION_NAME): _count(first) for name, first in value.get("added", {}).items()
            },
        )
        if value["count"] != manifest.count:
            raise ValueError(f"count: {short_repr(value['count'])}, but its segments have {manifest.count}")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as a JSON object, without its own checksum."""
        metadata = self.metadata
        return {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"rga-reid {__version__}",
            "generation": self.generation,
            "metric": METRIC,
            "dimension": metadata.dimension,
            "count": self.count,
            "next_id": metadata.next_id,
            "columns": dict(metadata.columns),
            "index": {"kind": metadata.index.kind, "settings": dict(metadata.index.settings)},
            "model": None if metadata.model is None else metadata.model.to_json(),
            "segments": [asdict(segment) for segment in self.segments],
            "removals": None if self.log is None else {"name": self.log[0], **asdict(self.log[1])},
            "added": dict(self.added),
        }


def columns_from_json(value: Mapping[str, Any]) -> dict[str, str]:
    """Parse the columns of a gallery; those that every gallery has may be missing.

    Raises:
        ValueError: an unknown type.
    """
    columns = {**RESERVED, **{_text(name): _text(kind) for name, kind in value.items()}}
    if unknown := set(columns.values()) - TYPES.keys():
        raise ValueError(f"columns: unknown type {min(unknown)}")
    return columns


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Replace a manifest, atomically and durably. The files that it names must be on the disk already."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(canonical_json(manifest.to_json()))
        sync(temporary)
    sync(path.parent)


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as text that ends with its own SHA-256, computed with zeros instead of it."""
    text = json.dumps({**value, "sha256": _NO_CHECKSUM}, indent=2) + "\n"
    before, _, after = text.rpartition(_NO_CHECKSUM)
    return (before + hashlib.sha256(text.encode()).hexdigest() + after).encode()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and compare it with its checksum.

    Raises:
        InputError: it is missing, damaged, edited, foreign or of another version.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        found = "a file" if os.path.exists(folder) else "nothing"
        raise InputError(f"{folder}: expected a gallery, a folder; found {found}")
    if not os.path.exists(path):
        raise InputError(f"{path}: missing; is this folder a gallery?")
    return _parse(path, read_file(path))


@lru_cache(maxsize=4)  # a writer reads the same content several times
def _parse(path: Path, content: bytes) -> Manifest:
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: not JSON ({truncate(error)})") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f'{path}: not the manifest of a gallery (expected "format": "{FORMAT}")')
    if value.get("version") not in READABLE:
        raise InputError(
            f"{path}: a gallery of format version {short_repr(value.get('version'))}; "
            f"this program reads {' and '.join(map(str, READABLE))}"
        )
    checksum = str(value.get("sha256"))
    valid = re.fullmatch("[0-9a-f]{64}", checksum)
    unsigned = content.replace(checksum.encode(), _NO_CHECKSUM.encode()) if valid else b""
    if hashlib.sha256(unsigned).hexdigest() != checksum:
        raise InputError(f"{path}: damaged or edited: its content does not match its checksum")
    try:
        reject_surrogates(value, content)
        return Manifest.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged manifest ({short_repr(error, 200)})") from None


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_COUNT:
        raise ValueError(f"expected a count, found {short_repr(value)}")
    return value


def _text(value: Any, pattern: re.Pattern[str] | None = None) -> str:
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise ValueError(f"expected a name, found {short_repr(value)}")
    return value
