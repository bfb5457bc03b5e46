"""Measure functions on features like those of a trained model: clusters of people, and distractors.

The features are memory maps in a temporary folder, so that they take no anonymous memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from memory import peak_anonymous

from rga_reid.experiments.benchmark import (
    describe_machine,
    describe_options,
    in_fresh_processes,
    run_interleaved,
)
from rga_reid.files import write_json

BLOCK = 1024  # rows of the bare product at a time, on both sides; the fastest of 512 to 4096
LEFT = 4096  # rows of its left side held at a time

Run: TypeAlias = Callable[[dict[str, Any]], object]  #: of inputs from ``read_features``


@dataclass(frozen=True)
class Size:
    """Size of a data set."""

    queries: int
    items: int  #: gallery images
    distractors: int  #: gallery images, at the end, of people who are not among the queries
    people: int
    cameras: int


SIZES = {
    "tiny": Size(60, 500, 100, 12, 3),  # to check that a script runs
    "market1501": Size(3368, 15913, 2798, 750, 6),
    "msmt17": Size(11659, 82161, 0, 3060, 15),
    "market1501_500k": Size(3368, 515913, 502798, 750, 6),
}


def write_features(folder: Path, name: str, columns: int, seed: int = 0) -> None:
    """Draw features and labels of a size in ``SIZES`` and write them to ``folder``.

    A person is a random direction, an image of the person is that direction plus noise. The noise is large
    enough for wrong matches.
    """
    size, rng = SIZES[name], np.random.default_rng(seed)
    centres = rng.standard_normal((size.people, columns), np.float32)
    for side, count, distractors in (("query", size.queries, 0), ("gallery", size.items, size.distractors)):
        pids = rng.integers(1, size.people + 1, count)
        pids[count - distractors :] = 0
        labels = {"pids": pids, "camids": rng.integers(0, size.cameras, count)}
        np.savez(folder / f"{side}.npz", **labels)
        rows = np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float32, (count, columns))
        for start in range(0, count, BLOCK):
            block = pids[start : start + BLOCK]
            noise = rng.standard_normal((len(block), columns), np.float32)
            rows[start : start + BLOCK] = np.where(block[:, None] > 0, centres[block - 1], 0) + 3 * noise
        rows.flush()


def read_features(folder: Path) -> dict[str, Any]:
    """Return the features of a folder as arguments of ``evaluate_ranking``; they are memory maps."""
    inputs: dict[str, Any] = {}
    for side in ("query", "gallery"):
        inputs[f"{side}_features"] = np.load(folder / f"{side}.npy", mmap_mode="r")
        with np.load(folder / f"{side}.npz") as labels:
            inputs |= {f"{side}_{label}": labels[label] for label in ("pids", "camids")}
    return inputs


def bare_product(left: list[np.ndarray], right: list[np.ndarray], device: str | torch.device = "cpu") -> None:
    """Multiply all rows on the left with all on the right in float32, block by block, keeping nothing."""
    for rows in left:
        for start in range(0, len(rows), LEFT):
            held = torch.from_numpy(np.array(rows[start : start + LEFT])).to(device).split(BLOCK)
            for others in right:
                for first in range(0, len(others), BLOCK):
                    b = torch.from_numpy(np.array(others[first : first + BLOCK])).to(device)
                    for a in held:
                        a @ b.T


def measure(
    name: str,
    folder: Path,
    runs: dict[str, Run],
    loop: Callable[[dict[str, Any], int], float],
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Yield rows of results for one size. Times are relative to the first of the runs."""
    torch.set_num_threads(options.threads)
    inputs = read_features(folder)
    seconds = run_interleaved(
        [lambda run=run: run(inputs) for run in runs.values()], options.repeats, warm_up=options.repeats > 1
    )
    memory = in_fresh_processes(_peak_memory, [(run, folder, options.threads) for run in runs.values()])
    sample = min(options.sample, SIZES[name].queries)
    rows = [*zip(runs, seconds, memory, strict=True)]
    rows.append((f"sorted loop, extrapolated from {sample} images", loop(inputs, sample), float("nan")))
    for what, time_taken, mebibytes in rows:
        yield {
            "size": name,
            "what": what,
            "seconds": round(time_taken, 4),
            "time_ratio": round(time_taken / seconds[0], 3),
            "mebibytes": None if np.isnan(mebibytes) else round(mebibytes, 1),
        }


def main(description: str, runs: dict[str, Run], loop: Callable[[dict[str, Any], int], float]) -> None:
    """Measure, print a table and write JSON.

    Args:
        description: text for --help.
        runs: functions to measure, by name; functions of a module, as they are sent to other processes.
        loop: estimates the seconds of the plain method for all images from a sample of this size.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", help="write the results to this file as JSON")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sizes", nargs="+", default=["market1501"], choices=SIZES)
    parser.add_argument("--columns", type=int, default=2048, help="length of a feature")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=100, help="images of the loop")
    parser.add_argument(
        "--folder", help="folder for temporary files of features (default: that of the system)"
    )
    options = parser.parse_args()
    results = []
    print("| size | what | s | × | MiB |\n" + "|---" * 5 + "|")
    for name in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            write_features(Path(folder), name, options.columns)
            for row in measure(name, Path(folder), runs, loop, options):
                results.append(row)
                memory = "" if row["mebibytes"] is None else f"{row['mebibytes']:.0f}"
                figures = f"{row['seconds']:.2f} | {row['time_ratio']:.2f} | {memory}"
                print(f"| {name} | {row['what']} | {figures} |", flush=True)
    if options.out:
        settings = describe_options(options)
        write_json(options.out, {"machine": describe_machine(), "options": settings, "results": results})


def _peak_memory(case: tuple[Run, Path, int]) -> float:
    run, folder, threads = case
    torch.set_num_threads(threads)
    inputs = read_features(folder)
    return peak_anonymous(lambda: run(inputs))
