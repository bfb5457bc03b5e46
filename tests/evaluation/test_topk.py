"""The highest entries of each row, from approximate scores with errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rga_reid.evaluation import topk
from rga_reid.evaluation.topk import TopK


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("waiting", [1, 40, 10**6])
def test_highest_entries_in_spite_of_errors(
    dtype: torch.dtype, transposed: bool, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is that of a stable sort by exact scores, which tie and are close to each other."""
    monkeypatch.setattr(topk, "_PENDING", waiting)
    monkeypatch.setattr(topk, "_STRIP", 30)
    rng = np.random.default_rng(1)
    exact = np.round(rng.random((25, 40)), 2)
    seen = torch.from_numpy(exact + rng.uniform(-0.02, 0.02, exact.shape)).to(dtype)
    best = TopK(25, 6, 0.0201, lambda row, column: exact[row, column], dtype)
    best.raise_threshold(seen[:, :13], 0)
    for row in range(0, 25, 10):
        for column in range(0, 40, 13):
            tile = seen[row : row + 10, column : column + 13]
            if transposed:
                best.add(tile.T.contiguous(), column, row, axis=1)
            else:
                best.add(tile, row, column)
    found = best.entries()
    assert found.row.tolist() == np.repeat(np.arange(25), 6).tolist()
    assert found.column.reshape(25, 6).tolist() == np.argsort(-exact, axis=1, kind="stable")[:, :6].tolist()


@pytest.mark.parametrize("error", [0.0201, np.inf])
@pytest.mark.parametrize("pending", [1, 10**6])
def test_highest_candidates(error: float, pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates come in any order; one row has fewer of them than wanted."""
    monkeypatch.setattr(topk, "_PENDING", pending)
    rng = np.random.default_rng(3)
    exact = np.round(rng.random((8, 40)), 2)
    exact[5, 4:] = -np.inf
    row, column = rng.permutation(np.argwhere(exact > -1)).T
    seen = exact[row, column] + (rng.uniform(-0.02, 0.02, len(row)) if error < 1 else 0)
    best = TopK(8, 6, error, lambda row, column: exact[row, column])
    for part in np.array_split(np.arange(len(row)), 5):
        best.add_entries(row[part], column[part], seen[part])
    for number, (columns, scores) in enumerate(best.results()):
        expected = np.argsort(-exact[number], kind="stable")[: 4 if number == 5 else 6]
        assert columns.tolist() == expected.tolist()
        assert scores.tolist() == exact[number, expected].tolist()


def test_minus_infinity_is_never_selected() -> None:
    scores = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf] * 3])
    best = TopK(2, 2, 0.0, lambda row, column: scores.numpy()[row, column].astype(float))
    best.raise_threshold(scores, 0)
    best.add(scores, 0, 0)
    assert [columns.tolist() for columns, _ in best.results()] == [[2, 0], []]
