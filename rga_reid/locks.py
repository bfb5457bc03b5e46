"""Locks of files and folders, which the system releases when a process ends, in whatever way."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class NoLocksError(OSError):
    """A file system, or an operating system, that has no locks."""


def lock(path: Path, *, create: bool = False, wait: bool = False) -> int | None:
    """Lock a file or folder against other processes that lock it.

    Args:
        path: what is locked; no link is followed.
        create: make an empty file there where nothing is.
        wait: until the other process lets go.

    Returns:
        A handle that holds the lock until it is closed, by the last process that has inherited it; None while
        another process holds the lock.

    Raises:
        NoLocksError: there are no locks.
        OSError: it cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        raise NoLocksError(errno.ENOLCK, "locks are of POSIX systems only") from None
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    handle = os.open(path, flags | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise NoLocksError(error.errno, error.strerror) from None
    except BaseException:
        os.close(handle)
        raise
    return handle
