"""Checks of single values, so that each refusal is worded in one place."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from rga_reid.errors import InputError, quoted

MOST_SEED = 2**32 - 1  #: of random numbers: NumPy takes no larger one, and no negative


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
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
        raise InputError(f"{name}: expected a whole number {wanted}, got {quoted(value)}")
    return number


def one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is not among the known ones.

    Raises:
        InputError: naming all of them.
    """
    if value not in known:
        raise InputError(f"{name}: expected {' or '.join(map(str, known))}, got {quoted(value)}")
