"""The judge of the fuzz suite, judged: programs that break a promise, in the place of ours."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz import harness
from tests.fuzz.harness import Case, check

Program = Callable[[Sequence[str]], int]
REFUSAL = "rga-reid: error: no"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., harness.Outcome]:
    """Judge a program that is given one file."""

    def judged(program: Program, **settings: Any) -> harness.Outcome:
        monkeypatch.setattr(harness, "main", program)
        return check(Case(["test"], **{"files": {"file": b"mine"}, **settings}), tmp_path / "case")

    return judged


def take(mebibytes: int) -> int:
    """Memory that is written to, so that the process has it."""
    return int(np.ones(mebibytes << 17).shape[0] * 0)


def refuse(text: str = REFUSAL) -> int:
    print(text, file=sys.stderr)
    return 2


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be set back")
def test_memory_is_judged_after_a_higher_peak(judge: Callable[..., harness.Outcome]) -> None:
    take(harness.MEBIBYTES + 500)
    with pytest.raises(AssertionError, match=r"took 1[01]\d\d MiB of memory"):
        judge(lambda words: take(harness.MEBIBYTES + 50))
    assert 190 < judge(lambda words: take(200)).mebibytes < 250
    assert judge(lambda words: 0).mebibytes < 50


def warn(words: Sequence[str]) -> int:
    warnings.warn("odd", stacklevel=2)
    return refuse()


def write_to(path: str) -> Program:
    def write(words: Sequence[str]) -> int:
        Path(path).write_text("other")
        return refuse() if path == "file" else 0

    return write


def escape(words: Sequence[str]) -> int:
    raise KeyError("file")


def hang(words: Sequence[str]) -> int:
    while True:
        pass


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (escape, "an exception escaped: KeyError: 'file'"),
        (hang, "TooLong"),
        (lambda words: 1, "exit code 1"),
        (lambda words: refuse(""), "expected one line on stderr"),
        (lambda words: refuse("wrong"), "expected one line on stderr"),
        (lambda words: refuse(f"{REFUSAL}\n{REFUSAL}"), "expected one line on stderr, found 2"),
        (lambda words: refuse(f"{REFUSAL} {'x' * 1100}"), "an error message of 1120 characters"),
        (lambda words: refuse(f"{REFUSAL} \x1b[2J"), "steers the terminal"),
        (lambda words: refuse(f"{REFUSAL}: not enough memory"), "memory ran out"),
        (warn, "expected one line on stderr, found 2"),
        (write_to("file"), r"refused, but changed \['file'\]"),
        (write_to(".file.0123456789ab"), r"left behind \['\.file\.0123456789ab'\]"),
    ],
)
def test_a_broken_promise_is_a_fault(
    judge: Callable[..., harness.Outcome], monkeypatch: pytest.MonkeyPatch, program: Program, fault: str
) -> None:
    monkeypatch.setattr(harness, "SECONDS", 1)
    with pytest.raises(AssertionError, match=fault):
        judge(program)


@pytest.mark.parametrize(
    ("start", "how"),
    [
        (lambda: subprocess.run(["true"], check=False), "subprocess.Popen"),
        (lambda: os.system("true"), "os.system"),
        (os.fork, "os.fork"),
        (lambda: multiprocessing.get_context("spawn").Process(target=print).start(), "multiprocessing"),
    ],
)
def test_no_process_is_started(judge: Callable[..., harness.Outcome], start: Any, how: str) -> None:
    def program(words: Sequence[str]) -> int:
        with contextlib.suppress(Exception):
            start()
        return 0

    with pytest.raises(AssertionError, match=f"an exception escaped: .*Started: {how}"):
        judge(program)
    assert subprocess.run(["true"], check=False).returncode == 0  # after a case they may


def test_inputs_stay_as_they_are(judge: Callable[..., harness.Outcome]) -> None:
    """What a command works on may change, and outputs that were there before."""

    def change(words: Sequence[str]) -> int:
        Path("file").write_text("other")
        Path("new").write_text("")
        return 0

    def remove(words: Sequence[str]) -> int:
        Path("file").unlink()
        return 0

    for program in (change, remove):
        with pytest.raises(AssertionError, match=r"succeeded, but changed its inputs \['file'\]"):
            judge(program)
        with pytest.raises(AssertionError, match="succeeded, but changed its inputs"):
            judge(program, works_on={"other": "why"}, may_change={"file": "why"})
        assert judge(program, works_on={"fi": "why"}).code == 0
        assert judge(program, files={"file": harness.OLD}).code == 0


def test_work_that_had_begun_may_leave_its_folder(judge: Callable[..., harness.Outcome]) -> None:
    def work(*names: str) -> Program:
        def program(words: Sequence[str]) -> int:
            for name in names:
                Path(name).parent.mkdir(exist_ok=True)
                Path(name).write_text("")
            return refuse()

        return program

    leave = {"out/batch": "why"}
    assert judge(work("out/batch", "out/log"), may_leave=leave).code == 2
    for names in (["out/log"], ["out/batch", "outside"], ["batch"]):
        with pytest.raises(AssertionError, match="refused, but changed"):
            judge(work(*names), may_leave=leave)


def test_a_valid_input_must_succeed(judge: Callable[..., harness.Outcome]) -> None:
    assert judge(lambda words: refuse()).code == 2
    with pytest.raises(AssertionError, match="a valid input was refused"):
        judge(lambda words: refuse(), valid=True)
