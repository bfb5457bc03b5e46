"""How much memory a program may still take, of its machine, container or job; keeping what is freed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple


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
def freed_memory_kept() -> Iterator[None]:
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


__all__ = ["free_memory", "freed_memory_kept", "return_freed_memory"]
