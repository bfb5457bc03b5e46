"""Measure time and memory of an exact ranking on this machine, with synthetic features.

Compares ``evaluate_ranking`` with the bare matrix product of queries and gallery, block by block, that any
ranking needs, and with a loop that sorts the gallery for each query (extrapolated from some queries). The
runs are interleaved, and medians are reported. Memory is the growth of anonymous memory in a fresh process
(Linux, glibc); the features are memory maps.

    python benchmarks/ranking.py --sizes market1501 msmt17 market1501_500k --out ranking.json
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from synthetic import bare_product, main

from rga_reid.evaluation import evaluate_ranking


def product(inputs: dict[str, Any]) -> None:
    """Multiply the queries with the gallery."""
    bare_product([inputs["query_features"]], [inputs["gallery_features"]])


def ranking(inputs: dict[str, Any]) -> None:
    """Run the function to measure."""
    evaluate_ranking(**inputs)


def sorted_loop(inputs: dict[str, Any], sample: int) -> float:
    """Estimate the seconds to sort the gallery and walk down the list for every query."""
    gallery = torch.from_numpy(np.array(inputs["gallery_features"]))
    start = time.perf_counter()
    for query in range(sample):
        row = torch.from_numpy(np.array(inputs["query_features"][query]))
        order = np.argsort(-(gallery @ row).numpy(), kind="stable")
        same = inputs["gallery_pids"][order] == inputs["query_pids"][query]
        kept = ~(same & (inputs["gallery_camids"][order] == inputs["query_camids"][query]))
        hits = np.flatnonzero(same[kept])
        (np.arange(1, len(hits) + 1) / (hits + 1)).sum()
    return (time.perf_counter() - start) / sample * len(inputs["query_pids"])


if __name__ == "__main__":
    main(__doc__, {"bare product, q x g": product, "evaluate_ranking": ranking}, sorted_loop)
