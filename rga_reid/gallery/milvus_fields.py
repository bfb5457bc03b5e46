"""Columns of a gallery as fields of a Milvus collection, and filters as Milvus expressions.

A column ``camera`` is the field ``camera`` and the field ``camera_known``, false where it is null: so no version of
Milvus needs fields that may be null. Columns of users have the prefix ``c_``. Times are microseconds since 1970 in UTC.
Galleries of rga-reid 1.0 have the fields ``path``, and ``pid`` and ``camid``, which may be null.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.data.columns import RESERVED, TYPES, Schema
from rga_reid.errors import InputError
from rga_reid.gallery.filters import ANY, ID, ONE, Column, Filter, Value, like_text

MAX_TEXT = 65_535  #: bytes of a text
#: Milvus types, and the values that stand for null, by type of column
FIELD_TYPES = {
    "string": ("VARCHAR", ""),
    "integer": ("INT64", 0),
    "timestamp": ("INT64", 0),
    "float": ("DOUBLE", 0.0),
    "boolean": ("BOOL", False),
}
NULLS, PATTERNS = (
    (2, 5),
    (2, 4),
)  #: first versions with fields that may be null, and with any pattern of ``like``
_ALL, _NONE = "id >= 0", "id < 0"
_FIELD = "\n"  # stands for a field in an expression; in literals a newline is escaped
_OPPOSITE = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


class UnsupportedFilterError(Exception):
    """A filter that this version of Milvus cannot evaluate."""


@dataclass(frozen=True)
class Fields:
    """The fields of a collection of images.

    Args:
        columns: columns of the gallery and their types.
        nullable: the collection is of rga-reid 1.0.
        version: version of the server; None for the newest.
    """

    columns: Schema
    nullable: bool = False
    version: tuple[int, ...] | None = None

    def name(self, column: str) -> str | None:
        """Return the field of a column; None if it is null in all rows."""
        if column == ID:
            return ID
        if self.nullable:
            return {"path": "path", "pid": "pid", "camera": "camid"}.get(column)
        if self.columns.get(column, "null") == "null":
            return None
        if column in RESERVED:
            return column
        return f"c_{column}" if re.fullmatch(r"[A-Za-z0-9_]{1,200}", column) else f"c_{column.encode().hex()}"

    def known(self, column: str) -> Expression:
        """Return the condition that a column is not null."""
        name = self.name(column)
        if name is None:
            return Expression(_NONE, _ALL)
        if column in ("path", ID):
            return Expression(_ALL, _NONE)
        if self.nullable:
            self.require(NULLS)
            return Expression(f"{name} is not null", f"{name} is null")
        return Expression(f"{name}_known == true", f"{name}_known == false")

    def require(self, version: tuple[int, ...]) -> None:
        """Raise ``UnsupportedFilterError`` if the server is older than a version."""
        if self.version is not None and self.version < version:
            raise UnsupportedFilterError

    @property
    def names(self) -> list[str]:
        """Fields to read for a table."""
        found = [name for column in self.columns if (name := self.name(column)) is not None]
        return found if self.nullable else [*found, *(f"{name}_known" for name in found if name != "path")]

    def types(self) -> list[tuple[str, str]]:
        """Return name and Milvus type of each field of a new collection."""
        fields = []
        for column, kind in self.columns.items():
            name = self.name(column)
            if name is not None:
                fields.append((name, FIELD_TYPES[kind][0]))
            if name is not None and column != "path":
                fields.append((f"{name}_known", "BOOL"))
        return fields

    def records(self, table: pd.DataFrame) -> list[dict[str, Any]]:
        """Return the rows of a table as Milvus stores them.

        Raises:
            InputError: a text is too long.
        """
        values: dict[str, list[Any]] = {}
        for column, kind in self.columns.items():
            name = self.name(column)
            if name is None:
                continue
            known = table[column].notna().to_numpy(bool)
            plain = table[column]
            if kind == "timestamp":
                plain = plain.dt.tz_localize(None).astype("int64")
            empty = FIELD_TYPES[kind][1]
            values[name] = [
                value if here else empty for value, here in zip(plain.tolist(), known.tolist(), strict=True)
            ]
            if kind == "string":
                _check_length(column, values[name])
            if column != "path":
                values[f"{name}_known"] = known.tolist()
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def table(self, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Return the table of some rows of Milvus."""
        rows = list(rows)
        columns: dict[str, Any] = {}
        for column, kind in self.columns.items():
            name = self.name(column)
            if name is None:
                values = [None] * len(rows)
            elif self.nullable or column == "path":
                values = [row.get(name) for row in rows]
            else:
                values = [row[name] if row[f"{name}_known"] else None for row in rows]
            if kind == "timestamp":  # microseconds, without a detour over floating-point numbers
                known = np.array([value is not None for value in values], dtype=bool)
                micros = np.array([value or 0 for value in values], dtype="int64").view("datetime64[us]")
                columns[column] = pd.Series(micros).where(pd.Series(known, dtype=bool)).dt.tz_localize("UTC")
            else:
                columns[column] = pd.array(values, dtype="str" if column == "path" else TYPES[kind])
        return pd.DataFrame(columns)

    def expression(self, where: Filter | None) -> str:
        """Return a filter as Milvus reads it; an empty string keeps all rows.

        Raises:
            UnsupportedFilterError: this version of Milvus cannot evaluate it.
        """
        return "" if where is None else where.build(_MilvusBackend(self)).true


def _check_length(column: str, texts: Sequence[str]) -> None:
    for text in texts:
        if len(text.encode()) > MAX_TEXT:
            raise InputError(
                f"{text[:100]}...: Milvus accepts texts (column {column}) of at most {MAX_TEXT:,} bytes"
            )


@dataclass(frozen=True)
class Expression:
    """A condition in three-valued logic, unknown where neither expression holds."""

    true: str
    false: str

    def __and__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} and {other.true})", f"({self.false} or {other.false})")

    def __or__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} or {other.true})", f"({self.false} and {other.false})")

    def __invert__(self) -> Expression:
        return Expression(self.false, self.true)


class _MilvusBackend:
    """States filters as expressions of Milvus."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def known(self, column: Column) -> Expression:
        return self._fields.known(column.name)

    def equal(self, column: Column, value: Value) -> Expression:
        return self._where_known(column, f"{_FIELD} == {literal(value)}", f"{_FIELD} != {literal(value)}")

    def ordered(self, column: Column, sign: str, value: Value) -> Expression:
        text = literal(value)
        return self._where_known(column, f"{_FIELD} {sign} {text}", f"{_FIELD} {_OPPOSITE[sign]} {text}")

    def one_of(self, column: Column, values: Sequence[Value]) -> Expression:
        if not values:
            return self._where_known(column, _NONE, _ALL)
        return self._where_known(
            column, f"{_FIELD} in {literal(values)}", f"{_FIELD} not in {literal(values)}"
        )

    def like(self, column: Column, pattern: Sequence[Any]) -> Expression:
        if not _is_prefix(pattern):
            self._fields.require(PATTERNS)
        found = _like(pattern)
        return self._where_known(column, found, f"not ({found})")

    def _where_known(self, column: Column, true: str, false: str) -> Expression:
        """Return a condition on a field; ``_FIELD`` in the expressions is replaced by its name."""
        name = self._fields.name(column.name)
        if name is None:
            return Expression(_NONE, _NONE)
        known = self._fields.known(column.name).true
        return Expression(
            f"({known} and {true.replace(_FIELD, name)})", f"({known} and {false.replace(_FIELD, name)})"
        )


def _is_prefix(pattern: Sequence[Any]) -> bool:
    """Return whether a pattern is a text, or its beginning."""
    texts = pattern[:-1] if pattern and pattern[-1] is ANY else pattern
    plain = all(isinstance(part, str) and not re.search(r"[\\\\%_]", part) for part in texts)
    return (plain and len(texts) <= 1) or not any(part is ANY or part is ONE for part in pattern)


def _like(pattern: Sequence[Any]) -> str:
    """Return the expression for a pattern; ``_FIELD`` stands for the field."""
    if pattern == [ANY]:
        return _ALL
    if not any(part is ANY or part is ONE for part in pattern):
        return f"{_FIELD} == {literal(''.join(pattern))}"
    texts = [part for part in pattern if isinstance(part, str)]
    if len(texts) == 1 and "\\" in texts[0] and ONE not in pattern:
        # Milvus Lite reads backslashes as escapes only if the pattern has a `_` or a `%` inside
        (text,) = texts
        choices = [f"{_FIELD} == {literal(text)}"]
        if pattern[-1] is ANY:
            choices.append(f"{_FIELD} like {literal(like_text([*pattern[:-1], ONE, ANY]))}")
        if pattern[0] is ANY:
            last = pattern[1:-1] if pattern[-1] is ANY else pattern[1:]
            choices.append(f"{_FIELD} like {literal(like_text([ANY, ONE, *last]))}")
        return f"({' or '.join(choices)})"
    return f"{_FIELD} like {literal(like_text(pattern))}"


def literal(value: Value | Sequence[Value]) -> str:
    """Return a value, or a list of values, as Milvus writes it. Milvus knows few escapes, and needs no others."""
    if isinstance(value, str):
        return f'"{value.translate(_ESCAPES)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return str((value - _EPOCH) // (_EPOCH.resolution))
    if isinstance(value, int | float):
        return repr(value)
    return f"[{', '.join(map(literal, value))}]"
