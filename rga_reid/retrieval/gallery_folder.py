"""A gallery on disk: a folder with a manifest, a FAISS index and a table."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import pandas as pd

from rga_reid import __version__
from rga_reid.errors import InputError
from rga_reid.files import atomic_folder, require_new
from rga_reid.models import fingerprint
from rga_reid.retrieval.arrays import gallery_table
from rga_reid.retrieval.model_record import ModelRecord

FORMAT = "rga-reid gallery"
VERSION = 1  #: raised when an older program could no longer read the folder
METRIC = "cosine"  #: inner product of unit rows
MANIFEST = "manifest.json"
INDEX = "index.faiss"
TABLE = "table.parquet"
_FILES = (MANIFEST, INDEX, TABLE)


@dataclass(frozen=True)
class Contents:
    """What a gallery folder holds."""

    index: faiss.IndexFlat  #: unit rows, (n, d)
    table: pd.DataFrame  #: path, pid, camid: n rows, in the order of the index
    model: ModelRecord | None


def require_replaceable(location: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a place where a gallery may not be saved, before any work is done.

    Raises:
        InputError: the place exists and ``overwrite`` is false, or it holds anything but a gallery's files:
            replacing it would delete them.
    """
    folder = Path(location)
    require_new(folder, overwrite=overwrite)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: not replaced: expected a gallery, found a file")
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in _FILES)
    if foreign:
        raise InputError(f"{folder}: not replaced: it holds {foreign[0]!r}, which is no part of a gallery")


def write_gallery(contents: Contents, location: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a gallery folder: whole, or not at all.

    Raises:
        InputError: see ``require_replaceable``; the disk is full or cannot be written. The old gallery stays.
    """
    require_replaceable(location, overwrite=overwrite)
    with atomic_folder(location, overwrite=overwrite) as folder:
        try:
            _write_index(contents.index, folder / INDEX)
            contents.table.to_parquet(folder / TABLE, index=False)
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "written_by": f"rga-reid {__version__}",
                "index": "flat",
                "metric": METRIC,
                "dimension": contents.index.d,
                "count": contents.index.ntotal,
                "model": None if contents.model is None else contents.model.to_json(),
                "files": {
                    name: {"bytes": (folder / name).stat().st_size, "sha256": fingerprint(folder / name)}
                    for name in (INDEX, TABLE)
                },
            }
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{os.fspath(location)}: cannot write the gallery ({reason})") from None


def read_gallery(location: str | os.PathLike[str]) -> Contents:
    """Read a gallery folder, every byte of it checked against the manifest.

    Raises:
        InputError: no gallery there, one of a newer version, or a file that is missing, damaged or foreign:
            the message names it.
    """
    folder = Path(location)
    manifest = _read_manifest(folder)
    for name in (INDEX, TABLE):
        _check_file(folder / name, manifest["files"][name])
    index = _read_index(folder / INDEX, manifest)
    table = _read_table(folder / TABLE, manifest)
    return Contents(index, table, manifest["model"])


def _write_index(index: faiss.Index, path: Path) -> None:
    """Through Python's file: faiss's own writer only prints an error of its last write (a full disk)."""
    with open(path, "wb") as file:
        writer = faiss.PyCallbackIOWriter(file.write, 1 << 20)  # type: ignore[attr-defined]
        faiss.write_index(index, writer)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            raise InputError(f"{path}: missing; is this folder a gallery?") from None
        raise InputError(
            f"{folder}: expected a gallery, a folder; found {'a file' if folder.exists() else 'nothing'}"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f'{path}: not the manifest of a gallery (expected "format": "{FORMAT}")')
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path}: a gallery of format version {manifest.get('version')}; this program reads {VERSION}"
        )
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged manifest ({error!r})") from None
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Check what the manifest says, and put the model's record in place of its JSON."""
    for key, expected in (("index", "flat"), ("metric", METRIC)):
        if manifest[key] != expected:
            raise ValueError(f"{key}: expected {expected}, found {manifest[key]}")
    counts = [manifest["dimension"], manifest["count"]]
    counts += [manifest["files"][name]["bytes"] for name in (INDEX, TABLE)]
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"expected positive counts, found {counts}")
    for name in (INDEX, TABLE):
        if not isinstance(manifest["files"][name]["sha256"], str):
            raise TypeError(f"{name}: expected a checksum")
    manifest["model"] = None if manifest["model"] is None else ModelRecord.from_json(manifest["model"])


def _check_file(path: Path, recorded: dict[str, Any]) -> None:
    try:
        found = path.stat().st_size
        if found != recorded["bytes"]:
            raise InputError(f"{path}: damaged: expected {recorded['bytes']} bytes, found {found}")
        if fingerprint(path) != recorded["sha256"]:
            raise InputError(f"{path}: damaged: its checksum is not the one in {MANIFEST}")
    except FileNotFoundError:
        raise InputError(f"{path}: missing from the gallery") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read this file ({error.strerror})") from None


def _read_index(path: Path, manifest: dict[str, Any]) -> faiss.IndexFlat:
    try:
        index = faiss.read_index(str(path))
    except (RuntimeError, MemoryError):
        raise InputError(f"{path}: not a FAISS index, or one of an unknown kind") from None
    count, dimension = manifest["count"], manifest["dimension"]
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{path}: expected a flat inner-product index, found {type(index).__name__}")
    if (index.ntotal, index.d) != (count, dimension):
        raise InputError(f"{path}: {index.ntotal} x {index.d}, but {MANIFEST} says {count} x {dimension}")
    return index


def _read_table(path: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    try:
        table = gallery_table(pd.read_parquet(path), name=str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a Parquet table ({error})") from None
    if len(table) != manifest["count"]:
        raise InputError(f"{path}: expected {manifest['count']} rows by {MANIFEST}, found {len(table)}")
    return table
