"""Matplotlib figures of attention modules for papers and notebooks."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch

from rga_reid.errors import InputError
from rga_reid.reports.explorer import COLOURS, Exhibit
from rga_reid.reports.glossary import lookup
from rga_reid.reports.html import SUBSCRIPT
from rga_reid.reports.language import translate, translate_formula, translate_meaning
from rga_reid.reports.plots import escape_mathtext, symbols_to_mathtext
from rga_reid.reports.relation_views import FlowStep, MatrixView, find_related


def relation_figure(
    exhibits: Sequence[Exhibit], *, stage: int | None = None, point: tuple[float, float] = (0.36, 0.5)
) -> Figure:
    """Draw a row per matrix: photo, matrix, and row, column and row − column, or the most related channels.

    Args:
        exhibits: of one picture.
        stage: number of the stage; by default the finest whose position matrices are complete.
        point: chosen position, as fractions of height and width from the top left.

    Raises:
        InputError: no matrix to show, or no attention after ``stage``.
    """
    lines = [(exhibit, matrix) for exhibit in exhibits for matrix in exhibit.stage(stage).matrices]
    if not lines:
        raise InputError("relation_figure: expected an attention module with relation matrices")
    figure = Figure(figsize=(9.5, 3.1 * len(lines)), layout=_layout())
    grid = figure.subplots(len(lines), 5, squeeze=False, width_ratios=(1, 2, 1, 1, 1))
    for axes, (exhibit, matrix) in zip(grid, lines, strict=True):
        for one in axes:
            one.set(xticks=[], yticks=[])
        number = exhibit.stage(stage).stage
        axes[0].set_ylabel(
            f"{escape_mathtext(exhibit.label)}\nstage {number}, {symbols_to_mathtext(matrix.symbol)}"
        )
        _draw_matrix(axes[1], matrix)
        (_draw_positions if matrix.kind == "positions" else _draw_channels)(axes, exhibit, matrix, point)
    return figure


def attention_figure(exhibits: Sequence[Exhibit]) -> Figure:
    """Draw the attention applied after each stage: weights of positions, or the relative change.

    The relative change is the norm of output − input, divided by the norm of the input.
    """
    stages = sorted({view.stage for exhibit in exhibits for view in exhibit.stages})
    figure = Figure(figsize=(1.9 * len(stages) + 1, 3 * len(exhibits)), layout=_layout())
    grid = figure.subplots(len(exhibits), len(stages), squeeze=False)
    for line, exhibit in zip(grid, exhibits, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(escape_mathtext(exhibit.label))
        for view in exhibit.stages:
            axes = line[stages.index(view.stage)]
            values = view.change if view.attention is None else view.attention
            quantity = "relative change" if view.attention is None else "weight"
            low, high = _colour_range(values)
            axes.set_title(f"stage {view.stage}: {quantity}", fontsize=8)
            if f"{low:.4g}" == f"{high:.4g}":  # colours would show rounding errors
                _show_grey(axes, exhibit)
                axes.set_xlabel(f"{low:.4g} everywhere", fontsize=7)
            else:
                shown = _over_photo(
                    axes, exhibit, values, _colour_norm(values, low, high), COLOURS["sequential"]
                )
                figure.colorbar(shown, ax=axes, shrink=0.6).ax.tick_params(labelsize=7)
    return figure


def _layout() -> ConstrainedLayoutEngine:
    # inches; rotated texts are wider than matplotlib estimates
    return ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)


def _draw_matrix(axes: Any, matrix: MatrixView) -> None:
    picture = matrix.picture
    low, high = _colour_range(picture)
    norm = _colour_norm(picture, low, high)
    if not isinstance(norm, PowerNorm):  # a few high values would leave the rest one colour
        low, high = _colour_range(picture, 99.5)
        norm = Normalize(low, high)
    below, above = picture.min() < low, picture.max() > high
    extend = ("both" if above else "min") if below else ("max" if above else "neither")
    shown = axes.imshow(picture, _colour_map(low), norm=norm, aspect="auto", interpolation="none")
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, extend=extend)
    bar.ax.tick_params(labelsize=7)
    if isinstance(norm, PowerNorm):  # its default ticks crowd at the upper end
        ticks = [float(tick) for tick in norm.inverse(np.array([0, 1 / 3, 2 / 3, 1]))]
        bar.set_ticks(
            ticks, labels=[_format_low(ticks[0], ticks[-1]), *(_format_number(tick, 2) for tick in ticks[1:])]
        )
    asymmetry = "" if matrix.asymmetry is None else f", asymmetry {matrix.asymmetry:.2f}"
    symbol = symbols_to_mathtext(matrix.symbol)
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
    low, high = _colour_range(np.concatenate([row, column]))
    norm = _colour_norm(row, low, high)  # shared, so that row and column can be compared
    root = "\ncolours by cube root" if isinstance(norm, PowerNorm) else ""
    shown = [axes[0], axes[2], axes[3]]
    for one, values, grid, title in (
        (axes[2], row, matrix.key_grid, "row i"),
        (axes[3], column, matrix.grid, "column i"),
    ):
        _over_photo(one, exhibit, values.reshape(grid), norm, _colour_map(low))
        one.set_title(title, fontsize=8)
        one.set_xlabel(f"{_format_low(low, high)} to {_format_number(high)}{root}", fontsize=7)
    if row.shape == column.shape:
        difference = row - column
        most = float(np.abs(difference).max()) or 1.0  # keeps 0 white if all values are 0
        norm = Normalize(-most, most)
        _over_photo(axes[4], exhibit, difference.reshape(matrix.grid), norm, COLOURS["diverging"])
        axes[4].set_title("row − column", fontsize=8)
        axes[4].set_xlabel(f"{_format_number(-most)} to {_format_number(most)}", fontsize=7)
        shown.append(axes[4])
    else:
        axes[4].axis("off")
    photo_height, photo_width = exhibit.pixels.shape[:2]
    spot = ((u + 0.5) * photo_width / width, (v + 0.5) * photo_height / height)
    for one in shown:
        for colour, line in (("white", 2.4), ("#e8590c", 1.2)):
            one.plot(*spot, "o", markersize=7, mfc="none", markeredgecolor=colour, markeredgewidth=line)


def _draw_channels(axes: Any, exhibit: Exhibit, matrix: MatrixView, _: tuple[float, float]) -> None:
    channel = _choose_channel(matrix)
    row = matrix.row(int(np.searchsorted(matrix.chosen, channel)))
    most, least = find_related(row, channel, 2, among=matrix.live)
    others = matrix.live[matrix.live != channel]
    ties = int((row[others] == row[least[0]]).sum())
    value = _format_number(row[least[0]])
    lowest = value if ties == 1 else f"and {ties - 1} more: {value}"
    places = {int(node): place for place, node in enumerate(matrix.map_channels)}
    for one, node, title in (
        (axes[0], channel, f"channel {channel}"),
        (axes[2], most[0], f"most: {most[0]}\n{_format_number(row[most[0]])}"),
        (axes[3], most[1], f"next: {most[1]}\n{_format_number(row[most[1]])}"),
        (axes[4], least[0], f"least: {least[0]}\n{lowest}"),
    ):
        activation = matrix.maps[places[node]]
        one.set_title(title, fontsize=8)
        if activation.min() == activation.max():  # colours would show nothing
            _show_grey(one, exhibit)
            one.set_xlabel(f"{_format_number(activation.max())} everywhere", fontsize=7)
            continue
        norm = _colour_norm(activation, *_colour_range(activation))
        _over_photo(one, exhibit, activation, norm, COLOURS["sequential"])


def _choose_channel(matrix: MatrixView) -> int:
    """Return the most active channel whose row is not zero, or the most active one if all rows are zero."""
    related = {int(node): bool(matrix.row(place).any()) for place, node in enumerate(matrix.chosen)}
    activity = np.abs(matrix.maps).mean(axis=(1, 2))
    candidates = [
        (related[channel], float(level), channel)
        for channel, level in zip(matrix.map_channels.tolist(), activity, strict=True)
        if channel in related
    ]
    return max(candidates)[2]


def _format_number(value: float, digits: int = 3) -> str:
    """Format a number: 0.0123, −4.5, 1.24·10⁻⁵."""
    number, _, power = f"{value:.{digits}g}".replace("-", "−").partition("e")
    return f"{number}$\\cdot 10^{{{int(power.replace('−', '-'))}}}$" if power else number


def _format_low(low: float, high: float) -> str:
    """Format the lower end of a scale."""
    return "about 0" if 0 < low < 1e-6 * high else _format_number(low)


def _over_photo(axes: Any, exhibit: Exhibit, values: np.ndarray, norm: Normalize, colours: str) -> Any:
    height, width = exhibit.pixels.shape[:2]
    _show_grey(axes, exhibit)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    clear = np.ma.masked_equal(values, 0) if isinstance(norm, PowerNorm) else values
    return axes.imshow(clear, colours, norm=norm, extent=extent, alpha=0.74, interpolation="nearest")


def _show_grey(axes: Any, exhibit: Exhibit) -> None:
    axes.imshow(exhibit.pixels.mean(axis=2), "gray", vmin=0, vmax=255)


def _colour_norm(values: np.ndarray, low: float, high: float) -> Normalize:
    """Colour scale: by the cube root if a few values exceed the rest by far, as in a sharp softmax."""
    if low >= 0 and high > 0 and values.mean() < 0.05 * high:
        return PowerNorm(1 / 3, low, high)
    return Normalize(low, high)


def _colour_range(values: np.ndarray, percentile: float = 100.0) -> tuple[float, float]:
    """Limits of the colour scale, symmetric about 0 if there are negative values."""
    low, top = float(values.min()), float(values.max())
    if -1e-6 * abs(top) <= low < 0:  # rounding of a number that is at least 0, such as a square
        low = 0.0
    high = float(np.percentile(values, percentile))
    if high - low <= 0.02 * (top - low):
        high = top
    return (-max(-low, high), max(-low, high)) if low < 0 else (low, high)


def _colour_map(low: float) -> str:
    return COLOURS["diverging" if low < 0 else "sequential"]


_WIDTH, _HEIGHT, _GAP = 2.5, 0.84, 0.3  # inches, of boxes and between them
_LANE = 0.16  # inches, between arrows that pass around boxes
_EDGES = {"matrix": "#e8590c", "weight": "#0b7285", "between": "#8a929c"}
_GREY = "#5b626b"
_ARROW = {"arrowstyle": "-|>", "color": _GREY, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}

Place = tuple[float, float]  #: centre of a box, inches from the top left


def flow_figure(exhibit: Exhibit, *, stage: int | None = None) -> Figure:
    """Draw the data flow after a stage, by default the finest whose position matrices are complete."""
    view = exhibit.stage(stage)
    return draw_flow(view.flow, f"{lookup(exhibit.mechanism).title}, after stage {view.stage}")


def draw_flow(steps: Sequence[FlowStep], title: str, lang: str = "en") -> Figure:
    """Draw a row of boxes per level, top to bottom; relation matrices are orange, final weights blue.

    Args:
        steps: tensors, in order.
        title: text above the boxes.
        lang: language of formulas and meanings. Other languages than English are meant for SVG files whose texts
            are kept as texts: the font of a raster image may lack their characters.
    """
    levels = {step.symbol: step.level for step in steps}
    across = Counter(step.level for step in steps)
    most, down = max(across.values()), max(across) + 1
    lanes = sum(1 for step in steps for name in step.inputs if step.level - levels[name] > 1)
    margin = 0.3 + _LANE * lanes
    width = 2 * margin + most * (_WIDTH + _GAP) - _GAP
    height = 0.6 + down * (_HEIGHT + _GAP)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(width / 2, 0.3, title, ha="center", va="center", weight="bold", fontsize=10)

    places: dict[str, Place] = {}
    seen: Counter[int] = Counter()
    for step in steps:
        shift = seen[step.level] - (across[step.level] - 1) / 2
        y = 0.5 + (step.level + 0.5) * (_HEIGHT + _GAP)
        places[step.symbol] = (width / 2 + shift * (_WIDTH + _GAP), y)
        seen[step.level] += 1
    lane = 0
    for step in steps:
        _draw_box(axes, step, places[step.symbol], lang)
        for name in step.inputs:
            if step.level - levels[name] == 1:
                _draw_arrow(axes, places[name], places[step.symbol])
            else:
                edge = margin - 0.15 - lane * _LANE
                _draw_round(axes, places[name], places[step.symbol], edge, width)
                lane += 1
    return figure


def _draw_box(axes: Any, step: FlowStep, place: Place, lang: str) -> None:
    x, y = place
    thick = 0.9 if step.kind == "between" else 1.8
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.08",
        "facecolor": "#f7f8fa",
        "zorder": 2,
    }
    corner = (x - _WIDTH / 2, y - _HEIGHT / 2)
    box = FancyBboxPatch(corner, _WIDTH, _HEIGHT, edgecolor=_EDGES[step.kind], linewidth=thick, **style)
    axes.add_patch(box)
    left, right = x - _WIDTH / 2 + 0.1, x + _WIDTH / 2 - 0.1
    shape = "×".join(map(str, step.shape))
    axes.text(
        left,
        y - 0.26,
        symbols_to_mathtext(step.symbol),
        va="center",
        fontsize=11,
        weight="bold",
        style="italic",
    )
    axes.text(right, y - 0.26, shape, va="center", ha="right", fontsize=7.5, color=_GREY)
    formula = translate_formula(lang, step.formula)
    # mathtext has no Chinese characters
    set_symbols = symbols_to_mathtext if formula == step.formula else _set_subscripts
    formula = _lines(formula or translate(lang, "explorer", "previous_layer"), 1)
    axes.text(left, y - 0.04, set_symbols(formula), va="center", fontsize=7.5)
    meaning = _lines(translate_meaning(lang, step.meaning), 2, 44 if lang == "en" else 22)
    axes.text(left, y + 0.1, meaning, va="top", fontsize=7, linespacing=1.25, color=_GREY)


def _lines(text: str, most: int, width: int = 44) -> str:
    return textwrap.fill(text, width, max_lines=most, placeholder=" …")


_SUBSCRIPTS = dict(zip("123456789aehijklmnoprstuvx", "₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))


def _set_subscripts(text: str) -> str:
    """Set ``x_s`` as ``xₛ``, without mathtext. Unicode has no subscript c: ``x_c`` stays."""
    return SUBSCRIPT.sub(
        lambda found: found[1] + _SUBSCRIPTS[found[2]] if found[2] in _SUBSCRIPTS else found[0], text
    )


def _draw_arrow(axes: Any, start: Place, stop: Place) -> None:
    """Draw an arrow from the lower edge of a box to the upper edge of a box in the next row."""
    across = 0.35 * _WIDTH * max(-1.0, min(1.0, (start[0] - stop[0]) / _WIDTH))
    tip, tail = (stop[0] + across, stop[1] - _HEIGHT / 2), (start[0], start[1] + _HEIGHT / 2)
    axes.annotate("", tip, tail, arrowprops=_ARROW, zorder=1)


def _draw_round(axes: Any, start: Place, stop: Place, edge: float, width: float) -> None:
    """Draw an arrow along the margin, past the boxes in between; on the right for boxes of the right half."""
    right = start[0] > width / 2 + 0.01
    lane, side = (width - edge, _WIDTH / 2) if right else (edge, -_WIDTH / 2)
    below = start[1] + _HEIGHT / 2 + _GAP / 4  # below the neighbouring boxes
    above = stop[1]
    drop = start[0] + 0.7 * side
    line = [(drop, start[1] + _HEIGHT / 2), (drop, below), (lane, below), (lane, above)]
    axes.plot(*zip(*line, strict=True), color=_GREY, linewidth=0.9, zorder=1)
    axes.annotate("", (stop[0] + side, above), (lane, above), arrowprops=_ARROW, zorder=1)
