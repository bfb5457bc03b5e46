"""Curves of an ablation: what was learned when, and who is found among the first k."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rga_reid.reports.ablation_numbers import Evaluation, by_name
from rga_reid.reports.figure_files import save_figure
from rga_reid.reports.notation import literal

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles repeat them with another look
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", ":")
_CMC_RANKS = 20
_HEIGHT = 4  # inches, without the legend
_TEXT = 11  # points: still read where the figure is as narrow as a phone


def learning_figure(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Training loss of each epoch; the mean over the seeds, and their range as a band. None without logs."""
    curves = {
        name: [one.curve for one in group if one.curve is not None and len(one.curve)]
        for name, group in by_name(evaluations).items()
    }
    if not any(curves.values()):
        return None
    figure, axes = _axes("epoch", "training loss, mean of the epoch")
    for number, (name, group) in enumerate(curves.items()):
        if group:
            epochs = min(len(curve) for curve in group)
            values = np.array([curve["loss"].to_numpy()[:epochs] for curve in group])
            _line(axes, number, name, group[0]["epoch"].to_numpy()[:epochs], values)
    _legend(axes)
    return figure


def cmc_figure(evaluations: Sequence[Evaluation]) -> Figure | None:
    """Cumulative match curve of each variant, as ``learning_figure``. None without curves."""
    curves = {name: [one.cmc for one in group if one.cmc] for name, group in by_name(evaluations).items()}
    if not any(curves.values()):
        return None
    figure, axes = _axes("among the first k images", "queries with a match, percent")
    for number, (name, group) in enumerate(curves.items()):
        if group:
            ranks = min(_CMC_RANKS, *(len(curve) for curve in group))
            values = 100 * np.array([curve[:ranks] for curve in group])
            _line(axes, number, name, np.arange(1, ranks + 1), values)
    axes.set_xticks([1, *range(5, _CMC_RANKS + 1, 5)])
    _legend(axes)
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as SVG."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, "svg")
    return buffer.getvalue()


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(6, _HEIGHT), layout="constrained")  # without pyplot: no global state, no display
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, size=_TEXT)
    axes.set_ylabel(ylabel, size=_TEXT)
    axes.tick_params(labelsize=_TEXT)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _line(axes: matplotlib.axes.Axes, number: int, name: str, x: np.ndarray, values: np.ndarray) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
    label = literal(f" {name}" if name.startswith("_") else name)  # legends leave out what begins so
    axes.plot(x, values.mean(axis=0), style, color=colour, label=label, linewidth=1.6)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)


def _legend(axes: matplotlib.axes.Axes) -> None:
    """Below the axes, so that the figure can be read where it is narrow."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, 64 // (8 + max(map(len, labels)))))
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.set_figheight(_HEIGHT + 0.25 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=_TEXT)
