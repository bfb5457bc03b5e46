"""Approximate scores are within their error of exact ones, which equal rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from rga_reid.evaluation import similarity as module
from rga_reid.evaluation.similarity import CosineScores, EuclideanScores, use_full_precision

CPU = torch.device("cpu")
KINDS = [CosineScores, EuclideanScores]


def features(columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query, gallery = rng.standard_normal((2, 20, columns)).astype(np.float32)
    gallery[:10] = query[:10] * rng.uniform(0.1, 3, (10, 1))  # all terms have one sign: the worst case
    gallery[10] *= 1e4
    return query, gallery


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("columns", "scale"),
    [(1, 1), (3, 1), (512, 1), (513, 1), (2048, 1), (5000, 1), (64, 1e-37), (64, 1e-20), (64, 1e33)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_holds(kind: Any, columns: int, scale: float, dtype: torch.dtype) -> None:
    query, gallery = features(columns)
    scores = kind(query * np.float32(scale), gallery * np.float32(scale), CPU)
    rows = np.arange(20)
    approximate = scores.approximate(scores.queries(rows, dtype), scores.gallery(rows, dtype))
    exact = scores.exact(np.repeat(rows, 20), np.tile(rows, 20)).reshape(20, 20)
    assert approximate.dtype == dtype
    assert np.abs(approximate.double().numpy() - exact).max() < scores.error(dtype)
    assert scores.error(dtype) < 3e3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_are_those_of_rational_arithmetic(kind: Any) -> None:
    query, gallery = features(33)
    found = kind(query, gallery, CPU).exact(np.arange(20), np.arange(20))
    expected = []
    for row in zip(query, gallery, strict=True):
        x, y = ([Fraction(float(value)) for value in side] for side in row)
        dot, xx, yy = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((x, y), (x, x), (y, y)))
        cosine = float(dot) / (float(xx) * float(yy)) ** 0.5
        expected.append(cosine if kind is CosineScores else float(xx + yy - 2 * dot))
    if kind is EuclideanScores:  # in units of its own
        found, expected = found / found[10], np.array(expected) / expected[10]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_score_depends_on_its_two_rows_alone(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = features(700)
    gallery[15:] = gallery[3]
    scores = kind(query, gallery, CPU)
    rows = np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20)
    together = scores.exact(*rows)
    alone = [scores.exact(rows[0][n : n + 1], rows[1][n : n + 1])[0] for n in range(400)]
    assert together.tolist() == alone
    monkeypatch.setattr(module, "_MANY", 10)  # search for equal rows
    monkeypatch.setattr(module, "_TEMPORARY", 3 * 700)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert scores.exact(*rows).tolist() == alone
    assert (together.reshape(20, 20)[:, 15:] == together.reshape(20, 20)[:, [3]]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_computed_on_the_device(kind: Any) -> None:
    rows = np.arange(20)
    with FakeTensorMode():
        scores = kind(*features(700), torch.device("cuda"))
        tile = scores.approximate(scores.queries(rows, torch.float32), scores.gallery(rows, torch.float32))
    assert (tile.device.type, tuple(tile.shape), tile.dtype) == ("cuda", (20, 20), torch.float32)


def test_reduced_precision_is_off_within_the_block_only() -> None:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        pytest.skip("torch before 2.9")
    torch.set_float32_matmul_precision("medium")
    try:
        before = [backend.fp32_precision for backend in backends]
        with use_full_precision(CPU):
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == before != ["ieee", "ieee"]
    finally:
        torch.set_float32_matmul_precision("highest")
