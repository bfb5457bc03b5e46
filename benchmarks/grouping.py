"""Measure the grouping of unlabelled images into persons: time, memory and agreement with identities.

By default the features are synthetic: 20,000 images of 1,000 people. Those of a file (``rga-reid features``) need
pids; images of pid -1 are left out, and those of pid 0 (distractors) are grouped, but not counted.

    python benchmarks/grouping.py --out grouping.json
    python benchmarks/grouping.py --features gallery.npz
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from rga_reid.evaluation import Grouping, bcubed_agreement, group_images, pairwise_agreement
from rga_reid.experiments.benchmark import describe_machine, describe_options
from rga_reid.files import write_json


def draw_features(images: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw features of people, 20 images each on average: a random direction plus noise. Return them and pids."""
    rng = np.random.default_rng(seed)
    people = max(1, images // 20)
    pids = rng.integers(1, people + 1, images)
    centres = rng.standard_normal((people + 1, columns), np.float32)
    features = rng.standard_normal((images, columns), np.float32)
    features *= 2
    for start in range(0, images, 1024):
        features[start : start + 1024] += centres[pids[start : start + 1024]]
    return features, pids


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", help=".npz with the arrays features and pids")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eps", type=float, default=Grouping.eps)
    parser.add_argument("--min-score", type=float, default=Grouping.min_score)
    parser.add_argument("--out", help="write the results to this file as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.features is None:
        features, pids = draw_features(options.images, options.columns)
    else:
        with np.load(options.features) as file:
            features, pids = file["features"][file["pids"] != -1], file["pids"][file["pids"] != -1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock, cpu = time.perf_counter(), time.process_time()
    groups = group_images(features, settings=Grouping(options.eps, min_score=options.min_score))
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    peak, known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, pids > 0
    result = {
        "images": len(features),
        "columns": features.shape[1],
        "people": len(np.unique(pids[known])),
        "persons_found": int(groups.max() + 1),
        "ungrouped": int((groups[known] < 0).sum()),
        "pairwise": pairwise_agreement(groups[known], pids[known])._asdict(),
        "bcubed": bcubed_agreement(groups[known], pids[known])._asdict(),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mebibytes": round(peak / 1024, 1),
        "peak_mebibytes_before": round(before / 1024, 1),
    }
    for name, value in result.items():
        print(f"{name:<22} {value}")
    if options.out:
        asked = describe_options(options, "features")
        write_json(options.out, {"machine": describe_machine(), "options": asked, "results": result})


if __name__ == "__main__":
    main()
