"""Random filters, each with a function that decides about a row by the definition of three-valued logic."""

from __future__ import annotations

import operator
from collections.abc import Callable
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
LABELS = [None, -1, 0, 1, 2, 2**60 + 1]
ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}
ORDERS["!="] = operator.ne


def table_of(rows: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame({"path": pd.Series([row["path"] for row in rows], dtype="str")})
    for column in ("pid", "camid"):
        table[column] = pd.array([row[column] for row in rows], dtype="Int64")
    return table


#: every path with every kind of label
ROWS = [
    {"path": path, "pid": LABELS[number % 6], "camid": LABELS[(number // 6 + number) % 5]}
    for number, path in enumerate(PATHS * 4)
]


def is_known(column: str, known: bool) -> Case:
    return f"{column} is {'not ' if known else ''}None", lambda row: (row[column] is not None) == known


def ordered(column: str, sign: str, value: int, mirrored: bool) -> Case:
    mirror = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign)
    text = f"{value} {mirror} {column}" if mirrored else f"{column} {sign} {value}"
    return text, lambda row: None if row[column] is None else ORDERS[sign](row[column], value)


def chained(column: str, low: int, high: int) -> Case:
    return (
        f"{low} <= {column} < {high}",
        lambda row: None if row[column] is None else low <= row[column] < high,
    )


def listed(column: str, values: list[Any], negative: bool) -> Case:
    text = f"{column} {'not ' if negative else ''}in {values!r}"
    return text, lambda row: None if row[column] is None else (row[column] in values) != negative


def contains(part: str, negative: bool) -> Case:
    return f"{part!r} {'not ' if negative else ''}in path", lambda row: (part in row["path"]) != negative


def equals(path: str, negative: bool) -> Case:
    return f"path {'!=' if negative else '=='} {path!r}", lambda row: (row["path"] == path) != negative


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


COLUMNS, NUMBERS = (
    st.sampled_from(["pid", "camid"]),
    st.sampled_from([label for label in LABELS if label is not None]),
)
LEAVES = st.one_of(
    st.builds(is_known, st.sampled_from(["pid", "camid", "path"]), st.booleans()),
    st.builds(ordered, COLUMNS, st.sampled_from(list(ORDERS)), NUMBERS, st.booleans()),
    st.builds(chained, COLUMNS, NUMBERS, NUMBERS),
    st.builds(listed, COLUMNS, st.lists(NUMBERS, max_size=3), st.booleans()),
    st.builds(listed, st.just("path"), st.lists(st.sampled_from(PATHS), max_size=3), st.booleans()),
    st.builds(contains, st.sampled_from(PARTS), st.booleans()),
    st.builds(equals, st.sampled_from(PATHS), st.booleans()),
)
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
