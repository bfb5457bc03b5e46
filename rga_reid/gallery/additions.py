"""Additions that wait for another writer of a gallery folder: that one adds their rows together with its own.

A writer that finds the folder locked writes its rows into a file there, ``add-NAME.waiting``, and waits for the lock
or for an answer. Whoever holds the lock takes such files (``.taken``), adds the rows of all in one segment, and writes
one manifest, which names them with their first ids. Then it answers: the id replaces the rows in the file, which is
removed. The waiting writer still has it open, and reads the id when the file has no name any more.

A file is locked by the process that waits. One without its process is garbage, and its rows are never added. The file
is not synced: these rows have not been acknowledged.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from rga_reid.data.columns import cast
from rga_reid.errors import InputError
from rga_reid.gallery.manifest import ADDITION_NAME, columns_from_json
from rga_reid.gallery.store import Addition, Metadata
from rga_reid.gallery.validation import is_normalized
from rga_reid.inputs import read_file
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.process import lock, unlock

ADDITION_FILE = re.compile(rf"add-({ADDITION_NAME.pattern})\.(draft|waiting|taken)")
_HEADER = b"rga_reid"  # key in the metadata of the table
_MAX_BYTES = 1 << 28  # of a file: far more than ``SMALL_ROWS`` rows


class WaitingAddition:
    """An addition in a file of a gallery folder, until it is answered, withdrawn or closed.

    Args:
        folder: folder of the gallery.
        addition: the rows.

    Raises:
        OSError: the file cannot be written, or the file system has no locks.
    """

    def __init__(self, folder: Path, addition: Addition) -> None:
        # names in the order of waiting
        name = f"add-{time.time_ns():016x}-{secrets.token_hex(6)}"
        self._path = folder / f"{name}.waiting"
        draft, content = folder / f"{name}.draft", _to_bytes(addition)
        handle = lock(draft, create=True)
        if handle is None:  # another writer is just looking whether its process lives
            raise FileNotFoundError(draft)
        self._handle = handle
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(content)
            os.rename(draft, self._path)
        except BaseException:
            draft.unlink(missing_ok=True)
            self.close()
            raise

    def answer(self) -> int | None:
        """Return the id of the first row once the rows are added."""
        if os.fstat(self._handle).st_nlink:
            return None
        text = os.pread(self._handle, 32, 0)
        return int(text) if re.fullmatch(rb"[0-9]+\n", text) else None

    def withdraw(self) -> bool:
        """Remove the file; return whether nobody has taken it, so that the rows will not be added."""
        try:
            self._path.unlink()
        except FileNotFoundError:  # taken, answered, or removed by hand
            return os.fstat(self._handle).st_nlink == 0 and self.answer() is None
        return True

    def close(self) -> None:
        """Stop waiting."""
        self.withdraw()
        unlock(self._handle)


def take_additions(folder: Path, metadata: Metadata, limit: int) -> Iterator[tuple[str, Addition]]:
    """Take waiting additions that fit a gallery. Only for the holder of the lock.

    Those that do not fit, by their dimension, model or columns, are left to their own writers.

    Args:
        folder: folder of the gallery.
        metadata: its metadata.
        limit: most rows in all.

    Yields:
        Names and additions, with the columns of the gallery.
    """
    for path, name, state in _list_additions(folder):
        if state != "waiting" or not is_alive(path):
            continue
        with suppress(
            InputError, OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException
        ):
            addition = _from_bytes(read_file(path, _MAX_BYTES))
            if len(addition) <= limit and _fits(addition, metadata):
                table = cast(addition.table, metadata.columns)
                os.rename(path, path.with_suffix(".taken"))  # not after it was withdrawn
                limit -= len(addition)
                yield name, Addition(table, addition.vectors, metadata.columns, addition.model)


def answer_additions(folder: Path, added: Mapping[str, int]) -> None:
    """Answer the additions that a manifest names; put back those whose writer failed. Only for the holder of the lock.

    Args:
        folder: folder of the gallery.
        added: first ids by name, as a manifest on the disk has them.
    """
    for path, name, state in _list_additions(folder):
        with suppress(FileNotFoundError):  # its own writer has stopped
            if name in added:
                with open(path, "r+b") as file:
                    file.truncate(0)
                    file.write(b"%d\n" % added[name])
                path.unlink()
            elif state == "taken":
                os.rename(path, path.with_suffix(".waiting"))


def is_alive(path: Path) -> bool:
    """Return whether the process lives that has written the file of an addition."""
    try:
        handle = lock(path)
    except OSError:
        return False
    if handle is None:
        return True
    unlock(handle)
    return False


def _list_additions(folder: Path) -> list[tuple[Path, str, str]]:
    """Return paths, names and states, in the order of waiting."""
    matches = map(ADDITION_FILE.fullmatch, sorted(os.listdir(folder)))
    return [(folder / match[0], match[1], match[2]) for match in matches if match]


def _fits(addition: Addition, metadata: Metadata) -> bool:
    own, model = metadata.model, addition.model
    columns = metadata.columns
    return (
        addition.vectors.shape[1] == metadata.dimension
        and (own is None or model is None or own.is_same(model))
        and all(columns.get(name) == kind for name, kind in addition.columns.items())
    )


def _to_bytes(addition: Addition) -> bytes:
    file, model = io.BytesIO(), addition.model
    np.lib.format.write_array(file, addition.vectors, allow_pickle=False)
    header = {"columns": dict(addition.columns), "model": None if model is None else model.to_json()}
    table = pa.Table.from_pandas(addition.table, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _HEADER: json.dumps(header)})
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def _from_bytes(content: bytes) -> Addition:
    """Read what ``_to_bytes`` wrote.

    Raises:
        InputError, ValueError, KeyError, TypeError, AttributeError, pyarrow.ArrowException: it is something else.
    """
    file = io.BytesIO(content)
    vectors = np.lib.format.read_array(file, allow_pickle=False)
    with pa.ipc.open_stream(file) as reader:
        table = reader.read_all()
    header = json.loads(table.schema.metadata[_HEADER])
    model, columns = header["model"], columns_from_json(header["columns"])
    frame = table.to_pandas(integer_object_nulls=True, use_threads=False)
    valid = vectors.dtype == np.float32 and vectors.ndim == 2 and is_normalized(vectors).all()
    if not valid or not len(frame) == len(vectors) > 0 or frame["path"].isna().any():
        raise ValueError("not the rows of an addition")
    return Addition(frame, vectors, columns, None if model is None else ModelFingerprint.from_json(model))
