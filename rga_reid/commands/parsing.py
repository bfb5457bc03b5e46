"""Option parsing shared by the commands: one clear line for a wrong option, never a page of usage."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from rga_reid.errors import InputError, did_you_mean
from rga_reid.inputs import shortened

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
        raise InputError(f"{parser.prog}: {shortened(_one_line(parser, str(error)))}") from None


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
