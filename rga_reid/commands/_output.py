"""What the commands share on their way out: checks of output files, the table of metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from rga_reid.errors import InputError
from rga_reid.files import require_writable

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.evaluation import RankingResult, RepeatedResult

#: Options whose values are names, or files: a folder that is called so by chance is not what they mean.
_NAMES = frozenset(
    {
        *("attention", "baseline", "config", "data.dataset", "dataset", "device", "format", "index"),
        *("metric", "only", "protocol", "published", "title", "where"),
    }
)
#: What ``--help`` calls those that have no dashes.
_POSITIONAL = {"first": "A", "second": "B", "places": "DIR", "root": "ROOT", "source": "IN", "target": "OUT"}


def print_labels(table: pd.DataFrame) -> None:
    """Print what was read from the names of images, before anything is embedded or written."""
    from rga_reid.data.labels import summarize_labels

    print(*summarize_labels(table), sep="\n", flush=True)


def check_outputs(
    options: Namespace,
    outputs: Mapping[str, Sequence[str]],
    also: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Refuse output files, before any work is done. Every command that writes files calls this first.

    Args:
        options: of the command.
        outputs: by the key of each option that names a file to write, the suffixes of which its name must
            end in one; any will do where there are none. What was not asked for is passed over.
        also: paths that the command reads or writes besides, by what tells of them, such as ``--query``.

    Raises:
        InputError: another name, a folder that does not exist or cannot be written, a link or a device where
            a file is expected, two outputs in one file, or an output that would replace what another option
            names, or a file in a folder that another option names.
    """
    asked = {_option(key): options[key] for key in outputs if options[key] is not None}
    for key, suffixes in outputs.items():
        if options[key] is not None:
            _check_file(_option(key), options[key], suffixes)
    named = [
        (_option(key), path)
        for key, value in options.items()
        if key not in outputs
        for path in _texts(value)
        if key not in _NAMES or _is_file(path)
    ]
    named += [(option, path) for option, paths in (also or {}).items() for path in paths]
    for number, (option, file) in enumerate(asked.items()):
        for other, path in list(asked.items())[:number]:
            if _same(file, path):
                raise InputError(f"{option} {file}: is the file of {other} too; expected another name")
        for other, path in named:
            if _same(file, path):
                raise InputError(f"{option} {file}: would replace {other} {path}; expected another name")
            if _is_file(file) and _below(file, path):
                raise InputError(
                    f"{option} {file}: would replace a file of {other} {path}; expected a name that is free "
                    "there, or another folder"
                )


def _option(key: str) -> str:
    return _POSITIONAL.get(key, f"--{key.replace('_', '-')}")


def _texts(value: object) -> Iterator[str]:
    """The texts in the value of an option, any of which may be a path."""
    if isinstance(value, (str, os.PathLike)):
        yield os.fspath(value)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _same(one: str, two: str) -> bool:
    """Whether two names mean one file, which need not exist. A text that no file can be called means none."""
    if not one or not two:
        return False
    try:
        if os.path.realpath(one) == os.path.realpath(two):
            return True
        return os.path.samefile(one, two)
    except (OSError, ValueError):
        return False


def _below(file: str, folder: str) -> bool:
    """Whether a file lies in a folder, or in one below it, by whatever names."""
    try:
        return (
            bool(folder)
            and os.path.isdir(folder)
            and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder))
        )
    except (OSError, ValueError):
        return False


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def _check_file(option: str, file: str, suffixes: Sequence[str]) -> None:
    """Refuse a file that cannot be written, or has another suffix."""
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
