"""``data check ROOT``: count a data set and find what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, sanitize

if TYPE_CHECKING:
    from rga_reid.data.check import DataReport

_MAX_SHOWN = 20  # problems that are printed; the JSON file has all


def parser() -> ArgumentParser:
    """Return the parser of ``data``."""
    check = new_parser(
        "data check",
        "Count a data set against its card, decode every image, and list missing, empty, truncated and "
        "unreadable files, names that do not fit, and identical images in two splits or under two persons. "
        "Exit code 0 if nothing is wrong, 2 otherwise.",
    )
    check.add_argument("root", help="folder of the data set, or a CSV file with path,pid,camid,split")
    check.add_argument(
        "--dataset",
        metavar="CARD",
        help="name of a bundled card, or path of your own (default: market1501; a CSV needs none)",
    )
    check.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    check.add_argument(
        "--fast", action="store_true", help="count and check names only, do not read the images"
    )
    command = new_parser("data", "Check data sets.")
    command.add_subcommands(dest="action").add_subcommand(
        "check", check, help="check a data set against its card"
    )
    return command


def run(options: Namespace) -> None:
    """Print the report; raise ``InputError`` for a data set with problems."""
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
    keys = ["images", "identities", "junk", "distractors"]
    if any(found.tracks is not None for found in report.counts.values()):
        keys.append("tracks")
    counts = Table("split", title=sanitize(f"{report.title}: {report.root}"), title_justify="left")
    for key in keys:
        counts.add_column(key, justify="right")
    for split, found in report.counts.items():
        expected = report.expected.get(split, {})
        counts.add_row(split, *(_format_count(getattr(found, key), expected.get(key)) for key in keys))
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
        no_cameras = bool(report.cameras.camid.isna().all())
        match = "another gallery image (cameras are unknown)" if no_cameras else "another camera"
        queries = report.counts["query"].images
        console.print(f"queries with a match from {match}: {report.matched_queries:,} of {queries:,}")
    for (height, width), images in list(report.sizes.items())[:5]:
        console.print(f"image size {height} x {width} (height x width): {images:,} images")
    if len(report.sizes) > 5:
        console.print(f"... and {len(report.sizes) - 5:,} other sizes")
    for note in report.notes:
        console.print(sanitize(note))
    for problem in report.problems[:_MAX_SHOWN]:
        console.print(sanitize(f"{problem.kind}: {problem}"))
    if len(report.problems) > _MAX_SHOWN:
        more = len(report.problems) - _MAX_SHOWN
        console.print(f"... and {more:,} more problems (all of them with --json)")
    if not report.problems:
        console.print(
            "nothing wrong" if report.decoded else "nothing wrong (images were not decoded: --fast)"
        )


def _format_count(found: int, expected: int | None) -> str:
    if expected is None or expected == found:
        return f"{found:,}"
    return f"{found:,} (expected {expected:,})"
