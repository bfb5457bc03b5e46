"""A picture of a calibration: how the scores of genuine and of impostor pairs lie, and the threshold."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure


def calibration_plot(
    edges: np.ndarray, genuine: np.ndarray, impostor: np.ndarray, threshold: float, note: str = ""
) -> Figure:
    """Both distributions over the score, each as a share of its own pairs.

    There are far more impostors than genuine pairs, and what matters of them is their tail, so shares are on
    a logarithmic scale.

    Args:
        edges: of the bins, ascending, ``(bins + 1,)``.
        genuine, impostor: numbers of scores, ``(bins,)``.
        threshold: where a decision changes.
        note: a line above the picture.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # without pyplot: no global state, no display
    axes = figure.add_subplot()
    for counts, colour, name in ((impostor, "#b3402a", "two people"), (genuine, "#1f6f8b", "one person")):
        label = f"{name} ({counts.sum():,} pairs)"
        axes.stairs(counts / counts.sum(), edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(counts / counts.sum(), edges, color=colour, label=label)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4f}")
    axes.set(yscale="log", xlabel="score (cosine similarity)", ylabel="share of the pairs", title=note)
    axes.legend()
    return figure
