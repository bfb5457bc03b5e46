"""How much memory a program may still take: the machine's, and that of the container or the job it is in."""

from __future__ import annotations

from collections.abc import Iterator
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
