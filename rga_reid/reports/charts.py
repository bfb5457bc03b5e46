"""Charts of runs and tests: data that pages draw with values on hover, and papers as SVG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rga_reid.errors import InputError
from rga_reid.reports.ablation_stats import Evaluation, average_precisions, by_name
from rga_reid.reports.language import translate
from rga_reid.reports.plots import COLOURS, escape_mathtext
from rga_reid.reports.timeline import natural_key

CMC_RANKS = 20  #: ranks of a CMC curve
BINS = 20  #: of a distribution of average precision, each of 5 percent
_LINE_STYLES = ("-", "--", ":")  # one for each round through the colours
_HEIGHT = 4  # inches, without the legend
_FONT_SIZE = 11  # points: legible at the width of a phone
MAX_CAMERAS = 40  #: more make a table that nobody reads
_DIGITS = 5  # significant digits in pages


@dataclass(frozen=True)
class Series:
    """A line or a point of a chart.

    Args:
        name: name of the run.
        x, y: values, of the same number; the edges of ``steps`` are one more than their values.
        low, high: range of y over the seeds; empty for one seed.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def __post_init__(self) -> None:
        if len(self.x) - len(self.y) not in (0, 1) or len(self.low) != len(self.high):
            raise InputError(
                f"series {self.name!r}: expected as many values as places, got {len(self.x)}, {len(self.y)}"
            )


@dataclass(frozen=True)
class Chart:
    """A chart. Its title and axes are the texts ``chart_{name}``, ``chart_{name}_x`` and ``chart_{name}_y``.

    Args:
        name: key of its texts, and name of its files.
        kind: ``lines`` with marks, ``steps`` of a histogram, or one ``points`` per series.
        series: at least one.
    """

    name: str
    kind: Literal["lines", "steps", "points"]
    series: tuple[Series, ...]

    def text(self, part: str = "", lang: str = "en") -> str:
        """Return the title, or with ``_x`` and ``_y`` the name of an axis."""
        return translate(lang, "charts", f"chart_{self.name}{part}")

    def to_json(self) -> dict[str, Any]:
        """Return what ``charts.js`` draws."""
        lists = ("x", "y", "low", "high")
        return {
            "name": self.name,
            "kind": self.kind,
            "series": [
                {"name": one.name, **{key: [_rounded(value) for value in getattr(one, key)] for key in lists}}
                for one in self.series
            ],
        }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


# ---------- charts of evaluations ----------


def learning_chart(evaluations: Sequence[Evaluation]) -> Chart | None:
    """Return the training loss by epoch; None without logs."""
    return _curves("learning", evaluations, lambda one: _columns(one.curve, "loss"))


def validation_chart(evaluations: Sequence[Evaluation]) -> Chart | None:
    """Return the mAP on held-out identities by epoch, in percent; None if no run logged it."""
    return _curves("validation", evaluations, lambda one: _columns(one.curve, "val_mAP", 100))


def cmc_chart(evaluations: Sequence[Evaluation]) -> Chart | None:
    """Return the cumulative match curves, in percent; None without curves."""

    def read(one: Evaluation) -> tuple[np.ndarray, np.ndarray] | None:
        values = 100 * np.array(one.cmc[:CMC_RANKS])
        return (np.arange(1, len(values) + 1), values) if len(values) else None

    return _curves("cmc", evaluations, read)


def precision_chart(evaluations: Sequence[Evaluation]) -> Chart | None:
    """Return the share of queries by their average precision (step), in percent; None without per-query results."""
    edges = np.linspace(0, 100, BINS + 1)
    series = []
    for name, group in by_name(evaluations).items():
        precisions = average_precisions(group)
        if precisions is not None and len(precisions):
            counts, _ = np.histogram(100 * precisions, edges)
            series.append(Series(name, edges.tolist(), (100 * counts / counts.sum()).tolist()))
    return Chart("ap", "steps", tuple(series)) if series else None


def cost_chart(evaluations: Sequence[Evaluation], name: Literal["gmac", "latency"]) -> Chart | None:
    """Return mAP in percent against GMAC or against milliseconds; None unless two variants have both."""
    key, factor = {"gmac": ("macs", 1e-9), "latency": ("latency_ms", 1.0)}[name]
    series = []
    for variant, group in by_name(evaluations).items():
        costs = [factor * cost for one in group if (cost := getattr(one, key)) is not None]
        scores = [100 * one.metrics["mAP"] for one in group if "mAP" in one.metrics]
        if costs and scores:
            spread = ((min(scores),), (max(scores),)) if len(scores) > 1 else ((), ())
            series.append(Series(variant, (float(np.mean(costs)),), (float(np.mean(scores)),), *spread))
    return Chart(name, "points", tuple(series)) if len(series) > 1 else None


def _columns(curve: pd.DataFrame | None, key: str, factor: float = 1) -> tuple[np.ndarray, np.ndarray] | None:
    if curve is None or key not in curve or not curve[key].notna().any():
        return None
    known = curve.dropna(subset=[key])
    return known["epoch"].to_numpy(), factor * known[key].to_numpy()


def _curves(
    name: str,
    evaluations: Sequence[Evaluation],
    read: Callable[[Evaluation], tuple[np.ndarray, np.ndarray] | None],
) -> Chart | None:
    """Return a line per variant: the mean over its seeds, cut to the shortest, and their range."""
    series = []
    for variant, group in by_name(evaluations).items():
        found = [curve for one in group if (curve := read(one)) is not None]
        if not found:
            continue
        length = min(len(x) for x, _ in found)
        x, values = found[0][0][:length], np.array([y[:length] for _, y in found])
        spread = (values.min(axis=0).tolist(), values.max(axis=0).tolist()) if len(values) > 1 else ((), ())
        series.append(Series(variant, x.tolist(), values.mean(axis=0).tolist(), *spread))
    return Chart(name, "lines", tuple(series)) if series else None


def camera_rows(matrix: pd.DataFrame | None) -> dict[str, Any] | None:
    """Arrange rank-1 between cameras, see ``camera_matrix``, for the templates; None without any."""
    if matrix is None or matrix.empty or len(matrix.index.unique("query_camera")) > MAX_CAMERAS:
        return None
    known = {
        key: {"rank1": row.rank1, "queries": row.queries}
        for key, row in zip(matrix.index, matrix.itertuples(), strict=True)
    }
    columns = sorted(matrix.index.unique("gallery_camera"), key=natural_key)
    rows = [
        (one, [known.get((one, other)) for other in columns])
        for one in sorted(matrix.index.unique("query_camera"), key=natural_key)
    ]
    return {"columns": columns, "rows": rows}


# ---------- for papers ----------


def draw_chart(chart: Chart) -> Figure:
    """Draw a chart in English with matplotlib."""
    figure = Figure(figsize=(6, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(chart.text("_x"), size=_FONT_SIZE)
    axes.set_ylabel(chart.text("_y"), size=_FONT_SIZE)
    axes.tick_params(labelsize=_FONT_SIZE)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.kind == "lines":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.name == "cmc":
        axes.set_xticks([1, *range(5, CMC_RANKS + 1, 5)])
    for number, one in enumerate(chart.series):
        colour = COLOURS[number % len(COLOURS)]
        style = _LINE_STYLES[number // len(COLOURS) % len(_LINE_STYLES)]
        # matplotlib omits labels that begin with an underscore from legends
        label = escape_mathtext(f" {one.name}" if one.name.startswith("_") else one.name)
        _draw_series(axes, chart.kind, one, {"color": colour, "label": label}, style)
    _add_legend(figure, axes)
    return figure


def _draw_series(axes: Axes, kind: str, one: Series, look: Mapping[str, Any], style: str) -> None:
    if kind == "steps":
        axes.stairs(one.y, one.x, linestyle=style, linewidth=1.6, **look)
    elif kind == "points":
        axes.plot(one.x, one.y, "o" if style == "-" else "s", **look)
        if one.low:
            axes.vlines(one.x, one.low, one.high, color=look["color"])
    else:
        axes.plot(one.x, one.y, style, linewidth=1.6, **look)
        if one.low:
            axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.15, linewidth=0)


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend below the axes, where it leaves a narrow figure its width."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, 64 // (8 + max(map(len, labels)))))
    figure.set_figheight(_HEIGHT + 0.25 * -(-len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=_FONT_SIZE
    )
