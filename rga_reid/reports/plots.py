"""Matplotlib plots: feature space and score distributions; saving of figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure  # figures without pyplot need no display and leave no global state
from matplotlib.ticker import LogLocator, NullFormatter

from rga_reid.errors import InputError
from rga_reid.reports.html import SUBSCRIPT, data_uri

#: Okabe and Ito's colours, which colour-blind readers can distinguish
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a7f00")
_GREY = "#a3abb5"
_OUTLINE = "#17191c"  # keeps pale marks visible on white

#: Metadata without a date, by format: the same figure gives the same bytes
NO_DATE: dict[str, dict[str, None]] = {
    "png": {},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
}


# ---------- saving and text ----------


def save_figure(figure: Figure, target: Path | BinaryIO, kind: str, dpi: int = 150) -> None:
    """Write a figure.

    Args:
        figure: to be saved.
        target: path or open binary file.
        kind: ``png``, ``svg`` or ``pdf``, independent of the suffix of ``target``.
        dpi: dots per inch of a PNG.
    """
    # without a salt, the ids in an SVG are random
    with matplotlib.rc_context({"svg.hashsalt": "rga-reid", "svg.fonttype": "path"}):
        figure.savefig(target, format=kind, dpi=dpi, metadata=NO_DATE[kind])


def figure_bytes(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """Return a figure as the content of a ``png``, ``svg`` or ``pdf`` file."""
    buffer = io.BytesIO()
    save_figure(figure, buffer, kind, dpi)
    return buffer.getvalue()


def figure_uri(figure: Figure, dpi: int = 200) -> str:
    """Return a figure as a PNG data URI."""
    return data_uri("png", figure_bytes(figure, "png", dpi))


def escape_mathtext(text: str) -> str:
    """Escape a text, such as a file name, that matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def symbols_to_mathtext(text: str) -> str:
    """Set ``G_s`` with a subscript."""
    return SUBSCRIPT.sub(r"\1$_\\mathrm{\2}$", text)


# ---------- feature space ----------

_PERPLEXITY = 30  # of t-SNE: number of neighbours that a point is placed by
_SIDE = 6.0  # inches, of the figure
_MARK = 0.18  # inches, of a large mark
_FONT_SIZE = 12  # points
# from a mark to its label
_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_DISTANCES = (1, 2, 3)  # of a label from its mark; 1 is adjacent

Box = tuple[float, float, float, float]  #: left, bottom, right, top in inches


@dataclass(frozen=True, eq=False)
class Group:
    """Points of one kind, such as the images of one person.

    Args:
        points: row numbers.
        colour, marker: of matplotlib.
        labels: texts of the points that are drawn large, by row number.
    """

    points: np.ndarray
    colour: str
    marker: str
    labels: Mapping[int, str]


def require_layout() -> None:
    """Check that scikit-learn is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("sklearn") is None:
        raise InputError("feature-space plot: needs scikit-learn: pip install scikit-learn")


def flat_layout(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Project features ``(n, d)`` to the plane by t-SNE of their cosine distances: float32 ``(n, 2)``.

    van der Maaten, Hinton: Visualizing Data using t-SNE, JMLR 2008. Neighbours stay neighbours; distances
    between far points and densities of clusters carry little meaning. One version of scikit-learn gives the
    same layout for the same features and seed.

    Raises:
        InputError: scikit-learn is not installed; fewer than 4 rows.
    """
    require_layout()
    if len(features) < 4:
        raise InputError(f"feature-space plot: expected at least 4 images, got {len(features)}")
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    start = "pca" if min(features.shape) >= 2 else "random"
    layout = TSNE(perplexity=perplexity, metric="cosine", init=start, random_state=seed)
    return layout.fit_transform(features)


def feature_space_plot(points: np.ndarray, groups: Sequence[Group]) -> Figure:
    """Draw all points small and grey, and those of groups in their colours and markers.

    Args:
        points: ``(n, 2)``.
        groups: drawn in this order, later ones on top.
    """
    figure = Figure(figsize=(_SIDE, _SIDE), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    centre, extent = (points.max(0) + points.min(0)) / 2, float(np.ptp(points, axis=0).max())
    low, high = centre - 0.55 * (extent or 1), centre + 0.55 * (extent or 1)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.axis("off")
    axes.scatter(points[:, 0], points[:, 1], s=8, color=_GREY, linewidths=0)
    for group in groups:
        style: dict[str, Any] = {"color": group.colour, "marker": group.marker, "edgecolors": _OUTLINE}
        small, large = points[group.points], points[list(group.labels)]
        axes.scatter(small[:, 0], small[:, 1], s=38, linewidths=0.5, zorder=2, **style)
        axes.scatter(large[:, 0], large[:, 1], s=130, linewidths=1.6, zorder=3, **style)
    labels = {row: text for group in groups for row, text in group.labels.items()}
    marks = _SIDE * (points[list(labels)] - low) / (high - low)
    in_inches: dict[str, Any] = {"transform": figure.dpi_scale_trans, "zorder": 4}
    background = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    places = _place_labels(marks, list(labels.values()))
    for mark, (x, y), text in zip(marks, places, labels.values(), strict=True):
        axes.plot([mark[0], x], [mark[1], y], color=_OUTLINE, linewidth=0.8, **in_inches | {"zorder": 2.5})
        axes.text(
            x, y, text, size=_FONT_SIZE, weight="bold", ha="center", va="center", bbox=background, **in_inches
        )
    return figure


def _place_labels(marks: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
    """Choose the centre of each label: near its mark, with the least overlap with other marks and labels."""
    occupied = [_box(x, y, _MARK, _MARK) for x, y in marks]
    places = []
    for (x, y), text in zip(marks, texts, strict=True):
        width, height = 0.011 * _FONT_SIZE * len(text), 0.017 * _FONT_SIZE
        step_x, step_y = (_MARK + width) / 2, (_MARK + height) / 2
        boxes = [
            _box(x + far * dx * step_x, y + far * dy * step_y, width, height)
            for far in _DISTANCES
            for dx, dy in _DIRECTIONS
        ]
        costs = [sum(_overlap(box, other) for other in occupied) + _area_outside(box) for box in boxes]
        left, bottom, right, top = best = boxes[int(np.argmin(costs))]
        occupied.append(best)
        places.append(((left + right) / 2, (bottom + top) / 2))
    return places


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> float:
    """Area of the intersection."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _area_outside(box: Box) -> float:
    """Area of the part that is outside the figure."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, (0, 0, _SIDE, _SIDE))


# ---------- score distributions ----------


def calibration_plot(
    edges: np.ndarray, genuine: np.ndarray, impostor: np.ndarray, threshold: float, note: str = ""
) -> Figure:
    """Draw the score distributions of genuine and impostor pairs, each as shares of its own pairs.

    Shares are on a logarithmic scale, because impostor pairs are far more numerous and their tail matters.

    Args:
        edges: of the bins, ascending, ``(bins + 1,)``.
        genuine, impostor: numbers of scores per bin, ``(bins,)``.
        threshold: lowest score that is decided as one person.
        note: text above the plot.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for counts, colour, name in ((impostor, COLOURS[1], "two people"), (genuine, COLOURS[0], "one person")):
        label = f"{name} ({counts.sum():,} pairs)"
        axes.stairs(counts / counts.sum(), edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(counts / counts.sum(), edges, color=colour, label=label)
    label = f"threshold {threshold:.4f}: one person from here on"
    axes.axvline(threshold, color="black", linestyle="--", label=label)
    axes.set(
        yscale="log", xlabel="score (cosine similarity)", ylabel=f"share of the pairs, {len(edges) - 1} bins"
    )
    axes.set_title(note, loc="left", size=9)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def det_plot(fpir: np.ndarray, fnir: np.ndarray, chosen: tuple[float, float], note: str = "") -> Figure:
    """Draw a DET curve: false-negative against false-positive identification rates, logarithmic scales.

    Args:
        fpir, fnir: rates of thresholds, as fractions, ``(n,)`` each; rates of 0 are left out. If one of the two is 0
            at every threshold, the plot says so.
        chosen: both rates of the chosen threshold.
        note: text above the plot.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    shown = (fpir > 0) & (fnir > 0)
    axes.set_title(note, loc="left", size=9)
    if not shown.any():
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no curve: at every threshold one of the two rates is 0", ha="center")
        return figure
    axes.plot(fpir[shown], fnir[shown], color=COLOURS[0])
    if chosen[0] > 0:
        axes.axvline(chosen[0], color="black", linestyle="--", linewidth=0.8)
    if min(chosen) > 0:
        axes.plot(*chosen, "o", color="black", label="the chosen threshold")
        axes.legend(frameon=False)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="strangers who get an image (FPIR)",
        ylabel="people in the gallery who are missed (FNIR)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
