"""The error for bad input, checks of single values, and helpers for its one-line messages."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """Bad input that the user can correct: a file, an option or an array.

    The message is one line that names the file or option, what was expected and what was found.
    The command line prints it without a traceback and exits with code 2.
    """


class UnavailableError(InputError):
    """Bad luck rather than bad input: a full disk, a server that does not answer, another program that is writing."""


def sanitize(text: str) -> str:
    """Replace the characters of a text that would control the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def short_repr(value: object, most: int = 60) -> str:
    """Return the ``repr`` of a value, cut to ``most`` characters; of bytes, which may be a picture, their number."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value):,} bytes"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with too many digits, or deep nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``; did you mean NEAREST?`` for an unknown name, or an empty text if no known name is close."""
    near = difflib.get_close_matches(name, list(known), n=most)
    return f"; did you mean {' or '.join(near)}?" if near else ""


MAX_SEED = 2**32 - 1  #: largest random seed that NumPy accepts


def check_int(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return an integer within a range as an ``int``; integers of NumPy and torch are accepted.

    Args:
        name: name of the value in the error message.
        value: value to check.
        least, most: smallest and largest accepted value.

    Raises:
        InputError: not an integer (booleans are not), or outside the range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        expected = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}: expected a whole number {expected}, got {short_repr(value)}")
    return number


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Check that a value is one of the known ones.

    Raises:
        InputError: it is not; the message lists the known values.
    """
    if value not in known:
        raise InputError(f"{name}: expected {' or '.join(map(str, known))}, got {short_repr(value)}")
