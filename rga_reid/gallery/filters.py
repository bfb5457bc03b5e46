"""Filters of gallery rows, such as ``camid == 3 and pid in (1, 2)``: parsed, never evaluated as Python.

The grammar is Python's, of which these parts are taken: the columns ``pid``, ``camid`` and ``path``; whole
numbers and texts; ``== != < <= > >=``, ``in`` and ``not in`` a list, ``is None``, a text ``in path``;
``and``, ``or``, ``not`` and brackets. As in SQL, a comparison with an unknown pid or camid is neither true
nor false, and a row is kept where the whole is true.
"""

from __future__ import annotations

import ast
import functools
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd

from rga_reid.errors import InputError

Condition = TypeVar("Condition", covariant=True)

_TYPES: dict[str, type] = {"pid": int, "camid": int, "path": str}
_LONGEST = 10_000  # characters
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
    """What a filter is made of; conditions know ``&``, ``|`` and ``~`` of three values."""

    def known(self, column: str) -> Condition:
        """The column is not null; never unknown itself."""

    def equal(self, column: str, value: int | str) -> Condition:
        """The column has this value."""

    def ordered(self, column: str, sign: str, value: int) -> Condition:
        """The column is ``<``, ``<=``, ``>`` or ``>=`` a value."""

    def one_of(self, column: str, values: Sequence[int | str]) -> Condition:
        """The column has one of these values."""

    def contains(self, part: str) -> Condition:
        """The path has a text in it."""


def rows_where(table: pd.DataFrame, where: str) -> np.ndarray:
    """Which rows a filter keeps.

    Args:
        table: n rows ``path, pid, camid``, as ``gallery_table`` gives.
        where: the filter.

    Returns:
        bool ``(n,)``.

    Raises:
        InputError: not such a filter; the message tells what was not understood.
    """
    kept: pd.arrays.BooleanArray = parse_filter(where, _TableLeaves(table))
    return kept.to_numpy(dtype=bool, na_value=False)


def parse_filter(where: str, leaves: PredicateBackend[Any]) -> Any:
    """The condition that a filter states, made of ``leaves``.

    Raises:
        InputError: see ``rows_where``.
    """
    if not isinstance(where, str) or len(where) > _LONGEST:
        raise InputError(f"where: expected a text of at most {_LONGEST:,} characters, such as 'camid == 3'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about numbers and backslashes
            parsed = ast.parse(where.strip(), mode="eval")
        return _Walk(leaves, where).condition(parsed.body)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"where: cannot read {_shown(where)}: expected such as 'camid == 3'") from None


class _TableLeaves:
    """Conditions on the rows of a table: a ``BooleanArray``, null where unknown."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def known(self, column: str) -> pd.arrays.BooleanArray:
        truth = self._table[column].notna().to_numpy(dtype=bool, copy=True)
        return pd.arrays.BooleanArray(truth, np.zeros(len(truth), dtype=bool))

    def equal(self, column: str, value: int | str) -> pd.arrays.BooleanArray:
        return self._found(column, self._table[column] == value)

    def ordered(self, column: str, sign: str, value: int) -> pd.arrays.BooleanArray:
        return self._found(column, _ORDER[sign](self._table[column], value))

    def one_of(self, column: str, values: Sequence[int | str]) -> pd.arrays.BooleanArray:
        return self._found(column, self._table[column].isin(values))

    def contains(self, part: str) -> pd.arrays.BooleanArray:
        return self._found("path", self._table["path"].str.contains(part, regex=False))

    def _found(self, column: str, hits: pd.Series) -> pd.arrays.BooleanArray:
        truth = hits.fillna(False).to_numpy(dtype=bool, copy=True)
        return pd.arrays.BooleanArray(truth, self._table[column].isna().to_numpy(dtype=bool, copy=True))


class _Walk:
    """Walks a filter's syntax tree; every node gives a condition."""

    def __init__(self, leaves: PredicateBackend[Any], where: str) -> None:
        self._leaves, self._where = leaves, where

    def condition(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return functools.reduce(join, map(self.condition, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):  # perhaps of several: 1 <= camid < 3
            sides = [node.left, *node.comparators]
            parts = map(self._compare, sides, node.ops, sides[1:])
            return functools.reduce(operator.and_, parts)
        raise self._error(node, "expected a comparison")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
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
                raise self._error(right, "only None goes with 'is'")
            known = self._leaves.known(column)
            return ~known if isinstance(op, ast.Is) else known
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise self._error(right, "expected a list such as (1, 2)")
            found = self._leaves.one_of(column, [self._constant(item, column) for item in right.elts])
            return ~found if isinstance(op, ast.NotIn) else found
        value = self._constant(right, column)
        if isinstance(op, ast.Eq | ast.NotEq):
            found = self._leaves.equal(column, value)
            return ~found if isinstance(op, ast.NotEq) else found
        if column == "path":
            raise self._error(left, "paths have no order: expected ==, != or in")
        return self._leaves.ordered(column, _SIGNS[type(op)], value)

    def _contains(self, text: ast.expr, name: ast.Name) -> Any:
        if self._column(name) != "path":
            raise self._error(name, "only path can be searched for a text")
        return self._leaves.contains(self._constant(text, "path"))

    def _column(self, name: ast.Name) -> str:
        if name.id not in _TYPES:
            raise self._error(name, "expected one of the columns pid, camid, path")
        return name.id

    def _constant(self, node: ast.expr, column: str) -> Any:
        """A literal that can be compared with a column."""
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            value = None
        if type(value) is not _TYPES[column]:
            kind = "texts" if column == "path" else "whole numbers"
            raise self._error(node, f"{column} is compared with {kind}")
        if type(value) is int and not _INT64.min <= value <= _INT64.max:
            raise self._error(node, "expected a number of at most 64 bits")
        return value

    def _error(self, node: ast.expr, why: str) -> InputError:
        found = ast.get_source_segment(self._where.strip(), node) or type(node).__name__
        return InputError(f"where: {why}, found {_shown(found)} in {_shown(self._where)}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}...")
