"""The space of features as a picture: images that the model finds alike lie close together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rga_reid.errors import InputError

#: Okabe and Ito's colours, told apart by colour-blind readers; shapes tell what colours leave open
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#8a7f00")
OTHERS = "#a3abb5"
OUTLINE = "#17191c"  # what is pale on white has an edge to be seen by
_PERPLEXITY = 30  # neighbours that a point is laid out by
_SIDE = 6.0  # inches of the figure
_MARK = 0.18  # inches of a large mark
_TEXT = 12  # points
_WAYS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))  # from a mark to its label
_FAR = (1, 2, 3)  # beside it, and farther off

Box = tuple[float, float, float, float]  #: left, bottom, right and top, inches


@dataclass(frozen=True, eq=False)
class Group:
    """Points that belong together, such as the images of one person.

    Args:
        points: their numbers.
        colour, marker: as matplotlib names them.
        labels: of the points that are drawn large, by their numbers.
    """

    points: np.ndarray
    colour: str
    marker: str
    labels: Mapping[int, str]


def require_layout() -> None:
    """Refuse to go on where the library that lays out points is missing.

    Raises:
        InputError: naming what to install.
    """
    if find_spec("sklearn") is None:
        raise InputError("feature-space plot: needs scikit-learn: pip install scikit-learn")


def flat_layout(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Features ``(n, d)`` as points of a plane, float32 ``(n, 2)``, by t-SNE of their cosine distances.

    van der Maaten, Hinton: Visualizing Data using t-SNE, JMLR 2008. Neighbours stay neighbours; distances
    between far points, and the density of a cluster, mean little. The same features and seed give the same
    picture with one version of scikit-learn.

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
    """All points, small and grey; those of a group in its colour and shape. Legend and axes are left out.

    Args:
        points: ``(n, 2)``.
        groups: drawn one over the other.
    """
    figure = Figure(figsize=(_SIDE, _SIDE), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    middle, reach = (points.max(0) + points.min(0)) / 2, float(np.ptp(points, axis=0).max())
    low, high = middle - 0.55 * (reach or 1), middle + 0.55 * (reach or 1)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.axis("off")
    axes.scatter(points[:, 0], points[:, 1], s=8, color=OTHERS, linewidths=0)
    for group in groups:
        style: dict[str, Any] = {"color": group.colour, "marker": group.marker, "edgecolors": OUTLINE}
        inside, large = points[group.points], points[list(group.labels)]
        axes.scatter(inside[:, 0], inside[:, 1], s=38, linewidths=0.5, zorder=2, **style)
        axes.scatter(large[:, 0], large[:, 1], s=130, linewidths=1.6, zorder=3, **style)
    labels = {number: text for group in groups for number, text in group.labels.items()}
    inches = _SIDE * (points[list(labels)] - low) / (high - low)
    by_inches: dict[str, Any] = {"transform": figure.dpi_scale_trans, "zorder": 4}
    ground = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for mark, (x, y), text in zip(
        inches, _apart(inches, list(labels.values())), labels.values(), strict=True
    ):
        axes.plot([mark[0], x], [mark[1], y], color=OUTLINE, linewidth=0.8, **by_inches | {"zorder": 2.5})
        axes.text(x, y, text, size=_TEXT, weight="bold", ha="center", va="center", bbox=ground, **by_inches)
    return figure


def _apart(marks: np.ndarray, texts: Sequence[str]) -> list[tuple[float, float]]:
    """The middle of each text: near its mark, where it covers the least of the other marks and texts.

    Args:
        marks: ``(n, 2)``, inches.
        texts: of the marks.
    """
    taken = [_box(x, y, _MARK, _MARK) for x, y in marks]
    places = []
    for (x, y), text in zip(marks, texts, strict=True):
        width, height = 0.011 * _TEXT * len(text), 0.017 * _TEXT
        across, up = (_MARK + width) / 2, (_MARK + height) / 2
        boxes = [
            _box(x + far * dx * across, y + far * dy * up, width, height) for far in _FAR for dx, dy in _WAYS
        ]
        costs = [sum(_shared(box, other) for other in taken) + _outside(box) for box in boxes]
        left, bottom, right, top = best = boxes[int(np.argmin(costs))]
        taken.append(best)
        places.append(((left + right) / 2, (bottom + top) / 2))
    return places


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _shared(one: Box, other: Box) -> float:
    """The area that both cover."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)


def _outside(box: Box) -> float:
    """The area of a box that lies outside the figure."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, (0, 0, _SIDE, _SIDE))


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
