"""Compare finished runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_import_option, add_lang_option, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import sanitize
from rga_reid.files import require_new, write_json

if TYPE_CHECKING:
    from rga_reid.reports.ablation_tables import AblationReport


def parser() -> ArgumentParser:
    """Options of ``report``."""
    options = new_parser(
        "report",
        "Compare finished runs: folders of `ablate`, folders of `train` with the metrics of `test` in "
        "test.json, JSON files of `test` and `evaluate`. Missing values are left blank.",
    )
    options.add_argument("places", metavar="DIR", nargs="+", help="folders and JSON files")
    options.add_argument("--out", metavar="DIR", default="report", help="folder for the report")
    options.add_argument(
        "--baseline",
        metavar="NAME",
        help="run that others are compared with (default: that of the plan, or the first)",
    )
    options.add_argument("--title", default="Comparison of runs", help="heading of the report")
    options.add_argument("--published", metavar="DATASET", help="show published results on this data set")
    options.add_argument("--no-photos", action="store_true", help="write a report without images of people")
    options.add_argument("--json", metavar="FILE", help="write the table as JSON")
    options.add_argument("--overwrite", action="store_true", help="replace an existing report")
    add_lang_option(options)
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """Read the runs, compare them and write the report."""
    from rga_reid.reports.ablation_page import FILES

    check_outputs(options, {"json": ()}, {"--out": [f"{options.out}/{name}" for name in FILES]})
    require_new(options.out, overwrite=options.overwrite)
    from rga_reid.experiments.results import (
        list_unfinished_runs,
        read_conditions,
        read_evaluations,
        read_plan_summary,
    )
    from rga_reid.reports.ablation_tables import AblationReport, load_published

    published = load_published(options.published)
    evaluations = read_evaluations(options.places)
    paths = [Path(path) for path in options.places]
    names = {one.name for one in evaluations}
    plans = [read_plan_summary(path) for path in paths]
    planned = plans[0].get("baseline")
    failures, missing = list_unfinished_runs(paths)
    report = AblationReport(
        options.title,
        evaluations,
        options.baseline or (planned if planned in names else evaluations[0].name),
        failures=failures,
        missing=missing,
        published=published,
        conditions=read_conditions(paths[0]) if len(paths) == 1 else None,
        planned_baseline="" if options.baseline else planned or "",
        recipes=[name for plan in plans for name in plan.get("recipes", [])],
    )
    write_and_print(report, Path(options.out), options)


def write_and_print(report: AblationReport, out: Path, options: Namespace) -> None:
    """Write the files of a report; print its table and the runs missing from it."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from rga_reid.reports.ablation_page import write_report
    from rga_reid.reports.ablation_tables import problems, score_table

    page = write_report(report, out, photos=not options.no_photos, lang=options.lang)[0]
    if options.json is not None:
        write_json(
            options.json, {"baseline": report.baseline, "variants": [asdict(row) for row in report.rows]}
        )
    columns = (0, 1, 2, 3, 4, 7)  # those that fit into 80 characters; the files have all
    head, *lines = ([line[column] for column in columns] for line in score_table(report))
    table = Table(title=sanitize(report.title), title_justify="left")
    for heading in head:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*map(sanitize, line))
    console = Console(markup=False, highlight=False)
    console.print(table)
    for problem in problems(report):
        console.print(sanitize(problem), soft_wrap=True)
    console.print(f"report: {page}", soft_wrap=True)
