"""Run all steps on the built-in synthetic data set."""

from __future__ import annotations

import shlex
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

DEFAULT = "demo"  # folder
RECIPE = "demo"
MARKER = ".rga-reid-demo"  # in a folder made by a demo, which another demo may clear
FOLDERS = ("data", "model", "gallery", "report", "mechanisms")  # mechanisms: of explain --demo
FILES = ("query.html", "explain.html", "metrics.json", "mechanisms.html")


def parser() -> ArgumentParser:
    """Options of ``demo``."""
    options = new_parser(
        "demo",
        "Generate a synthetic data set, train on it, test, build a gallery, query it, explain and report. "
        "Downloads nothing; takes a few minutes on two CPU cores.",
    )
    options.add_argument("--out", metavar="DIR", default=DEFAULT, help="folder for all results")
    options.add_argument("--config", default=RECIPE, help="recipe to train with")
    options.add_argument("--epochs", type=int, help="train for this many epochs instead of the recipe's")
    options.add_argument("--seed", type=int, default=0, help="random seed")
    options.add_argument("--overwrite", action="store_true", help="replace an earlier demo")
    return options


def run(options: Namespace) -> None:
    """Check the folder, then generate data, train, test, build a gallery, query, explain and report."""
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
    words += ["--data.dataset", "synthetic", "--seed", str(options.seed)]
    parser = train.parser()
    prepared = train.prepare(words)
    try:
        settings = parse(parser, prepared)
    except InputError as error:
        what = str(error).removeprefix(f"{parser.prog}: ")
        raise InputError(f"--config {options.config}: {what}") from None
    assert settings is not None  # no --help among the words
    if options.epochs is not None:
        set_epochs(settings, options.epochs)
    print_step(f"data: rendering pedestrians into {root}")
    clear(out)  # after all options are checked
    demo.make_data(root, options.seed)
    name = "ResNet-18 + RGA-SC" if options.config == RECIPE else options.config
    print_step(f"train: {name}")
    checkpoint = train.fit_recipe(settings)
    result = demo.run_demo(out, root, checkpoint, options.seed, name, print_step)
    _print(result, name, time.monotonic() - started)


def print_step(step: str) -> None:
    """Print the name of a step before it starts."""
    print(f"== {step}", flush=True)


def set_epochs(settings: Namespace, epochs: int) -> None:
    """Set the number of epochs, and scale the resolution schedule to it."""
    before = settings.trainer.max_epochs
    before = before if before and before > 0 else epochs
    settings.model.resolution_schedule = [
        (epoch * epochs // before, *size) for epoch, *size in settings.model.resolution_schedule
    ]
    settings.trainer.max_epochs = epochs


def clear(out: Path) -> None:
    """Remove the results of an earlier demo, and no other files."""
    existing = [out / name for name in (*FOLDERS, *FILES) if (out / name).exists()]
    if existing and not (out / MARKER).is_file():
        raise InputError(
            f"--out: {existing[0]} would be replaced, but was not made by a demo; choose another folder, or "
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
    mark(out)


def mark(out: Path) -> None:
    """Make a folder whose results another demo may replace."""
    make_folder(out)
    write_text(out / MARKER, "Results of rga-reid demo, which --overwrite replaces.\n")


def _print(result: DemoResult, model: str, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("percent", title="Synthetic test identities, not seen in training", title_justify="left")
    for heading in ("mAP (step)", "mAP (trapezoid)", "mINP", "rank-1", "rank-5"):
        table.add_column(heading, justify="right")
    for name, ranking in (("colour histogram", result.histogram), (model, result.model)):
        values = (ranking.mAP_step, ranking.mAP_trapezoid, ranking.mINP, ranking.rank(1), ranking.rank(5))
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print("To open in a browser:")
    console.print(f"  {result.page}  queries with their ten best matches")
    console.print(f"  {result.relations}  what the model uses in a picture")
    console.print(f"  {result.report}  comparison of both tests; queries that gain and lose most")
    console.print("Other files:")
    console.print(f"  metrics     {result.metrics}")
    console.print(f"  gallery     {result.gallery}")
    console.print(f"  checkpoint  {result.checkpoint}")
    console.print(f"  data set    {result.data}")
    console.print("To search the gallery in a browser:")
    console.print(f"  rga-reid serve {_served(result.gallery)}")
    console.print(f"Done in {seconds / 60:.1f} minutes.")


def _served(gallery: Path) -> str:
    """Options of ``serve`` for the gallery of a demo."""
    if gallery.parent == Path(DEFAULT):
        return "--demo"
    return f"--gallery {shlex.quote(str(gallery))} --images-root {shlex.quote(str(gallery.parent))}"
