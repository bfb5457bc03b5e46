"""What the commands share on their way out: checks of output files, the table of metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rga_reid.errors import InputError
from rga_reid.files import require_writable

if TYPE_CHECKING:
    from rga_reid.evaluation import RankingResult, RepeatedResult


def check_output_file(option: str, file: str | None, *suffixes: str) -> None:
    """Refuse an output file, before any work is done.

    Args:
        option: that names it.
        file: none if it was not asked for.
        suffixes: its name must end in one of them, if there are any.

    Raises:
        InputError: another name, a folder that does not exist or cannot be written, or a link or a device
            where a file is expected.
    """
    if file is None:
        return
    if suffixes and Path(file).suffix not in suffixes:
        *others, last = suffixes
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{option} {file}: expected a name that ends in {wanted}")
    path = Path(file).absolute()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder, expected a file" if path.is_dir() else "its folder does not exist"
        raise InputError(f"{option} {file}: {what}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a link" if path.is_symlink() else "a device or a pipe"
        raise InputError(f"{option} {file}: is {kind}, which would be replaced; expected a file")
    require_writable(file)


def print_ranking(result: RankingResult | RepeatedResult) -> None:
    """The metrics as a table, the rule of ``result.mAP`` first, and what was ranked."""
    from rich.console import Console
    from rich.table import Table

    from rga_reid.evaluation.result import RANKS

    metrics, settings = result.to_dict(), result.settings
    deviation = metrics.get("deviation")
    table = Table("metric", title_justify="left")
    table.add_column("percent" if deviation is None else "percent, mean ± deviation", justify="right")
    names = {
        "mAP": "mean average precision (step)",
        "mAP_trapezoid": "mean average precision (trapezoid, the Market-1501 MATLAB rule)",
        "mINP": "mean inverse negative penalty",
        **{f"rank-{k}": f"rank-{k}" for k in RANKS},
    }
    if settings["average_precision"] == "trapezoid":
        names = {"mAP_trapezoid": names["mAP_trapezoid"], **names}
    for key, name in names.items():
        spread = "" if deviation is None else f" ± {100 * deviation[key]:.2f}"
        table.add_row(name, f"{100 * metrics[key]:.2f}{spread}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    count = metrics["queries"] - metrics["valid_queries"]
    notes = [
        f"{metrics['valid_queries']:,} queries against {metrics['gallery']:,} gallery items",
        f"{count:,} skipped, without a match" if count else "",
        "" if settings["cameras"] == "given" else "cameras: none",
        "re-ranked (k1 {k1}, k2 {k2}, lambda {lambda_value})".format(**settings)
        if settings["reranked"]
        else "",
        f"{metrics['repeats']} draws, seed {settings['seed']}" if deviation else "",
    ]
    console.print("; ".join(filter(None, notes)), soft_wrap=True)
