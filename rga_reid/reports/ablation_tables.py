"""Tables of an ablation report: as cells, CSV and Markdown."""

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
from rga_reid.reports.ablation_setup import list_changes, list_facts
from rga_reid.reports.ablation_stats import (
    LEVEL,
    METRICS,
    Difference,
    Evaluation,
    Row,
    Spread,
    by_name,
    pooled_deviation,
    seed_spread,
    table_rows,
)
from rga_reid.reports.language import Text, fill_text, translate

_PUBLISHED = Path(__file__).with_name("published.yaml")

_LEVEL = {"level": f"{100 * LEVEL:.0f}\u00a0%"}  # with a no-break space

#: texts of the reasons and verdicts
_KEYS: dict[str, str] = {
    "baseline": "verdict_baseline",
    "above": "verdict_above",
    "below": "verdict_below",
    "within seed spread": "verdict_within",
    "seed spread unknown": "verdict_unknown",
    "no per-query results": "reason_queries",
    "other queries": "reason_others",
}


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
        conditions: how latency, memory and times were measured, a text of the section ``report``; None if unknown.
        planned_baseline: baseline of the plan, which may have no finished run yet.
        recipes: names of the recipes of the variants, where they are known.
    """

    title: str
    evaluations: Sequence[Evaluation]
    baseline: str
    failures: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    published: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    conditions: Text | None = None
    planned_baseline: str = ""
    recipes: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = list(dict.fromkeys(one.name for one in self.evaluations))
        if not names:
            raise InputError("report: no finished run or evaluation to show")
        if self.baseline not in names:
            known = truncate(", ".join(names))
            raise InputError(f"baseline: expected one of {known}, got {short_repr(self.baseline)}")

    @property
    def reading(self) -> list[Text]:
        """Notes on how to read the table."""
        notes = [Text("reading_metrics"), Text("reading_difference", _LEVEL), Text("reading_verdict", _LEVEL)]
        notes += self._thresholds()
        if all(one.seed is not None for one in self.evaluations):  # others may be tested otherwise
            notes.append(Text("reading_last"))
        if self.planned_baseline not in ("", self.baseline):
            names = {"planned": self.planned_baseline, "baseline": self.baseline}
            notes.append(Text("reading_baseline", names))
        return notes

    def _thresholds(self) -> list[Text]:
        """Return the threshold of the verdicts for each number of seeds."""
        groups = by_name(self.evaluations)
        deviation, dof = pooled_deviation([[one.metrics.get("mAP") for one in g] for g in groups.values()])
        compared = {
            row.seeds: None for row in self.rows if row.verdict in ("above", "below", "within seed spread")
        }
        if deviation is None:
            return []
        baseline = len(groups[self.baseline])
        return [
            Text(
                "reading_threshold",
                {
                    "seeds": seeds,
                    "baseline": baseline,
                    "points": f"{100 * seed_spread(deviation, dof, seeds, baseline):.2f}",
                    "deviation": f"{100 * deviation:.2f}",
                    "dof": dof,
                },
            )
            for seeds in compared
        ]

    @property
    def facts(self) -> list[tuple[Text, Text | str]]:
        """Names and values of what is known about data and training."""
        return list_facts(self.evaluations, self.recipes)

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


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: what it shows, in English if it is a text of the section ``report``; "" for an unknown value.
        value: what rows are sorted by instead of the text.
        key: key of the text, if it is one.
    """

    text: str
    value: float | None = None
    key: str = ""


#: headings of the tables: texts of the section ``report``
SCORE_HEAD = (
    Text("col_variant"),
    Text("col_map"),
    Text("col_verdict"),
    Text("col_difference", _LEVEL),
    Text("col_rank1"),
    Text("col_minp"),
    Text("col_map_trapezoid"),
    Text("col_seeds"),
)
COST_HEAD = tuple(
    Text(f"col_{name}") for name in ("variant", "parameters", "gmac", "latency", "memory", "training")
)


def score_cells(report: AblationReport) -> list[list[Cell]]:
    """Return a row of the table of metrics for each variant, with the columns of ``SCORE_HEAD``."""
    return [
        [
            Cell(row.name),
            _percent(row.metrics.get("mAP")),
            _named(row.verdict),
            _difference(row.difference) if row.difference else _named(row.reason),
            *(_percent(row.metrics.get(key)) for key in ("rank-1", "mINP", "mAP_trapezoid")),
            Cell(str(row.seeds), row.seeds),
        ]
        for row in report.rows
    ]


def cost_cells(report: AblationReport) -> list[list[Cell]]:
    """Return a row of the table of parameters, operations, time and memory for each variant."""
    return [
        [
            Cell(row.name),
            _scaled(row.parameters, 1e-6, 2),
            _scaled(row.macs, 1e-9, 3),
            _scaled(row.latency_ms, 1, 1),
            _scaled(row.memory_mib, 1, 0),
            _scaled(row.training_seconds, 1 / 60, 1),
        ]
        for row in report.rows
    ]


def score_table(report: AblationReport) -> list[list[str]]:
    """Return the table of metrics in English: the heading, then one row of texts per variant."""
    return [_english(SCORE_HEAD), *([cell.text for cell in row] for row in score_cells(report))]


def cost_table(report: AblationReport) -> list[list[str]]:
    """Return the table of costs in English: the heading, then one row of texts per variant."""
    return [_english(COST_HEAD), *([cell.text for cell in row] for row in cost_cells(report))]


def fact_lines(report: AblationReport) -> list[str]:
    """Return what is known about data and training in English, such as ``epochs: 3``."""
    return [": ".join(_english(fact)) for fact in report.facts]


def _english(texts: Sequence[Text | str]) -> list[str]:
    return [fill_text("en", ["report"], one) for one in texts]


def _named(what: str) -> Cell:
    key = _KEYS.get(what, "")
    return Cell(translate("en", "report", key) if key else "", key=key)


#: headings of the table of the options that differ
CHANGES_HEAD = (Text("col_variant"), Text("col_options"))


def change_rows(report: AblationReport) -> list[list[str]]:
    """Return the options of each variant that are not the same in all, with the columns of ``CHANGES_HEAD``."""
    return [list(row) for row in list_changes(report.evaluations)]


#: headings of the table of published results
PUBLISHED_HEAD = tuple(
    Text(f"col_{name}") for name in ("published", "plain_map", "rank1", "conditions", "source")
)


def published_rows(report: AblationReport) -> list[list[str]]:
    """Return a row of the table of published results for each of them, with the columns of ``PUBLISHED_HEAD``."""
    keys = ("name", "mAP", "rank-1", "conditions", "source")
    return [[str(entry.get(key, "")) for key in keys] for entry in report.published]


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
    table = pd.DataFrame(lines)
    for column in ("queries", "parameters", "macs"):  # whole numbers, also beside unknown ones
        table[column] = table[column].astype("Float64").round().astype("Int64")
    return table.to_csv(index=False)


def markdown(report: AblationReport, figures: Mapping[str, str]) -> str:
    """Return the report, without its queries, as Markdown.

    Args:
        report: to be written.
        figures: file names by caption.
    """
    parts = [
        f"# {_md(report.title)}",
        _md_table(score_table(report)),
        "\n".join(f"- {_md(line)}" for line in _english(report.reading)),
    ]
    if report.facts:
        parts += ["## What was compared", "\n".join(f"- {_md(line)}" for line in fact_lines(report))]
    if changes := change_rows(report):
        parts.append(_md_table([_english(CHANGES_HEAD), *changes]))
    parts += ["## Cost", _md_table(cost_table(report))]
    parts += [_md(line) for line in _english([report.conditions] if report.conditions else [])]
    parts += [f"![{_md(caption)}]({file})" for caption, file in figures.items()]
    if report.published:
        parts += [
            "## Published results",
            translate("en", "report", "published_note"),
            _md_table([_english(PUBLISHED_HEAD), *published_rows(report)]),
        ]
    if problems(report):
        lines = "\n".join(f"- {_md(line)}" for line in problems(report))
        parts += ["## Runs missing from the tables", lines]
    return "\n\n".join(parts) + "\n"


def problems(report: AblationReport) -> list[str]:
    """Return a line for each run that is missing from the tables."""
    lines = [f"failed: {name}: {why}" for name, why in report.failures]
    return lines + [f"not finished: {name}" for name in report.missing]


def _percent(spread: Spread | None) -> Cell:
    if spread is None:
        return Cell("")
    deviation = "" if spread.deviation is None else f" ± {100 * spread.deviation:.1f}"
    return Cell(f"{100 * spread.mean:.1f}{deviation}", spread.mean)


def _difference(found: Difference) -> Cell:
    mean, low, high = (signed(100 * value) for value in (found.mean, found.low, found.high))
    return Cell(f"{mean} [{low}, {high}]", found.mean)


def signed(value: float) -> str:
    """Format a number with one decimal and its sign, unless it is rounded to 0.0."""
    text = f"{value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def _scaled(value: float | None, factor: float, digits: int) -> Cell:
    return Cell("") if value is None else Cell(f"{factor * value:.{digits}f}", value)


def _md(text: str) -> str:
    # the last two alternatives keep addresses from becoming links
    return re.sub(r"([\\`*_<>\[\]|#&~$]|:(?=//)|(?<=www)\.)", r"\\\1", " ".join(text.split()))


def _md_table(cells: Sequence[Sequence[str]]) -> str:
    return _lines(cells, lambda line: "| " + " | ".join(map(_md, line)) + " |", "|" + "---|" * len(cells[0]))


def _lines(cells: Sequence[Sequence[str]], write: Callable[[Sequence[str]], str], rule: str) -> str:
    return "\n".join([write(cells[0]), rule, *map(write, cells[1:])])
