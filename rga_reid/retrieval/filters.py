"""Filters of gallery rows, such as ``camid == 3 and pid in (1, 2)``: parsed, never evaluated as Python.

The grammar is Python's, of which these parts are taken: the columns ``pid``, ``camid`` and ``path``; whole
numbers and texts; ``== != < <= > >=``, ``in`` and ``not in`` a list, ``is None``, a text ``in path``;
``and``, ``or``, ``not`` and brackets. As in SQL, a comparison with an unknown pid or camid is neither true
nor false, and a row is kept where the whole is true.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError

_TYPES: dict[str, type] = {"pid": int, "camid": int, "path": str}
_LONGEST = 10_000  # characters
_INT64 = np.iinfo(np.int64)

_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


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
    if not isinstance(where, str) or len(where) > _LONGEST:
        raise InputError(f"where: expected a text of at most {_LONGEST:,} characters, such as 'camid == 3'")
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        kept = _Filter(table, where).rows(tree)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"where: cannot read {_shown(where)}: expected such as 'camid == 3'") from None
    return kept.to_numpy(dtype=bool, na_value=False)


class _Filter:
    """Walks a filter's syntax tree; every node gives a ``BooleanArray``, null where unknown."""

    def __init__(self, table: pd.DataFrame, where: str) -> None:
        self._table, self._where = table, where

    def rows(self, node: ast.expr) -> pd.arrays.BooleanArray:
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            kept = self.rows(node.values[0])
            for value in node.values[1:]:
                kept = join(kept, self.rows(value))
            return kept
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.rows(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            kept = self._compare(sides[0], node.ops[0], sides[1])
            for left, op, right in zip(sides[1:], node.ops[1:], sides[2:], strict=False):  # 1 <= camid < 3
                kept &= self._compare(left, op, right)
            return kept
        raise self._error(node, "expected a comparison")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pd.arrays.BooleanArray:
        if isinstance(right, ast.Name) and not isinstance(left, ast.Name):
            if isinstance(op, ast.In | ast.NotIn):
                return self._contains(left, op, right)
            if type(op) in _MIRRORED:
                left, op, right = right, _MIRRORED[type(op)](), left
        if not isinstance(left, ast.Name):
            raise self._error(left, "expected one of the columns pid, camid, path")
        column = self._column(left)
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error(right, "only None goes with 'is'")
            truth = column.isna().to_numpy() == isinstance(op, ast.Is)
            return pd.arrays.BooleanArray(truth, np.zeros(len(truth), dtype=bool))
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise self._error(right, "expected a list such as (1, 2)")
            values = [self._constant(item, left.id) for item in right.elts]
            return self._found(column, column.isin(values), isinstance(op, ast.NotIn))
        value = self._constant(right, left.id)
        if isinstance(op, ast.Eq | ast.NotEq):
            return self._found(column, column == value, isinstance(op, ast.NotEq))
        if left.id == "path":
            raise self._error(left, "paths have no order: expected ==, != or in")
        return self._found(column, _ORDER[type(op)](column, value), False)

    def _contains(self, text: ast.expr, op: ast.cmpop, name: ast.Name) -> pd.arrays.BooleanArray:
        column = self._column(name)
        if name.id != "path":
            raise self._error(name, "only path can be searched for a text")
        part = self._constant(text, "path")
        return self._found(column, column.str.contains(part, regex=False), isinstance(op, ast.NotIn))

    def _found(self, column: pd.Series, hits: pd.Series, negated: bool) -> pd.arrays.BooleanArray:
        """The hits, or the others if ``negated``, unknown where the column is."""
        truth = hits.fillna(False).to_numpy(dtype=bool) != negated
        return pd.arrays.BooleanArray(truth, column.isna().to_numpy(dtype=bool, copy=True))

    def _column(self, name: ast.Name) -> pd.Series:
        if name.id not in _TYPES:
            raise self._error(name, "expected one of the columns pid, camid, path")
        return self._table[name.id]

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
