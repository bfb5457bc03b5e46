"""Figures of relations for papers and notebooks. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from rga_reid.errors import InputError
from rga_reid.reports.explorer_page import COLOURS, Exhibit
from rga_reid.reports.notation import as_mathtext, literal
from rga_reid.reports.relation_views import MatrixView, related


def relation_figure(
    exhibits: Sequence[Exhibit], *, stage: int | None = None, point: tuple[float, float] = (0.36, 0.5)
) -> Figure:
    """One line per matrix: photo, matrix, row, column, row − column; of channels the most and least related.

    Args:
        exhibits: of one picture.
        stage: which; by default the last whose matrices of positions are whole.
        point: the chosen position, as shares of height and width from the top left.

    Raises:
        InputError: no matrix to show; a mechanism that does not stand after ``stage``.
    """
    lines = [(exhibit, matrix) for exhibit in exhibits for matrix in exhibit.stage(stage).matrices]
    if not lines:
        raise InputError("relation_figure: expected a mechanism with relation matrices")
    figure = Figure(figsize=(9.5, 3.1 * len(lines)), layout=_layout())
    grid = figure.subplots(len(lines), 5, squeeze=False, width_ratios=(1, 2, 1, 1, 1))
    for axes, (exhibit, matrix) in zip(grid, lines, strict=True):
        for one in axes:
            one.set(xticks=[], yticks=[])
        number = exhibit.stage(stage).stage
        axes[0].set_ylabel(f"{literal(exhibit.label)}\nstage {number}, {as_mathtext(matrix.symbol)}")
        _draw_matrix(axes[1], matrix)
        (_draw_positions if matrix.kind == "positions" else _draw_channels)(axes, exhibit, matrix, point)
    return figure


def attention_figure(exhibits: Sequence[Exhibit]) -> Figure:
    """What is applied after each stage: weights of positions, or how much each place changed.

    A change is the length of output − input, as a share of the input's.
    """
    stages = sorted({view.stage for exhibit in exhibits for view in exhibit.stages})
    figure = Figure(figsize=(1.9 * len(stages) + 1, 3 * len(exhibits)), layout=_layout())
    grid = figure.subplots(len(exhibits), len(stages), squeeze=False)
    for line, exhibit in zip(grid, exhibits, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(literal(exhibit.label))
        for view in exhibit.stages:
            axes = line[stages.index(view.stage)]
            values = view.change if view.attention is None else view.attention
            what = "relative change" if view.attention is None else "weight"
            low, high = _range(values)
            axes.set_title(f"stage {view.stage}: {what}", fontsize=8)
            if f"{low:.4g}" == f"{high:.4g}":  # colours would show no more than rounding
                _show_grey(axes, exhibit)
                axes.set_xlabel(f"{low:.4g} everywhere", fontsize=7)
            else:
                shown = _over_photo(axes, exhibit, values, _norm(values, low, high), COLOURS["sequential"])
                figure.colorbar(shown, ax=axes, shrink=0.6).ax.tick_params(labelsize=7)
    return figure


def _layout() -> ConstrainedLayoutEngine:
    # inches; what is rotated reaches farther than it says
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def _draw_matrix(axes: Any, matrix: MatrixView) -> None:
    picture = matrix.picture
    low, high = _range(picture)
    norm = _norm(picture, low, high)
    if not isinstance(norm, PowerNorm):  # a few high numbers would leave the rest one colour
        low, high = _range(picture, 99.5)
        norm = Normalize(low, high)
    below, above = picture.min() < low, picture.max() > high
    extend = ("both" if above else "min") if below else ("max" if above else "neither")
    shown = axes.imshow(picture, _colours(low), norm=norm, aspect="auto", interpolation="none")
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, extend=extend)
    bar.ax.tick_params(labelsize=7)
    if isinstance(norm, PowerNorm):  # whose own ticks crowd at its upper end
        ticks = [float(tick) for tick in norm.inverse(np.array([0, 1 / 3, 2 / 3, 1]))]
        bar.set_ticks(ticks, labels=[_least(ticks[0], ticks[-1]), *(_number(tick, 2) for tick in ticks[1:])])
    asymmetry = "" if matrix.asymmetry is None else f", asymmetry {matrix.asymmetry:.2f}"
    symbol = as_mathtext(matrix.symbol)
    axes.set_title(f"{symbol}, {matrix.size[0]}×{matrix.size[1]}{asymmetry}", fontsize=8)
    notes = ["means over blocks"] * (not matrix.whole) + ["colours by cube root"] * isinstance(
        norm, PowerNorm
    )
    axes.set_xlabel(", ".join(notes), fontsize=7)


def _draw_positions(axes: Any, exhibit: Exhibit, matrix: MatrixView, point: tuple[float, float]) -> None:
    height, width = matrix.grid
    node = min(height - 1, int(point[0] * height)) * width + min(width - 1, int(point[1] * width))
    place = matrix.nearest(node)
    row, column = matrix.row(place), matrix.column(place)
    v, u = divmod(int(matrix.chosen[place]), width)
    axes[0].imshow(exhibit.pixels)
    axes[0].set_title("point i", fontsize=8)
    low, high = _range(np.concatenate([row, column]))
    norm = _norm(row, low, high)  # of both, so that they can be compared
    root = "\ncolours by cube root" if isinstance(norm, PowerNorm) else ""
    shown = [axes[0], axes[2], axes[3]]
    for one, values, grid, title in (
        (axes[2], row, matrix.key_grid, "row i"),
        (axes[3], column, matrix.grid, "column i"),
    ):
        _over_photo(one, exhibit, values.reshape(grid), norm, _colours(low))
        one.set_title(title, fontsize=8)
        one.set_xlabel(f"{_least(low, high)} to {_number(high)}{root}", fontsize=7)
    if row.shape == column.shape:
        difference = row - column
        most = float(np.abs(difference).max()) or 1.0  # 0 is white, though all are 0
        norm = Normalize(-most, most)
        _over_photo(axes[4], exhibit, difference.reshape(matrix.grid), norm, COLOURS["diverging"])
        axes[4].set_title("row − column", fontsize=8)
        axes[4].set_xlabel(f"{_number(-most)} to {_number(most)}", fontsize=7)
        shown.append(axes[4])
    else:
        axes[4].axis("off")
    photo_height, photo_width = exhibit.pixels.shape[:2]
    spot = ((u + 0.5) * photo_width / width, (v + 0.5) * photo_height / height)
    for one in shown:
        for colour, line in (("white", 2.4), ("#e8590c", 1.2)):
            one.plot(*spot, "o", markersize=7, mfc="none", markeredgecolor=colour, markeredgewidth=line)


def _draw_channels(axes: Any, exhibit: Exhibit, matrix: MatrixView, _: tuple[float, float]) -> None:
    energy = [np.abs(one).mean() for one in matrix.maps]
    candidates = [
        (energy[place], int(channel))
        for place, channel in enumerate(matrix.map_channels)
        if channel in matrix.chosen
    ]
    channel = max(candidates)[1]
    row = matrix.row(int(np.searchsorted(matrix.chosen, channel)))
    most, least = related(row, channel, 2)
    places = {int(node): place for place, node in enumerate(matrix.map_channels)}
    for one, node, title in (
        (axes[0], channel, f"channel {channel}"),
        (axes[2], most[0], f"most: {most[0]}\n{_number(row[most[0]])}"),
        (axes[3], most[1], f"next: {most[1]}\n{_number(row[most[1]])}"),
        (axes[4], least[0], f"least: {least[0]}\n{_number(row[least[0]])}"),
    ):
        activation = matrix.maps[places[node]]
        _over_photo(one, exhibit, activation, _norm(activation, *_range(activation)), COLOURS["sequential"])
        one.set_title(title, fontsize=8)


def _number(value: float, digits: int = 3) -> str:
    """As people write it: 0.0123, −4.5, 1.24·10⁻⁵."""
    number, _, power = f"{value:.{digits}g}".replace("-", "−").partition("e")
    return f"{number}$\\cdot 10^{{{int(power.replace('−', '-'))}}}$" if power else number


def _least(low: float, high: float) -> str:
    """The lower end of a scale."""
    return "about 0" if 0 < low < 1e-6 * high else _number(low)


def _over_photo(axes: Any, exhibit: Exhibit, values: np.ndarray, norm: Normalize, colours: str) -> Any:
    height, width = exhibit.pixels.shape[:2]
    _show_grey(axes, exhibit)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    clear = np.ma.masked_equal(values, 0) if isinstance(norm, PowerNorm) else values
    return axes.imshow(clear, colours, norm=norm, extent=extent, alpha=0.74, interpolation="nearest")


def _show_grey(axes: Any, exhibit: Exhibit) -> None:
    axes.imshow(exhibit.pixels.mean(axis=2), "gray", vmin=0, vmax=255)


def _norm(values: np.ndarray, low: float, high: float) -> Normalize:
    """Colours by the cube root where a few numbers tower above the rest, as in a sharp softmax."""
    if low >= 0 and high > 0 and values.mean() < 0.05 * high:
        return PowerNorm(1 / 3, low, high)
    return Normalize(low, high)


def _range(values: np.ndarray, percentile: float = 100.0) -> tuple[float, float]:
    """Limits of colours; symmetric about 0 if there are negative values."""
    low, top = float(values.min()), float(values.max())
    high = float(np.percentile(values, percentile))
    if high - low <= 0.02 * (top - low):
        high = top
    return (-max(-low, high), max(-low, high)) if low < 0 else (low, high)


def _colours(low: float) -> str:
    return COLOURS["diverging" if low < 0 else "sequential"]
