"""Train a model from a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands.parsing import new_parser
from rga_reid.commands.recipes import read_recipe
from rga_reid.training import ReIDData, ReIDModule, check_output, fit

_OURS = {"default_root_dir", "logger"}  # Trainer options that follow from --out


def parser() -> ArgumentParser:
    """Options of the DataModule, the LightningModule and Lightning's Trainer, as nested keys."""
    options = new_parser(
        "train",
        "Train a model from a recipe. Every option of the recipe can be given here too: "
        "--trainer.max_epochs 3, --model.attention pam, --data.root DIR.",
    )
    options.add_argument("--config", action="config", help="recipe: a bundled name or a YAML file")
    options.add_argument("--out", type=str, default="runs/train", help="folder for checkpoints and logs")
    options.add_argument("--seed", type=int, default=0, help="of everything random")
    options.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    options.add_argument("--overwrite", action="store_true", help="train into a folder that is not empty")
    options.add_class_arguments(ReIDData, "data")
    options.add_class_arguments(ReIDModule, "model")
    options.add_class_arguments(pl.Trainer, "trainer", skip=_OURS, instantiate=False)
    options.link_arguments("seed", "data.seed")
    options.link_arguments("seed", "model.seed")
    options.link_arguments("model.size", "data.size")
    options.link_arguments("data.classes", "model.classes", apply_on="instantiate")
    return options


def prepare(words: Sequence[str]) -> list[str]:
    """Replace the recipe's name by its merged content, which the parser reads in the same place."""
    prepared, words = [], list(words)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if option == "--config" and (equals or words):
            recipe = read_recipe(value if equals else words.pop(0))
            prepared += ["--config", yaml.safe_dump(recipe, sort_keys=False)]
        else:
            prepared.append(word)
    return prepared


def run(options: Namespace) -> None:
    """Train, and say what to do next."""
    best = fit_recipe(options)
    print(f"trained: {best}")
    print(f"next: rga-reid test --checkpoint {best} --data.root {options.data.root}")


def fit_recipe(options: Namespace) -> Path:
    """Check the folder and the data, then build the model and train it; returns the checkpoint to test."""
    check_output(options.out, overwrite=options.overwrite, resume=options.resume)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its news of devices and tips
    pl.seed_everything(options.seed, verbose=False)
    options_parser = parser()
    built = options_parser.instantiate(options)
    return fit(
        built.model,
        built.data,
        options.out,
        trainer=built.trainer.as_dict(),
        config=options_parser.dump(options, skip_none=False),
        overwrite=options.overwrite,
        resume=options.resume,
    )
