"""Progress on stderr if that is a terminal, and nothing elsewhere."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from rga_reid.errors import InputError, sanitize
from rga_reid.files import disk_error
from rga_reid.process import Stopped, handle_signals

Item = TypeVar("Item")


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, with a bar that moves as they are taken.

    Args:
        items: to be worked on.
        what: is done with them, in words.
        total: how many there are.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, total, transient=True, console=Console(stderr=True))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar; yields the function that moves it, told the share that is done."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


class _Names(NamedTuple):
    """Files of a control group of Linux, and a line of the last one."""

    limit: str
    used: str
    statistics: str
    cached: str  # of `used`, pages of files that the kernel gives back when memory is short


_SECOND = _Names("memory.max", "memory.current", "memory.stat", "inactive_file")
_FIRST = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def free_memory(system: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping; None where the system does not tell (it is not Linux).

    Docker, Kubernetes and SLURM limit the memory of a program by control groups: beyond the limit it is
    killed, however much the machine has.

    Args:
        system: where ``proc`` and ``sys`` are.
    """
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return max(0, min([*free, *_left_by_groups(system)])) if free else None


def _left_by_groups(system: Path) -> Iterator[int]:
    """What each control group of this process leaves, those above it too."""
    try:
        groups = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if controllers == "":
            top, names = system / "sys/fs/cgroup", _SECOND
        elif "memory" in controllers.split(","):
            top, names = system / "sys/fs/cgroup/memory", _FIRST
        else:
            continue
        folder = top / path.lstrip("/")  # in a container it may be the path outside: then ``top`` is its own
        for group in (folder, *folder.parents):
            left = _left_by(group, names)
            if left is not None:
                yield left
            if group == top:
                break


def _left_by(group: Path, names: _Names) -> int | None:
    """None where the group has no limit, or is none."""
    try:
        limit, used = int((group / names.limit).read_text()), int((group / names.used).read_text())
        lines = (group / names.statistics).read_text().splitlines()
    except (OSError, ValueError):  # ValueError: "max", which is no limit
        return None
    cached = sum(int(line.split()[1]) for line in lines if line.split()[0] == names.cached)
    return limit - used + cached


#: parameters of glibc's mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}  # no piece has pages of its own; the end of the heap stays
# thresholds that glibc would come to by itself when pieces of this size are freed: once set, they stay
_GIVING_BACK = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}

_keepers, _change = 0, threading.Lock()


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Until the end of the block, memory that is freed stays with the program; then the system gets it back.

    Passes through a network take and free the same large pieces again and again. glibc gives each of them
    back to the system at once, and on a CPU the fresh pages of the next pass take up to a third of its time.
    Blocks may overlap, in threads too. After the last one, glibc's thresholds are where it would bring them
    by itself when large pieces are freed, and stay there. Nothing changes without glibc (macOS, Windows,
    musl), and where the environment tells glibc what to do (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    global _keepers
    library = _glibc()
    if library is None or _told():
        yield
        return
    with _change:
        _keepers += 1
        if _keepers == 1:
            _set(library, _KEEPING)
    try:
        yield
    finally:
        with _change:
            _keepers -= 1
            if _keepers == 0:
                _set(library, _GIVING_BACK)
                library.malloc_trim(0)


def return_freed_memory() -> None:
    """Give back to the system what was freed and is still held, where glibc can."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, parameters: dict[int, int]) -> None:
    for name, value in parameters.items():
        library.mallopt(name, value)


def _told() -> bool:
    """Whether whoever started the program has told glibc what to do."""
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


_NAMES = {errno.ENAMETOOLONG, errno.ELOOP}
_NO_MEMORY = "not enough memory for this"
_CPU_ALLOCATOR = "can't allocate memory"  # torch has an error of its own for GPUs alone
_LONGEST = 4000  # characters of a line: there may be a path in it, which may have as many


def run_main(work: Callable[[], int]) -> int:
    """Do the work of a program, and tell how it ended.

    Returns:
        What the work returned; 2 for bad input, for a disk that is full, read-only or broken, and for a name
        that no file can have; 1 if memory ran out; 128 + the number of the signal that stopped it, as shells
        say it: 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        with _stops_as_such(), handle_signals(), warnings.catch_warnings():
            # of pillow, about files that it refuses in the same breath, or that lack nothing but EXIF
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            code = work()
            sys.stdout.flush()  # what a pipe or a disk does not take is told here, not at the very end
            return code
    except InputError as error:
        return _say(f"error: {error}", 2)
    except BrokenPipeError:  # `rga-reid ... | head`: the reader has left
        return _drop_output(0)
    except OSError as error:
        reason = disk_error(error) or (error.strerror if error.errno in _NAMES else None)
        if reason is None:
            raise
        if error.filename is None:
            _drop_output(2)
        return _say(f"error: {error.filename or 'output'}: {reason}", 2)
    except MemoryError:
        return _say(f"error: {_NO_MEMORY}", 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and _CPU_ALLOCATOR not in str(error):
            raise
        return _say(f"error: {_NO_MEMORY}; smaller batches take less", 1)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, Stopped) else signal.SIGINT
        return _say("interrupted" if signum == signal.SIGINT else "terminated", 128 + signum)


@contextmanager
def _stops_as_such() -> Iterator[None]:
    """Raise the stop itself where it brought about another error on its way.

    torch's writer of files, for one, fails at its end when it is left in the middle.
    """
    try:
        yield
    except Exception as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__context__
        if behind is None:
            raise
        raise behind from None


def _say(message: str, code: int) -> int:
    """One line on stderr, whatever stood in the files that it tells of."""
    line = sanitize(" ".join(message.split()))
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
    print(f"rga-reid: {line}", file=sys.stderr)
    return code


def _drop_output(code: int) -> int:
    """Send what stdout still holds nowhere: the interpreter would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
