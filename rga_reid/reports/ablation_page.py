"""The report of an ablation: one self-contained HTML page, and files for papers and documentation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid.data.labels import plain_label
from rga_reid.files import atomic_file, make_folder
from rga_reid.reports.ablation_stats import Evaluation, average_precisions, by_name
from rga_reid.reports.ablation_tables import (
    PUBLISHED_NOTE,
    AblationReport,
    cost_table,
    csv_table,
    latex,
    markdown,
    problems,
    published_table,
    score_table,
    signed,
)
from rga_reid.reports.html import data_uri, page_environment, thumbnail
from rga_reid.reports.plots import cmc_figure, figure_bytes, learning_figure
from rga_reid.reports.ranked_page import Match, Picture, verdict

LEARNING = "Training loss: mean and range over the seeds"
CMC = "Cumulative match curves: mean and range over the seeds"
_THUMBNAIL = (64, 128)  # maximum width and height


def write_report(report: AblationReport, out: str | os.PathLike[str], *, photos: bool = True) -> list[Path]:
    """Write ``report.html``, ``report.md`` with its figures, ``report.csv`` and ``report.tex``.

    Args:
        report: to be written.
        out: folder, created if needed; files of an earlier report are replaced.
        photos: show the pictures of the data set; otherwise people are shown by number.

    Returns:
        The written files, the page first.
    """
    folder = Path(out)
    make_folder(folder)
    figures = _figures(report)
    names = {LEARNING: "learning.svg", CMC: "cmc.svg"}
    contents: dict[str, bytes] = {
        "report.html": _page(report, figures, photos=photos).encode(),
        "report.md": markdown(report, {caption: names[caption] for caption in figures}).encode(),
        "report.csv": csv_table(report).encode(),
        "report.tex": latex(report).encode(),
        **{names[caption]: picture for caption, picture in figures.items()},
    }
    for name in names.values():
        if name not in contents and (folder / "report.md").is_file():
            (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)
    return [folder / name for name in contents]


def report_page(report: AblationReport, *, photos: bool = True) -> str:
    """Return the report as one self-contained HTML page; every name in it is escaped."""
    return _page(report, _figures(report), photos=photos)


def _page(report: AblationReport, figures: Mapping[str, bytes], *, photos: bool) -> str:
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
    scores, costs, published = score_table(report), cost_table(report), published_table(report)
    environment = page_environment()
    environment.globals["verdict"] = verdict
    environment.filters["signed"] = signed
    return environment.get_template("ablation.html").render(
        title=report.title,
        note=f"Compared with {report.baseline}.",
        scores=scores,
        costs=costs,
        published=published if report.published else [],
        published_note=PUBLISHED_NOTE,
        conditions=report.conditions,
        reading=report.reading,
        problems=problems(report),
        figures={caption: data_uri("svg+xml", picture) for caption, picture in figures.items()},
        compared=compared,
        baseline=report.baseline,
        photos=photos,
        numbers=numbers,
        thumbnails=thumbnails,
    )


def _figures(report: AblationReport) -> dict[str, bytes]:
    """The known curves as SVG, by caption."""
    figures = {LEARNING: learning_figure(report.evaluations), CMC: cmc_figure(report.evaluations)}
    return {caption: figure_bytes(figure, "svg") for caption, figure in figures.items() if figure is not None}


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
    """

    query: Picture
    before: float
    after: float
    baseline: tuple[Match, ...]
    variant: tuple[Match, ...]


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
        )

    difference = (after - before).sort_values(kind="stable")
    gains = [describe(key) for key in difference[difference > 0].index[::-1][:count]]
    losses = [describe(key) for key in difference[difference < 0].index[:count]]
    return gains, losses


def _picture(row: pd.Series) -> Picture:
    return Picture(str(row.get("path", "")), plain_label(row["pid"]), plain_label(row["camid"]))


def _matches(ranked: pd.DataFrame, number: int) -> tuple[Match, ...]:
    rows = ranked[ranked["query"] == number].sort_values("rank")
    return tuple(
        Match(str(r.path), plain_label(r.pid), plain_label(r.camid), rank=int(r.rank), score=float(r.score))
        for r in rows.itertuples()
    )
