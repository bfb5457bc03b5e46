"""Images a second that `rga-reid features` embeds on a CPU, with and without keeping freed memory.

Between two batches a network frees all that it took; glibc gives it back to the system, and the next batch
starts with fresh pages. Runs with and without ``keep_freed_memory`` take turns, each in a process of its own;
the first batch is not counted.

    python benchmarks/freed_memory.py --out freed_memory.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

from pictures import draw

from rga_reid.data import table_from_files
from rga_reid.experiments.benchmark import describe_machine, in_fresh_processes
from rga_reid.files import write_json
from rga_reid.inference import embed as extraction
from rga_reid.models import build_model

BATCH = 64


class Run(NamedTuple):
    """One network and its work."""

    depth: int
    size: tuple[int, int]
    paths: list[str]
    kept: bool


def images_per_second(run: Run) -> float:
    """Of one run, after its first batch."""
    if not run.kept:
        extraction.keep_freed_memory = nullcontext  # type: ignore[assignment]
    model = build_model(depth=run.depth, weights=None, size=run.size).eval()
    batches = extraction.stream_features(model, table_from_files(run.paths), BATCH, "cpu")
    next(batches)
    start = time.perf_counter()
    return sum(len(features) for features, _ in batches) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="write the results there as JSON")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        paths = draw(Path(name), 17 * BATCH)
        for depth, size, batches in ((18, (128, 64), 17), (50, (256, 128), 5)):
            runs = [Run(depth, size, paths[: batches * BATCH], kept) for kept in (True, False)]
            found = in_fresh_processes(images_per_second, runs * options.repeats)
            kept, given_back = found[::2], found[1::2]
            ratios = [one / other for one, other in zip(kept, given_back, strict=True)]
            results.append(
                {
                    "model": f"resnet{depth}",
                    "size": size,
                    "kept": round(median(kept), 1),
                    "given_back": round(median(given_back), 1),
                    "ratio": round(median(ratios), 2),
                    "ratios": [round(ratio, 2) for ratio in ratios],
                }
            )
            print(results[-1], flush=True)
    if options.out:
        asked = {"batch": BATCH, "repeats": options.repeats}
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": results})


if __name__ == "__main__":
    main()
