"""The one exception that a user can mend, and the hint that such messages end with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a file, an option or an array that the user can put right.

    The message is one line. It names the file or option, says what was expected and what was found.
    The command line prints it without a traceback and exits with code 2.
    """


def printable(text: str) -> str:
    """Text from a file, or a file's name, without characters that would steer the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def quoted(value: object, most: int = 60) -> str:
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
