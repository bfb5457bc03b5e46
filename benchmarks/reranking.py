"""Measure time and memory of an evaluation with re-ranking on this machine, with synthetic features.

Compares ``evaluate_ranking(..., rerank=ReRanking())`` with the first two steps of the published code: the
bare matrix product of all images, queries and gallery together, block by block; and a loop that sorts all
images for each image (extrapolated from some images). The runs are interleaved, and medians are reported.
Memory is the growth of anonymous memory in a fresh process (Linux, glibc); the features are memory maps.

    python benchmarks/reranking.py --sizes market1501 msmt17 --repeats 3 --out reranking.json
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from synthetic import bare_product, main

from rga_reid.evaluation import ReRanking, evaluate_ranking


def product(inputs: dict[str, Any]) -> None:
    """Multiply all images with all."""
    sides = [inputs["query_features"], inputs["gallery_features"]]
    bare_product(sides, sides)


def re_ranking(inputs: dict[str, Any]) -> None:
    """Run the function to measure."""
    evaluate_ranking(**inputs, rerank=ReRanking())


def sorted_loop(inputs: dict[str, Any], sample: int) -> float:
    """Estimate the seconds to sort all images for every image."""
    items = torch.from_numpy(np.concatenate([inputs["query_features"], inputs["gallery_features"]]))
    start = time.perf_counter()
    for row in items[:sample]:
        np.argsort(-(items @ row).numpy())
    return (time.perf_counter() - start) / sample * len(items)


if __name__ == "__main__":
    runs = {"bare product, (q + g) x (q + g)": product, "evaluate_ranking, re-ranked": re_ranking}
    main(__doc__, runs, sorted_loop)
