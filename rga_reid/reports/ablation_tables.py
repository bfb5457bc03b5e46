"""An ablation's tables as plain cells, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate
from rga_reid.reports.ablation_stats import (
    LEVEL,
    METRICS,
    Difference,
    Evaluation,
    Row,
    Spread,
    by_name,
    table_rows,
)
from rga_reid.reports.html import literal, save_figure

_PUBLISHED = Path(__file__).with_name("published.yaml")

_LEVEL = f"{100 * LEVEL:.0f}\u00a0%"  # which no line break parts

READING = (
    "Metrics are percent, mean ± sample standard deviation over the seeds; without ± there is one run.",
    f"Difference: mAP (step) minus the baseline's on the same queries, averaged over each side's seeds, with "
    f"a {_LEVEL} bootstrap interval over queries. It tells what other queries might have given, not other "
    "seeds.",
    f"Verdict: a difference that is not beyond the spread of the seeds (Student's t at {_LEVEL}, deviation "
    "pooled over the variants with several seeds) is called “within seed spread” and is not ranked. Rows "
    "stand in the order in which they were asked for, not of their scores.",
)
_TESTED = "The last epoch of each run was tested, once."


@dataclass(frozen=True, eq=False)
class AblationReport:
    """What a report shows.

    Args:
        title: heading.
        evaluations: finished runs; those of one name are seeds of one variant.
        baseline: name of the variant that the others are compared with.
        failures: names of failed runs, and why.
        missing: names of runs that are not finished.
        published: entries of ``load_published``.
        conditions: how latency, memory and times were measured, a sentence or "".
        planned_baseline: the one that the plan asks for, which may have no finished run yet.
    """

    title: str
    evaluations: Sequence[Evaluation]
    baseline: str
    failures: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    published: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    conditions: str = ""
    planned_baseline: str = ""

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(one.name for one in self.evaluations))
        if not names:
            raise InputError("report: no finished run or evaluation to show")
        if self.baseline not in names:
            known = truncate(", ".join(names))
            raise InputError(f"baseline: expected one of {known}, got {short_repr(self.baseline)}")

    @property
    def reading(self) -> list[str]:
        """How the table is to be read. Only of runs of ``ablate``, which have seeds, is the test known."""
        tested = all(one.seed is not None for one in self.evaluations)
        lines = [*READING, _TESTED] if tested else [*READING]
        if self.planned_baseline not in ("", self.baseline):
            lines.append(
                f"The baseline of the plan, {self.planned_baseline}, has no finished run: differences and "
                f"verdicts are to {self.baseline}."
            )
        return lines

    @cached_property
    def rows(self) -> list[Row]:
        """A row for each variant."""
        return table_rows(self.evaluations, self.baseline)


def load_published(dataset: str | None) -> list[dict[str, Any]]:
    """Figures that papers report on a data set, see ``published.yaml``; none for None.

    Raises:
        InputError: a data set of which none are kept.
    """
    if dataset is None:
        return []
    known = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    if dataset not in known:
        raise InputError(f"published: expected one of {', '.join(known)}, got {short_repr(dataset)}")
    return known[dataset]


def score_table(report: AblationReport) -> list[list[str]]:
    """The heading, then a line of cells for each variant."""
    head = [
        "variant",
        "seeds",
        *METRICS.values(),
        f"difference of mAP [{_LEVEL} interval]",
        "verdict",
    ]
    return [head] + [
        [
            row.name,
            str(row.seeds),
            *(_percent(row.metrics.get(key)) for key in METRICS),
            _difference(row.difference),
            row.verdict,
        ]
        for row in report.rows
    ]


def cost_table(report: AblationReport) -> list[list[str]]:
    """The heading, then a line of cells for each variant: parameters, operations, time, memory."""
    head = ["variant", "parameters, million", "GMAC", "latency, ms", "memory, MiB", "training, minutes"]
    return [head] + [
        [
            row.name,
            _scaled(row.parameters, 1e-6, 2),
            _scaled(row.macs, 1e-9, 3),
            _scaled(row.latency_ms, 1, 1),
            _scaled(row.memory_mib, 1, 0),
            _scaled(row.training_seconds, 1 / 60, 1),
        ]
        for row in report.rows
    ]


def published_table(report: AblationReport) -> list[list[str]]:
    """The heading, then a line of cells for each published figure."""
    keys = ("name", "mAP", "rank-1", "conditions", "source")
    head = ["published", "mAP", "rank-1", "conditions", "source"]
    return [head] + [[str(entry.get(key, "")) for key in keys] for entry in report.published]


def csv_table(report: AblationReport) -> str:
    """All numbers unrounded, fractions, a line for each variant."""
    lines = []
    for row in report.rows:
        line: dict[str, Any] = {"variant": row.name, "seeds": row.seeds}
        for key in METRICS:
            spread = row.metrics.get(key)
            line[key] = spread.mean if spread else None
            line[f"{key}_deviation"] = spread.deviation if spread else None
        found = row.difference
        line["difference"] = found.mean if found else None
        line["difference_low"] = found.low if found else None
        line["difference_high"] = found.high if found else None
        line["queries"] = found.queries if found else None
        line["verdict"] = row.verdict
        for key in ("parameters", "macs", "latency_ms", "memory_mib", "training_seconds"):
            line[key] = getattr(row, key)
        lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False)


def markdown(report: AblationReport, figures: Mapping[str, str]) -> str:
    """The report without its queries.

    Args:
        figures: file names by their captions.
    """
    parts = [
        f"# {_md(report.title)}",
        _md_table(score_table(report)),
        "\n".join(f"- {_md(line)}" for line in report.reading),
    ]
    parts += ["## Cost", _md_table(cost_table(report))]
    parts += [_md(report.conditions)] if report.conditions else []
    parts += [f"![{_md(caption)}]({file})" for caption, file in figures.items()]
    if report.published:
        parts += ["## Published figures", PUBLISHED_NOTE, _md_table(published_table(report))]
    if problems(report):
        lines = "\n".join(f"- {_md(line)}" for line in problems(report))
        parts += ["## Runs that are not in the tables", lines]
    return "\n\n".join(parts) + "\n"


PUBLISHED_NOTE = (
    "As their authors report them, under other conditions than the runs above: not measured here, and not to "
    "be ranked with them."
)


def problems(report: AblationReport) -> list[str]:
    """A line for each run that is not in the tables."""
    lines = [f"failed: {name}: {why}" for name, why in report.failures]
    return lines + [f"not finished: {name}" for name in report.missing]


def latex(report: AblationReport) -> str:
    """Tables for a paper, with the package booktabs."""
    notes = " ".join(report.reading)
    parts = [
        "% needs \\usepackage{booktabs}",
        _tex_table(score_table(report), "llrrrrll", f"{report.title}. {notes}"),
        _tex_table(cost_table(report), "lrrrrr", f"{report.title}: cost. {report.conditions}".strip()),
    ]
    if report.published:
        caption = f"Published figures. {PUBLISHED_NOTE}"
        parts.append(_tex_table(published_table(report), "lrrll", caption))
    return "\n".join(parts)


def _percent(spread: Spread | None) -> str:
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return f"{100 * spread.mean:.1f}{deviation}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    mean, low, high = (signed(100 * value) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def signed(value: float) -> str:
    """One decimal, with its sign."""
    return f"{value:+.1f}".replace("-", "−")


def _scaled(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _md(text: str) -> str:
    # the last two: so that addresses do not become links
    return re.sub(r"([\\`*_<>\[\]|#&~$]|:(?=//)|(?<=www)\.)", r"\\\1", " ".join(text.split()))


def _md_table(cells: Sequence[Sequence[str]]) -> str:
    return _lines(cells, lambda line: "| " + " | ".join(map(_md, line)) + " |", "|" + "---|" * len(cells[0]))


def _lines(cells: Sequence[Sequence[str]], write: Callable[[Sequence[str]], str], rule: str) -> str:
    return "\n".join([write(cells[0]), rule, *map(write, cells[1:])])


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "“": "``",
    "”": "''",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it is, also where a row begins with ``[`` or ``*``."""
    escaped = "".join(_TEX.get(character, character) for character in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped


def _tex_table(cells: Sequence[Sequence[str]], columns: str, caption: str) -> str:
    body = _lines(cells, lambda line: " & ".join(map(escape_tex, line)) + r" \\", r"\midrule")
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape_tex(caption)}}}", r"\end{table}", ""]
    return "\n".join(lines)


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
