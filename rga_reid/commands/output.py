"""What the commands share on their way out: checks of output files, the table of metrics, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rga_reid.errors import InputError

if TYPE_CHECKING:
    from rga_reid.evaluation import RankingResult


def check_output_file(option: str, file: str | None) -> None:
    """Refuse an output file whose folder does not exist, before any work is done."""
    if file is None:
        return
    path = Path(file).absolute()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder, expected a file" if path.is_dir() else "its folder does not exist"
        raise InputError(f"{option} {file}: {what}")


@contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr if that is a terminal; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def print_ranking(result: RankingResult) -> None:
    """The metrics as a table, the rule of ``result.mAP`` first, and what was ranked."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", title_justify="left")
    table.add_column("percent", justify="right")
    rules = [
        ("mean average precision (step)", result.mAP_step),
        ("mean average precision (trapezoid, the Market-1501 MATLAB rule)", result.mAP_trapezoid),
    ]
    for name, value in rules if result.settings["average_precision"] == "step" else rules[::-1]:
        table.add_row(name, f"{100 * value:.2f}")
    table.add_row("mean inverse negative penalty", f"{100 * result.mINP:.2f}")
    metrics = result.to_dict()
    for k in (1, 5, 10, 20):
        table.add_row(f"rank-{k}", f"{100 * metrics[f'rank-{k}']:.2f}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    skipped = f"; {result.skipped_queries:,} skipped, without a match" if result.skipped_queries else ""
    cameras = "" if result.settings["cameras"] == "given" else "; cameras: none"
    console.print(
        f"{result.valid_queries:,} queries against {result.gallery:,} gallery items{skipped}{cameras}",
        soft_wrap=True,
    )
