"""The data flow of a mechanism as a figure: a box for each tensor, arrows from what it is computed from."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rga_reid.reports.explorer_page import Exhibit
from rga_reid.reports.mechanism_words import words_of
from rga_reid.reports.notation import as_mathtext
from rga_reid.reports.relation_views import FlowStep

_WIDTH, _HEIGHT, _GAP = 2.5, 0.84, 0.3  # inches, of a box and between two
_LANE = 0.16  # inches, between two arrows that go round boxes
_EDGES = {"matrix": "#e8590c", "weight": "#0b7285", "between": "#8a929c"}
_GREY = "#5b626b"
_ARROW = {"arrowstyle": "-|>", "color": _GREY, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}

Place = tuple[float, float]  #: the middle of a box, inches from the top left


def flow_figure(exhibit: Exhibit, *, stage: int | None = None) -> Figure:
    """The data flow after a stage, by default the last whose matrices of positions are whole."""
    view = exhibit.stage(stage)
    return draw_flow(view.flow, f"{words_of(exhibit.mechanism).title}, after stage {view.stage}")


def draw_flow(steps: Sequence[FlowStep], title: str) -> Figure:
    """A row of boxes for each level, from top to bottom; relation matrices orange, final weights blue."""
    across = Counter(step.level for step in steps)
    most, down = max(across.values()), max(across) + 1
    lanes = sum(1 for step in steps for name in step.inputs if step.level - _level(steps, name) > 1)
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
        _draw_box(axes, step, places[step.symbol])
        for name in step.inputs:
            if step.level - _level(steps, name) == 1:
                _draw_arrow(axes, places[name], places[step.symbol])
            else:
                edge = margin - 0.15 - lane * _LANE
                _draw_round(axes, places[name], places[step.symbol], edge, width)
                lane += 1
    return figure


def _level(steps: Sequence[FlowStep], symbol: str) -> int:
    return next(step.level for step in steps if step.symbol == symbol)


def _draw_box(axes: Any, step: FlowStep, place: Place) -> None:
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
        left, y - 0.26, as_mathtext(step.symbol), va="center", fontsize=11, weight="bold", style="italic"
    )
    axes.text(right, y - 0.26, shape, va="center", ha="right", fontsize=7.5, color=_GREY)
    formula = step.formula or "from the stage before"
    axes.text(left, y - 0.04, as_mathtext(_lines(formula, 1)), va="center", fontsize=7.5)
    axes.text(left, y + 0.1, _lines(step.meaning, 2), va="top", fontsize=7, linespacing=1.25, color=_GREY)


def _lines(text: str, most: int) -> str:
    return textwrap.fill(text, 44, max_lines=most, placeholder=" …")


def _draw_arrow(axes: Any, start: Place, stop: Place) -> None:
    """Straight from the lower edge of a box to the upper edge of one in the row below."""
    across = 0.35 * _WIDTH * max(-1.0, min(1.0, (start[0] - stop[0]) / _WIDTH))
    tip, tail = (stop[0] + across, stop[1] - _HEIGHT / 2), (start[0], start[1] + _HEIGHT / 2)
    axes.annotate("", tip, tail, arrowprops=_ARROW, zorder=1)


def _draw_round(axes: Any, start: Place, stop: Place, edge: float, width: float) -> None:
    """Along the margin, past the boxes between; on the right for boxes of the right half."""
    right = start[0] > width / 2 + 0.01
    lane, side = (width - edge, _WIDTH / 2) if right else (edge, -_WIDTH / 2)
    below = start[1] + _HEIGHT / 2 + _GAP / 4  # clear of the boxes beside the first one
    above = stop[1]
    drop = start[0] + 0.7 * side
    line = [(drop, start[1] + _HEIGHT / 2), (drop, below), (lane, below), (lane, above)]
    axes.plot(*zip(*line, strict=True), color=_GREY, linewidth=0.9, zorder=1)
    axes.annotate("", (stop[0] + side, above), (lane, above), arrowprops=_ARROW, zorder=1)
