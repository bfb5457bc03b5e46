"""The one exception that a user can mend, and the hint that such messages end with."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """Bad input: a file, an option or an array that the user can put right.

    The message is one line. It names the file or option, says what was expected and what was found.
    The command line prints it without a traceback and exits with code 2.
    """


def sanitize(text: str) -> str:
    """Text from a file, or a file's name, without characters that would steer the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def short_repr(value: object, most: int = 60) -> str:
    """A value from a file as a message shows it: as Python writes it, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python writes; too deep a nesting
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ``; did you mean NEAREST?``, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


MAX_SEED = 2**32 - 1  #: of random numbers: NumPy takes no larger one, and no negative


def check_int(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number in a range, as an ``int``; NumPy's and torch's are whole numbers too.

    Args:
        name: what an error message calls it.
        value: to be checked.
        least, most: the smallest and the largest that will do.

    Raises:
        InputError: it is smaller or larger, or no whole number (true and false are none).
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}: expected a whole number {wanted}, got {short_repr(value)}")
    return number


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        InputError: naming all of them.
    """
    if value not in known:
        raise InputError(f"{name}: expected {' or '.join(map(str, known))}, got {short_repr(value)}")
