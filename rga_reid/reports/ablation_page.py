"""The report of an ablation: one self-contained HTML page, and files for papers and documentation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid.data.labels import plain_label
from rga_reid.files import atomic_file, make_folder
from rga_reid.reports.ablation_latex import bibliography, latex
from rga_reid.reports.ablation_stats import Evaluation, average_precisions, by_name, camera_matrix
from rga_reid.reports.ablation_tables import (
    CHANGES_HEAD,
    COST_HEAD,
    PUBLISHED_HEAD,
    SCORE_HEAD,
    AblationReport,
    Cell,
    change_rows,
    cost_cells,
    csv_table,
    markdown,
    published_rows,
    score_cells,
    signed,
)
from rga_reid.reports.charts import (
    Chart,
    camera_rows,
    cmc_chart,
    cost_chart,
    draw_chart,
    learning_chart,
    precision_chart,
    validation_chart,
)
from rga_reid.reports.html import thumbnail
from rga_reid.reports.language import render_page
from rga_reid.reports.plots import figure_bytes
from rga_reid.reports.ranked_page import Match, Picture, verdict

_CHARTS = ("cmc", "ap", "learning", "validation", "gmac", "latency")
#: files of a report
FILES = (
    *(f"report.{suffix}" for suffix in ("html", "md", "csv", "tex", "bib")),
    *(f"{name}.{suffix}" for suffix in ("svg", "pdf") for name in _CHARTS),
)
_THUMBNAIL = (64, 128)  # maximum width and height


def write_report(
    report: AblationReport, out: str | os.PathLike[str], *, photos: bool = True, lang: str | None = None
) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.csv``, ``report.tex`` and the charts as SVG and PDF.

    Args:
        report: to be written.
        out: folder, created if needed; files of an earlier report are replaced.
        photos: show the pictures of the data set; otherwise people are shown by number.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.

    Returns:
        The written files, the page first. ``report.bib`` has what ``report.tex`` cites, if that is anything.
    """
    folder = Path(out)
    make_folder(folder)
    charts, _ = make_charts(report)
    contents: dict[str, bytes] = {
        "report.html": report_page(report, photos=photos, lang=lang).encode(),
        "report.md": markdown(report, {_caption(one): f"{one.name}.svg" for one in charts}).encode(),
        "report.csv": csv_table(report).encode(),
        "report.tex": latex(report, {_caption(one): f"{one.name}.pdf" for one in charts}).encode(),
        "report.bib": bibliography(report).encode(),
        **{
            f"{one.name}.{kind}": figure_bytes(draw_chart(one), kind)
            for kind in ("svg", "pdf")
            for one in charts
        },
    }
    contents = {name: content for name, content in contents.items() if content}
    for name in FILES:
        if name not in contents and (folder / "report.md").is_file():
            (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]


def _caption(chart: Chart) -> str:
    several = any(one.low for one in chart.series)
    return f"{chart.text()}: mean and range over the seeds" if several else chart.text()


def report_page(report: AblationReport, *, photos: bool = True, lang: str | None = None) -> str:
    """Return the report as one self-contained HTML page; every name in it is escaped."""
    groups = by_name(report.evaluations)
    compared: list[dict[str, Any]] = []
    for name, group in groups.items():
        if name == report.baseline:
            continue
        gains, losses = largest_changes(group, groups[report.baseline])
        sides = [
            {"what": what, "changes": found} for what, found in (("gain", gains), ("loss", losses)) if found
        ]
        if sides:
            compared.append({"name": name, "sides": sides})
    changes = [change for one in compared for side in one["sides"] for change in side["changes"]]
    numbers, thumbnails = _thumbnails(changes) if photos else ({}, [])
    charts, missing = make_charts(report)
    cameras = [
        (name, matrix) for name, group in groups.items() if (matrix := camera_rows(camera_matrix(group)))
    ]
    return render_page(
        "ablation.html",
        ["report", "charts", "labels"],
        data={"charts": [one.to_json() for one in charts]},
        scripts=["charts.js", "report.js"],
        lang=lang,
        filters={"signed": signed},
        verdict=verdict,
        title=report.title,
        note="",
        score_head=SCORE_HEAD,
        scores=score_cells(report),
        facts=report.facts,
        changes_head=CHANGES_HEAD,
        changes=[list(map(Cell, row)) for row in change_rows(report)],
        cost_head=COST_HEAD,
        costs=cost_cells(report),
        published_head=PUBLISHED_HEAD,
        published=[list(map(Cell, row)) for row in published_rows(report)],
        conditions=report.conditions,
        reading=report.reading,
        failures=report.failures,
        unfinished=report.missing,
        charts=[one.name for one in charts],
        missing=[*missing, *(() if cameras else ("no_cameras",))],
        cameras=cameras,
        compared=compared,
        baseline=report.baseline,
        photos=photos,
        numbers=numbers,
        thumbnails=thumbnails,
    )


def make_charts(report: AblationReport) -> tuple[list[Chart], list[str]]:
    """Return the charts of a report, and the texts that say why others are missing."""
    runs = report.evaluations
    found = {
        "cmc": cmc_chart(runs),
        "ap": precision_chart(runs),
        "learning": learning_chart(runs),
        "validation": validation_chart(runs),
        "gmac": cost_chart(runs, "gmac"),
        "latency": cost_chart(runs, "latency"),
    }
    charts = [one for one in found.values() if one is not None]
    return charts, [f"no_{name}" for name, one in found.items() if one is None]


def _thumbnails(changes: Iterable[Change]) -> tuple[dict[str, int], list[str | None]]:
    """A number for each picture by its path, and the thumbnails by number: the page contains each once."""
    numbers: dict[str, int] = {}
    for change in changes:
        shown: tuple[Picture | Match, ...] = (change.query, *change.baseline, *change.variant)
        for picture in shown:
            numbers.setdefault(picture.path, len(numbers))
    return numbers, [thumbnail(path, _THUMBNAIL, quality=75) for path in numbers]


COUNT = 10  #: of queries shown as gains, and as losses


@dataclass(frozen=True)
class Change:
    """A query whose average precision differs between the baseline and a variant.

    Args:
        query: the query image.
        before, after: average precision of the baseline and of the variant, each averaged over its seeds.
        baseline, variant: best matches by the first seed of each.
        explain: command that shows what the models of both use in the query; "" without their files.
    """

    query: Picture
    before: float
    after: float
    baseline: tuple[Match, ...]
    variant: tuple[Match, ...]
    explain: str = ""


def largest_changes(
    group: Sequence[Evaluation], baseline: Sequence[Evaluation], count: int = COUNT
) -> tuple[list[Change], list[Change]]:
    """Return the queries with the largest gains and with the largest losses, at most ``count`` each.

    Empty without per-query results or ranked lists, or if the two sides do not have the same queries.
    """
    after, before = average_precisions(group), average_precisions(baseline)
    if after is None or before is None or not after.index.equals(before.index):
        return [], []
    ours, theirs = group[0], baseline[0]
    if ours.ranked is None or theirs.ranked is None or ours.queries is None:
        return [], []
    queries, our_lists, their_lists = ours.queries.set_index("query"), ours.ranked, theirs.ranked

    def describe(key: tuple[int, str, int]) -> Change:
        query = key[0]
        return Change(
            _picture(queries.loc[query]),
            float(before[key]),
            float(after[key]),
            _matches(their_lists, query),
            _matches(our_lists, query),
            _explain_command(queries.loc[query], theirs, ours),
        )

    difference = (after - before).sort_values(kind="stable")
    gains = [describe(key) for key in difference[difference > 0].index[::-1][:count]]
    losses = [describe(key) for key in difference[difference < 0].index[:count]]
    return gains, losses


def _explain_command(query: pd.Series, *evaluations: Evaluation) -> str:
    checkpoints = [one.checkpoint for one in evaluations]
    if not query.get("path") or None in checkpoints:
        return ""
    words = ["--image", str(query["path"]), "--checkpoint", *map(str, checkpoints), "--out", "explain.html"]
    for name in dict.fromkeys(name for one in evaluations for name in one.imports):
        words += ["--import", name]
    return shlex.join(["rga-reid", "explain", *words])


def _picture(row: pd.Series) -> Picture:
    return Picture(str(row.get("path", "")), plain_label(row["pid"]), plain_label(row["camid"]))


def _matches(ranked: pd.DataFrame, number: int) -> tuple[Match, ...]:
    rows = ranked[ranked["query"] == number].sort_values("rank")
    return tuple(
        Match(str(r.path), plain_label(r.pid), plain_label(r.camid), rank=int(r.rank), score=float(r.score))
        for r in rows.itertuples()
    )
