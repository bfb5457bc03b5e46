"""Outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rga_reid.errors import InputError
from rga_reid.process import defer_signals, lock

if TYPE_CHECKING:
    import pandas as pd

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
_PROBE = 1 << 20  # bytes


class DiskError(InputError):
    """An output that cannot be written: no such folder, no permission, a disk that is full or broken.

    Args:
        path: of the output.
        reason: in words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: cannot write there ({reason})")
        self.reason = reason

    @classmethod
    def of(cls, path: str | os.PathLike[str], error: OSError) -> DiskError:
        """What the system told, for an output."""
        return cls(path, error.strerror or str(error))


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there when the block ends without an error.

    A reader sees the old file or the new one, never a part of it. On an error, or Ctrl-C, the temporary
    file is removed and ``path`` stays as it was. One that a killed process left is removed by the next writer
    of the same file.

    Raises:
        DiskError: the parent folder is missing or cannot be written, or the disk is full.
    """
    target = Path(path)
    with _draft(target, lambda draft: draft.touch(exist_ok=False)) as (temporary, mode):
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, target)


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; move it there when the block ends without an error.

    As ``atomic_file``, but a folder that is there can only be replaced in two steps. Between them it lies in
    a hidden folder beside, whose name has ``.old.`` in it; a process that is killed there leaves it so.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false.
        DiskError: its parent cannot be written, or the disk is full.
    """
    target = Path(path)
    require_new(target, overwrite=overwrite)
    make_folder(target.parent)
    with _draft(target, lambda draft: draft.mkdir()) as (temporary, mode):
        yield temporary
        temporary.chmod(mode)
        require_new(target, overwrite=overwrite)  # it may have come meanwhile
        if not target.exists():
            os.replace(temporary, target)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        try:
            os.replace(target, old / target.name)
            os.replace(temporary, target)
        except BaseException:
            if not target.exists() and (old / target.name).exists():
                os.replace(old / target.name, target)
            raise
        finally:
            with defer_signals():
                shutil.rmtree(old)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, where they are not there.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError.of(path, error) from None


@contextmanager
def _draft(target: Path, make: Callable[[Path], None]) -> Iterator[tuple[Path, int]]:
    """A new name beside ``target``, made and locked, that is gone at the end, moved or removed.

    It is private; beside it comes the mode that the user's umask and the folder around it would give it. The
    lock tells others that its writer lives. The system releases it when the process ends, in any way.
    """
    drafts: list[Path] = []  # named before they are made: an interruption in between leaves nothing
    handle: int | None = None
    try:
        try:
            _remove_abandoned(target)
            while handle is None and not (drafts and drafts[-1].exists()):
                drafts.append(target.parent / f".{target.name}.{secrets.token_hex(6)}{target.suffix}")
                make(drafts[-1])
                # until it is locked another program may remove it, as an abandoned one: then make the next
                handle = _locked(drafts[-1], wait=True)
            mode = stat.S_IMODE(drafts[-1].stat().st_mode)
            drafts[-1].chmod(mode & ~0o077)
        except OSError as error:
            raise DiskError.of(target, error) from None
        try:
            yield drafts[-1], mode
        except Exception as error:
            reason = _obstacle(error, drafts[-1])
            if reason is None:
                raise
            raise DiskError(target, reason) from error
    finally:
        with defer_signals():
            for draft in drafts:
                _remove(draft)
            if handle is not None:
                os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Remove the drafts of ``target`` whose writers were killed."""
    name = re.compile(rf"{re.escape(f'.{target.name}.')}[0-9a-f]{{12}}{re.escape(target.suffix)}")
    with os.scandir(target.parent) as entries:
        drafts = [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]
    for draft in drafts:
        handle = _locked(draft, wait=False)
        if handle is not None:
            _remove(draft)
            os.close(handle)


def _locked(path: Path, *, wait: bool) -> int | None:
    """A handle that holds a draft's lock; None where another has it, it is gone, or there are no locks.

    Without locks no draft is ever taken for abandoned.
    """
    try:
        handle = lock(path, wait=wait)
    except OSError:
        return None
    if handle is not None and not path.exists():  # removed before it was locked
        os.close(handle)
        return None
    return handle


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def _obstacle(error: Exception, draft: Path) -> str | None:
    """What kept a block from writing its draft; None if it was not the disk.

    Many writers tell a full disk in words of their own, so the disk is asked.
    """
    elsewhere = isinstance(error, OSError) and not str(error.filename or draft).startswith(str(draft))
    if elsewhere or isinstance(error, InputError):
        return None
    if (reason := disk_error(error)) is not None:
        return reason
    try:
        with open(draft / "probe" if draft.is_dir() else draft, "ab", buffering=0) as file:
            file.write(bytes(_PROBE))  # writes less where only a part fits
            file.write(bytes(1))
    except OSError as problem:
        return disk_error(problem)
    return None


def disk_error(error: BaseException) -> str | None:
    """The reason why a disk did not take or give data, in words; None for any other error."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return error.strerror or str(error)
    return None


def require_new(path: str | os.PathLike[str], *, overwrite: bool = False, hint: str = "--overwrite") -> None:
    """Refuse an output that exists, or that cannot be written, before any work is done.

    Raises:
        InputError: ``path`` exists and ``overwrite`` is false; ``hint`` names the options that allow it. Or
            nothing may be written there.
    """
    target = Path(path)
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists already; choose another name or give {hint}")
    require_writable(target)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Refuse an output whose folder, or the nearest that exists above it, cannot be written.

    Raises:
        InputError: it cannot, or it is a file.
    """
    target = Path(path).absolute()
    folder = target if target.is_dir() else target.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path}: cannot write there: {folder} is a file, expected a folder")
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise InputError(f"{path}: cannot write there: the folder {folder} is not writable")


@contextmanager
def unchanged(path: str | os.PathLike[str]) -> Iterator[None]:
    """Refuse a file that another program replaces or changes while the block reads it.

    Raises:
        InputError: it was.
    """
    before = _state(path)
    yield
    if _state(path) != before:
        raise InputError(
            f"{os.fspath(path)}: changed while it was read; if a training writes it, take a copy of it"
        )


def _state(path: str | os.PathLike[str]) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # the latter of a name that no file can have
        return None  # the reader says what is wrong
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def reserve(path: str | os.PathLike[str]) -> None:
    """Have the disk set aside the bytes of a file with holes, which is then filled through a mapping.

    A mapping that finds no room on the disk kills the process.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # Linux and some others
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another program may remove it meanwhile
            found = file.stat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def checksum(file: BinaryIO) -> str:
    """SHA-256, in hex, of an open file from where it stands to its end."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk: it outlives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json_lines(path: str | os.PathLike[str], values: Iterable[Any]) -> None:
    """Write each value as UTF-8 JSON on a line of its own, atomically. NaN and infinity are refused."""
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for value in values:
            file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, atomically. NaN and infinity are refused (not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` in UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: str | os.PathLike[str], table: pd.DataFrame) -> None:
    """Replace a file by a table without its index: CSV if the name ends so, otherwise Parquet."""
    with atomic_file(path) as temporary:
        if Path(path).suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
