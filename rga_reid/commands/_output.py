"""Checks of output files before any work is done, and the table of ranking metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from rga_reid.errors import InputError
from rga_reid.files import require_writable

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.evaluation import RankingResult, RepeatedResult

#: Options that take a name or a file: only a file of that name is an input, not a folder.
_NAMES = {
    *("attention", "baseline", "config", "data.dataset", "dataset", "device", "format", "imports", "index"),
    *("metric", "only", "pattern", "pid", "protocol", "published", "timezone", "title", "view", "where"),
    *("columns", "data.split", "engine", "exclude_camera", "group_by", "input_size"),
}
#: Metavars of positional arguments, as ``--help`` shows them.
_POSITIONAL = {
    "first": "A",
    "second": "B",
    "file": "FILE.py",
    "places": "DIR",
    "root": "ROOT",
    "source": "IN",
    "target": "OUT",
}


def print_labels(table: pd.DataFrame, rows: int = 3) -> None:
    """Print what was read about images, and the first rows, before anything is embedded or written."""
    from rga_reid.data.labels import summarize_labels

    with suppress(OSError):  # a full disk behind stdout is reported at the end, when the files are written
        print(*summarize_labels(table, rows), sep="\n", flush=True)


def check_outputs(
    options: Namespace,
    outputs: Mapping[str, Sequence[str]],
    also: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Check that outputs can be written and replace no input. Commands call this before any work.

    Args:
        options: of the command. Every option that is not an output may name an input.
        outputs: for the key of each option that names an output file, the accepted suffixes; empty for any.
        also: more paths that the command reads or writes, by the name that messages use for them.

    Raises:
        InputError: a wrong suffix, a missing or read-only folder, a link or device in place of a file, two
            outputs with one name, or an output that would replace an input or a file in an input folder.
    """
    files = {_option(key): options[key] for key in outputs if options[key] is not None}
    for key, suffixes in outputs.items():
        if options[key] is not None:
            _check_file(_option(key), options[key], suffixes)
    inputs = [
        (_option(key), path)
        for key, value in options.items()
        if key not in outputs
        for path in _strings(value)
        if key not in _NAMES or os.path.isfile(path)
    ]
    inputs += [(name, path) for name, paths in (also or {}).items() for path in paths]
    checked: list[tuple[str, str]] = []
    for option, file in files.items():
        for other, path in checked:
            if _is_same(file, path):
                raise InputError(f"{option} {file}: is the file of {other} too; expected another name")
        checked.append((option, file))
        for other, path in inputs:
            if _is_same(file, path):
                raise InputError(f"{option} {file}: would replace {other} {path}; expected another name")
            if os.path.isfile(file) and _is_in_folder(file, path):
                raise InputError(
                    f"{option} {file}: would replace a file of {other} {path}; expected an unused name there, "
                    "or another folder"
                )


def _option(key: str) -> str:
    return _POSITIONAL.get(key, f"--{key.replace('_', '-')}")


def _strings(value: object) -> Iterator[str]:
    """The strings in the value of an option, any of which may be a path."""
    if isinstance(value, (str, os.PathLike)):
        yield os.fspath(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _is_same(one: str, two: str) -> bool:
    """Whether two names lead to one file, by links or hard links too."""
    try:
        a, b = os.path.realpath(one), os.path.realpath(two)
        return a == b or (os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b))
    except (OSError, ValueError):  # a string that cannot name a file
        return False


def _is_in_folder(file: str, folder: str) -> bool:
    return os.path.isdir(folder) and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))


def _check_file(option: str, file: str, suffixes: Sequence[str]) -> None:
    """Refuse a file with another suffix, or that cannot be written."""
    if suffixes and Path(file).suffix not in suffixes:
        expected = " or ".join(", ".join(suffixes).rsplit(", ", 1))
        raise InputError(f"{option} {file}: expected a name that ends in {expected}")
    path = Path(file).absolute()
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder, expected a file" if path.is_dir() else "its folder does not exist"
        raise InputError(f"{option} {file}: {problem}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a link" if path.is_symlink() else "a device or a pipe"
        raise InputError(f"{option} {file}: is {kind}, which would be replaced; expected a file")
    require_writable(file)


def print_ranking(result: RankingResult | RepeatedResult, protocol: str | None = None) -> None:
    """Print the metrics as a table, the chosen rule of mAP first, and a line about what was ranked, and how."""
    from rich.console import Console
    from rich.table import Table

    from rga_reid.evaluation.metrics import RANKS

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
    skipped = metrics["queries"] - metrics["valid_queries"]
    notes = [f"{metrics['valid_queries']:,} queries against {metrics['gallery']:,} gallery items"]
    if skipped:
        notes.append(f"{skipped:,} skipped, without a match")
    if protocol is not None:
        notes.append(f"protocol {protocol}")
    if settings["cameras"] != "given":
        notes.append("cameras: none")
    if settings["reranked"]:
        notes.append("re-ranked (k1 {k1}, k2 {k2}, lambda {lambda_value})".format(**settings))
    if deviation:
        notes.append(f"{metrics['repeats']} draws, seed {settings['seed']}")
    if settings.get("cmc") == "persons":
        notes.append("rank-k counts persons")
    console.print("; ".join(notes), soft_wrap=True)
