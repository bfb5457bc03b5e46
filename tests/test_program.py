"""How a program ends: exit codes, one line, signals."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.process import Stopped
from rga_reid.runtime import run_main

CHECKOUT = Path(__file__).parent.parent


LESS = "error: not enough memory for this; smaller batches take less"


def failing(error: BaseException) -> Callable[[], int]:
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
        (MemoryError(), 1, "error: not enough memory for this"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 1, LESS),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, LESS),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.npz"),
            2,
            "error: a.npz: No space left on device",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "terminated"),
    ],
)
def test_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(failing(error)) == code
    assert capsys.readouterr().err == f"rga-reid: {line}\n"


@pytest.mark.parametrize("last", [RuntimeError("unexpected pos 8 vs 4"), InputError("a.npz: damaged")])
def test_a_stop_is_one_whatever_fails_on_its_way(last: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """As torch does when it is stopped while it writes a file."""

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


def test_other_errors_are_defects_and_show_where() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(failing(ZeroDivisionError()))
    with pytest.raises(RuntimeError, match="shapes"):
        run_main(failing(RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(FileNotFoundError):  # no disk: somebody forgot to check
        run_main(failing(FileNotFoundError(errno.ENOENT, "No such file", "a")))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")
def test_output_that_nothing_takes() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "cli.py", "--help"]
        done = subprocess.run(words, cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "rga-reid: error: output: No space left on device\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    words = [sys.executable, "cli.py", "--help"]
    process = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.wait(timeout=120), process.stderr.read() if process.stderr else b"") == (0, b"")
