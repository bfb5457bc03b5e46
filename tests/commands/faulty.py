"""Runs commands in forked processes that something happens to, for the tests of faults.

Reads a JSON object a line:

- ``words``: of the command;
- ``watched``: whether to count events;
- ``signal``, ``at``: a signal and the number of the event in rga_reid's own code (a call, a return, a call of
  anything else) at which the process gets it;
- ``most``: bytes that a file may have, as if the disk were full there;
- ``bound``: permissions of folders hold, for root too;
- ``full``: standard output takes nothing, from the first line on.

Answers a JSON object a line: ``code`` (a negative one is the signal that killed it), ``error`` and ``output``
(what was printed), ``events`` (how many there were), ``writing`` (the numbers of those in files.py) and
``struck`` (where the signal came).

Processes are forked, so that one import of torch and the rest serves them all.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - imported here, not in every process that writes a table
import sklearn.manifold  # noqa: F401 - likewise
import torch

import rga_reid
from rga_reid.commands import COMMANDS, main
from rga_reid.data.synthetic import SyntheticSettings
from rga_reid.experiments import demo
from rga_reid.gallery import folder as builder
from rga_reid.inference import distributed as team

PACKAGE = str(Path(rga_reid.__file__).parent)
OUTSIDE = ("signals.py", "program.py", "commands/__init__.py")  # no signal is minded there, or not yet
SMALL: dict[str, Any] = {
    "train_identities": 4,
    "test_identities": 2,
    "distractors": 2,
    "junk": 1,
    "size": (64, 32),
}


class Watch:
    """Counts the events, and sends this process a signal at one of them."""

    def __init__(self, signum: int | None, at: int | None, told: int) -> None:
        self.signum, self.at, self.told = signum, at, told
        self.events, self.writing = 0, []
        self.known: dict[Any, int] = {}  # of the code that runs: 0 not ours, 1 ours, 2 writes files

    def __call__(self, frame: Any, event: str, argument: object) -> None:
        kind = self.known.get(frame.f_code)
        if kind is None:
            name = frame.f_code.co_filename
            ours = name.startswith(PACKAGE) and not name.endswith(OUTSIDE)
            kind = self.known[frame.f_code] = ours + (ours and name.endswith("rga_reid/files.py"))
        if kind == 0:
            return
        self.events += 1
        if kind == 2:
            self.writing.append(self.events)
        if self.events == self.at:
            os.write(self.told, f"{event} in {frame.f_code.co_name}:{frame.f_lineno}".encode())
            os.kill(os.getpid(), self.signum)


def bind() -> None:
    """Give up what lets root write anywhere (Linux: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):  # effective, permitted, inheritable
        sets[place] &= ~0b110
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def run(task: dict[str, Any], told: int) -> tuple[int, Watch]:
    """The command, in this process."""
    watch = Watch(task.get("signal"), task.get("at"), told)
    signal.alarm(900)  # ends it where it hangs
    if task.get("bound"):
        bind()
    if task.get("most") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["most"], resource.RLIM_INFINITY))
    if task.get("full"):
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if task.get("watched"):
        sys.setprofile(watch)
    try:
        return main(task["words"]), watch
    finally:
        sys.setprofile(None)


def child(task: dict[str, Any], answer: int, told: int) -> None:
    code = 1
    try:
        code, watch = run(task, told)
        os.write(answer, json.dumps({"events": watch.events, "writing": watch.writing}).encode())
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # as the interpreter does
        os._exit(code)


def answered(task: dict[str, Any]) -> dict[str, Any]:
    # pipes, not files: a limit on the size of files would count for them too; messages are short
    pipes = [os.pipe() for _ in range(4)]
    process = os.fork()
    if process == 0:
        for number in (1, 2):
            os.dup2(pipes[number][1], number)
        child(task, pipes[0][1], pipes[3][1])
    texts = []
    for reader, writer in pipes:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            texts.append(pipe.read().decode("utf-8", "replace"))
    _, status = os.waitpid(process, 0)
    facts = json.loads(texts[0] or "{}")
    told = {"output": texts[1], "error": texts[2], "struck": texts[3]}
    return {"code": os.waitstatus_to_exitcode(status), **told, **facts}


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # stdout itself belongs to the commands
    for line in sys.stdin:
        answers.write(json.dumps(answered(json.loads(line))) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in COMMANDS:
        importlib.import_module(f"rga_reid.commands.{name}")
    for name in ("experiments.explaining", "reports.relation_figures", "reports.feature_space"):
        importlib.import_module(f"rga_reid.{name}")
    builder.SHARD_ROWS, team.BLOCK_ROWS = 4, 2
    settings: Callable[..., SyntheticSettings] = partial(SyntheticSettings, **SMALL)
    demo.SyntheticSettings = settings  # type: ignore[assignment,misc]
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    serve()
