"""Write outputs atomically: into a temporary file or folder, moved into place when it is complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rga_reid.errors import InputError, UnavailableError
from rga_reid.process import defer_signals

if TYPE_CHECKING:
    import pandas as pd

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
_PROBE_BYTES = 1 << 20


class DiskError(UnavailableError):
    """An output that cannot be written: missing folder, no permission, or a full or broken disk.

    Args:
        path: path of the output.
        reason: reason in words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: cannot write there ({reason})")
        self.reason = reason

    @classmethod
    def of(cls, path: str | os.PathLike[str], error: OSError) -> DiskError:
        """Return the error for an output, with the operating system's reason."""
        return cls(path, error.strerror or str(error))


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` and move it to ``path`` at the end of the block.

    A reader sees the old file or the new one, never a part of it. After an error or Ctrl-C the temporary
    file is removed and ``path`` is unchanged.

    Raises:
        DiskError: the folder is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    with _temporary(target) as draft, _explain_disk_errors(target, draft):
        draft.touch(exist_ok=False)
        yield draft
        os.replace(draft, target)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` and move it to ``path`` at the end of the block.

    As ``atomic_file``, but an existing folder is replaced in two steps. If the process is killed between
    them, the old folder remains beside ``path`` under a hidden name.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false.
        DiskError: the parent folder cannot be written, or the disk is full.
    """
    target = Path(path)
    require_new(target, overwrite=overwrite)
    make_folder(target.parent)
    with _temporary(target) as draft, _temporary(target) as old, _explain_disk_errors(target, draft):
        draft.mkdir()
        yield draft
        require_new(target, overwrite=overwrite)  # another program may have made it meanwhile
        try:
            if target.exists():
                os.replace(target, old)
            os.replace(draft, target)
        except BaseException:
            if old.exists() and not target.exists():
                os.replace(old, target)
            raise


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield a new hidden name beside ``target``; remove what is there at the end."""
    path = target.parent / f".{target.name}.{secrets.token_hex(6)}{target.suffix}"
    try:
        yield path
    finally:
        with defer_signals():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


@contextmanager
def _explain_disk_errors(target: Path, draft: Path) -> Iterator[None]:
    """Raise ``DiskError`` where the disk kept the block from writing ``draft``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not str(error.filename or draft).startswith(str(draft)):
            raise  # about another file
        reason = disk_error(error) or _probe(draft)
        if reason is None and isinstance(error, OSError) and not target.parent.is_dir():
            reason = error.strerror
        if reason is None:
            raise
        raise DiskError(target, reason) from error


def _probe(draft: Path) -> str | None:
    """Return why nothing more can be written to ``draft``, or None.

    NumPy, torch and safetensors report a full disk by errors of their own, without the system's reason.
    """
    try:
        with open(draft / "probe" if draft.is_dir() else draft, "ab", buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))  # writes less if only a part fits
            file.write(bytes(1))
    except OSError as error:
        return disk_error(error)
    return None


def disk_error(error: BaseException) -> str | None:
    """Return the reason in words if a disk could not be read or written, and None for any other error."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return error.strerror or str(error)
    return None


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and its parents where they do not exist.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError.of(path, error) from None


def require_new(path: str | os.PathLike[str], *, overwrite: bool = False, hint: str = "--overwrite") -> None:
    """Check before any work that an output does not exist and can be written. An empty folder is accepted.

    Args:
        path: path of the output.
        overwrite: accept one that exists.
        hint: options that the error message suggests.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false, or its folder cannot be written.
    """
    target = Path(path)
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists already; choose another name or give {hint}")
    require_writable(target)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Check that an output can be made in its folder, or in the nearest parent that exists.

    Raises:
        InputError: that folder is not writable, or is a file.
    """
    target = Path(path).absolute()
    folder = target if target.is_dir() else target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path}: cannot write there: {folder} is a file, expected a folder")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"{path}: cannot write there: the folder {folder} is not writable")


def reserve(path: str | os.PathLike[str]) -> None:
    """Allocate the disk space of a sparse file that will be filled through a memory mapping.

    Without it, a full disk would kill the process with SIGBUS.

    Raises:
        OSError: there is not enough space.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def size_of(folder: Path) -> int:
    """Return the size in bytes of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # removed meanwhile
            status = file.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def checksum(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file, from its position to its end, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync(path: str | os.PathLike[str]) -> None:
    """Flush a file, or a folder's list of names, to the disk, so that it survives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json_lines(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write values as JSON lines in UTF-8, atomically. NaN and infinity are refused."""
    write_text(path, "".join(f"{json.dumps(v, ensure_ascii=False, allow_nan=False)}\n" for v in values))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON in UTF-8, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Write a table without its index, atomically: as CSV if the name ends so, otherwise as Parquet."""
    with atomic_file(path) as temporary:
        if Path(path).suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
