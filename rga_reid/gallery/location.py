"""Locations of galleries, and the vector stores behind them.

| location | store |
|---|---|
| ``people``, ``./a.b:c`` | a folder, searched by FAISS |
| ``people.db`` | Milvus Lite, embedded in this process |
| ``milvus://HOST:PORT/COLLECTION``, ``MilvusURI`` | a collection on a Milvus server |
| ``my_module.MyStore:NAME`` | your own store: a class (see ``StoreFactory``), and a name that it understands |

A class is imported from where Python finds it: installed, or in a folder of ``PYTHONPATH``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rga_reid.errors import InputError
from rga_reid.gallery.folder_store import FolderStore
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.milvus import MilvusStore
from rga_reid.gallery.milvus_uri import SCHEME, MilvusURI, parse_milvus
from rga_reid.gallery.store import StoreFactory, VectorStore
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.runtime import import_class

EMBEDDED = ".db"  #: ending of the files of Milvus Lite
_CLASS = re.compile(r"(?P<path>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+):(?P<target>.+)")


@dataclass(frozen=True)
class Location:
    """A place for a gallery.

    Args:
        factory: class of its store.
        target: what that class calls it.
        text: what the user calls it; an absolute path of a folder or file.
    """

    factory: StoreFactory
    target: Any
    text: str

    def __str__(self) -> str:
        return self.text


def parse_location(location: str | os.PathLike[str]) -> Location:
    """Parse a location, see the table above.

    Raises:
        InputError: a Milvus location that cannot be read, a class that cannot be imported or is not a store.
    """
    text = os.fspath(location)
    if text.startswith(SCHEME):
        server = location if isinstance(location, MilvusURI) else parse_milvus(text)
        return Location(MilvusStore, server, str(server))
    if text.endswith(EMBEDDED):
        path = os.path.abspath(text)
        return Location(MilvusStore, MilvusURI(path, "gallery", embedded=True), path)
    if parts := _CLASS.fullmatch(text):
        return Location(_import_store(text, parts["path"]), parts["target"], text)
    return Location(FolderStore, Path(text), os.path.abspath(text))


def open_store(location: str | os.PathLike[str]) -> VectorStore:
    """Open the store at a location; ``InputError`` as for ``Gallery.open``."""
    parsed = parse_location(location)
    return parsed.factory.open(parsed.target)


def create_store(
    location: str | os.PathLike[str],
    index: IndexConfig | None = None,
    model: ModelFingerprint | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> VectorStore:
    """Return a store to be filled at a location, see ``StoreFactory.create``. Nothing is written yet."""
    parsed = parse_location(location)
    index = IndexConfig() if index is None else index
    return parsed.factory.create(parsed.target, index, model, overwrite=overwrite, resume=resume)


def _import_store(text: str, path: str) -> StoreFactory:
    found = import_class(path, f"{text}: the class {path} (write ./{text} for a folder)")
    if not all(callable(getattr(found, method, None)) for method in ("open", "create")):
        raise InputError(f"{text}: {path} is not a vector store: expected methods open and create")
    return found
