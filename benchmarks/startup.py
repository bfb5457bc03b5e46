"""Seconds from the start of a command's process to its end, where the work itself is small, and its slowest imports.

Commands take turns with a process that imports torch only, and with one that starts Python only: a command cannot be
faster than the packages that it needs. The gallery has 200 drawn images; the model has random weights.

    python benchmarks/startup.py --out startup.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pictures import draw

from rga_reid.experiments.benchmark import describe_machine, time_interleaved
from rga_reid.files import write_json
from rga_reid.models import build_model, save_model

CHECKOUT = Path(__file__).parents[1]
CLI = (str(CHECKOUT / "cli.py"),)
GOALS = {"--help": 0.3, "query": 3.0, "evaluate": 1.5}  # seconds


def run(words: Sequence[str], *options: str) -> str:
    """Run Python in a process and return its standard error."""
    command = [sys.executable, *options, *words]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stderr


def prepare(folder: Path) -> dict[str, tuple[str, ...]]:
    """Make a gallery and feature files; return the words of each command."""
    images = folder / "images"
    images.mkdir()
    for number, path in enumerate(draw(images, 200)):
        os.rename(path, images / f"{number % 50:04d}_c{1 + number // 50}s1_{number:06d}_00.jpg")
    torch.manual_seed(0)
    model = folder / "model.safetensors"
    save_model(build_model(backbone="resnet18", attention="rga", weights=None, size=(96, 48)), model)
    common = ("--images", str(images), "--checkpoint", str(model))
    run([*CLI, "gallery", "build", "--gallery", str(folder / "gallery"), *common])
    run([*CLI, "features", "--out", str(folder / "f.npz"), *common])
    image, features = str(next(images.iterdir())), str(folder / "f.npz")
    return {
        "python": ("-c", "pass"),
        "import torch": ("-c", "import torch"),
        "--help": (*CLI, "--help"),
        "query --help": (*CLI, "query", "--help"),
        "query": (*CLI, "query", "--gallery", str(folder / "gallery"), "--image", image),
        "evaluate": (*CLI, "evaluate", "--query", features, "--gallery", features),
        "train --help": (*CLI, "train", "--help"),
    }


def slowest_imports(words: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return the modules that take longest by themselves, without those that they import.

    Times are those of ``python -X importtime``, which makes imports slower.
    """
    rows = []
    for line in run(words, "-X", "importtime").splitlines():
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and parts[0].strip().isdecimal():
            rows.append({"module": parts[2].strip(), "milliseconds": round(int(parts[0]) / 1000, 1)})
    return sorted(rows, key=lambda row: -row["milliseconds"])[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="processes of each command")
    parser.add_argument("--imports", type=int, default=12, help="slowest imports to list for each command")
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        commands = prepare(Path(name))
        times = time_interleaved([partial(run, words) for words in commands.values()], options.repeats)
        for (command, words), seconds in zip(commands.items(), times, strict=True):
            row = {"command": command, "seconds": round(median(seconds), 3), "goal": GOALS.get(command)}
            results.append({**row, "slowest_imports": slowest_imports(words, options.imports)})
    print("| command | seconds | goal |\n|---|---|---|")
    for row in results:
        print(f"| {row['command']} | {row['seconds']:.2f} | {row['goal'] or ''} |")
    for row in results:
        slowest = ", ".join(
            f"{entry['module']} {entry['milliseconds']}" for entry in row["slowest_imports"][:6]
        )
        print(f"{row['command']}: {slowest}")
    if options.out:
        write_json(
            options.out, {"machine": describe_machine(), "repeats": options.repeats, "results": results}
        )


if __name__ == "__main__":
    main()
