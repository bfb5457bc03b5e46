"""Two feature matrices as one, without a copy."""

from __future__ import annotations

from typing import TypeAlias, Union

import numpy as np


class StackedRows:
    """The rows of one matrix, followed by chosen rows of another. Indexed by rows, as an array is.

    Args:
        first, second: features ``(q, d)`` and ``(g, d)``, arrays or memory maps.
        chosen: rows of ``second`` that take part, ``(m,)``: this is a matrix ``(q + m, d)``.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, chosen: np.ndarray) -> None:
        self._first, self._second, self._chosen = first, second, chosen
        self.shape = (len(first) + len(chosen), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        """A new array ``(n, d)``; one row, too, gives a matrix."""
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.atleast_1d(rows)
        upper = numbers < len(self._first)
        if upper.all():
            return self._first[numbers]
        if not upper.any():
            return self._second[self._chosen[numbers - len(self._first)]]
        found = np.empty((len(numbers), self.shape[1]), np.result_type(self._first, self._second))
        found[upper] = self._first[numbers[upper]]
        found[~upper] = self._second[self._chosen[numbers[~upper] - len(self._first)]]
        return found


FeatureRows: TypeAlias = Union[np.ndarray, StackedRows]  # noqa: UP007 - evaluated at run time
