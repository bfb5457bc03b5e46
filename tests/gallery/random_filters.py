"""Random filters, each with a function that decides about a row by the definition of three-valued logic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
from hypothesis import strategies as st

Row = dict[str, Any]
Truth = bool | None
Case = tuple[str, Callable[[Row], Truth]]

PATHS = [
    "",
    "a\\b.jpg",
    "a\bb",
    "b\\",
    "\\",
    "a\\\\n",
    "50%",
    "5_0%",
    "q\"'q",
    "l\nl",
    "t\tt",
    "ü/🙂.jpg",
    "A",
    "an",
    "\x7f",
]
PARTS = [
    "",
    "a",
    "b",
    "\\",
    "\\b",
    "\b",
    "\\\\",
    "\\n",
    "n",
    "%",
    "_",
    "0%",
    '"',
    "'",
    "\n",
    "\t",
    "🙂",
    "ü/",
    "x",
]
NOW = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
#: values of the columns, null among them
VALUES: dict[str, list[Any]] = {
    "pid": [None, -1, 0, 1, 2, 2**60 + 1],
    "camera": [None, "cam1", "cam2", "7", "ü"],
    "time": [None, *(NOW - timedelta(minutes=30 * step, microseconds=step) for step in range(5))],
    "track": [None, 1, 2, 3],
    "speed": [None, -0.5, 0.0, 1.5, 2.0, 1e30],
    "night": [None, True, False],
    "full name": [None, *PATHS],
}
SCHEMA = {"path": "string", "pid": "integer", "camera": "string", "time": "timestamp", "track": "integer"}
SCHEMA |= {"speed": "float", "night": "boolean", "full name": "string"}
ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
ORDERS["!="] = operator.ne

#: every path twice, with all values of the columns in turn
ROWS: list[Row] = [
    {"path": path}
    | {
        column: values[(number * (place + 1) + number // 7) % len(values)]
        for place, (column, values) in enumerate(VALUES.items())
    }
    for number, path in enumerate(PATHS * 4)
]


def table_of(rows: list[Row]) -> pd.DataFrame:
    dtypes = {
        "pid": "Int64",
        "track": "Int64",
        "time": "datetime64[us, UTC]",
        "speed": "Float64",
        "night": "boolean",
    }
    return pd.DataFrame(
        {
            column: pd.Series([row[column] for row in rows], dtype=dtypes.get(column, "str"))
            for column in SCHEMA
        }
    )


def named(column: str) -> str:
    return f"`{column}`" if " " in column else {"camera": "camid"}.get(column, column)


def written(value: Any) -> str:
    """A literal of a filter; a time in one of several forms."""
    if isinstance(value, datetime):
        if value.microsecond % 3 == 1:
            return repr(value.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat())
        return repr(value.strftime("%Y-%m-%d %H:%M:%S.%f"))
    return repr(value)


def null_aware(column: str, decide: Callable[[Any], bool]) -> Callable[[Row], Truth]:
    return lambda row: None if row[column] is None else decide(row[column])


def is_known(column: str, known: bool, word: str) -> Case:
    return (
        f"{named(column)} is {'not ' if known else ''}{word}",
        lambda row: (row[column] is not None) == known,
    )


def ordered(column: str, sign: str, value: Any, mirrored: bool) -> Case:
    mirror = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign)
    text = (
        f"{written(value)} {mirror} {named(column)}"
        if mirrored
        else f"{named(column)} {sign} {written(value)}"
    )
    return text, null_aware(column, lambda found: ORDERS[sign](found, value))


def chained(column: str, low: Any, high: Any) -> Case:
    return f"{written(low)} <= {named(column)} < {written(high)}", null_aware(
        column, lambda found: low <= found < high
    )


def between(column: str, low: Any, high: Any, negative: bool) -> Case:
    text = f"{named(column)} {'NOT ' if negative else ''}BETWEEN {written(low)} AND {written(high)}"
    return text, null_aware(column, lambda found: (low <= found <= high) != negative)


def listed(column: str, values: list[Any], negative: bool) -> Case:
    text = f"{named(column)} {'not ' if negative else ''}in [{', '.join(map(written, values))}]"
    return text, null_aware(column, lambda found: (found in values) != negative)


def contains(part: str, negative: bool, column: str = "path") -> Case:
    text = f"{part!r} {'not ' if negative else ''}in {named(column)}"
    return text, null_aware(column, lambda found: (part in found) != negative)


def is_like(text: str, pattern: list[str]) -> bool:
    """Return whether a text matches: ``%`` is any text, ``_`` one character, other parts are literal."""
    if not pattern:
        return text == ""
    first, rest = pattern[0], pattern[1:]
    if first == "%":
        return any(is_like(text[start:], rest) for start in range(len(text) + 1))
    if first == "_":
        return bool(text) and is_like(text[1:], rest)
    literal = first.removeprefix("=")
    return text.startswith(literal) and is_like(text[len(literal) :], rest)


def like(column: str, pattern: list[str], negative: bool) -> Case:
    """The pattern's parts are ``%``, ``_`` and texts after a ``=``, which stand for themselves."""
    parts = [part if part in ("%", "_") else escaped(part.removeprefix("=")) for part in pattern]
    text = f"{named(column)} {'not ' if negative else ''}like {''.join(parts)!r}"
    return text, null_aware(column, lambda found: is_like(found, pattern) != negative)


def escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\%_" else letter for letter in text)


def relative(sign: str, minutes: int) -> Case:
    age = f"{minutes}m" if minutes % 60 else f"{minutes // 60}h"
    return f"time {sign} now - {age}", null_aware(
        "time", lambda found: ORDERS[sign](found, NOW - timedelta(minutes=minutes))
    )


def is_night() -> Case:
    return "night", null_aware("night", bool)


def negated(case: Case) -> Case:
    def decide(row: Row) -> Truth:
        truth = case[1](row)
        return None if truth is None else not truth

    return f"not ({case[0]})", decide


def joined(cases: list[Case], conjunction: bool) -> Case:
    def decide(row: Row) -> Truth:
        truths = [decide(row) for _, decide in cases]
        if (not conjunction) in truths:
            return not conjunction
        return None if None in truths else conjunction

    return (" and " if conjunction else " or ").join(f"({text})" for text, _ in cases), decide


def values_of(column: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(
        PATHS if column == "path" else [value for value in VALUES[column] if value is not None]
    )


def leaves(column: str) -> st.SearchStrategy[Case]:
    name, values = st.just(column), values_of(column)
    found = [st.builds(is_known, name, st.booleans(), st.sampled_from(["None", "NULL", "null"]))]
    found.append(st.builds(listed, name, st.lists(values, max_size=3), st.booleans()))
    if column == "night":
        return st.one_of(*found, st.builds(is_night))
    found.append(st.builds(ordered, name, st.sampled_from(list(ORDERS)), values, st.booleans()))
    found.append(st.builds(chained, name, values, values))
    found.append(st.builds(between, name, values, values, st.booleans()))
    if column == "time":
        found.append(st.builds(relative, st.sampled_from(list(ORDERS)), st.sampled_from([30, 60, 90])))
    if SCHEMA[column] == "string":
        parts = st.sampled_from(["%", "_", *(f"={part}" for part in PARTS if part)])
        found.append(st.builds(contains, st.sampled_from(PARTS), st.booleans(), name))
        found.append(st.builds(like, name, st.lists(parts, max_size=4), st.booleans()))
    return st.one_of(*found)


LEAVES = st.sampled_from(list(SCHEMA)).flatmap(leaves)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(negated, inner) | st.builds(joined, st.lists(inner, min_size=2, max_size=3), st.booleans())
    ),
    max_leaves=6,
)


def kept_rows(case: Case) -> list[int]:
    """Return the numbers of the rows of ``ROWS`` that a filter keeps."""
    return [number for number, row in enumerate(ROWS) if case[1](row) is True]
