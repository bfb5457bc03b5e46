"""Tables of an ablation report: as text cells, CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate
from rga_reid.reports.ablation_stats import (
    LEVEL,
    METRICS,
    Difference,
    Evaluation,
    Row,
    Spread,
    table_rows,
)

_PUBLISHED = Path(__file__).with_name("published.yaml")

_LEVEL = f"{100 * LEVEL:.0f}\u00a0%"  # with a no-break space

READING = (
    "Metrics are percentages: mean ± sample standard deviation over the seeds, or a single run without ±.",
    f"Difference: mAP (step) minus that of the baseline on the same queries, averaged over the seeds of each "
    f"side, with a {_LEVEL} bootstrap interval over queries. The interval covers the choice of queries, not of "
    "seeds.",
    f"Verdict: a difference within the spread of the seeds (Student's t at {_LEVEL}, deviation pooled over the "
    "variants with several seeds) is called “within seed spread” and is not ranked. Rows are in the order of "
    "the request, not of the scores.",
)


@dataclass(frozen=True, eq=False)
class AblationReport:
    """Contents of a report.

    Args:
        title: heading.
        evaluations: finished runs; runs with one name are seeds of one variant.
        baseline: name of the variant that the others are compared with.
        failures: name and reason of each failed run.
        missing: names of unfinished runs.
        published: entries of ``load_published``.
        conditions: a sentence about how latency, memory and times were measured, or "".
        planned_baseline: baseline of the plan, which may have no finished run yet.
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
        """Notes on how to read the table."""
        lines = list(READING)
        if all(one.seed is not None for one in self.evaluations):  # others may be tested otherwise
            lines.append("Each run was tested once, at its last epoch.")
        if self.planned_baseline not in ("", self.baseline):
            lines.append(
                f"The baseline of the plan, {self.planned_baseline}, has no finished run: differences and "
                f"verdicts are relative to {self.baseline}."
            )
        return lines

    @cached_property
    def rows(self) -> list[Row]:
        """One row per variant."""
        return table_rows(self.evaluations, self.baseline)


def load_published(dataset: str | None) -> list[dict[str, Any]]:
    """Return published results on a data set from ``published.yaml``; none for None.

    Raises:
        InputError: a data set without published results.
    """
    if dataset is None:
        return []
    known = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    if dataset not in known:
        raise InputError(f"published: expected one of {', '.join(known)}, got {short_repr(dataset)}")
    return known[dataset]


def score_table(report: AblationReport) -> list[list[str]]:
    """Return the table of metrics: the heading, then one row of cells per variant."""
    head = ["variant", "seeds", *METRICS.values(), f"difference of mAP [{_LEVEL} interval]", "verdict"]
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
    """Return the table of parameters, operations, time and memory: the heading, then one row per variant."""
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
    """Return the table of published results: the heading, then one row per result."""
    keys = ("name", "mAP", "rank-1", "conditions", "source")
    head = ["published", "mAP", "rank-1", "conditions", "source"]
    return [head] + [[str(entry.get(key, "")) for key in keys] for entry in report.published]


_DIFFERENCE = {"difference": "mean", "difference_low": "low", "difference_high": "high", "queries": "queries"}


def csv_table(report: AblationReport) -> str:
    """Return unrounded numbers as CSV, metrics as fractions, one line per variant."""
    lines = []
    for row in report.rows:
        line: dict[str, Any] = {"variant": row.name, "seeds": row.seeds}
        for key in METRICS:
            spread = row.metrics.get(key)
            line[key] = spread.mean if spread else None
            line[f"{key}_deviation"] = spread.deviation if spread else None
        found = row.difference
        for column, key in _DIFFERENCE.items():
            line[column] = getattr(found, key) if found else None
        line["verdict"] = row.verdict
        for key in ("parameters", "macs", "latency_ms", "memory_mib", "training_seconds"):
            line[key] = getattr(row, key)
        lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False)


def markdown(report: AblationReport, figures: Mapping[str, str]) -> str:
    """Return the report, without its queries, as Markdown.

    Args:
        report: to be written.
        figures: file names by caption.
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
        parts += ["## Published results", PUBLISHED_NOTE, _md_table(published_table(report))]
    if problems(report):
        lines = "\n".join(f"- {_md(line)}" for line in problems(report))
        parts += ["## Runs missing from the tables", lines]
    return "\n\n".join(parts) + "\n"


PUBLISHED_NOTE = (
    "As reported by their authors under other conditions than the runs above. They were not measured here and "
    "should not be ranked with the runs."
)


def problems(report: AblationReport) -> list[str]:
    """Return a line for each run that is missing from the tables."""
    lines = [f"failed: {name}: {why}" for name, why in report.failures]
    return lines + [f"not finished: {name}" for name in report.missing]


def latex(report: AblationReport) -> str:
    """Return tables for a paper, which need the LaTeX package booktabs."""
    notes = " ".join(report.reading)
    parts = [
        "% needs \\usepackage{booktabs}",
        _tex_table(score_table(report), "llrrrrll", f"{report.title}. {notes}"),
        _tex_table(cost_table(report), "lrrrrr", f"{report.title}: cost. {report.conditions}".strip()),
    ]
    if report.published:
        caption = f"Published results. {PUBLISHED_NOTE}"
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
    """Format a number with its sign and one decimal."""
    return f"{value:+.1f}".replace("-", "−")


def _scaled(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _md(text: str) -> str:
    # the last two alternatives keep addresses from becoming links
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
    """Escape a text for LaTeX, also at the start of a table row, where ``[`` and ``*`` would be options."""
    escaped = "".join(_TEX.get(character, character) for character in " ".join(text.split()))
    return f"{{}}{escaped}" if escaped[:1] in ("[", "*") else escaped


def _tex_table(cells: Sequence[Sequence[str]], columns: str, caption: str) -> str:
    body = _lines(cells, lambda line: " & ".join(map(escape_tex, line)) + r" \\", r"\midrule")
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape_tex(caption)}}}", r"\end{table}", ""]
    return "\n".join(lines)
