"""Signals that ask a program to stop, as exceptions: what is under way cleans up after itself."""

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

#: Ctrl-C, the polite ``kill``, a terminal that was closed
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ONE_WISH = 2.0  # seconds: Ctrl-C reaches parent and child, and the parent ends the child besides


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop.

    Args:
        signum: which one.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def handle_signals() -> Iterator[None]:
    """Let a signal of ``STOPS`` raise ``Stopped`` inside the block.

    A signal that follows within two seconds is taken for the same wish, and does not disturb the cleaning. A
    signal that is ignored (``nohup``) or has a handler already is left alone. Outside the main thread,
    where Python handles no signals, nothing is changed.
    """
    last = -math.inf

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _ONE_WISH:
            last = now
            raise Stopped(signum)

    with _handled(stop, lambda old: old in (signal.SIG_DFL, signal.default_int_handler)):
        yield


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold signals of ``STOPS`` back until the block is done: what cleans up comes to its end."""
    came: list[int] = []
    with _handled(lambda signum, frame: came.append(signum), lambda old: old not in (signal.SIG_IGN, None)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handled(handler: Callable[..., Any], replaces: Callable[[Any], bool]) -> Iterator[None]:
    """Handle the signals of ``STOPS`` so inside the block, where the old handlers may be replaced."""
    here = threading.current_thread() is threading.main_thread()
    old = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS if here}
    old = {signum: before for signum, before in old.items() if replaces(before)}
    try:
        for signum in old:
            signal.signal(signum, handler)
        yield
    finally:
        for signum, before in old.items():
            signal.signal(signum, before)


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
