"""The checks of the fuzz suite notice programs that break a promise."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import harness
from tests.fuzz.harness import OLD, Case, Outcome, check

Program = Callable[[Sequence[str]], int]
REFUSAL = "rga-reid: error: no"


@pytest.fixture
def judge(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Check a program that is given one file."""

    def run(program: Program, **settings: Any) -> Outcome:
        monkeypatch.setattr(harness, "main", program)
        case = Case(["test"], **{"files": {"file": b"mine"}, **settings})
        return check(case, tmp_path / "case", capfd)

    return run


def refuse(text: str = REFUSAL) -> int:
    print(text, file=sys.stderr)
    return 2


def warn(_: Sequence[str]) -> int:
    warnings.warn("odd", stacklevel=2)
    return refuse()


def write(path: str, code: int) -> Program:
    def program(_: Sequence[str]) -> int:
        Path(path).write_text("other")
        return refuse() if code else 0

    return program


def fail(_: Sequence[str]) -> int:
    raise KeyError("file")


def hang(_: Sequence[str]) -> int:
    while True:
        pass


def test_promises_that_are_kept(judge: Callable[..., Outcome]) -> None:
    assert judge(lambda _: 0, valid=True).code == 0
    assert judge(lambda _: refuse()).code == 2
    assert judge(write("new", 0)).code == 0
    assert judge(write("file", 0), works_on={"fi": "why"}).code == 0
    assert judge(write("file", 0), files={"file": OLD}).code == 0
    assert judge(write("file", 2), may_change={"file": "why"}).code == 2


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        (fail, "an exception escaped: KeyError: 'file'"),
        (hang, "TooLong"),
        (lambda _: 1, "exit code 1"),
        (lambda _: refuse(""), "expected one line"),
        (lambda _: refuse("wrong"), "expected one line"),
        (lambda _: refuse(f"{REFUSAL}\n{REFUSAL}"), "expected one line on stderr, found 2"),
        (lambda _: refuse(f"{REFUSAL} {'x' * 3100}"), "3120 characters"),
        (lambda _: refuse(f"{REFUSAL} \x1b[2J"), "control characters"),
        (lambda _: refuse(f"{REFUSAL}: not enough memory"), "memory ran out"),
        (warn, "expected one line"),
        (write("file", 2), r"refused, but changed \['file'\]"),
        (write("file", 0), r"changed its inputs \['file'\]"),
        (write(".file.0123456789ab", 0), r"left behind \['\.file\.0123456789ab'\]"),
    ],
)
def test_promises_that_are_broken(
    judge: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, program: Program, fault: str
) -> None:
    monkeypatch.setattr(harness, "MAX_SECONDS", 1)
    with pytest.raises(AssertionError, match=fault):
        judge(program)


def test_valid_input_must_succeed(judge: Callable[..., Outcome]) -> None:
    with pytest.raises(AssertionError, match="a valid input was refused"):
        judge(lambda _: refuse(), valid=True)
