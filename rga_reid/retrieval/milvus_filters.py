"""Filters of gallery rows, in the language of Milvus, which evaluates them where the rows are.

As its versions differ in what a comparison with null gives, every comparison says itself that the column is
known, and a condition carries its negation along: so the three values of ``filters`` come out, whatever those
of Milvus are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rga_reid.retrieval.filters import understood

_ALL, _NONE = "id >= 0", "id < 0"
_OPPOSITE = {"<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True)
class Expression:
    """A condition of three values: where neither holds, it is unknown."""

    true: str
    false: str

    def __and__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} and {other.true})", f"({self.false} or {other.false})")

    def __or__(self, other: Expression) -> Expression:
        return Expression(f"({self.true} or {other.true})", f"({self.false} and {other.false})")

    def __invert__(self) -> Expression:
        return Expression(self.false, self.true)


class _Leaves:
    def known(self, column: str) -> Expression:
        if column == "path":
            return Expression(_ALL, _NONE)
        return Expression(f"{column} is not null", f"{column} is null")

    def equal(self, column: str, value: int | str) -> Expression:
        return self._where_known(column, f"{column} == {literal(value)}", f"{column} != {literal(value)}")

    def ordered(self, column: str, sign: str, value: int) -> Expression:
        return self._where_known(column, f"{column} {sign} {value}", f"{column} {_OPPOSITE[sign]} {value}")

    def one_of(self, column: str, values: Sequence[int | str]) -> Expression:
        if not values:
            return self._where_known(column, _NONE, _ALL)
        return self._where_known(
            column, f"{column} in {literal(values)}", f"{column} not in {literal(values)}"
        )

    def contains(self, part: str) -> Expression:
        escaped = "".join(f"\\{letter}" if letter in "\\%_" else letter for letter in part)
        like = f"path like {literal(f'%{escaped}%')}"
        return Expression(like, f"not ({like})")

    def _where_known(self, column: str, true: str, false: str) -> Expression:
        known = self.known(column).true
        return Expression(f"({known} and {true})", f"({known} and {false})")


def literal(value: int | str | Sequence[int | str]) -> str:
    """A value, or a list of values, in an expression of Milvus."""
    return json.dumps(value, ensure_ascii=False)


def expression(where: str) -> str:
    """A filter as Milvus reads it.

    Raises:
        InputError: not such a filter, see ``filters``.
    """
    stated: Expression = understood(where, _Leaves())
    return stated.true
