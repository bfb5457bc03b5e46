"""Option parsing shared by the commands: one clear line for a wrong option, never a page of usage."""

from __future__ import annotations

import os
import re
import sys
from argparse import Action
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from rga_reid.errors import InputError, check_int, did_you_mean, sanitize
from rga_reid.inputs import truncate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from rga_reid.data import ImageError
    from rga_reid.gallery import Gallery
    from rga_reid.inference.embed import Embedder

# what jsonargparse says of a value of the wrong type, of one type or of several
_KEY = re.compile(r'Parser key "([\w.]+)"(?: element \d+)?: ')
_ONE_TYPE = re.compile(r"Expected a (<class '\w+'>)\. Got value: ")
_SOME_TYPES = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: "
)
# and of an option of a class, where the class or nothing is expected
_OF_A_CLASS = re.compile(
    r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes .*? Errors: '
    r"- Problem with given class_path '[\w.]+': (?:Parser key \"\w+\": )?(.*) "
    r"- Expected a <class 'NoneType'> Given value type: <class '[\w.]+NestedArg'> "
    r"Given value: NestedArg\(key='([\w.]+)', val=.*\)"
)
_LONG = 5000  # characters: a value that repeats these words is not searched for them again and again
_REQUIRED = re.compile(r"the following arguments are required: (\w+)\.(\w+)")


class HelpFormatter(DefaultHelpFormatter):
    """Tells what an option's text leaves open: no default twice or of nothing, no type beside choices."""

    def _get_help_string(self, action: Action) -> str:
        said, text = action.help or "", super()._get_help_string(action)
        if not text.startswith(said):
            return text
        told = text[len(said) :]
        if action.choices is not None:
            told = told.replace("type: %(type)s", "")
        if "default" in said.lower() or action.default in (None, []):
            told = told.replace("default: %(default)s", "")
        while ", , " in told:
            told = told.replace(", , ", ", ")
        return said + told.replace(", )", ")").replace("(, ", "(").replace(" ()", "")


def new_parser(name: str, description: str, **settings: Any) -> ArgumentParser:
    """A jsonargparse parser that raises instead of printing its usage and exiting."""
    return ArgumentParser(
        prog=f"rga-reid {name}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        **settings,
    )


def add_device_option(parser: ArgumentParser) -> None:
    """``--device``, which ``choose_device`` understands."""
    parser.add_argument("--device", help="where the model runs, such as cpu (default: cuda if there is one)")


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace | None:
    """Parse ``words``; None if ``--help`` was asked for (and printed).

    Raises:
        InputError: a wrong option; the message names it, and the nearest known one if it was mistyped.
    """
    try:
        return parser.parse_args(list(words))
    except SystemExit as leave:  # argparse leaves this way after --help and on its own errors
        if leave.code in (0, None):
            return None
        raise InputError(f"{parser.prog}: wrong options; see {parser.prog} --help") from None
    except InputError:
        raise
    except Exception as error:  # values are read as YAML and given to types, which raise nearly anything
        raise InputError(f"{parser.prog}: {truncate(_one_line(parser, str(error)))}") from None


def _one_line(parser: ArgumentParser, message: str) -> str:
    """The parser's message on one line, in terms of options, with the nearest known for an unknown one."""
    known = _options(parser)
    told = " ".join(message.split())
    line = told
    if len(told) < _LONG:
        line = _OF_A_CLASS.sub(lambda found: f'Parser key "{found[1]}.{found[3]}": {found[2]}', told)
    line = _KEY.sub(lambda key: f"{_option(key[1], known)}: ", line)
    line = _REQUIRED.sub(lambda found: f"{found[1]}: --{found[2].replace('_', '-')} is required", line)
    for types in (_ONE_TYPE, _SOME_TYPES):
        line = types.sub(lambda found: f"expected {_type_names(found[1])}, got ", line)
    unknown = [word for word in told.split() if word.startswith("--")]
    for word in unknown:
        name = word.split("=")[0].rstrip(",:")
        hint = "" if name in known else did_you_mean(name, known)
        if hint:
            return line + hint
    return line


def _options(parser: Any) -> list[str]:
    """All options of a command and of its actions."""
    known = []
    for action in parser._actions:
        known += action.option_strings
        if isinstance(action.choices, dict):  # the parsers of actions, by name
            known += [option for inner in action.choices.values() for option in _options(inner)]
    return known


def _option(key: str, known: Sequence[str]) -> str:
    dashed = f"--{key.replace('_', '-')}"
    return dashed if dashed in known else f"--{key}"


def _type_names(classes: str) -> str:
    """``<class 'a.B'>, list[a.C], <class 'NoneType'>`` as ``B or list[C] or None``."""
    names = re.sub(r"(?:\w+\.)+(\w+)", r"\1", re.sub(r"<class '(.+?)'>", r"\1", classes))
    return " or ".join(re.split(r", (?![^\[]*\])", names.replace("NoneType", "None")))


LOCATION = (
    "the gallery: a folder, in Milvus FILE.db or milvus://HOST:PORT/COLLECTION, or in a store of your own "
    "MODULE.CLASS:NAME"
)


def add_source_options(parser: ArgumentParser) -> None:
    """Options that name images, or features made elsewhere."""
    parser.add_argument("--images", metavar="DIR", help="folder of images, searched with its subfolders")
    parser.add_argument("--data.root", metavar="DIR", help="or a data set: its gallery images")
    parser.add_argument("--data.dataset", metavar="CARD", default="market1501", help="card of the data set")
    parser.add_argument("--features", metavar="FILE.npz", help="or features with paths")
    parser.add_argument("--checkpoint", metavar="FILE", help="model to embed the images with; remembered")
    parser.add_argument("--batch-size", type=int, default=64, help="images in one forward pass")
    add_device_option(parser)
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out files that are no images, and list them"
    )


def check_source(options: Namespace, command: str) -> None:
    """Refuse options that do not fit together, before anything heavy is imported."""
    if sum(source is not None for source in (options.images, options.data.root, options.features)) != 1:
        raise InputError(f"{command}: expected one of --images DIR, --data.root DIR and --features FILE.npz")
    if options.features is not None and options.checkpoint is not None:
        raise InputError(f"{command}: --checkpoint goes with images; features are taken as they are")
    check_int("--batch-size", options.batch_size)
    if options.checkpoint is not None and not Path(options.checkpoint).is_file():
        raise InputError(f"--checkpoint {options.checkpoint}: no such file")


def check_images(option: str, *images: str) -> None:
    """Refuse what is no file, before a model is loaded.

    Raises:
        InputError: as ``read_image``, with the option's name.
    """
    for image in images:
        if Path(image).is_dir():
            raise InputError(f"{option} {image}: expected an image file, found a folder")
        if not Path(image).is_file():
            raise InputError(f"{option} {image}: no such image file")


def images_of(options: Namespace) -> pd.DataFrame:
    """The table of the images that the options name, by absolute paths: they hold in any folder."""
    from rga_reid.data import read_table, table_from_images

    if options.images is not None:
        return table_from_images(os.path.abspath(options.images))
    table = read_table(os.path.abspath(options.data.root), options.data.dataset)
    table = table[table["split"] == "gallery"].drop(columns="split").reset_index(drop=True)
    if table.empty:
        raise InputError(f"--data.root {options.data.root}: no images of the split 'gallery' there")
    return table


def features_of(file: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Features and their table, from files that tell paths."""
    from rga_reid.inference.feature_files import read_features

    features, table = read_features(file)
    if "path" not in table.columns:
        wanted = "an array 'paths'" if file.endswith(".npz") else "a column 'path' in the CSV file beside it"
        raise InputError(f"{file}: expected {wanted}: a gallery needs to say which image matched")
    return features, table


def checkpoint_for(gallery: Gallery, options: Namespace) -> Path:
    """The checkpoint that embeds images for a gallery: its own, which an option may say has moved."""
    if gallery.model is not None:
        return gallery.model.find_checkpoint(options.checkpoint)
    if options.checkpoint is None:
        raise InputError(
            f"{options.gallery}: built from features, so it remembers no model; give theirs with --checkpoint"
        )
    if not Path(options.checkpoint).is_file():
        raise InputError(f"--checkpoint {options.checkpoint}: no such file")
    return Path(options.checkpoint)


def shards_folder(output: str) -> Path:
    """Where several processes put their shards of an output: beside it."""
    if "://" in output:
        return Path.cwd() / f"{output.rpartition('/')[2]}.shards"
    return Path(f"{os.path.abspath(output)}.shards")


def embedded(
    model: Embedder, options: Namespace, device: torch.device, table: pd.DataFrame
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Features of the images, batch by batch; at the end, what ``--skip-unreadable`` left out, on stderr."""
    from rga_reid.inference import stream_features

    refused: list[ImageError] = []
    takes = refused if options.skip_unreadable else None
    yield from stream_features(model, table, options.batch_size, device, refused=takes)
    if refused:
        print(f"left out {len(refused):,} unreadable images:", file=sys.stderr)
    for error in refused:
        print(f"  {sanitize(str(error))}", file=sys.stderr)


FILES = (
    "The files are .npz with the arrays features (n, d) and pids (n,), optionally camids and paths; or .npy "
    "with the features alone, beside a .csv of the same name with the columns pid, optionally camid and path."
)


def add_feature_files(command: ArgumentParser) -> None:
    """The options ``--query`` and ``--gallery``."""
    command.add_argument("--query", metavar="Q.npz", required=True, help="features of the queries")
    command.add_argument("--gallery", metavar="G.npz", required=True, help="features of the gallery")


def files_beside(options: Namespace, *keys: str) -> dict[str, list[str]]:
    """The files of labels that are read beside features in ``.npy`` files, by the option that names those."""
    named = {f"--{key}": options[key] for key in keys if options[key] is not None}
    return {option: [f"{file[:-4]}.csv"] for option, file in named.items() if file.endswith(".npy")}


def check_device(name: str) -> None:
    """Refuse what ``--device`` names if it cannot rank.

    Raises:
        InputError: an unknown device, or one that is not there.
    """
    from rga_reid.devices import EXACT_TYPES, choose_device

    try:
        choose_device(name, types=EXACT_TYPES)
    except InputError as error:  # it begins with the word device
        raise InputError(f"--{error}") from None


@contextmanager
def re_ranking_explained() -> Iterator[None]:
    """What ``--rerank`` needs, told of the option: its k1 and k2 are none of the command's."""
    from rga_reid.evaluation.rerank import TooFewItemsError

    try:
        yield
    except TooFewItemsError as error:
        raise InputError(
            f"--rerank: expected at least {error.least} query and gallery images together, found "
            f"{error.items}; leave it out"
        ) from None


def read_sides(query: str, gallery: str) -> dict[str, Any]:
    """Both files, as keywords of ``evaluate_ranking`` and of the other functions that take labelled features.

    Raises:
        InputError: not such a file, no identities, or cameras in one of the files only.
    """
    for side, path in (("query", query), ("gallery", gallery)):
        if not path:
            raise InputError(f"--{side}: expected a file of features, got an empty name")
    sides = {"query": _read(query), "gallery": _read(gallery)}
    has_cameras = ["camid" in table for _, table in sides.values()]
    if len(set(has_cameras)) > 1:
        given, missing = (query, gallery) if has_cameras[0] else (gallery, query)
        _, name = _label(missing, "camid")
        raise InputError(f"{missing}: has no {name}, but {given} has; both need it, or neither")
    inputs: dict[str, Any] = {}
    for side, (features, table) in sides.items():
        inputs[f"{side}_features"] = features
        for column in ("pid", "camid", "path"):
            inputs[f"{side}_{column}s"] = table.get(column)
    return inputs


def _read(path: str) -> tuple[np.ndarray, pd.DataFrame]:
    from rga_reid.inference.feature_files import read_features

    features, table = read_features(path)
    if "pid" not in table:
        label = " ".join(_label(path, "pid"))
        raise InputError(f"{path}: expected {label}, the identity of each row of 'features'")
    return features, table


def _label(path: str, column: str) -> tuple[str, str]:
    """What a label is called in a file of this kind: the article and the name."""
    if Path(path).suffix == ".npy":
        return "a", f"column '{column}' in its CSV file"
    return "an", f"array '{column}s'"


def add_threshold_options(command: ArgumentParser, meaning: str) -> None:
    """``--threshold`` and ``--calibration``; ``meaning`` is the help of the first."""
    command.add_argument("--threshold", metavar="S", type=float, help=meaning)
    command.add_argument(
        "--calibration", metavar="FILE", help="or the JSON of calibrate, which has the threshold"
    )


def check_threshold(options: Namespace) -> None:
    """Refuse both options together, and a threshold that is no cosine; before anything heavy is imported."""
    if options.threshold is not None and options.calibration is not None:
        raise InputError("--threshold, --calibration: expected one of them, found both")
    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise InputError(f"--threshold: expected a cosine from -1 to 1, got {options.threshold}")


def threshold_of(options: Namespace) -> float | None:
    """The threshold that the options name; None if they name none.

    Raises:
        InputError: the calibration cannot be read.
    """
    if options.calibration is None:
        return options.threshold
    from rga_reid.inference.verify import read_threshold

    return read_threshold(options.calibration)
