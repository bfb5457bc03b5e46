"""What `rga-reid train` adds to the work of a training step, and how long it takes to the first step (CPU).

A run of `train` in a process of its own, whose steps are watched: of the time from the start of one step to
the start of the next, the share that is neither forward pass with the loss nor backward pass nor optimizer
(with gradient clipping) is overhead: loading, augmentation, logging, moving averages, Lightning itself. The
start is counted from the start of the process, with a warm cache of decoded images: a first run fills it, and
is not counted.

    python benchmarks/training.py --root DIR --out training.json        # Market-1501
    python benchmarks/training.py                                       # the synthetic set, drawn first
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from rga_reid.experiments.benchmark import describe_machine
from rga_reid.files import write_json

WARM_UP = 5  # steps


def watched(words: list[str]) -> None:
    """Train, say when the first step starts, and print the seconds of the steps' parts."""
    from rga_reid.commands import main
    from rga_reid.training import ReIDModule

    marks: list[tuple[str, float]] = []

    def mark(name: str) -> Any:
        return lambda *_: marks.append((name, time.perf_counter()))

    def start(*_: Any) -> None:
        if all(name == "epoch" for name, _ in marks):
            print("first step", flush=True)
        mark("step")()

    def setup(module: ReIDModule) -> None:
        module.model.register_forward_pre_hook(mark("forward"))
        module.loss.register_forward_hook(mark("loss"))
        module.optimizers().optimizer.register_step_post_hook(mark("updated"))  # type: ignore[union-attr]

    hooks = {
        "train_start": setup,
        "train_epoch_start": mark("epoch"),
        "train_batch_start": start,
        "before_backward": mark("backward"),
        "after_backward": mark("gradients"),
        "before_optimizer_step": mark("update"),
    }
    for name, hook in hooks.items():
        setattr(ReIDModule, f"on_{name}", hook)
    assert main(words) == 0
    print(json.dumps(marks))


def train(words: list[str]) -> dict[str, float]:
    """One watched run: seconds to the first step, and of a step."""
    begin = time.monotonic()
    command = [sys.executable, __file__, "--watched", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, lines = 0.0, []
        for line in process.stdout:
            if line.startswith("first step"):
                first = time.monotonic() - begin
            lines.append(line)
    if process.returncode:
        raise SystemExit("".join(lines))
    marks = json.loads(next(line for line in reversed(lines) if line.startswith("[[")))
    starts = [number for number, (name, _) in enumerate(marks) if name == "step"][WARM_UP:]
    steps = [dict(marks[one : other + 1][::-1]) | {"end": marks[other][1]} for one, other in pairwise(starts)]
    steps = [step for step in steps if "epoch" not in step]  # the end of an epoch is no part of a step

    def mean(begin: str, end: str) -> float:
        return 1e3 * sum(step[end] - step[begin] for step in steps) / len(steps)

    parts = {
        "forward": mean("forward", "loss"),
        "backward": mean("backward", "gradients"),
        "optimizer": mean("update", "updated"),
    }
    whole = mean("step", "end")
    return {
        "seconds_to_first_step": round(first, 2),
        "steps": len(steps),
        "step_ms": round(whole, 2),
        **{f"{part}_ms": round(taken, 2) for part, taken in parts.items()},
        "overhead_percent": round(100 * (1 - sum(parts.values()) / whole), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", help="data set in Market-1501's layout; a synthetic one by default")
    parser.add_argument("--config", default="market1501/cpu_scratch")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        root = options.root
        if root is None:
            from rga_reid.data.synthetic import write_synthetic

            root = str(Path(name) / "synthetic")
            write_synthetic(root)
        words = ["train", "--config", options.config, "--data.root", root, "--data.cache", "file"]
        words += ["--out", str(Path(name) / "run"), "--overwrite"]
        words += ["--trainer.max_steps", str(WARM_UP + options.steps + 1)]
        for repeat in range(options.repeats + 1):
            measured = train(words)
            if repeat:  # the first one fills the cache
                results.append(measured)
                print(json.dumps(measured), flush=True)
    if options.out:
        asked = {"config": options.config, "steps": options.steps, "synthetic": options.root is None}
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        watched(sys.argv[2:])
    else:
        main()
