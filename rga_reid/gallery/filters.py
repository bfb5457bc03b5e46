"""Filters of gallery rows, such as ``camera == 'hall' and time >= now - 2h``: parsed, never evaluated.

The grammar, keywords in any case:

```
filter     = term {"or" term};  term = factor {"and" factor};  factor = "not" factor | "(" filter ")" | comparison
comparison = value {sign value}                                a chain such as 1 <= pid < 3
           | column ["not"] "in" "(" [literal {"," literal}] ")"
           | column ["not"] "between" literal "and" literal
           | column ["not"] "like" string                      % is any text, _ one character, \\% a percent sign
           | column "is" ["not"] ("null" | "none")
           | string ["not"] "in" column                        the column contains the string
           | column                                            a boolean one
sign       = "==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">="
literal    = number | string | "true" | "false" | "now" [("+" | "-") number unit];  unit = "s" | "m" | "h" | "d" | "w"
```

Strings have single or double quotes and Python's backslash escapes; a column whose name is not a word is written
in backticks. ``id`` is the number of an image. Times are strings in ISO 8601, in UTC unless they name a zone. As in
SQL, a comparison with null is neither true nor false, and a row is kept where the whole filter is true.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import pandas as pd

from rga_reid.data.columns import CAMERA, CAMERA_ALIAS, LABELS, RESERVED, Schema, parse_time, values_of
from rga_reid.errors import InputError, did_you_mean, short_repr

Condition = TypeVar("Condition", covariant=True)
Value = int | float | str | bool | datetime

_MAX_LENGTH = 10_000  # characters of a filter
_MAX_DEPTH = 100  # of nested brackets and negations
_INT64 = np.iinfo(np.int64)

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SYNONYMS = {"=": "==", "<>": "!="}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_OPENING = {"(": ")", "[": "]", "{": "}"}
_NO_COLUMNS = {"and", "or", "not", "in", "is", "between", "like", "true", "false", "now", "null", "none"}
_TOKEN = re.compile(
    r"(?P<space>\s+|\#[^\n]*)"
    r"|(?P<age>[0-9]+(?:\.[0-9]+)?[smhdw]\b)"
    r"|(?P<number>0[xXoObB][0-9a-fA-F_]+|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?!\w)"
    r"|(?P<string>[rRuU]?(?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"))"
    r"|(?P<name>[^\W\d]\w*|`[^`]+`)"
    r"|(?P<sign>==|!=|<>|<=|>=|[=<>+\-(){}\[\],])",
    re.DOTALL,
)

ID = "id"  #: name of the ids of images, which every gallery has beside its columns

ANY, ONE = object(), object()  #: any text, and one character, in a ``like`` pattern


class Column(NamedTuple):
    """A column of a filter."""

    name: str
    type: str  #: of ``rga_reid.data.columns.TYPES``


class PredicateBackend(Protocol[Condition]):
    """Builds the conditions of a vector store; they combine with ``&``, ``|`` and ``~`` in three-valued logic.

    Values have the type of the column: int, float, str, bool, or a datetime in UTC.
    """

    def known(self, column: Column) -> Condition:
        """The column is not null. This condition itself is never unknown."""

    def equal(self, column: Column, value: Value) -> Condition:
        """The column equals a value."""

    def ordered(self, column: Column, sign: str, value: Value) -> Condition:
        """The column is ``<``, ``<=``, ``>`` or ``>=`` a value; text by its code points."""

    def one_of(self, column: Column, values: Sequence[Value]) -> Condition:
        """The column equals one of some values."""

    def like(self, column: Column, pattern: Sequence[Any]) -> Condition:
        """The whole text of the column consists of these parts: strings, ``ANY`` and ``ONE``."""


@dataclass(frozen=True)
class Filter:
    """A condition on the rows of a gallery, parsed and checked.

    Args:
        build: states the condition in terms of a ``PredicateBackend``.
    """

    build: Callable[[PredicateBackend[Any]], Any]

    def __and__(self, other: Filter) -> Filter:
        return Filter(lambda backend: self.build(backend) & other.build(backend))

    def __or__(self, other: Filter) -> Filter:
        return Filter(lambda backend: self.build(backend) | other.build(backend))

    def __invert__(self) -> Filter:
        return Filter(lambda backend: ~self.build(backend))

    def mask(self, table: pd.DataFrame, ids: np.ndarray | None = None) -> np.ndarray:
        """Return which rows of a table the filter keeps.

        Args:
            table: n rows of a gallery. A column that it lacks is null.
            ids: int64 ``(n,)``, their ids; null by default.

        Returns:
            bool ``(n,)``.
        """
        kept: pd.arrays.BooleanArray = self.build(_TableBackend(table, ids))
        return kept.to_numpy(dtype=bool, na_value=False)


def is_known(column: str, schema: Schema) -> Filter:
    """Return the filter that keeps the rows where a column is not null."""
    return Filter(lambda backend: backend.known(Column(column, schema[column])))


def is_among(column: str, values: Sequence[Value], schema: Schema) -> Filter:
    """Return the filter that keeps the rows whose column has one of some values, in its type."""
    kind = "integer" if column == ID else schema[column]
    return Filter(lambda backend: backend.one_of(Column(column, kind), values))


def other_cameras(camera: int | str, schema: Schema) -> Filter:
    """Return the filter that leaves out a camera and keeps images of unknown cameras."""
    return ~is_known(CAMERA, schema) | ~is_among(CAMERA, [camera], schema)


def parse_filter(where: str | Filter, schema: Schema = RESERVED, *, now: datetime | None = None) -> Filter:
    """Parse a filter.

    Args:
        where: text of the filter; one that was parsed is returned.
        schema: columns that it may use, and their types.
        now: what ``now`` means, with a zone; the time of the call by default.

    Raises:
        InputError: not a filter; the message shows what was not understood.
    """
    if isinstance(where, Filter):
        return where
    if not isinstance(where, str) or len(where) > _MAX_LENGTH:
        raise InputError(
            f"where: expected a string of at most {_MAX_LENGTH:,} characters, such as 'camera == 3'"
        )
    return _Parser(where, schema, datetime.now(timezone.utc) if now is None else now).parse()


class _TableBackend:
    """Conditions on the rows of a table: a ``BooleanArray``, null where unknown."""

    def __init__(self, table: pd.DataFrame, ids: np.ndarray | None) -> None:
        self._table, self._columns = table, dict[Column, pd.Series]()
        if ids is not None:
            self._columns[Column(ID, "integer")] = pd.Series(ids, dtype="Int64")

    def known(self, column: Column) -> pd.arrays.BooleanArray:
        truth = self._values(column).notna().to_numpy(dtype=bool, copy=True)
        return pd.arrays.BooleanArray(truth, np.zeros(len(truth), dtype=bool))

    def equal(self, column: Column, value: Value) -> pd.arrays.BooleanArray:
        return self._condition(column, self._values(column) == value)

    def ordered(self, column: Column, sign: str, value: Value) -> pd.arrays.BooleanArray:
        return self._condition(column, _ORDER[sign](self._values(column), value))

    def one_of(self, column: Column, values: Sequence[Value]) -> pd.arrays.BooleanArray:
        return self._condition(column, self._values(column).isin(values))

    def like(self, column: Column, pattern: Sequence[Any]) -> pd.arrays.BooleanArray:
        from pyarrow import array, compute, large_string

        texts = array(self._values(column).astype("string"), type=large_string(), from_pandas=True)
        signs = {ANY: ".*", ONE: "."}  # not match_like, which reads some backslashes as themselves
        expression = "".join(signs.get(part) or re.escape(part) for part in pattern)
        found = compute.match_substring_regex(texts, rf"(?s)\A(?:{expression})\z")
        return self._condition(column, pd.Series(found.to_pandas()))

    def _values(self, column: Column) -> pd.Series:
        if column not in self._columns:
            self._columns[column] = values_of(self._table, *column)
        return self._columns[column]

    def _condition(self, column: Column, hits: pd.Series) -> pd.arrays.BooleanArray:
        unknown = self._values(column).isna().to_numpy(dtype=bool, copy=True)
        truth = hits.to_numpy(dtype=bool, na_value=False) & ~unknown
        return pd.arrays.BooleanArray(truth, unknown)


def like_text(pattern: Sequence[Any]) -> str:
    """Return a pattern as SQL writes it, with backslashes before the characters that stand for themselves."""
    signs = {ANY: "%", ONE: "_"}
    return "".join(signs.get(part) or re.sub(r"([\\%_])", r"\\\1", part) for part in pattern)


class _Token(NamedTuple):
    kind: str  # age, number, string, name, sign, end
    text: str


class _Parser:
    """Turns the text of a filter into a ``Filter``, by recursive descent."""

    def __init__(self, where: str, schema: Schema, now: datetime) -> None:
        self._where, self._schema, self._now = where, schema, now
        self._tokens, self._next = self._split(), 0

    def parse(self) -> Filter:
        found = self._disjunction(0)
        if self._peek().kind != "end":
            self._refuse("expected 'and', 'or' or the end")
        return found

    # ---------- tokens ----------

    def _split(self) -> list[_Token]:
        tokens, start = [], 0
        while start < len(self._where):
            match = _TOKEN.match(self._where, start)
            if match is None:
                self._refuse("cannot read this", self._where[start : start + 20])
            if match.lastgroup != "space":
                tokens.append(_Token(str(match.lastgroup), match[0]))
            start = match.end()
        return [*tokens, _Token("end", "")]

    def _peek(self, ahead: int = 0) -> _Token:
        return self._tokens[min(self._next + ahead, len(self._tokens) - 1)]

    def _take(self) -> _Token:
        token = self._peek()
        self._next += 1
        return token

    def _is_word(self, *words: str, ahead: int = 0) -> bool:
        token = self._peek(ahead)
        return token.kind == "name" and token.text.lower() in words

    def _accept(self, *words: str) -> bool:
        """Take the next token if it is one of some keywords or signs."""
        token = self._peek()
        found = self._is_word(*words) or (token.kind == "sign" and token.text in words)
        self._next += found
        return found

    def _refuse(self, reason: str, found: str | None = None) -> NoReturn:
        text = self._peek().text if found is None else found
        shown = short_repr(text, 100) if text else "the end"
        raise InputError(f"where: {reason}, found {shown} in {short_repr(self._where, 100)}")

    # ---------- conditions ----------

    def _disjunction(self, depth: int) -> Filter:
        parts = [self._conjunction(depth)]
        while self._accept("or"):
            parts.append(self._conjunction(depth))
        return _join(operator.or_, parts)

    def _conjunction(self, depth: int) -> Filter:
        parts = [self._factor(depth)]
        while self._accept("and"):
            parts.append(self._factor(depth))
        return _join(operator.and_, parts)

    def _factor(self, depth: int) -> Filter:
        if depth > _MAX_DEPTH:
            self._refuse("nested too deeply")
        if self._accept("not"):
            return ~self._factor(depth + 1)
        if self._accept("("):
            found = self._disjunction(depth + 1)
            if not self._accept(")"):
                self._refuse("expected ')'")
            return found
        return self._comparison()

    def _comparison(self) -> Filter:
        if self._is_column():
            return self._after_column(self._column())
        if self._peek().kind == "string" and (
            self._is_word("in", ahead=1) or (self._is_word("not", ahead=1) and self._is_word("in", ahead=2))
        ):
            return self._contains()
        return self._chain()

    def _after_column(self, column: Column) -> Filter:
        if self._accept("is"):
            negative = self._accept("not")
            if not self._accept("null", "none"):
                self._refuse("expected 'null' or 'not null' after 'is'")
            known = Filter(lambda backend: backend.known(column))
            return known if negative else ~known
        start = self._next
        negative = self._accept("not")
        found: Filter | None = None
        if self._accept("in"):
            values = self._list(column)
            found = Filter(lambda backend: backend.one_of(column, values))
        elif self._accept("between"):
            found = self._ordered(column, ">=")
            if not self._accept("and"):
                self._refuse("expected 'and' after 'between ...'")
            found &= self._ordered(column, "<=")
        elif self._accept("like"):
            found = self._like(column)
        if found is not None:
            return ~found if negative else found
        self._next = start
        if self._sign() is not None:
            self._next -= 1
            return self._chain(column)
        if column.type == "boolean" and not negative:
            return Filter(lambda backend: backend.equal(column, True))
        return self._refuse(f"expected a comparison after {column.name}")

    def _chain(self, first: Column | None = None) -> Filter:
        """Parse a comparison, which may be a chain: 1 <= pid < 3."""
        left: Column | int = self._operand() if first is None else first
        parts = []
        while (sign := self._sign()) is not None:
            name = self._peek().text
            right: Column | int = self._operand()
            if isinstance(left, Column) and isinstance(right, Column):
                self._refuse(f"{left.name} is compared with a value, not with a column", name)
            if isinstance(left, Column):
                parts.append(self._compare(left, sign, int(right)))  # type: ignore[arg-type]
            elif isinstance(right, Column):
                parts.append(self._compare(right, _MIRRORED[sign], left))
            else:
                self._refuse("expected a column", self._tokens[left].text)
            left = right
        if not parts:
            if isinstance(left, int):
                self._refuse("expected a comparison", self._tokens[left].text)
            self._refuse(f"expected a comparison after {left.name}")
        return _join(operator.and_, parts)

    def _sign(self) -> str | None:
        token = self._peek()
        text = _SYNONYMS.get(token.text, token.text)
        if token.kind != "sign" or text not in _MIRRORED:
            return None
        self._next += 1
        return text

    def _operand(self) -> Column | int:
        """Take a column, or a literal: the number of its first token."""
        if self._is_column():
            return self._column()
        start = self._next
        self._literal()
        return start

    def _compare(self, column: Column, sign: str, literal: int) -> Filter:
        after, self._next = self._next, literal
        found = self._ordered(column, sign)
        self._next = after
        return found

    def _ordered(self, column: Column, sign: str) -> Filter:
        """Compare a column with the next literal."""
        found = self._peek().text
        value = self._literal()
        if sign in ("==", "!="):
            exact = self._typed(column, value, found)
            if exact is None:  # no whole number equals 1.5
                equal = Filter(lambda backend: backend.one_of(column, []))
            else:
                equal = Filter(lambda backend: backend.equal(column, exact))
            return equal if sign == "==" else ~equal
        if column.type == "boolean":
            self._refuse(f"{column.name} has no order: expected == or !=", found)
        if column.type == "integer" and isinstance(value, float):
            value = math.floor(value) if sign in ("<=", ">") else math.ceil(value)
        typed = self._typed(column, value, found, ordered=True)
        return Filter(lambda backend: backend.ordered(column, sign, typed))

    def _like(self, column: Column) -> Filter:
        token = self._peek()
        if column.type not in ("string", "null"):
            self._refuse("only text is compared by 'like'", column.name)
        if token.kind != "string":
            self._refuse("expected a string such as 'cam%' after 'like'")
        pattern = _parse_pattern(self._string(self._take()))
        return Filter(lambda backend: backend.like(column, pattern))

    def _contains(self) -> Filter:
        part = self._string(self._take())
        negative = self._accept("not")
        self._accept("in")
        if not self._is_column():
            self._refuse("expected a column after 'in'")
        column = self._column()
        if column.type not in ("string", "null"):
            self._refuse("only text can be searched for a string", column.name)
        found = Filter(lambda backend: backend.like(column, [ANY, part, ANY]))
        return ~found if negative else found

    def _list(self, column: Column) -> list[Value]:
        closing = _OPENING.get(self._peek().text)
        if closing is None or self._peek().kind != "sign":
            self._refuse("expected a list such as (1, 2)")
        self._take()
        values = []
        while not self._accept(closing):
            found = self._peek().text
            value = self._typed(column, self._literal(), found)
            values += [] if value is None else [value]
            if not self._accept(",") and self._peek().text != closing:
                self._refuse(f"expected ',' or {closing!r}")
        return values

    # ---------- columns and values ----------

    def _is_column(self) -> bool:
        token = self._peek()
        return token.kind == "name" and token.text.lower() not in _NO_COLUMNS

    def _column(self) -> Column:
        name = self._take().text.strip("`")
        name = CAMERA if name == CAMERA_ALIAS else name
        if name == ID:
            return Column(ID, "integer")
        if name not in self._schema:
            columns = [column for column in self._schema if column != "path"]
            hint = did_you_mean(name, [*columns, "path"]) or "; text needs quotes, such as 'hall'"
            self._refuse(f"unknown column; expected one of path, {', '.join(columns)}{hint}", name)
        return Column(name, self._schema[name])

    def _literal(self) -> Value:
        """Take a number, string, boolean or time."""
        if self._accept("now"):
            return self._relative_time()
        negative = False
        if self._peek().text in ("+", "-") and self._peek(1).kind == "number":
            negative = self._take().text == "-"
        token = self._peek()
        if token.kind == "number":
            return self._number(self._take().text, negative)
        if token.kind == "string":
            return self._string(self._take())
        if self._is_word("true", "false"):
            return self._take().text.lower() == "true"
        if self._is_word("null", "none"):
            self._refuse("null is compared by 'is null'")
        return self._refuse("expected a value" if self._is_column() else "expected a column or a value")

    def _relative_time(self) -> datetime:
        sign = next((sign for sign in "+-" if self._accept(sign)), None)
        if sign is None:
            return self._now
        token = self._take()
        if token.kind != "age":
            self._next -= 1
            self._refuse("expected a time such as 2h after 'now -' (units: s, m, h, d, w)")
        try:
            age = timedelta(**{_UNITS[token.text[-1]]: float(token.text[:-1])})
            return self._now - age if sign == "-" else self._now + age
        except OverflowError:
            self._refuse("too far from now", token.text)

    def _number(self, text: str, negative: bool) -> int | float:
        try:
            digits = text.replace("_", "")
            number = (
                int(digits, 0 if digits[:2].lower() in ("0x", "0o", "0b") else 10)
                if not re.search(r"[.]|^[0-9]+[eE]", digits)
                else float(digits)
            )
        except ValueError:
            self._refuse("expected a number", text)
        if isinstance(number, float) and not math.isfinite(number):
            self._refuse("expected a finite number", text)
        return -number if negative else number

    def _string(self, token: _Token) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about backslashes that escape nothing, as in '\%'
                text = ast.literal_eval(token.text.replace("\n", "\\n"))
            text.encode()  # fails for half of a surrogate pair
        except (SyntaxError, ValueError):
            self._refuse("cannot read this string", token.text)
        return str(text)

    def _typed(self, column: Column, value: Value, found: str, *, ordered: bool = False) -> Any:
        """Return a value in the type of a column; None if no value of that type equals it."""
        kind, name = column.type, column.name
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind == "null":
            return str(value)
        if kind == "string":
            if name in LABELS and isinstance(value, int) and is_number and not ordered:
                return str(value)  # a label that was a number before others became text
            if not isinstance(value, str):
                self._refuse(f"{name} is compared with strings", found)
        elif kind == "integer":
            if not is_number:
                self._refuse(f"{name} is compared with whole numbers", found)
            if isinstance(value, float):
                if not value.is_integer():
                    return None
                value = int(value)
            if not _INT64.min <= value <= _INT64.max:  # type: ignore[operator]
                self._refuse("expected a number of at most 64 bits", found)
        elif kind == "float":
            if not is_number:
                self._refuse(f"{name} is compared with numbers", found)
            try:
                return float(value)  # type: ignore[arg-type]
            except OverflowError:
                self._refuse("expected a finite number", found)
        elif kind == "boolean":
            if not isinstance(value, bool):
                self._refuse(f"{name} is compared with true and false", found)
        else:
            time = parse_time(value) if isinstance(value, str) else value
            if not isinstance(time, datetime):
                self._refuse(
                    f"{name} is compared with times such as '2026-11-20T10:15:00+01:00' or now - 2h", found
                )
            return time
        return value


def _join(join: Callable[[Any, Any], Any], parts: list[Filter]) -> Filter:
    if len(parts) == 1:
        return parts[0]
    return Filter(lambda backend: functools.reduce(join, [part.build(backend) for part in parts]))


def _parse_pattern(text: str) -> list[Any]:
    """Return the parts of a ``like`` pattern: strings, ``ANY`` and ``ONE``."""
    signs: Mapping[str, object] = {"%": ANY, "_": ONE}
    parts: list[Any] = []
    for found in re.findall(r"\\[\\%_]|.", text, re.DOTALL):
        part = signs.get(found, found[-1])
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part is not ANY or not parts or parts[-1] is not ANY:
            parts.append(part)
    return parts
