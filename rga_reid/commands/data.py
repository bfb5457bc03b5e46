"""``data check ROOT``: is this data set whole, and what is in it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, sanitize

if TYPE_CHECKING:
    from rga_reid.data.check import DataReport

_LISTED = 20  # problems that the report prints; the JSON file holds all


def parser() -> ArgumentParser:
    """Options of ``data check``."""
    check = new_parser(
        "data check",
        "Count a data set against its card, decode every image, and name each file that is missing, empty, "
        "truncated, unreadable or oddly named. Exit code 0 if nothing is wrong, 2 otherwise.",
    )
    check.add_argument("root", help="folder of the data set, or a CSV file with path,pid,camid,split")
    check.add_argument(
        "--dataset",
        metavar="CARD",
        help="name of a bundled card, or path of one's own (market1501 if not given; a CSV needs none)",
    )
    check.add_argument("--json", metavar="FILE", help="write the report there as JSON too")
    check.add_argument("--fast", action="store_true", help="count and check names, decode nothing")
    command = new_parser("data", "Look after data sets.")
    command.add_subcommands(dest="action").add_subcommand("check", check)
    return command


def run(options: Namespace) -> None:
    """Print the report; refuse a data set that has problems."""
    from rga_reid.data.check import check_data
    from rga_reid.files import write_json

    check = options.check
    check_outputs(check, {"json": ()})
    report = check_data(check.root, check.dataset, fast=check.fast)
    if check.json:
        write_json(check.json, report.to_json())
    _print(report)
    if report.problems:
        count = len(report.problems)
        raise InputError(
            f"{count} problem{'s' * (count > 1)} in this data set, the first: {report.problems[0]}"
        )


def _print(report: DataReport) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, soft_wrap=True)
    counts = Table("split", title=sanitize(f"{report.title}: {report.root}"), title_justify="left")
    for heading in ("images", "identities", "junk", "distractors"):
        counts.add_column(heading, justify="right")
    for split, found in report.counts.items():
        wanted = report.expected.get(split, {})
        cells = [
            _beside(getattr(found, key), wanted.get(key))
            for key in ("images", "identities", "junk", "distractors")
        ]
        counts.add_row(split, *cells)
    console.print(counts)

    cameras = Table("camera", title="images / identities per camera", title_justify="left")
    for split in report.counts:
        cameras.add_column(split, justify="right")
    for camid, rows in report.cameras.groupby("camid", dropna=False):
        cell = {row.split: f"{row.images:,} / {row.identities:,}" for row in rows.itertuples()}
        cameras.add_row(
            "unknown" if str(camid) in ("<NA>", "nan") else str(camid),
            *(cell.get(split, "0 / 0") for split in report.counts),
        )
    console.print(cameras)

    if "query" in report.counts:
        queries = report.counts["query"].images
        console.print(f"queries with a match from another camera: {report.matched_queries:,} of {queries:,}")
    for (height, width), images in list(report.sizes.items())[:5]:
        console.print(f"image size {height} x {width} (height x width): {images:,} images")
    if len(report.sizes) > 5:
        console.print(f"... and {len(report.sizes) - 5:,} other sizes")
    for problem in report.problems[:_LISTED]:
        console.print(sanitize(f"{problem.kind}: {problem}"))
    if len(report.problems) > _LISTED:
        console.print(f"... and {len(report.problems) - _LISTED:,} more problems (all of them with --json)")
    if not report.problems:
        console.print(
            "nothing wrong" if report.decoded else "nothing wrong (images were not decoded: --fast)"
        )


def _beside(found: int, wanted: int | None) -> str:
    if wanted is None or wanted == found:
        return f"{found:,}"
    return f"{found:,} (expected {wanted:,})"
