"""The command line: ``rga-reid COMMAND ...`` and ``python cli.py COMMAND ...`` are this ``main``.

Each command is one module here with two functions: ``parser()`` describes its options, ``run(options)`` does
the work. Modules are imported when their command is asked for, so ``--help`` needs neither torch nor pandas.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from rga_reid.errors import InputError, did_you_mean, short_repr
from rga_reid.runtime import run_main

COMMANDS = {
    "demo": "the whole story on a synthetic data set: train, test, gallery, query, report",
    "data": "check a data set against its card: data check ROOT",
    "train": "train a model from a recipe: train --config market1501/rga_sc --data.root DIR",
    "test": "evaluate a checkpoint: mAP, mINP, rank-1/5/10/20",
    "features": "embed a folder of images into an .npz file",
    "evaluate": "the same metrics for features of any model",
    "calibrate": "the threshold for a wanted false-match rate",
    "verify": "do two pictures show the same person? score, threshold, decision",
    "gallery": "galleries of people: gallery build, add, remove, info, verify, compact",
    "query": "who is this? ranked gallery matches as a table, JSON or a page of pictures",
    "ablate": "train and test variants over seeds, and report: ablate --config ablations/demo --out DIR",
    "report": "compare finished runs and evaluations: report DIR...",
    "explain": "what attention relates to what: an interactive page, or figures",
    "convert": "published weights to a model file: convert IN OUT.safetensors",
    "export": "a model as one file to deploy: ONNX, TorchScript or safetensors",
}

_USAGE = "usage: rga-reid COMMAND [options]    (rga-reid COMMAND --help tells the options)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; ``sys.argv[1:]`` if not given.

    Returns:
        The exit code: 0 done, 1 a part failed, 2 bad input or a disk that takes nothing (one line on stderr
        says what), 130 interrupted by Ctrl-C, 143 terminated by SIGTERM; see ``rga_reid.runtime``.
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
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise InputError(f"{word!a}: this is not UTF-8, which no table and no page can hold; rename it")
    name = words[0]
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"unknown command {short_repr(name)}{did_you_mean(name, COMMANDS)} (known: {known})")
    from rga_reid.commands._options import parse

    command = importlib.import_module(f"rga_reid.commands.{name}")
    prepare = getattr(command, "prepare", list)  # a command may complete its words before they are parsed
    options = parse(command.parser(), prepare(words[1:]))
    if options is not None:
        return command.run(options) or 0
    return 0
