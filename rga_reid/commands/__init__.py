"""Command line: ``rga-reid COMMAND ...`` and ``python cli.py COMMAND ...`` both call ``main``.

Each command is a module of this package with two functions: ``parser()`` returns its options and
``run(options)`` does the work. ``main`` imports only the module of the command it is given, so ``--help`` needs
neither torch nor pandas.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from rga_reid.errors import InputError, did_you_mean, short_repr
from rga_reid.runtime import run_main

COMMANDS = {
    "demo": "run all steps on a synthetic data set: train, test, gallery, query, report",
    "data": "check a data set against its card: data check ROOT",
    "train": "train a model from a recipe: train --config market1501/rga_sc --data.root DIR",
    "test": "evaluate a checkpoint: mAP, mINP, rank-1/5/10/20",
    "features": "embed images into a feature file (.npz)",
    "evaluate": "compute the same metrics for features of any model",
    "calibrate": "find the threshold for a wanted error rate",
    "verify": "decide whether two pictures show the same person: score, threshold, decision",
    "gallery": "build, change and inspect galleries: gallery build, add, watch, label, group, remove, ...",
    "query": "find a person in a gallery: ranked matches as a table, JSON, CSV or a page of pictures",
    "serve": "serve a gallery as an HTTP API and a web page: serve --gallery DIR",
    "ablate": "train and test variants over seeds, and report: ablate --config ablations/demo --out DIR",
    "report": "compare finished runs and evaluations: report DIR...",
    "explain": "show what a model uses in a picture: an interactive page, or figures",
    "new": "start your own attention module: new attention my_attention.py",
    "convert": "convert a checkpoint of another program: convert IN OUT.safetensors",
    "export": "export a model to deploy: ONNX, TorchScript, OpenVINO or safetensors",
}

_USAGE = "usage: rga-reid COMMAND [options]    (options of a command: rga-reid COMMAND --help)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments after the program's name; by default ``sys.argv[1:]``.

    Returns:
        Exit code: 0 done, 1 partly failed, 2 bad input or unwritable output (one line on stderr), 130 interrupted
        by Ctrl-C, 143 terminated by SIGTERM; see ``rga_reid.runtime``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return run_main(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(_USAGE, "", "commands:", sep="\n")
        for name, summary in COMMANDS.items():
            print(f"  {name:<{width}}  {summary}")
        return 0 if words else 2
    if words[0] == "--version":
        from rga_reid import __version__

        print(f"rga-reid {__version__}")
        return 0
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise InputError(
                f"{word!a}: not valid UTF-8, so no table or page can contain it; rename the file"
            )
    name = words[0]
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {short_repr(name)}{did_you_mean(name, COMMANDS)} (known: {known})")
    from rga_reid.commands._options import parse

    command = importlib.import_module(f"rga_reid.commands.{name}")
    prepare = getattr(command, "prepare", list)  # a command may complete its arguments before parsing
    options = parse(command.parser(), prepare(words[1:]))
    if options is not None:
        return command.run(options) or 0
    return 0
