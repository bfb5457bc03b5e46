"""Train a model from a recipe."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator, Sequence
from functools import reduce
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import new_parser
from rga_reid.commands._output import print_ranking
from rga_reid.data import load_card, read_table
from rga_reid.devices import choose_device
from rga_reid.errors import MAX_SEED, InputError, check_int
from rga_reid.experiments.evaluate_model import evaluate_model
from rga_reid.experiments.recipes import read_recipe
from rga_reid.files import write_json
from rga_reid.inputs import truncate
from rga_reid.models import load_model
from rga_reid.training import ReIDData, ReIDModule, check_output, fit, is_first_process
from rga_reid.training.trainer import TEST, Precision

# Trainer options that follow from --out or from the sampler, or say more
_OURS = {"default_root_dir", "logger", "precision", "use_distributed_sampler"}


def parser() -> ArgumentParser:
    """Options of the DataModule, the LightningModule and Lightning's Trainer, as nested keys."""
    options = new_parser(
        "train",
        "Train a model from a recipe. Every option of the recipe can be given here too: "
        "--model.attention pam, --data.held_out 0.1, --data.root DIR.",
    )
    options.add_argument("--config", action="config", help="recipe: a bundled name or a YAML file")
    options.add_argument("--out", type=str, default="runs/train", help="folder for checkpoints and logs")
    options.add_argument("--seed", type=int, default=0, help="of everything random")
    options.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    options.add_argument(
        "--save-every",
        type=int,
        metavar="STEPS",
        help="save the state every so many steps, not only each epoch",
    )
    options.add_argument(
        "--test.root", metavar="DIR", help="afterwards, test on this data set, which may be another one"
    )
    options.add_argument("--test.dataset", metavar="CARD", default="market1501", help="card of that data set")
    options.add_argument("--overwrite", action="store_true", help="train into a folder that is not empty")
    options.add_class_arguments(ReIDData, "data")
    options.add_class_arguments(ReIDModule, "model")
    shares = _counts_or_shares()
    options.add_class_arguments(pl.Trainer, "trainer", skip=_OURS | shares.keys(), instantiate=False)
    for name, (kind, default) in shares.items():
        what = "Lightning's; a whole number counts, a number with a point is a share"
        options.add_argument(f"--trainer.{name}", type=kind, default=default, help=what)
    options.add_argument(
        "--trainer.precision",
        type=Precision,
        help="Lightning's, or auto: bf16-mixed where the device multiplies bfloat16, else 32-true",
    )
    options.link_arguments("seed", "data.seed")
    options.link_arguments("seed", "model.seed")
    options.link_arguments("model.size", "data.size")
    options.link_arguments("data.classes", "model.classes", apply_on="instantiate")
    return options


def _counts_or_shares() -> dict[str, tuple[Any, Any]]:
    """Types and defaults of Lightning's options that take whole numbers and floats, whole numbers first.

    ``typing`` keeps one object for ``Optional[Union[int, float]]`` and ``Optional[Union[float, int]]``:
    whichever some library asked for first. With floats first, ``limit_train_batches: 1`` would be 1.0, which
    is all batches.
    """
    found, parameters = {}, signature(pl.Trainer).parameters
    for name, hint in get_type_hints(pl.Trainer.__init__).items():
        kinds = get_args(hint)
        if int in kinds and float in kinds:
            others = [kind for kind in kinds if kind not in (int, float)]
            found[name] = (reduce(operator.or_, [int, float, *others]), parameters[name].default)
    return found


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
    """Train; test on the other data set where one is given, or say what to do next."""
    table = None if options.test.root is None else read_table(options.test.root, options.test.dataset)
    best = fit_recipe(options)
    if not is_first_process():
        return
    if not best.is_file():
        print("nothing is kept: the trainer's options ask for no checkpoint (fast_dev_run)")
        return
    if table is None:
        print(f"trained: {best}")
        roots = options.data.root
        root = roots if isinstance(roots, str) else roots[0]
        cards = options.data.dataset
        card = cards if isinstance(cards, str) else cards[0]
        which = "" if card == "market1501" else f" --data.dataset {card}"
        print(f"next: rga-reid test --checkpoint {best} --data.root {root}{which}")
        return
    device = choose_device()
    junk = load_card(options.test.dataset).junk_pids
    result = evaluate_model(load_model(best, device), table, junk_pids=junk, device=device)
    write_json(Path(options.out) / TEST, result.to_dict())
    print(f"trained: {best}")
    print_ranking(result)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What an error was raised from, and that from, and so on."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def fit_recipe(options: Namespace) -> Path:
    """Check the folder and the data, then build the model and train it; returns the checkpoint to test."""
    check_int("--seed", options.seed, 0, MAX_SEED)
    if options.trainer.barebones:
        raise InputError("--trainer.barebones: cannot be used here: it would keep no checkpoint and no log")
    check_output(options.out, overwrite=options.overwrite, resume=options.resume)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its news of devices and tips
    pl.seed_everything(options.seed, verbose=False)
    options_parser = parser()
    try:
        built = options_parser.instantiate(options)
    except InputError:
        raise
    except Exception as error:  # classes and values of the recipe's choice may fail in any way
        for cause in _causes(error):
            if isinstance(cause, InputError):  # of our classes, which say it better than what tries them all
                raise cause from None
        what = f"{type(error).__name__}: {truncate(error)}"
        raise InputError(f"train: cannot make what the recipe and the options say ({what})") from None
    return fit(
        built.model,
        built.data,
        options.out,
        trainer=built.trainer.as_dict(),
        config=options_parser.dump(options, skip_none=False),
        overwrite=options.overwrite,
        resume=options.resume,
        save_every=options.save_every,
    )
