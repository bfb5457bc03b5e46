"""``report``: compare finished runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import sanitize
from rga_reid.files import require_new, write_json

if TYPE_CHECKING:
    from rga_reid.reports.ablation_tables import AblationReport

#: What a report writes into its folder: no other output may take these names.
FILES = ("report.html", "report.md", "report.csv", "report.tex", "learning.svg", "cmc.svg")


def parser() -> ArgumentParser:
    """Options of ``report``."""
    options = new_parser(
        "report",
        "Compare finished runs: folders of `ablate`, folders of `train` with the metrics of `test` in them "
        "as test.json, JSON files of `test` and `evaluate`. What a place does not tell is left blank.",
    )
    options.add_argument("places", metavar="DIR", nargs="+", help="folders and JSON files")
    options.add_argument("--out", metavar="DIR", default="report", help="folder for the report")
    options.add_argument(
        "--baseline",
        metavar="NAME",
        help="what others are compared with (default: the plan's or first)",
    )
    options.add_argument("--title", default="Comparison of runs", help="heading of the report")
    options.add_argument("--published", metavar="DATASET", help="show published figures on this data set too")
    options.add_argument("--no-photos", action="store_true", help="without pictures of people")
    options.add_argument("--json", metavar="FILE", help="write the table there as JSON")
    options.add_argument("--overwrite", action="store_true", help="replace the report that is there")
    return options


def run(options: Namespace) -> None:
    """Read, compare, write."""
    check_outputs(options, {"json": ()}, {"--out": [f"{options.out}/{name}" for name in FILES]})
    require_new(options.out, overwrite=options.overwrite)
    from rga_reid.experiments.results import read_evaluations, read_kept_plan, run_conditions, unfinished_runs
    from rga_reid.reports.ablation_tables import AblationReport, load_published

    published = load_published(options.published)
    evaluations = read_evaluations(options.places)
    places = [Path(place) for place in options.places]
    names = {one.name for one in evaluations}
    kept = read_kept_plan(places[0]).get("baseline")
    failures, missing = unfinished_runs(places)
    report = AblationReport(
        options.title,
        evaluations,
        options.baseline or (kept if kept in names else evaluations[0].name),
        failures=failures,
        missing=missing,
        published=published,
        conditions=run_conditions(places[0]) if len(places) == 1 else "",
        planned_baseline="" if options.baseline else kept or "",
    )
    finish(report, Path(options.out), photos=not options.no_photos, json=options.json)


def finish(report: AblationReport, out: Path, *, photos: bool, json: str | None) -> None:
    """Write the files of a report and print its table."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from rga_reid.reports.ablation_page import write_report
    from rga_reid.reports.ablation_tables import score_table

    page = write_report(report, out, photos=photos)[0]
    if json is not None:
        write_json(json, {"baseline": report.baseline, "variants": [asdict(row) for row in report.rows]})
    kept = (0, 1, 2, 4, 6, 7)  # what fits into 80 columns; the files have all
    head, *lines = ([line[column] for column in kept] for line in score_table(report))
    table = Table(title=sanitize(report.title), title_justify="left")
    for heading in head:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*map(sanitize, line))
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(f"report: {page}", soft_wrap=True)
