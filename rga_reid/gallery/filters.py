"""Filters of gallery rows, such as ``camid == 3 and pid in (1, 2)``: parsed, never evaluated as Python.

The grammar is a part of Python's: the columns ``pid``, ``camid`` and ``path``; whole numbers and strings (with
Python's backslash escapes); ``== != < <= > >=``, ``in`` and ``not in`` a list, ``is None``, a string
``in path``; ``and``, ``or``, ``not`` and brackets. As in SQL, a comparison with an unknown pid or camid is
neither true nor false, and a row is kept where the whole filter is true.
"""

from __future__ import annotations

import ast
import functools
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, short_repr

Condition = TypeVar("Condition", covariant=True)

_TYPES: dict[str, type] = {"pid": int, "camid": int, "path": str}
_MAX_LENGTH = 10_000  # characters of a filter
_MAX_DEPTH = 100  # of nested brackets and negations
_INT64 = np.iinfo(np.int64)

_SIGNS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


class PredicateBackend(Protocol[Condition]):
    """Builds the conditions of a vector store; they combine with ``&``, ``|`` and ``~`` in three-valued logic."""

    def known(self, column: str) -> Condition:
        """The column is not null. This condition itself is never unknown."""

    def equal(self, column: str, value: int | str) -> Condition:
        """The column equals a value."""

    def ordered(self, column: str, sign: str, value: int) -> Condition:
        """The column is ``<``, ``<=``, ``>`` or ``>=`` a value."""

    def one_of(self, column: str, values: Sequence[int | str]) -> Condition:
        """The column equals one of some values."""

    def contains(self, part: str) -> Condition:
        """The path contains a string."""


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

    def mask(self, table: pd.DataFrame) -> np.ndarray:
        """Return which rows of a table the filter keeps.

        Args:
            table: n rows ``path, pid, camid``, as ``gallery_table`` returns it.

        Returns:
            bool ``(n,)``.
        """
        kept: pd.arrays.BooleanArray = self.build(_TableBackend(table))
        return kept.to_numpy(dtype=bool, na_value=False)


CAMERA_KNOWN = Filter(lambda backend: backend.known("camid"))


def other_cameras(camera: int) -> Filter:
    """Return the filter that leaves out a camera and keeps images of unknown cameras."""
    return ~CAMERA_KNOWN | ~Filter(lambda backend: backend.equal("camid", camera))


def parse_filter(where: str) -> Filter:
    """Parse a filter.

    Raises:
        InputError: not a filter; the message shows what was not understood.
    """
    if not isinstance(where, str) or len(where) > _MAX_LENGTH:
        raise InputError(
            f"where: expected a string of at most {_MAX_LENGTH:,} characters, such as 'camid == 3'"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, about numbers and backslashes
            parsed = ast.parse(where.strip(), mode="eval")
        return _Parser(where).condition(parsed.body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"where: cannot read {short_repr(where, 100)}; expected a filter such as 'camid == 3'"
        ) from None


class _TableBackend:
    """Conditions on the rows of a table: a ``BooleanArray``, null where unknown."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def known(self, column: str) -> pd.arrays.BooleanArray:
        truth = self._table[column].notna().to_numpy(dtype=bool, copy=True)
        return pd.arrays.BooleanArray(truth, np.zeros(len(truth), dtype=bool))

    def equal(self, column: str, value: int | str) -> pd.arrays.BooleanArray:
        return self._condition(column, self._table[column] == value)

    def ordered(self, column: str, sign: str, value: int) -> pd.arrays.BooleanArray:
        return self._condition(column, _ORDER[sign](self._table[column], value))

    def one_of(self, column: str, values: Sequence[int | str]) -> pd.arrays.BooleanArray:
        return self._condition(column, self._table[column].isin(values))

    def contains(self, part: str) -> pd.arrays.BooleanArray:
        return self._condition("path", self._table["path"].str.contains(part, regex=False))

    def _condition(self, column: str, hits: pd.Series) -> pd.arrays.BooleanArray:
        truth = hits.fillna(False).to_numpy(dtype=bool, copy=True)
        return pd.arrays.BooleanArray(truth, self._table[column].isna().to_numpy(dtype=bool, copy=True))


class _Parser:
    """Turns the syntax tree of a filter into a ``Filter``."""

    def __init__(self, where: str) -> None:
        self._where = where

    def condition(self, node: ast.expr, depth: int = 0) -> Filter:
        if depth > _MAX_DEPTH:
            raise self._error(node, "nested too deeply")
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return self._join(join, [self.condition(value, depth + 1) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand, depth + 1)
        if isinstance(node, ast.Compare):  # may be a chain: 1 <= camid < 3
            sides = [node.left, *node.comparators]
            return self._join(operator.and_, list(map(self._compare, sides, node.ops, sides[1:])))
        raise self._error(node, "expected a comparison")

    @staticmethod
    def _join(join: Callable[[Any, Any], Any], parts: list[Filter]) -> Filter:
        return Filter(lambda backend: functools.reduce(join, [part.build(backend) for part in parts]))

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Filter:
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            if isinstance(op, ast.In | ast.NotIn):
                found = self._contains(left, right)
                return ~found if isinstance(op, ast.NotIn) else found
            if type(op) in _MIRRORED:
                left, op, right = right, _MIRRORED[type(op)](), left
        if not isinstance(left, ast.Name):
            raise self._error(left, "expected one of the columns pid, camid, path")
        column = self._column(left)
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error(right, "only None can follow 'is'")
            known = Filter(lambda backend: backend.known(column))
            return ~known if isinstance(op, ast.Is) else known
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise self._error(right, "expected a list such as (1, 2)")
            values = [self._constant(item, column) for item in right.elts]
            found = Filter(lambda backend: backend.one_of(column, values))
            return ~found if isinstance(op, ast.NotIn) else found
        value = self._constant(right, column)
        if isinstance(op, ast.Eq | ast.NotEq):
            found = Filter(lambda backend: backend.equal(column, value))
            return ~found if isinstance(op, ast.NotEq) else found
        if column == "path":
            raise self._error(left, "paths have no order: expected ==, != or in")
        sign = _SIGNS[type(op)]
        return Filter(lambda backend: backend.ordered(column, sign, value))

    def _contains(self, text: ast.expr, name: ast.Name) -> Filter:
        if self._column(name) != "path":
            raise self._error(name, "only path can be searched for a string")
        part = self._constant(text, "path")
        return Filter(lambda backend: backend.contains(part))

    def _column(self, name: ast.Name) -> str:
        if name.id not in _TYPES:
            raise self._error(name, "expected one of the columns pid, camid, path")
        return name.id

    def _constant(self, node: ast.expr, column: str) -> Any:
        """Return the value of a literal that can be compared with a column."""
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            value = None
        if type(value) is not _TYPES[column]:
            kind = "strings" if column == "path" else "whole numbers"
            raise self._error(node, f"{column} is compared with {kind}")
        if isinstance(value, int) and not _INT64.min <= value <= _INT64.max:
            raise self._error(node, "expected a number of at most 64 bits")
        if isinstance(value, str) and not value.isprintable():
            value.encode()  # UnicodeEncodeError, a ValueError, for half of a surrogate pair
        return value

    def _error(self, node: ast.expr, reason: str) -> InputError:
        found = ast.get_source_segment(self._where.strip(), node) or type(node).__name__
        return InputError(
            f"where: {reason}, found {short_repr(found, 100)} in {short_repr(self._where, 100)}"
        )
