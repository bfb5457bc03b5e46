"""A lock is held against other processes, and only while its holder lives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rga_reid.errors import InputError
from rga_reid.experiments import ablation as ablation_run
from rga_reid.process import NoLocksError, lock

HOLD = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holder_at_a_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.touch() if kind == "file" else path.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert lock(path) is None
        other.kill()
        handle = lock(path, wait=True)
    assert handle is not None
    assert lock(path) is None
    os.close(handle)
    again = lock(path)
    assert again is not None
    os.close(again)


def test_a_file_is_made_only_where_asked_and_no_link_followed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lock(tmp_path / "a")
    handle = lock(tmp_path / "a", create=True)
    assert handle is not None
    assert (tmp_path / "a").read_bytes() == b""
    os.close(handle)
    (tmp_path / "link").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="Too many levels"):
        lock(tmp_path / "link", create=True)
    assert not (tmp_path / "made").exists()


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(NoLocksError):
        lock(tmp_path / "a", create=True)
    with (
        pytest.raises(InputError, match=r"its file system has no locks: No locks available"),
        ablation_run.lock_run(tmp_path / "run"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on systems that have no such module
    with pytest.raises(NoLocksError):
        lock(tmp_path / "a")
    assert len(os.listdir("/proc/self/fd")) == before
