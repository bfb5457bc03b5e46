"""Train a model from a recipe."""

from __future__ import annotations

import json
import logging
import operator
import re
import sys
from collections.abc import Sequence
from enum import Enum
from functools import reduce
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser, Namespace, class_from_function
from pytorch_lightning.loggers import Logger

from rga_reid._deprecated import rename_words
from rga_reid.commands._options import add_import_option, new_parser
from rga_reid.commands._output import print_ranking
from rga_reid.data import load_card, read_table
from rga_reid.devices import choose_device
from rga_reid.errors import MAX_SEED, InputError, check_int
from rga_reid.experiments.evaluate_model import card_protocol, evaluate_model, find_protocol
from rga_reid.experiments.recipes import read_recipe
from rga_reid.files import write_json
from rga_reid.inputs import truncate
from rga_reid.models import load_model
from rga_reid.training import ReIDData, build_reid_module, check_output, fit, is_first_process
from rga_reid.training.callbacks import TEST
from rga_reid.training.trainer import Precision

# Trainer options set by --out or by the sampler, and those that are extended below
_SKIPPED = {"default_root_dir", "logger", "precision", "use_distributed_sampler"}


# options of classes that are plain mappings, of which jsonargparse does not merge parts
_CLASSES = ("attention", "backbone")
_CLASS_OPTION = re.compile(rf"--model\.(?P<name>{'|'.join(_CLASSES)})(\.(init_args\.)?(?P<key>\w+))?")


class _Parser(ArgumentParser):
    """Parser whose YAML, also that of ``--print_config``, is the same options when it is read."""

    def dump(self, namespace: Namespace, *args: Any, **settings: Any) -> str:
        """Return the options as YAML."""
        return super().dump(_to_plain(namespace), *args, **settings)


def parser() -> ArgumentParser:
    """Return the options of the DataModule, the LightningModule and Lightning's Trainer, as nested keys."""
    options = new_parser(
        "train",
        "Train a model from a recipe. Every setting of the recipe is also an option: "
        "--model.attention pam, --data.val_fraction 0.1, --data.root DIR.",
        kind=_Parser,
    )
    options.add_argument("--config", action="config", help="recipe: a bundled name or a YAML file")
    options.add_argument("--out", type=str, default="runs/train", help="folder for checkpoints and logs")
    options.add_argument("--seed", type=int, default=0, help="random seed")
    options.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --out")
    options.add_argument(
        "--save-every",
        type=int,
        metavar="STEPS",
        help="save a checkpoint every STEPS steps, in addition to each epoch",
    )
    options.add_argument("--test.root", metavar="DIR", help="test the trained model on this data set")
    options.add_argument("--test.dataset", metavar="CARD", default="market1501", help="card of that data set")
    options.add_argument("--overwrite", action="store_true", help="replace an earlier run in --out")
    options.add_argument(
        "--init-from", metavar="CKPT", help="fine-tune this checkpoint; the same as --model.weights CKPT"
    )
    options.add_class_arguments(ReIDData, "data")
    options.add_class_arguments(class_from_function(build_reid_module), "model")
    counts = _count_or_fraction_options()
    options.add_class_arguments(pl.Trainer, "trainer", skip=_SKIPPED | counts.keys(), instantiate=False)
    for name, (kind, default) in counts.items():
        what = "see Lightning"
        if name != "gradient_clip_val":
            what += "; an integer is a number of batches, a number with a decimal point a fraction of them"
        options.add_argument(f"--trainer.{name}", type=kind, default=default, help=what)
    options.add_argument(
        "--trainer.logger",
        type=Logger | list[Logger] | bool | None,
        help="loggers in addition to CSV and TensorBoard, by class: WandbLogger, MLFlowLogger; false for no logs",
    )
    options.add_argument(
        "--trainer.precision",
        type=Precision,
        help="see Lightning; auto: bf16-mixed if the device has bfloat16 arithmetic, else 32-true",
    )
    options.link_arguments("seed", "data.seed")
    options.link_arguments("seed", "model.seed")
    options.link_arguments("model.size", "data.size")
    options.link_arguments("data.classes", "model.classes", apply_on="instantiate")
    add_import_option(options)
    return options


def _count_or_fraction_options() -> dict[str, tuple[Any, Any]]:
    """Return types and defaults of Lightning's options that accept int and float, with int first.

    ``typing`` caches one object for ``Optional[Union[int, float]]`` and ``Optional[Union[float, int]]``: the
    one that some library used first. With float first, ``limit_train_batches: 1`` would become 1.0, that is,
    all batches.
    """
    found, parameters = {}, signature(pl.Trainer).parameters
    for name, hint in get_type_hints(pl.Trainer.__init__).items():
        kinds = get_args(hint)
        if int in kinds and float in kinds:
            others = [kind for kind in kinds if kind not in (int, float)]
            found[name] = (reduce(operator.or_, [int, float, *others]), parameters[name].default)
    return found


def prepare(words: Sequence[str]) -> list[str]:
    """Replace old names and short forms of options, and the name of the recipe by its merged content.

    The words of attention and backbone, such as ``--model.attention CLASS --model.attention.ratio 4``, become one.
    """
    prepared, words = [], rename_words(words)
    classes: dict[str, Any] = {}  # attention and backbone of the recipe, then of the words
    given: set[str] = set()
    words = [re.sub("^--init-from(?=$|=)", "--model.weights", word) for word in words]
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        if option == "--config" and (equals or words):
            recipe = read_recipe(value if equals else words.pop(0))
            prepared += [word for name in recipe.pop("imports", []) for word in ("--import", name)]
            prepared += ["--config", yaml.safe_dump(recipe, sort_keys=False)]
            classes |= {name: value for name, value in recipe.get("model", {}).items() if name in _CLASSES}
        elif (found := _CLASS_OPTION.fullmatch(option)) and (equals or words):
            name, key = found["name"], found["key"]
            given.add(name)
            classes[name] = _with_word(option, classes.get(name), key, value if equals else words.pop(0))
        else:
            prepared.append(word)
    for name in sorted(given):
        value = classes[name]
        # the first word because jsonargparse 4.53 fails where one mapping with init_args replaces another
        text = value if isinstance(value, str) else json.dumps(value)
        prepared += [f"--model.{name}=none", f"--model.{name}={text}"]
    return prepared


def _with_word(option: str, value: Any, key: str | None, word: str) -> Any:
    """Return a class, or a class with options, after one more word of the command line."""
    try:
        content = yaml.safe_load(word)
    except yaml.YAMLError:
        content = word
    if key in (None, "class_path"):
        return content
    mapping = {"class_path": value} if isinstance(value, str) else value
    if not isinstance(mapping, dict):
        name = option.removesuffix(f".{key}").removesuffix(".init_args")
        raise InputError(f"{option}: expected the class before its options: {name} CLASS {option} {word}")
    return {**mapping, "init_args": {**(mapping.get("init_args") or {}), key: content}}


def run(options: Namespace) -> None:
    """Train; then test on the other data set if one is given, or print the next command."""
    table = protocol = None
    if options.test.root is not None:
        table = read_table(options.test.root, options.test.dataset)
        protocol = find_protocol(card_protocol(options.test.root, options.test.dataset))
        if not _can_be_tested(table):
            raise InputError(
                f"--test.root {options.test.root}: expected query and gallery images, found none"
            )
    checkpoint = fit_recipe(options)
    if not is_first_process():
        return
    if not checkpoint.is_file():
        print("no checkpoint is kept with trainer.fast_dev_run")
        return
    print(f"trained: {checkpoint}")
    if table is None:
        print(f"next: {_next_command(options, checkpoint)}")
        return
    device = choose_device()
    junk_pids = load_card(options.test.dataset).junk_pids
    model = load_model(checkpoint, device)
    result = evaluate_model(model, table, junk_pids=junk_pids, device=device, protocol=protocol)
    write_json(Path(options.out) / TEST, result.to_dict())
    print_ranking(result)


def _can_be_tested(table: pd.DataFrame) -> bool:
    """Return whether a data set has query and gallery images."""
    return {"query", "gallery"} <= set(table["split"])


def _next_command(options: Namespace, checkpoint: Path) -> str:
    """Return the command that tests a checkpoint, on the training data set if that has test images."""
    roots, cards = options.data.root, options.data.dataset
    root, card = (value if isinstance(value, str) else value[0] for value in (roots, cards))
    imports = "".join(f" --import {name}" for name in options.imports)
    command = f"rga-reid test{imports} --checkpoint {checkpoint} --data.root"
    if not _can_be_tested(read_table(root, card)):
        return f"{command} DIR, a data set with query and gallery images; {root} has none"
    return f"{command} {root}" + ("" if card == "market1501" else f" --data.dataset {card}")


def fit_recipe(options: Namespace) -> Path:
    """Check options, folder and data, build the model and train it; return the checkpoint to test."""
    check_int("--seed", options.seed, 0, MAX_SEED)
    if options.trainer.barebones:
        raise InputError("--trainer.barebones: not supported, as it would keep no checkpoint and no log")
    check_output(options.out, overwrite=options.overwrite, resume=options.resume)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no messages about devices, no tips
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # the table of a profiler
    pl.seed_everything(options.seed, verbose=False)
    options_parser, options = parser(), _to_plain(options)
    if is_first_process():
        _print_notes(options)
    built = build_objects(options_parser, options)
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


def _print_notes(options: Namespace) -> None:
    """Print what a recipe and options that change a part of it do together."""
    model = options.model
    if model.losses is not None and model.loss is not None:
        print("note: model.losses replaces model.loss of the recipe, which is not used", file=sys.stderr)
    if model.frozen_stages and model.weights is None and not options.resume:
        print(
            "note: model.frozen_stages freezes layers with random weights, as model.weights is null; to train them, "
            "add --model.frozen_stages 0",
            file=sys.stderr,
        )


def build_objects(options_parser: ArgumentParser, options: Namespace) -> Namespace:
    """Return ``model``, ``data`` and ``trainer`` options of a recipe.

    Raises:
        InputError: an option, or an argument of a class, with which an object cannot be created.
    """
    try:
        return options_parser.instantiate(options)
    except InputError:
        raise
    except Exception as error:  # classes of the user may raise anything
        cause: BaseException = error
        while (raised_from := cause.__cause__ or cause.__context__) is not None:
            cause = raised_from
            if isinstance(cause, InputError):  # jsonargparse wraps errors of our classes
                raise cause from None
        if type(error) is ValueError and isinstance(error.__cause__, Exception):
            # jsonargparse's, about all types of an option, hides the one that matters
            error = error.__cause__
        what = f"{type(error).__name__}: {truncate(error)}"
        raise InputError(f"train: cannot create the objects of the recipe ({what})") from None


def _to_plain(value: Any) -> Any:
    """Return options as YAML can write and read them: without enumerations and with the key ``on``."""
    if isinstance(value, Namespace):
        return Namespace({key: _to_plain(inner) for key, inner in vars(value).items()})
    if isinstance(value, list):
        return [_to_plain(inner) for inner in value]
    if isinstance(value, dict):  # YAML reads the key on of a loss as true
        return {"on" if key is True else key: _to_plain(inner) for key, inner in value.items()}
    return str(value.value) if isinstance(value, str) and isinstance(value, Enum) else value
