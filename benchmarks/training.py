"""Measure the overhead of `rga-reid train` over the work of a training step, and the time to the first step (CPU).

A separate process runs `train` with hooks. The overhead is the part of the time from the start of one step to the start
of the next that is not spent in the forward pass with the loss, the backward pass, and the optimizer with gradient
clipping: loading, augmentation, logging, moving averages, Lightning. The time to the first step counts from the start
of the process, with a cache of decoded images from an earlier run.

    python benchmarks/training.py --root DIR --out training.json        # Market-1501
    python benchmarks/training.py                                       # the synthetic data set
    python benchmarks/training.py --config market1501/cpu_pretrained --root DIR --model.weights FILE

Options that the benchmark does not know go to `train`.

`--losses` compares steps (forward, losses, backward, optimizer) with the default losses as a list, with those of a
recipe, and with their formula written out, as in version 1.0; steps take turns, on the same batches.

    python benchmarks/training.py --losses --steps 60
"""

from __future__ import annotations

import argparse
import json
import statistics
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


def train_with_hooks(words: list[str]) -> None:
    """Train, print when the first step starts, and print the times of the parts of all steps."""
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
        module.losses.register_forward_hook(mark("loss"))
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
    """Run `train` once; return the seconds to the first step and the milliseconds per step."""
    begin = time.monotonic()
    command = [sys.executable, __file__, "--hooks", *words]
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
    steps = [step for step in steps if "epoch" not in step]  # without those at the end of an epoch

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


def written_out(label_smoothing: float, margin: float) -> Any:
    """Return the default losses as version 1.0 computed them."""
    import torch

    from rga_reid.training import BatchHardTripletLoss

    cross_entropy = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    triplet = BatchHardTripletLoss(margin)

    def compute(output: Any, labels: Any) -> dict[str, Any]:
        with torch.autocast(output.logits.device.type, enabled=False):
            logits = output.logits.float().movedim(-1, 1)
            parts = labels.view(-1, *(1,) * (logits.ndim - 2)).expand(-1, *logits.shape[2:])
            one, two = cross_entropy(logits, parts), triplet(output.pre_neck, labels)
        return {"loss": one + two, "cross_entropy": one, "triplet": two}

    return compute


def compare_losses(steps: int) -> dict[str, float]:
    """Return milliseconds per step for each way to write the default losses, and ratios to the formula."""
    import torch

    from rga_reid.training import ReIDLoss, build_reid_module

    entries = [
        {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}, "on": "logits"},
        {"class_path": "rga_reid.training.BatchHardTripletLoss", "init_args": {"margin": 0.3}},
    ]
    module = build_reid_module(751, depth=18, weights=None, size=(128, 64), losses=entries)
    ways = {"formula": written_out(0.1, 0.3), "recipe": ReIDLoss(), "list": module.losses}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, optimizer = module.model.to(device), module.optimizer(module.parameters())
    labels = torch.arange(16, device=device).repeat_interleave(2)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(WARM_UP + steps):
        images = torch.randn(32, 3, 128, 64, generator=torch.Generator().manual_seed(step)).to(device)
        names = [*ways] if step % 2 else [*ways][::-1]
        for name in names:
            start = time.perf_counter()
            losses = ways[name](model(images), labels)
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            float(losses["loss"].detach())  # waits for the device
            times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["formula"], strict=True))
        for name in ("recipe", "list")
    }
    return {
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in median.items()},
        **{f"{name}_ratio": round(value, 4) for name, value in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", help="data set in Market-1501's layout; by default a synthetic one")
    parser.add_argument("--config", default="market1501/cpu_scratch")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", help="write the results as JSON")
    parser.add_argument("--losses", action="store_true", help="compare ways to write the losses instead")
    options, others = parser.parse_known_args()
    results = []
    if options.losses:
        for _ in range(options.repeats):
            results.append(compare_losses(options.steps))
            print(json.dumps(results[-1]), flush=True)
        if options.out:
            asked = {"steps": options.steps, "losses": True}
            write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})
        return
    with tempfile.TemporaryDirectory() as name:
        root = options.root
        if root is None:
            from rga_reid.data.synthetic import write_synthetic

            root = str(Path(name) / "synthetic")
            write_synthetic(root)
        words = ["train", "--config", options.config, "--data.root", root, "--data.cache", "file"]
        words += ["--out", str(Path(name) / "run"), "--overwrite"]
        words += ["--trainer.max_steps", str(WARM_UP + options.steps + 1), *others]
        for repeat in range(options.repeats + 1):
            measured = train(words)
            if repeat:  # the first one fills the cache
                results.append(measured)
                print(json.dumps(measured), flush=True)
    if options.out:
        asked = {"config": options.config, "steps": options.steps, "synthetic": options.root is None}
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hooks"]:
        train_with_hooks(sys.argv[2:])
    else:
        main()
