"""The space of features as a picture: images that the model finds alike lie close together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rga_reid.errors import InputError

#: Okabe and Ito's colours, told apart by colour-blind readers; shapes tell what colours leave open
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#8a7f00")
OTHERS = "#c3c9d0"
_PERPLEXITY = 30  # neighbours that a point is laid out by


@dataclass(frozen=True, eq=False)
class Group:
    """Points that belong together, such as the images of one person.

    Args:
        points: their numbers.
        label: written beside the emphasised one.
        colour, marker: as matplotlib names them.
        emphasised: number of the point that is drawn large.
    """

    points: np.ndarray
    label: str
    colour: str
    marker: str
    emphasised: int


def require_layout() -> None:
    """Refuse to go on where the library that lays out points is missing.

    Raises:
        InputError: naming what to install.
    """
    if find_spec("sklearn") is None:
        raise InputError("feature-space plot: needs scikit-learn: pip install 'rga-reid[plots]'")


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
    figure = Figure(figsize=(6, 6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.margins(0.04)
    axes.scatter(points[:, 0], points[:, 1], s=5, color=OTHERS, linewidths=0)
    for group in groups:
        style: dict[str, Any] = {"color": group.colour, "marker": group.marker, "edgecolors": "white"}
        inside = points[group.points]
        axes.scatter(inside[:, 0], inside[:, 1], s=40, linewidths=0.6, zorder=2, **style)
        x, y = points[group.emphasised]
        axes.scatter(x, y, s=120, linewidths=1.2, zorder=3, **style | {"edgecolors": "black"})
        axes.annotate(
            group.label,
            (x, y),
            xytext=(7, 6),
            textcoords="offset points",
            fontsize=12,
            weight="bold",
            zorder=4,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )
    return figure
