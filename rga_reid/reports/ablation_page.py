"""The report of an ablation as a page that needs no other file, and as files for papers and documentation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rga_reid.files import atomic_file, make_folder
from rga_reid.reports.ablation_stats import Evaluation, average_precisions, by_name
from rga_reid.reports.ablation_tables import (
    PUBLISHED_NOTE,
    AblationReport,
    cmc_figure,
    cost_table,
    csv_table,
    latex,
    learning_figure,
    markdown,
    problems,
    published_table,
    score_table,
    signed,
    svg,
)
from rga_reid.reports.html import page_environment, svg_uri, thumbnail
from rga_reid.reports.ranked_page import Match, Picture, verdict

LEARNING = "Training loss, mean over the seeds and their range"
CMC = "Cumulative match curves, mean over the seeds and their range"
_THUMBNAIL = (64, 128)  # (width, height) that it fits into


def write_report(report: AblationReport, out: str | os.PathLike[str], *, photos: bool = True) -> list[Path]:
    """Write ``report.html``, ``report.md`` with its figures, ``report.csv`` and ``report.tex``.

    Args:
        out: folder, which is made if need be; what an earlier report left there is replaced.
        photos: show the pictures of the data set; without, people are numbers.

    Returns:
        The files, the page first.
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
    """One HTML page that needs no other file and no network; every name in it is escaped."""
    return _page(report, _figures(report), photos=photos)


def _page(report: AblationReport, figures: Mapping[str, bytes], *, photos: bool) -> str:
    """The page, with the SVG of figures by their captions."""
    groups = by_name(report.evaluations)
    compared: list[dict[str, Any]] = [
        {"name": name, "sides": _sides(*largest_changes(group, groups[report.baseline]))}
        for name, group in groups.items()
        if name != report.baseline
    ]
    compared = [one for one in compared if one["sides"]]
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
        figures={caption: svg_uri(picture) for caption, picture in figures.items()},
        compared=compared,
        baseline=report.baseline,
        photos=photos,
        numbers=numbers,
        thumbnails=thumbnails,
    )


def _figures(report: AblationReport) -> dict[str, bytes]:
    """SVG by its caption, of the curves that are known."""
    made = {LEARNING: learning_figure(report.evaluations), CMC: cmc_figure(report.evaluations)}
    return {caption: svg(figure) for caption, figure in made.items() if figure is not None}


def _sides(gains: list[Change], losses: list[Change]) -> list[dict[str, Any]]:
    sides = ({"what": "gain", "changes": gains}, {"what": "lose", "changes": losses})
    return [side for side in sides if side["changes"]]


def _thumbnails(changes: Iterable[Change]) -> tuple[dict[str, int], list[str | None]]:
    """A number for each picture that is shown, and the pictures: each is in the page once."""
    numbers: dict[str, int] = {}
    for change in changes:
        shown: tuple[Picture | Match, ...] = (change.query, *change.baseline, *change.variant)
        for picture in shown:
            numbers.setdefault(picture.path, len(numbers))
    return numbers, [thumbnail(path, _THUMBNAIL, quality=75) for path in numbers]


COUNT = 10  #: of gains, and of losses


@dataclass(frozen=True)
class Change:
    """One query, with the lists of both sides.

    Args:
        query: whose average precision changed.
        before, after: average precision of the baseline and of the variant, averaged over their seeds.
        baseline, variant: best matches of the first seed of each.
    """

    query: Picture
    before: float
    after: float
    baseline: tuple[Match, ...]
    variant: tuple[Match, ...]


def largest_changes(
    group: Sequence[Evaluation], baseline: Sequence[Evaluation], count: int = COUNT
) -> tuple[list[Change], list[Change]]:
    """The queries whose average precision grows most, and those that lose most; both may be shorter.

    Empty where queries or lists are not known, or the two sides were not asked the same.
    """
    ours, theirs = average_precisions(group), average_precisions(baseline)
    if ours is None or theirs is None or not ours.index.equals(theirs.index):
        return [], []
    mine, other = group[0], baseline[0]
    if mine.ranked is None or other.ranked is None or mine.queries is None:
        return [], []
    queries = mine.queries.set_index("query")
    difference = (ours - theirs).sort_values(kind="stable")
    sides = []
    for ordered in (difference[difference > 0][::-1], difference[difference < 0]):
        changes = []
        for key in ordered.index[:count]:
            number = key[0]
            changes.append(
                Change(
                    _picture(queries.loc[number]),
                    float(theirs[key]),
                    float(ours[key]),
                    _matches(other.ranked, number),
                    _matches(mine.ranked, number),
                )
            )
        sides.append(changes)
    return sides[0], sides[1]


def _picture(row: pd.Series) -> Picture:
    return Picture(str(row.get("path", "")), _number(row["pid"]), _number(row["camid"]))


def _matches(ranked: pd.DataFrame, number: int) -> tuple[Match, ...]:
    rows = ranked[ranked["query"] == number].sort_values("rank")
    return tuple(
        Match(str(r.path), _number(r.pid), _number(r.camid), rank=int(r.rank), score=float(r.score))
        for r in rows.itertuples()
    )


def _number(value: object) -> int | None:
    return None if value is None or pd.isna(value) else int(value)  # type: ignore[call-overload]
