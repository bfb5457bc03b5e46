"""Training runs of the small network in forked processes, some of them killed with SIGKILL.

    python runs.py JOBS.json

JOBS is a list of jobs, each a list of steps [words of `train`, where to kill or null]. The place is
["batch", n], ["validation", n] or ["saving", n]: the n-th of these, counted from 1 in each process. Prints the exit
code of each step; -9 is a kill. One process imports everything once and forks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from rga_reid.commands import main
from rga_reid.training import callbacks, module
from tests.training.small import build_small_model


def die_at(place: list[Any]) -> None:
    """Kill this process in the n-th call of the function at the place."""
    owner, name = {
        "batch": (module.ReIDModule, "training_step"),
        "validation": (module.ReIDModule, "on_validation_epoch_end"),
        "saving": (callbacks, "sync"),  # the checkpoint is written, but not yet renamed
    }[place[0]]
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def run(words: list[str], place: list[Any] | None) -> int:
    """Return the exit code of ``train`` in a forked process."""
    child = os.fork()
    if child == 0:
        if place is not None:
            die_at(place)
        os._exit(main(["train", *words]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    module.build_model = build_small_model  # type: ignore[assignment]
    for job in json.loads(Path(sys.argv[1]).read_text()):
        for words, place in job:
            print(run(words, place), flush=True)
