"""Free memory, as made-up systems tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rga_reid.memory import free_memory

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
