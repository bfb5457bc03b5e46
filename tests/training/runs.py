"""Training runs of a small network in processes of their own, some of them killed with SIGKILL on the way.

    python runs.py JOBS.json

JOBS holds a list of jobs, each a list of [words of `train`, where to kill or null], which follow one another.
A place to kill at is ["batch", n], ["validation", n] or ["saving", n]: in the n-th of them, counted from 1 in
each process. Prints each step's exit code; -9 is a kill. One process imports everything once and forks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.models import EmbeddingModel
from rga_reid.training import module

fitting = importlib.import_module("rga_reid.training.trainer")  # the package's name `fit` is its function


class SmallBackbone(nn.Module):
    """With batch norm, whose statistics are a state, and dropout, which draws random numbers."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.channels, self.checkpointing = size, 16, False
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(16, 16, 3),
        )

    def set_input_size(self, size: tuple[int, int]) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def small_model(*, classes: int, size: tuple[int, int], **_: Any) -> EmbeddingModel:
    return EmbeddingModel(SmallBackbone(size), classes, config={"size": list(size)})  # type: ignore[arg-type]


def die_at(place: list[Any]) -> None:
    """Let the n-th call of the place's function be the last thing this process does."""
    owner, name = {
        "batch": (module.ReIDModule, "training_step"),
        "validation": (module.ReIDModule, "on_validation_epoch_end"),
        "saving": (fitting, "sync"),  # a checkpoint is written, but not yet in its place
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
    """The exit code of ``train`` in a forked process."""
    child = os.fork()
    if child == 0:
        if place is not None:
            die_at(place)
        os._exit(main(["train", *words]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads do not survive a fork
    module.build_model = small_model  # type: ignore[assignment]
    for job in json.loads(Path(sys.argv[1]).read_text()):
        for words, place in job:
            print(run(words, place), flush=True)
