"""A picture of a calibration: how the scores of genuine and of impostor pairs lie, and the threshold."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

_TWO, _ONE = "#d55e00", "#0072b2"  # of Okabe and Ito, told apart by colour-blind readers


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
        note: words above the picture.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")  # without pyplot: no global state, no display
    axes = figure.add_subplot()
    for counts, colour, name in ((impostor, _TWO, "two people"), (genuine, _ONE, "one person")):
        label = f"{name} ({counts.sum():,} pairs)"
        axes.stairs(counts / counts.sum(), edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(counts / counts.sum(), edges, color=colour, label=label)
    axes.axvline(
        threshold, color="black", linestyle="--", label=f"threshold {threshold:.4f}: one person from here on"
    )
    axes.set(
        yscale="log", xlabel="score (cosine similarity)", ylabel=f"share of the pairs, {len(edges) - 1} bins"
    )
    axes.set_title(note, loc="left", size=9)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
