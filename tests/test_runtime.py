"""Exit codes and one-line errors of a program, and the memory that it may use."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from rga_reid import runtime
from rga_reid.errors import InputError
from rga_reid.process import Stopped
from rga_reid.runtime import free_memory, run_main, track

CHECKOUT = Path(__file__).parent.parent
LESS = "error: not enough memory for this; smaller batches take less"


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a.npz: no such\nfile"), 2, "error: a.npz: no such file"),
        (InputError("\x1b[2Ja\x07.npz: no"), 2, "error: �[2Ja�.npz: no"),
        (InputError("a" * 5000), 2, f"error: {'a' * 3990}..."),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), 2, "error: a: File name too long"),
        (OSError(errno.ENOSPC, "No space left", "a.npz"), 2, "error: a.npz: No space left"),
        (MemoryError(), 1, "error: not enough memory for this"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, LESS),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, LESS),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "terminated"),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(raising(error)) == code
    assert capsys.readouterr().err == f"rga-reid: {line}\n"


@pytest.mark.parametrize("last", [RuntimeError("unexpected pos 8 vs 4"), InputError("a.npz: damaged")])
def test_a_stop_wins_over_the_errors_that_it_causes(
    last: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        try:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                raise OSError("half a file")
        except OSError:
            raise last from None

    assert run_main(work) == 143
    assert capsys.readouterr().err == "rga-reid: terminated\n"


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "No such file", "a")],
)
def test_defects_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_main(raising(error))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_or_a_closed_pipe_behind_stdout() -> None:
    words = [sys.executable, "cli.py", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "rga-reid: error: output: No space left on device\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, cwd=CHECKOUT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(3), "counting", 3)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert ("counting" in captured.err) is terminal
    assert captured.out == ""


def test_free_memory_is_limited_by_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CGROUP", tmp_path)
    whole = free_memory()
    assert 1 << 20 < whole <= psutil.virtual_memory().total
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1500\nactive_file 7\n")
    for limit, expected in (("9000", 5500), ("3000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert free_memory() == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 1 << 20


KEPT_MEMORY = """
import psutil
from rga_reid.runtime import keep_freed_memory

def free_blocks():
    block = bytearray(256 << 20)
    del block
    return psutil.Process().memory_info().rss >> 20

print(free_blocks())
with keep_freed_memory():
    try:
        with keep_freed_memory():
            raise ValueError
    except ValueError:
        print(free_blocks())
print(free_blocks())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
def test_freed_memory_is_kept_within_the_block_only() -> None:
    """In a process of its own: what earlier tests left in the heap would decide where blocks go."""
    plain = {"PATH": os.environ["PATH"]}
    found = []
    for environment in (plain, {**plain, "MALLOC_ARENA_MAX": "4"}):
        words = [sys.executable, "-c", KEPT_MEMORY]
        done = subprocess.run(
            words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
        )
        found.append(list(map(int, done.stdout.split())))
    (before, inner, after), configured = found
    assert inner > before + 128  # MiB; the outer block still needs it
    assert max(after, *configured) < before + 64  # the environment configures malloc
