"""The building blocks of re-ranking: ranges, stacked rows, highest entries, sparse vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rga_reid.evaluation import topk as highest
from rga_reid.evaluation.features import StackedRows, expand_ranges, split_by_count
from rga_reid.evaluation.rerank import SparseVectors
from rga_reid.evaluation.topk import TopK


def test_expand_ranges() -> None:
    number, place = expand_ranges(np.array([5, 0, 9, 2]), np.array([2, 0, 1, 3]))
    assert number.tolist() == [0, 0, 2, 3, 3, 3]
    assert place.tolist() == [5, 6, 9, 2, 3, 4]


@pytest.mark.parametrize(("limit", "most"), [(1, None), (7, None), (7, 2), (10**9, None), (10**9, 3)])
def test_parts_cover_all_rows_within_their_limit(limit: int, most: int | None) -> None:
    counts = np.random.default_rng(0).integers(0, 6, 50)
    found = list(split_by_count(counts, limit, most))
    assert [row for part in found for row in range(part.start, part.stop)] == list(range(50))
    for part in found:
        length = part.stop - part.start
        assert counts[part].sum() <= limit or length == 1
        assert most is None or length <= most
    assert list(split_by_count(np.empty(0, int), 5)) == []


def test_stacked_rows_are_those_of_a_copy() -> None:
    first, second = np.arange(12.0).reshape(4, 3), np.arange(30, dtype=np.float32).reshape(10, 3)
    chosen = np.array([1, 2, 7, 9])
    stacked, copy = StackedRows(first, second, chosen), np.concatenate([first, second[chosen]])
    assert (len(stacked), stacked.shape) == (8, (8, 3))
    for rows in (slice(0, 3), slice(2, 6), slice(5, 99), np.array([7, 0, 4, 0]), np.array([], int)):
        np.testing.assert_array_equal(stacked[rows], copy[rows])
    np.testing.assert_array_equal(stacked[6], copy[6:7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("waiting", [1, 40, 10**6])
def test_highest_entries_in_spite_of_errors(
    dtype: torch.dtype, transposed: bool, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that tie and lie close, seen with errors up to the bound, against a stable sort."""
    monkeypatch.setattr(highest, "_PENDING", waiting)
    monkeypatch.setattr(highest, "_STRIP", 30)
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
    """Candidates in any order, of which one row has fewer than wanted."""
    monkeypatch.setattr(highest, "_PENDING", pending)
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


def test_overlaps_are_the_same_by_pairs_and_by_blocks() -> None:
    rng = np.random.default_rng(2)
    dense = rng.random((30, 30)) * (rng.random((30, 30)) < 0.2)
    dense[4] = 0
    codes = np.flatnonzero(dense)
    vectors = SparseVectors(30, codes, dense.ravel()[codes])
    items, others = np.array([3, 4, 4, 29, 0]), np.array([7, 3, 20])
    expected = np.minimum(dense[items][:, None], dense[others][None]).sum(axis=2)
    place, sums = vectors.invert(others).overlaps(vectors, items)
    found = np.zeros(15)
    found[place] = sums
    np.testing.assert_allclose(found.reshape(5, 3), expected, rtol=0, atol=1e-14)
    pairs = vectors.overlap(np.repeat(items, 3), np.tile(others, 5))
    assert pairs.tolist() == found.tolist()  # to the last bit
