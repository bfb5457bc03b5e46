"""Runs one case of the fuzz suite as a user would type it, under limits, and judges what happened."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import multiprocessing.process
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rga_reid.commands import main

SECONDS = 30  #: that a case may take; most take a tenth of one
MEBIBYTES = 1024  #: that a case may take, above what the process held before
LONGEST = 1000  #: characters of an error message, besides the words of the command that it repeats
ANSWERED = 3600  #: seconds after which even code that Python cannot interrupt is ended, and with it the tests
_FUSE = 8 << 30  # bytes of address space that a case may add: it protects the machine, MEBIBYTES judges
OLD = b"what was there before"  #: in an output that is there already: all other files are inputs
#: What a failed command may leave changed, and why.
LISTED = {"report.json": "a report of problems is written all the same"}
LOCK = {"G/lock": "held while a program writes, it stays"}
CHANGED = {"G/": "the command changes this gallery"}  #: if it succeeds

_LATER = ("DeprecationWarning", "PendingDeprecationWarning", "ImportWarning", "ResourceWarning")


@dataclass(frozen=True)
class Link:
    """A file or folder of the material, linked into the case's folder: it is not changed in this case."""

    target: Path


@dataclass(frozen=True)
class Case:
    """A command and the files that it is run on.

    Args:
        words: of the command line; paths are relative to the case's folder.
        files: content by path, written before the command runs; ``None`` makes a folder.
        valid: nothing was spoiled: the command must succeed.
        may_change: beginnings of paths that a failed command may leave changed, and why.
        works_on: beginnings of paths of inputs that a command which succeeds changes, and why.
        may_leave: files that tell that work had begun before the command failed, and why: with such a one,
            all in its folder may be changed.
        noisy: a C library writes lines of its own about such a file, which nobody can keep it from.
    """

    words: Sequence[str]
    files: Mapping[str, bytes | Link | None] = field(repr=False, default_factory=dict)
    valid: bool = False
    may_change: Mapping[str, str] = field(repr=False, default_factory=dict)
    works_on: Mapping[str, str] = field(repr=False, default_factory=dict)
    may_leave: Mapping[str, str] = field(repr=False, default_factory=dict)
    noisy: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Args:
        code: exit code; None if an exception escaped.
        out, error: what was written to the standard streams by Python.
        noise: what others wrote there: C libraries.
        escaped: the traceback of an exception that escaped ``main``.
        seconds: whole ones that it ran, those not counted in which the process was stopped.
        mebibytes: its highest memory, above what the process held before; not parts of libraries' files,
            which the kernel drops and reads again as it likes.
        warned: warnings, which a user would see on stderr.
        started: ways in which it tried to start processes, which it was kept from.
    """

    code: int | None
    out: str
    error: str
    noise: str
    escaped: str
    seconds: int
    mebibytes: float
    warned: tuple[str, ...] = ()
    started: tuple[str, ...] = ()


class TooLong(BaseException):
    """The time limit of a case has passed. Not an ``Exception``, which the program might catch."""


class Started(BaseException):
    """A case would start a process, which no limit holds."""


def check(case: Case, folder: Path) -> Outcome:
    """Run a case in a new folder; its files stay there afterwards.

    The command lies beside it, in ``FOLDER.json``, until it has passed: it is known whatever ends the tests.

    Raises:
        AssertionError: what the program did is not what it promises.
    """
    prepare(case, folder)
    before, note = contents(folder), folder.with_name(f"{folder.name}.json")
    note.write_text(json.dumps(list(case.words)))
    outcome = run(case.words, folder)
    faults = list(_faults(case, outcome, before, contents(folder)))
    if faults:
        told = "\n".join(faults)
        raise AssertionError(f"{told}\ncommand: {list(case.words)}\nfolder: {folder}\n{outcome.escaped}")
    note.unlink()
    return outcome


def prepare(case: Case, folder: Path) -> None:
    """Write the files of a case into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
        elif content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder; links are not followed."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = "special"
    return found


def run(words: Sequence[str], folder: Path) -> Outcome:
    """Run a command in a folder, under the limits, and watch it."""
    escaped, code = "", None
    start, mapped = _new_peak(), _memory("RssFile")
    with (
        _limits() as seconds,
        _alone() as started,
        _inside(folder),
        _streams() as texts,
        _warnings() as warned,
    ):
        try:
            code = main(words)
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else None
            escaped = "" if code in (0, 2) else traceback.format_exc()
        except (Exception, TooLong, Started):
            escaped = traceback.format_exc()
    if code == 130:
        raise KeyboardInterrupt  # main has caught it: whoever runs the tests wants to end them
    grown = (_memory("VmHWM") - start - max(0, _memory("RssFile") - mapped)) / 2**20
    return Outcome(code, *texts, escaped, seconds[0], grown, tuple(warned), tuple(started))


def _faults(
    case: Case, outcome: Outcome, before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[str]:
    if outcome.escaped:
        yield f"an exception escaped: {outcome.escaped.strip().splitlines()[-1][:500]}"
        return
    if outcome.started:
        yield f"would start a process: {list(outcome.started)}"
    if outcome.seconds >= SECONDS:
        yield f"took {outcome.seconds} s"
    if outcome.mebibytes > MEBIBYTES:
        yield f"took {outcome.mebibytes:.0f} MiB of memory"
    if outcome.code not in (0, 2):
        yield f"exit code {outcome.code}"
    if case.valid and outcome.code != 0:
        yield f"a valid input was refused: {outcome.error}"
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if outcome.code == 2:
        yield from _faults_of_a_refusal(case, outcome)
        begun = tuple(f"{name.rpartition('/')[0]}/" for name in case.may_leave if name in changed)
        left = [name for name in changed if not f"{name}/".startswith(begun)]
        wrong = [name for name in left if not name.startswith(tuple(case.may_change))]
        if wrong:
            yield f"refused, but changed {wrong}"
    elif outcome.code == 0:
        inputs = [name for name in changed if name in before and case.files.get(name) != OLD]
        wrong = [name for name in inputs if not name.startswith(tuple(case.works_on))]
        if wrong:
            yield f"succeeded, but changed its inputs {wrong}"
    litter = [name for name in changed if name in after and "/." in f"/{name}" and ".rga-reid-" not in name]
    if litter:
        yield f"left behind {litter}"


def _faults_of_a_refusal(case: Case, outcome: Outcome) -> Iterator[str]:
    if not case.words:
        return  # the usage, on stdout
    lines = [
        *outcome.error.splitlines(),
        *outcome.warned,
        *(() if case.noisy else outcome.noise.splitlines()),
    ]
    if len(lines) != 1 or not lines[0].startswith("rga-reid: error: "):
        yield f"expected one line on stderr, found {len(lines)}: {lines[:5]}"
        return
    if len(lines[0]) > LONGEST + sum(map(len, case.words)):
        yield f"an error message of {len(lines[0])} characters: {lines[0][:300]} ..."
    if not lines[0].isprintable():
        yield f"an error message that steers the terminal: {lines[0]!r}"
    if "not enough memory" in lines[0]:
        yield f"memory ran out: {lines[0]}"


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    home = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


@contextlib.contextmanager
def _streams() -> Iterator[list[str]]:
    """What is written to the standard streams, by Python, and by C libraries, which write past it."""
    texts: list[str] = []
    with contextlib.ExitStack() as stack:
        out, error, noise = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        streams, kept = (sys.stdout, sys.stderr), [(number, os.dup(number)) for number in (1, 2)]
        for stream, (number, _) in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(noise.fileno(), number)
        # as Python sets them up where the language is UTF-8
        ours = (
            io.TextIOWrapper(out, "utf-8", "strict", write_through=True),
            io.TextIOWrapper(error, "utf-8", "backslashreplace", write_through=True),
        )
        sys.stdout, sys.stderr = ours
        try:
            yield texts
        finally:
            sys.stdout, sys.stderr = streams
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            for stream in ours:
                stream.detach()  # or it would close the file when it goes
            for file in (out, error, noise):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Those that Python shows unless it is told otherwise."""
    shown: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield shown
    shown += [f"{w.category.__name__}: {w.message}" for w in caught if w.category.__name__ not in _LATER]


@contextlib.contextmanager
def _limits() -> Iterator[list[int]]:
    """Time and address space. Time is counted in ticks of a second: a process that is stopped gets none."""
    ticks = [0]

    def tick(_signal: int, _frame: FrameType | None) -> None:
        ticks[0] += 1
        if ticks[0] == SECONDS:
            raise TooLong(f"still running after {SECONDS} s")

    old = signal.signal(signal.SIGALRM, tick)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    faulthandler.dump_traceback_later(ANSWERED, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (size + _FUSE, hard))
    try:
        yield ticks
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _alone() -> Iterator[list[str]]:
    """No process is started: trainings on several devices, and those of ``ablate``, would be."""
    started: list[str] = []
    start = multiprocessing.process.BaseProcess.start

    def refuse(_: object) -> None:
        started.append("multiprocessing")
        raise Started("multiprocessing")

    _watching.append(started)
    multiprocessing.process.BaseProcess.start = refuse  # type: ignore[method-assign, assignment]
    try:
        yield started
    finally:
        multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]
        _watching.remove(started)


_watching: list[list[str]] = []  # of the case that runs


def _audit(event: str, _: object) -> None:
    if _watching and event in _STARTS:
        _watching[-1].append(event)
        raise Started(event)


_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
sys.addaudithook(_audit)  # for ever: Python has no way to remove one


def _new_peak() -> int:
    """The highest memory of the process, in bytes, after it was set back to what is held now.

    Where the kernel does not set it back (not every container lets one write that file), it is the highest
    since the process began, and a case is judged only by what it takes beyond all before it.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _memory("VmHWM")


def _memory(name: str) -> int:
    """Of the process, in bytes (Linux tells it in KiB): VmHWM is the highest since it was set back."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
