"""Query expansion equals a loop over queries in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import expand_queries


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def naive_expansion(query: np.ndarray, gallery: np.ndarray, k: int, alpha: float) -> np.ndarray:
    query, gallery = unit(query), unit(gallery)
    rows = []
    for x in query:
        cosines = (gallery * x).sum(axis=1)
        nearest = np.argsort(-cosines, kind="stable")[:k]
        rows.append(x + sum(max(cosines[n], 0) ** alpha * gallery[n] for n in nearest))
    return unit(np.stack(rows))


def features(queries: int = 30, items: int = 200, columns: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    query = rng.standard_normal((queries, columns)).astype(np.float32)
    gallery = rng.standard_normal((items, columns)).astype(np.float32) * 3
    gallery[:queries] = query + 0.3 * gallery[:queries]
    gallery[100:] = gallery[rng.integers(0, 100, items - 100)]  # ties
    return query, gallery


@pytest.mark.parametrize(("k", "alpha"), [(1, 3), (10, 3.0), (10, 0), (50, 0.5), (200, 1)])
def test_equals_the_naive_loop(k: int, alpha: float) -> None:
    query, gallery = features()
    expanded = expand_queries(query, gallery, k=k, alpha=alpha)
    assert expanded.dtype == np.float32
    np.testing.assert_allclose(expanded, naive_expansion(query, gallery, k, alpha), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(expanded, axis=1), 1, atol=1e-6)


def test_queries_that_cancel_out_are_named() -> None:
    """With alpha 0 an opposite item weighs as much as any other."""
    query, gallery = np.array([[0, 1], [1, 0]], np.float32), np.array([[-1, 0]], np.float32)
    with pytest.raises(InputError, match="query_features: row 1"):
        expand_queries(query, gallery, k=1, alpha=0)


def test_no_bit_depends_on_blocks_or_threads(vary: Callable[[], Iterator[int]]) -> None:
    query, gallery = features(columns=600)
    gallery[:100] = gallery[:1] * (1 + 1e-7 * gallery[:100])  # closer together than the error of a product
    expected = expand_queries(query, gallery)
    for block_size in vary():
        np.testing.assert_array_equal(expand_queries(query, gallery, block_size=block_size), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k: .* 0$"),
        ({"k": 201}, "k: .* 200, .* 201$"),
        ({"alpha": -1}, "alpha: .* -1$"),
        ({"alpha": np.inf}, "alpha: .* inf$"),
        ({"block_size": 0}, "block_size"),
        ({"gallery_features": np.zeros((200, 20), "f4")}, "gallery_features: row 0 .* zeros"),
        ({"query_features": np.full((3, 20), np.nan)}, "query_features: row 0 .* NaN"),
        ({"query_features": np.ones((3, 2))}, "2 and 20"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    query, gallery = features()
    with pytest.raises(InputError, match=message):
        expand_queries(**{"query_features": query, "gallery_features": gallery} | change)
