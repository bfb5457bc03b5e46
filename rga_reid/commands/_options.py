"""Options shared by commands: parsers, groups of options, and checks of their values before any work."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from rga_reid.commands._milvus import locate_galleries
from rga_reid.errors import InputError, check_int, did_you_mean, short_repr
from rga_reid.inputs import is_class_path, truncate
from rga_reid.reports.language import LANGUAGES
from rga_reid.runtime import import_modules

LOCATION = (
    "gallery: a folder, FILE.db or milvus://HOST:PORT/COLLECTION in Milvus, or MODULE.CLASS:NAME of your own store "
    "class"
)
#: addition to the help of ``--checkpoint`` of commands that open a gallery
OWN_MODEL = (
    " (default: that of the gallery; needed if its file has moved, or if the gallery was built from features)"
)
FEATURE_FILES = (
    "Feature files are .npz with the arrays features (n, d) and pids (n,), optionally camids and paths; or "
    ".npy with the features, next to a .csv of the same name with the columns pid, optionally camid and path."
)

# Messages of jsonargparse about a value of the wrong type: one accepted type, or several.
_KEY = re.compile(r'Parser key "([\w.]+)"(?: element \d+)?: ')
_EXPECTED_TYPES = (
    re.compile(r"Expected a (<class '\w+'>)\. Got value: "),
    re.compile(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: "
    ),
)
# The same for an argument of a class given by --option.class_path, where the option may also be null.
_CLASS_ARGUMENT = re.compile(
    r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes .*? Errors: '
    r"- Problem with given class_path '[\w.]+': (?:Parser key \"\w+\": )?(.*) "
    r"- Expected a <class 'NoneType'> Given value type: <class '[\w.]+NestedArg'> "
    r"Given value: NestedArg\(key='([\w.]+)', val=.*\)"
)
# A class without one of its required arguments.
_MISSING_ARGUMENT = re.compile(
    r'Parser key "([\w.]+)": Does not validate against any of the Union subtypes .*? '
    r"- Problem with given class_path '([\w.]+)': the following arguments are required: ([\w, ]+?) - .*"
)
_MAX_SEARCHED = 5000  # characters; the pattern above is slow on a value that repeats its words
_REQUIRED = re.compile(r"the following arguments are required: (\w[\w.]*(?:, \w[\w.]*)*)")


# ---------- parsers ----------


class HelpFormatter(DefaultHelpFormatter):
    """Add types and defaults to help texts, except where the text or the choices already show them."""

    def _get_help_string(self, action: Action) -> str:
        own, text = action.help or "", super()._get_help_string(action)
        if not text.startswith(own):
            return text
        added = text[len(own) :]
        if action.choices is not None:
            added = added.replace("type: %(type)s", "")
        if "default" in own.lower() or action.default in (None, []):
            added = added.replace("default: %(default)s", "")
        while ", , " in added:
            added = added.replace(", , ", ", ")
        return own + added.replace(", )", ")").replace("(, ", "(").replace(" ()", "")


def add_lang_option(parser: ArgumentParser) -> None:
    """Add ``--lang``."""
    parser.add_argument(
        "--lang", choices=LANGUAGES, help="language in which the page opens (default: that of the browser)"
    )


def add_import_option(parser: ArgumentParser) -> None:
    """Add ``--import``. ``parse`` imports the modules before it reads the other options, which may name classes."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="import this module of yours first, from the current folder or an installed package; may be repeated",
    )


def _find_imports(words: Sequence[str]) -> Iterator[str]:
    """Yield the values of ``--import``."""
    for word, following in zip_longest(words, words[1:]):
        option, equals, value = word.partition("=")
        if option == "--import" and (equals or following is not None):
            yield value if equals else str(following)


def new_parser(
    name: str, description: str, kind: type[ArgumentParser] = ArgumentParser, **settings: Any
) -> ArgumentParser:
    """Return a jsonargparse parser, of the class ``kind``, that raises instead of printing its usage and exiting."""
    return kind(
        prog=f"rga-reid {name}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        **settings,
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace | None:
    """Import the modules that ``--import`` names, then parse ``words``; return None after ``--help``.

    Raises:
        InputError: a wrong option. The one-line message names it, and the nearest known option if there is one.
            Or a module that cannot be imported.
    """
    if "--import" in _list_options(parser):
        import_modules(_find_imports(words))
    try:
        options = parser.parse_args(list(words))
        locate_galleries(options)
        return options
    except SystemExit as exit_:  # argparse exits after --help and on its own errors
        if exit_.code in (0, None):
            return None
        raise InputError(f"{parser.prog}: wrong options; see {parser.prog} --help") from None
    except InputError:
        raise
    except Exception as error:  # types may raise anything for a value read as YAML
        raise InputError(f"{parser.prog}: {truncate(_rephrase(parser, str(error)))}") from None


def _rephrase(parser: ArgumentParser, message: str) -> str:
    """Put the parser's message on one line, in terms of options; suggest the nearest for an unknown one."""
    known = _list_options(parser)
    original = line = " ".join(message.split())
    if len(line) < _MAX_SEARCHED:
        line = _MISSING_ARGUMENT.sub(r'Parser key "\1": \2: expected \3 as well', line)
        line = _CLASS_ARGUMENT.sub(lambda found: f'Parser key "{found[1]}.{found[3]}": {found[2]}', line)
    line = _KEY.sub(lambda key: f"{_option_of_key(key[1], known)}: ", line)
    line = _REQUIRED.sub(lambda found: _name_required(parser, found[1].split(", ")), line)
    for pattern in _EXPECTED_TYPES:
        line = pattern.sub(lambda found: f"expected {_type_names(found[1])}, got ", line)
    for word in original.split():
        name = word.split("=")[0].rstrip(",:")
        if word.startswith("--") and name not in known and (hint := did_you_mean(name, known)):
            return line + hint
    return line


def _list_options(parser: Any) -> list[str]:
    """All options of a parser and of its subcommands."""
    options = []
    for action in parser._actions:
        options += action.option_strings
        if isinstance(action.choices, dict):  # subcommands by name
            options += [option for inner in action.choices.values() for option in _list_options(inner)]
    return options


def _name_required(parser: Any, keys: Sequence[str]) -> str:
    """Say which arguments are required, named as in the help: ``convert: IN, --out are required``."""
    command = keys[0].partition(".")[0]
    commands: dict[str, Any] = {}
    for action in parser._actions:
        commands |= action.choices if isinstance(action.choices, dict) else {}
    if command in commands:
        keys = [key.removeprefix(f"{command}.") for key in keys]
        return f"{command}: {_name_required(commands[command], keys)}"
    positional = {one.dest: one.metavar or one.dest for one in parser._actions if not one.option_strings}
    names = [positional.get(key, f"--{key.replace('_', '-')}") for key in keys]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} required"


def _option_of_key(key: str, known: Sequence[str]) -> str:
    dashed = f"--{key.replace('_', '-')}"
    return dashed if dashed in known else f"--{key}"


def _type_names(classes: str) -> str:
    """``<class 'a.B'>, list[a.C], <class 'NoneType'>`` as ``B or list[C] or None``."""
    names = re.sub(r"(?:\w+\.)+(\w+)", r"\1", re.sub(r"<class '(.+?)'>", r"\1", classes))
    return " or ".join(re.split(r", (?![^\[]*\])", names.replace("NoneType", "None")))


# ---------- device and images ----------


def add_device_option(parser: ArgumentParser) -> None:
    """Add ``--device``, the argument of ``choose_device``."""
    parser.add_argument("--device", help="device of the model, such as cpu (default: cuda if there is one)")


def check_device(name: str) -> None:
    """Check ``--device`` of a command that ranks.

    Raises:
        InputError: the device is unknown, missing or not precise enough.
    """
    from rga_reid.devices import EXACT_TYPES, choose_device

    try:
        choose_device(name, types=EXACT_TYPES)
    except InputError as error:  # the message begins with "device"
        raise InputError(f"--{error}") from None


def check_images(option: str, *images: str) -> None:
    """Check that image files exist, before a model is loaded.

    Raises:
        InputError: a folder or a missing file, with the option's name.
    """
    for image in images:
        if Path(image).is_dir():
            raise InputError(f"{option} {image}: expected an image file, found a folder")
        if not Path(image).is_file():
            raise InputError(f"{option} {image}: no such image file")


# ---------- model that embeds images ----------


def add_checkpoint_options(parser: ArgumentParser, meaning: str = "", *, required: bool = False) -> None:
    """Add ``--checkpoint``, and the preprocessing of ONNX files whose metadata do not describe it.

    Args:
        parser: parser of the command.
        meaning: added to the help of ``--checkpoint``.
        required: whether the command needs it.
    """
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        required=required,
        help=f"model: .ckpt, .safetensors, .onnx, or the class path of your own embedder{meaning}",
    )
    parser.add_argument(
        "--input-size", metavar="HxW", help="ONNX: size of the input in pixels, such as 256x128"
    )
    for name, meaning in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}",
            metavar=("R", "G", "B"),
            nargs=3,
            type=float,
            help=f"ONNX: {meaning} of the channels on the scale 0 to 1, for a float input (default: ImageNet's)",
        )
    parser.add_argument(
        "--float-input", action="store_true", help="ONNX: the input is float, normalised with mean and std"
    )


def add_engine_option(parser: ArgumentParser) -> None:
    """Add ``--engine``."""
    parser.add_argument(
        "--engine",
        choices=("torch", "onnx", "openvino", "auto"),
        help="what runs the model: PyTorch, onnxruntime, OpenVINO, or the fastest of them in a short measurement "
        "(default: torch, or onnx for an .onnx file)",
    )


def add_same_features_option(parser: ArgumentParser) -> None:
    """Add ``--same-features``."""
    parser.add_argument(
        "--same-features",
        action="store_true",
        help="skip the check that the features come from the model of the gallery",
    )


def add_skip_option(parser: ArgumentParser) -> None:
    """Add ``--skip-unreadable``."""
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out unreadable image files, and list them"
    )


def add_pooling_option(parser: ArgumentParser, meaning: str) -> None:
    """Add ``--pool-tracks``; ``meaning`` says what follows from it."""
    parser.add_argument(
        "--pool-tracks",
        choices=("mean", "attention"),
        help=f"{meaning} instead of images: one feature per track (column track), as the mean of its images, or as "
        "a mean weighted by their similarity to that mean (attention)",
    )


# ---------- sources of a gallery ----------


def add_image_options(parser: ArgumentParser) -> None:
    """Add the options that name images: a folder, a table or a data set."""
    parser.add_argument("--images", metavar="DIR", help="folder of images, searched with its subfolders")
    add_pattern_option(parser)
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="instead of --images: table of images, .csv or .parquet, with a column path and any other columns",
    )
    parser.add_argument(
        "--images-root",
        metavar="DIR",
        help="with --table: folder that its paths are relative to (default: the folder of the table)",
    )
    add_timezone_option(parser)
    parser.add_argument(
        "--data.root", metavar="DIR", help="instead of --images: folder of a data set, or its CSV file"
    )
    add_dataset_option(parser)


def add_dataset_option(parser: ArgumentParser) -> None:
    """Add ``--data.dataset``."""
    parser.add_argument(
        "--data.dataset",
        metavar="CARD",
        default="market1501",
        help="card of the data set; viper:3 is its random split 3",
    )


def add_source_options(parser: ArgumentParser, checkpoint: str) -> None:
    """Add the options that name images, or features computed elsewhere; ``checkpoint`` says what that is for."""
    add_image_options(parser)
    parser.add_argument("--preview", action="store_true", help="print the first ten rows, and write nothing")
    parser.add_argument("--features", metavar="FILE.npz", help="instead of --images: feature file with paths")
    add_checkpoint_options(parser, checkpoint)
    add_engine_option(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    add_device_option(parser)
    add_skip_option(parser)


def add_pattern_option(parser: ArgumentParser) -> None:
    """Add ``--pattern``."""
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help="with --images: regular expression whose named groups are columns, such as "
        "'(?P<camera>cam\\d+)/(?P<time>\\d{8}T\\d{6})_trk(?P<track>\\d+)'; searched in the path relative to the "
        "folder",
    )


def add_timezone_option(parser: ArgumentParser) -> None:
    """Add ``--timezone``."""
    parser.add_argument(
        "--timezone",
        metavar="NAME",
        help="time zone of times without one, such as Europe/Berlin (default: such times are an error)",
    )


def check_source(options: Namespace, command: str) -> None:
    """Check the source options, before anything slow is imported.

    Raises:
        InputError: not exactly one source, an option of another source, a checkpoint for features, or a checkpoint
            that does not exist.
    """
    features = options.get("features")
    sources = (options.images, options.table, options.data.root, features)
    if sum(source is not None for source in sources) != 1:
        names = ["--images DIR", "--table FILE", "--data.root DIR", "--features FILE.npz"]
        names = names if "features" in options else names[:-1]
        raise InputError(f"{command}: expected one of {', '.join(names[:-1])} and {names[-1]}")
    if options.pattern is not None and options.images is None:
        raise InputError(f"{command}: --pattern is for --images")
    if options.images_root is not None and options.table is None:
        raise InputError(f"{command}: --images-root is for --table")
    if options.timezone is not None and options.table is None and options.pattern is None:
        raise InputError(f"{command}: --timezone is for --table and --pattern")
    if options.timezone is not None:
        from rga_reid.data.columns import find_zone

        find_zone(options.timezone)
    if features is not None and options.checkpoint is not None:
        raise InputError(f"{command}: --checkpoint is for images, but --features was given")
    check_int("--batch-size", options.batch_size)
    check_embedder(options)


def check_checkpoint(path: str | None) -> None:
    """Check that ``--checkpoint``, if given, is a file or the class path of an embedder."""
    if path is not None and not Path(path).is_file() and not is_class_path(path):
        raise InputError(f"--checkpoint {path}: no such file")


def add_wait_option(parser: ArgumentParser) -> None:
    """Add ``--wait``."""
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="how long to wait for another program that is changing the gallery",
    )


def check_wait(options: Namespace) -> None:
    """Check ``--wait``, if the command has it."""
    if "wait" in options and not 0 <= options.wait < float("inf"):
        raise InputError(f"--wait: expected seconds of at least 0, got {options.wait}")


def check_embedder(options: Namespace) -> None:
    """Check ``--checkpoint``, if given, and ``--input-size``, before anything slow is imported."""
    check_checkpoint(options.checkpoint)
    parse_size(options.input_size)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return (H, W) of ``--input-size``.

    Raises:
        InputError: not of the form ``256x128``.
    """
    if text is None:
        return None
    parts = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,4})", text.strip().lower())
    if parts is None:
        raise InputError(
            f"--input-size: expected height and width in pixels, such as 256x128, got {short_repr(text)}"
        )
    return int(parts[1]), int(parts[2])


# ---------- labelled feature files ----------


def add_feature_files(parser: ArgumentParser) -> None:
    """Add ``--query`` and ``--gallery``."""
    parser.add_argument("--query", metavar="Q.npz", required=True, help="features of the queries")
    parser.add_argument("--gallery", metavar="G.npz", required=True, help="features of the gallery")


def label_files(options: Namespace, *keys: str) -> dict[str, list[str]]:
    """Return, by option, the CSV files that hold the labels of ``.npy`` feature files."""
    named = {f"--{key}": options[key] for key in keys if options[key] is not None}
    return {option: [f"{file[:-4]}.csv"] for option, file in named.items() if file.endswith(".npy")}


@contextmanager
def rename_rerank_error() -> Iterator[None]:
    """Make an error about too few items for re-ranking name ``--rerank``, not k1 and k2."""
    from rga_reid.evaluation.rerank import TooFewItemsError

    try:
        yield
    except TooFewItemsError as error:
        raise InputError(
            f"--rerank: expected at least {error.least} query and gallery images together, found "
            f"{error.items}; leave out --rerank"
        ) from None


# ---------- thresholds ----------


def add_threshold_options(parser: ArgumentParser, meaning: str) -> None:
    """Add ``--threshold``, with ``meaning`` as its help, and ``--calibration``."""
    parser.add_argument("--threshold", metavar="S", type=float, help=meaning)
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="instead of --threshold: JSON file of calibrate, which contains it",
    )


def check_threshold(options: Namespace) -> None:
    """Check the threshold options, before anything slow is imported.

    Raises:
        InputError: both options, or a threshold that is not a cosine.
    """
    if options.threshold is not None and options.calibration is not None:
        raise InputError("--threshold, --calibration: expected one of them, found both")
    if options.threshold is not None and not -1 <= options.threshold <= 1:
        raise InputError(f"--threshold: expected a cosine from -1 to 1, got {options.threshold}")
