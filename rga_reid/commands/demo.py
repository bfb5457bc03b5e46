"""The whole story on the built-in synthetic set."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.errors import MAX_SEED, InputError, check_int
from rga_reid.files import DiskError, make_folder, require_new, write_text

if TYPE_CHECKING:
    from rga_reid.experiments.demo import DemoResult

MARKER = ".rga-reid-demo"  # in a folder that a demo may clear
FOLDERS = ("data", "model", "gallery", "report")
FILES = ("query.html", "explain.html", "metrics.json")


def parser() -> ArgumentParser:
    """Options of ``demo``."""
    options = new_parser(
        "demo",
        "Draw a synthetic data set, train on it, test, build a gallery, query it, explain and report. "
        "Downloads nothing; takes some minutes on two CPU cores.",
    )
    options.add_argument("--out", metavar="DIR", default="demo", help="folder for everything it makes")
    options.add_argument("--config", default="demo", help="recipe to train with")
    options.add_argument("--epochs", type=int, help="train for this many epochs instead of the recipe's")
    options.add_argument("--seed", type=int, default=0, help="of everything random")
    options.add_argument("--overwrite", action="store_true", help="replace the demo that is there")
    return options


def run(options: Namespace) -> None:
    """Check the folder, then draw, train, test, index, ask, explain and report."""
    out = Path(options.out)
    require_new(out, overwrite=options.overwrite)
    check_int("--seed", options.seed, 0, MAX_SEED)
    if options.epochs is not None:
        check_int("--epochs", options.epochs)
    from rga_reid.commands import train
    from rga_reid.commands._options import parse
    from rga_reid.experiments import demo

    started = time.monotonic()
    root = out / "data"
    words = ["--config", options.config, "--data.root", str(root), "--out", str(out / "model")]
    words += ["--seed", str(options.seed)]
    parser = train.parser()
    prepared = train.prepare(words)
    try:
        settings = parse(parser, prepared)
    except InputError as error:
        what = str(error).removeprefix(f"{parser.prog}: ")
        raise InputError(f"--config {options.config}: {what}") from None
    assert settings is not None  # no --help among the words
    if options.epochs is not None:
        _shorten(settings, options.epochs)
    say(f"data: drawing pedestrians into {root}")
    _clear(out)  # now that nothing is wrong with the options
    demo.draw(root, options.seed)
    say("train: ResNet-18 with relation-aware global attention (RGA-SC)")
    checkpoint = train.fit_recipe(settings)
    result = demo.tell(out, root, checkpoint, options.seed, say)
    _print(result, time.monotonic() - started)


def say(step: str) -> None:
    """Tell the reader where the story is."""
    print(f"== {step}", flush=True)


def _shorten(settings: Namespace, epochs: int) -> None:
    """Train for so many epochs, and see images of each size for the same share of them as in the recipe."""
    asked = settings.trainer.max_epochs
    whole = asked if asked and asked > 0 else epochs
    settings.model.input_sizes = [
        (epoch * epochs // whole, *size) for epoch, *size in settings.model.input_sizes
    ]
    settings.trainer.max_epochs = epochs


def _clear(out: Path) -> None:
    """Remove what an earlier demo made, and nothing else that lies in its folder."""
    made = [out / name for name in (*FOLDERS, *FILES) if (out / name).exists()]
    if made and not (out / MARKER).is_file():
        raise InputError(
            f"--out: {made[0]} would be replaced, but was not made by a demo; choose another folder, or "
            "delete it"
        )
    for name in FOLDERS:
        try:
            shutil.rmtree(out / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise DiskError.of(out / name, error) from None
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    make_folder(out)
    write_text(out / MARKER, "What a demo made lies here; the next one with --overwrite replaces it.\n")


def _print(result: DemoResult, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from rga_reid.experiments.demo import MODEL

    table = Table("percent", title="Synthetic test identities, none seen in training", title_justify="left")
    for heading in ("mAP (step)", "mAP (trapezoid)", "mINP", "rank-1", "rank-5"):
        table.add_column(heading, justify="right")
    for name, ranking in (("colour histogram", result.histogram), (MODEL, result.model)):
        values = (ranking.mAP_step, ranking.mAP_trapezoid, ranking.mINP, ranking.rank(1), ranking.rank(5))
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print("To open in a browser:")
    console.print(f"  {result.page}  people, each with the ten best matches")
    console.print(f"  {result.relations}  what attention relates to what: point at the photo")
    console.print(f"  {result.report}  both tests compared; the queries that gain and lose most")
    console.print("And besides:")
    console.print(f"  metrics     {result.metrics}")
    console.print(f"  gallery     {result.gallery}")
    console.print(f"  checkpoint  {result.checkpoint}")
    console.print(f"  data set    {result.data}")
    console.print(f"It took {seconds / 60:.1f} minutes.")
