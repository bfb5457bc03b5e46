"""Run one fuzz case in this process under resource limits, and check what the command did."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rga_reid.commands import main

MAX_SECONDS = 300  #: per case, to end hangs only; most cases take a tenth of a second
MAX_MEMORY = 1024  #: MiB that a case may allocate
#: characters of an error message, which may list ten weights of each of three kinds; apart from the words of
#: the command that it repeats
MAX_MESSAGE = 3000
ADDRESS_SPACE = 8 << 30  # bytes that a case may map: protects the machine
OLD = b"an earlier output"  #: content of an output file that exists before the command runs
LISTED = {"report.json": "a report of problems is written even if there are problems"}
LOCK = {"G/lock": "a lock file stays"}
CHANGED = {"G/": "the command changes this gallery"}


@dataclass(frozen=True)
class Link:
    """A file or folder of the material that is linked into the case's folder, not copied."""

    target: Path


@dataclass(frozen=True)
class Case:
    """A command and the files it runs on.

    Args:
        words: command line; paths are relative to the case's folder.
        files: content by path, written before the command runs.
        valid: nothing is corrupted, so the command must succeed.
        may_change: prefixes of paths that a failed command may change, and why.
        works_on: prefixes of input paths that a successful command changes, and why.
        noisy: libtiff writes its own lines about such a file to stderr.
    """

    words: Sequence[str]
    files: Mapping[str, bytes | Link] = field(repr=False, default_factory=dict)
    valid: bool = False
    may_change: Mapping[str, str] = field(repr=False, default_factory=dict)
    works_on: Mapping[str, str] = field(repr=False, default_factory=dict)
    noisy: bool = False


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Args:
        code: exit code; None if an exception escaped.
        error: everything written to stderr, including warnings and the output of C libraries.
        escaped: traceback of an exception that escaped ``main``.
        mebibytes: peak memory above what the process held before.
    """

    code: int | None
    error: str
    escaped: str
    mebibytes: float


class TooLong(BaseException):
    """The case ran into the time limit. Not an ``Exception``, which the program might catch."""


def check(case: Case, folder: Path, capture: pytest.CaptureFixture[str]) -> Outcome:
    """Run a case in a new folder, which is kept.

    Args:
        capture: pytest's ``capfd``, which also captures what C libraries write.

    Raises:
        AssertionError: the program broke a promise.
    """
    write_files(case, folder)
    before = read_files(folder)
    words = repr(list(case.words))
    folder.with_suffix(".txt").write_text(words, "utf-8", "backslashreplace")  # if it is killed
    outcome = run(case.words, folder, capture)
    faults = "\n".join(find_faults(case, outcome, before, read_files(folder)))
    assert not faults, f"{faults}\ncommand: {list(case.words)}\nfolder: {folder}\n{outcome.escaped}"
    return outcome


def write_files(case: Case, folder: Path) -> None:
    """Write the files of a case into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)


def read_files(folder: Path) -> dict[str, bytes | str]:
    """Return everything below a folder; links are not followed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "not a file"
    return found


def run(words: Sequence[str], folder: Path, capture: pytest.CaptureFixture[str]) -> Outcome:
    """Run a command in a folder under the limits."""
    escaped, code = "", None
    before = reset_peak_memory()
    capture.readouterr()
    with (
        limit_resources(),
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as shown,
    ):
        patch.chdir(folder)
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # Python hides these by default
        try:
            code = main(words)
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else None
            escaped = "" if code in (0, 2) else traceback.format_exc()
        except (Exception, TooLong):
            escaped = traceback.format_exc()
    if code == 130:
        raise KeyboardInterrupt  # from whoever runs the tests; main has caught it
    error = capture.readouterr().err + "".join(f"{one.category.__name__}: {one.message}\n" for one in shown)
    return Outcome(code, error, escaped, (peak_memory() - before) / 2**20)


def find_faults(
    case: Case, outcome: Outcome, before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[str]:
    """Iterate over the promises that were broken."""
    if outcome.escaped:
        yield f"an exception escaped: {outcome.escaped.strip().splitlines()[-1][:500]}"
        return
    if outcome.mebibytes > MAX_MEMORY:
        yield f"took {outcome.mebibytes:.0f} MiB of memory"
    if outcome.code not in (0, 2):
        yield f"exit code {outcome.code}"
    if case.valid and outcome.code != 0:
        yield f"a valid input was refused: {outcome.error}"
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if outcome.code == 2:
        if case.words:  # otherwise the usage is printed
            yield from find_message_faults(case, outcome)
        wrong = [name for name in changed if not name.startswith(tuple(case.may_change))]
        if wrong:
            yield f"refused, but changed {wrong}"
    elif outcome.code == 0:
        inputs = [name for name in changed if name in before and case.files.get(name) != OLD]
        wrong = [name for name in inputs if not name.startswith(tuple(case.works_on))]
        if wrong:
            yield f"succeeded, but changed its inputs {wrong}"
    drafts = [name for name in changed if name in after and "/." in f"/{name}" and ".rga-reid-" not in name]
    if drafts:
        yield f"left behind {drafts}"


def find_message_faults(case: Case, outcome: Outcome) -> Iterator[str]:
    lines = outcome.error.splitlines()
    if case.noisy:
        lines = [line for line in lines if line.startswith("rga-reid: ")]
    if len(lines) != 1 or not lines[0].startswith("rga-reid: error: "):
        yield f"expected one line on stderr, found {len(lines)}: {lines[:5]}"
        return
    if len(lines[0]) > MAX_MESSAGE + sum(map(len, case.words)):
        yield f"an error message of {len(lines[0])} characters: {lines[0][:300]} ..."
    if not lines[0].isprintable():
        yield f"an error message with control characters: {lines[0]!r}"
    if "not enough memory" in lines[0]:
        yield f"memory ran out: {lines[0]}"


@contextlib.contextmanager
def limit_resources() -> Iterator[None]:
    """Limit time and address space."""

    def stop(*_: object) -> None:
        raise TooLong(f"still running after {MAX_SECONDS} s")

    old = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(MAX_SECONDS)
    faulthandler.dump_traceback_later(10 * MAX_SECONDS, exit=True)  # code that Python cannot interrupt
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reset_peak_memory() -> int:
    """Set the peak memory of this process to what it holds now, if the kernel allows it; return it in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """Return the peak resident memory since the last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
