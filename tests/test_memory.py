"""Free memory, as made-up systems tell of it; freed memory that is kept, as page faults tell."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rga_reid import runtime as memory
from rga_reid.runtime import free_memory, keep_freed_memory

MEMINFO = "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n"
MACHINE = 20_000_000 * 1024


def system(folder: Path, groups: str, **files: str) -> Path:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups, **files}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def second(place: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    """A group of the second version."""
    stat = f"anon 1\nfile 2\ninactive_file {cached}\nactive_file 7\n"
    names = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{place}{name}": text for name, text in names.items()}


def first(place: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    """A group of the first version."""
    stat = f"inactive_file 3\ntotal_inactive_file {cached}\n"
    names = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n", "stat": stat}
    return {f"sys/fs/cgroup/memory/{place}memory.{name}": text for name, text in names.items()}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/user.slice\n", {}, MACHINE),
        ("0::/user.slice\n", second("user.slice/", "max", 5000), MACHINE),
        ("0::/\n", second("", "9000", 5000, 1500), 5500),  # a container sees its own group on top
        ("0::/job/step/task\n", second("job/", "9000", 5000) | second("job/step/task/", "max", 10), 4000),
        ("0::/job/step\n", second("job/", "9000", 5000) | second("job/step/", "800", 600), 200),
        ("0::/job\n", second("job/", "9000", 9500), 0),
        (
            "4:cpu,memory:/outside\n0::/\n",
            first("", 7000, 3000, 500),
            4500,
        ),
        ("4:memory:/job\n", first("job/", 2**63 - 4096, 3000), MACHINE),
        ("2:cpuset:/job\n", first("job/", 7000, 3000), MACHINE),
    ],
)
def test_the_least_that_any_group_leaves(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert free_memory(system(tmp_path, groups, **files)) == expected


def test_systems_that_do_not_tell(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (system(tmp_path, "") / "proc/meminfo").write_text("MemFree: 5 kB\n")
    assert free_memory(tmp_path) is None


def test_this_system() -> None:
    free = free_memory()
    assert free is None or free > 1 << 20


PASSES = """
import resource, sys
import numpy as np
from rga_reid.runtime import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def passes():
    # two pieces at a time, of several sizes, as the maps of a network
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        for size in (40, 50, 60):
            a, b = np.empty(size << 20, np.uint8), np.empty(size << 19, np.uint8)
            a.fill(1), b.fill(1)
            del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    with keep_freed_memory():
        with keep_freed_memory():
            passes()
        faults, kept = passes(), resident()
    print(faults, kept, resident(), passes())
else:
    print(passes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to keep without glibc")
def test_freed_memory_is_kept_for_the_block_only() -> None:
    def result(how: str, **more: str) -> list[int]:
        words = [sys.executable, "-c", PASSES, how]
        told = {
            name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
        }
        done = subprocess.run(words, env=told | more, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (plain,) = result("plain")
    faults, kept, after, faults_after = result("kept")
    # 120 pieces, of pages that may be small or huge
    assert min(plain, faults_after) > max(100, 10 * faults)
    assert kept - after > 80 << 20
    assert result("kept", MALLOC_ARENA_MAX="4")[0] > max(
        100, 10 * faults
    )  # who sets such things knows better


def test_blocks_that_overlap_in_threads_end_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Library:
        def mallopt(self, name: int, value: int) -> None:
            calls.append((name, value))

        def malloc_trim(self, pad: int) -> None:
            calls.append("trim")

    monkeypatch.setattr(memory, "_glibc", Library)
    monkeypatch.setattr(memory, "_told", lambda: False)
    first, second = keep_freed_memory(), keep_freed_memory()
    first.__enter__()
    started = list(calls)
    second.__enter__()
    first.__exit__(None, None, None)
    assert calls == started  # the second one still wants it
    second.__exit__(None, None, None)
    assert calls[-1] == "trim"
    with pytest.raises(ValueError, match="of the block"), keep_freed_memory():
        raise ValueError("of the block")
    assert calls.count("trim") == 2  # an error ends a block, too


def test_without_glibc_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with keep_freed_memory():
        assert bytearray(1 << 20)
