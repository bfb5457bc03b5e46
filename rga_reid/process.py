"""Signals that stop the program, raised as exceptions, and locks between processes."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rga_reid.errors import UnavailableError

#: Ctrl-C, ``kill``, and a closed terminal
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SAME_REQUEST = 2.0  # seconds: Ctrl-C reaches parent and child, and then the parent stops the child


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def handle_signals() -> Iterator[None]:
    """Raise ``Stopped`` for a signal of ``STOP_SIGNALS`` inside the block.

    Signals that follow within two seconds belong to the same request and do not interrupt the cleanup.
    Signals that are ignored (``nohup``) or already have a handler are left alone. Outside the main thread,
    where Python cannot handle signals, the block does nothing.
    """
    last = -math.inf

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SAME_REQUEST:
            last = now
            raise Stopped(signum)

    with _install_handler(stop, lambda old: old in (signal.SIG_DFL, signal.default_int_handler)):
        yield


@contextmanager
def defer_signals() -> Iterator[None]:
    """Deliver signals of ``STOP_SIGNALS`` only at the end of the block, so that a cleanup can finish."""
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    with _install_handler(note, lambda old: old not in (signal.SIG_IGN, None)):
        yield
    if received:
        signal.raise_signal(received[0])


@contextmanager
def _install_handler(handler: Callable[..., Any], replaces: Callable[[Any], bool]) -> Iterator[None]:
    """Install a handler for the stop signals whose present handler may be replaced."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    old = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS if in_main_thread}
    old = {signum: before for signum, before in old.items() if replaces(before)}
    try:
        for signum in old:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, before in old.items():
            signal.signal(signum, before)


class LockedError(UnavailableError):
    """Another process holds a lock."""


@contextmanager
def hold_lock(path: str | os.PathLike[str], *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file against other processes until the block ends.

    The operating system releases the lock when the process ends in any way; the file itself stays.

    Args:
        path: lock file, made if it does not exist; a symbolic link is not followed.
        wait: seconds to wait for another holder.

    Raises:
        LockedError: another process, or another thread of this one, holds the lock.
        OSError: the file cannot be opened, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    # a soft lock, the file itself, would outlive a process that is killed
    lock = FileLock(path, timeout=wait, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=0.005)  # seconds; a writer of a gallery may need 10 ms
    except Timeout:
        raise LockedError(f"{os.fspath(path)}: locked by another program") from None
    try:
        yield
    finally:
        lock.release()


class NoLocksError(OSError):
    """The file system, or the operating system, has no locks."""


def lock(path: Path, *, create: bool = False) -> int | None:
    """Lock a file by a handle that child processes can inherit, which locks of ``filelock`` cannot.

    Args:
        path: file to lock; a symbolic link is not followed.
        create: make an empty file if there is none.

    Returns:
        A handle that holds the lock until the last process that has it ends or closes it; None while another
        process holds the lock.

    Raises:
        NoLocksError: there are no locks.
        OSError: the file cannot be opened.
    """
    try:
        import fcntl
    except ImportError:
        raise NoLocksError(errno.ENOLCK, "only POSIX systems have them") from None
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError as error:
        os.close(handle)
        raise NoLocksError(error.errno, error.strerror) from None
    return handle


def unlock(handle: int) -> None:
    """Release a lock that ``lock`` returned, also where a child process has inherited it."""
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
