"""Published reference data, and settings under which no result may change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.evaluation import RankingResult, match_ranks, query_expansion, rerank, topk

FIXTURES = Path(__file__).parents[1] / "fixtures"


def draw_people(
    seed: int, queries: int, items: int, *, columns: int = 24, people: int = 12, junk: bool = False
) -> dict[str, Any]:
    """Draw arguments of ``evaluate_ranking``: people in three cameras, close enough to be confused."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(-junk, people, queries + items)
    features = rng.standard_normal((people + 1, columns))[pids]
    features = (features + 0.8 * rng.standard_normal(features.shape)).astype(np.float32)
    case: dict[str, Any] = {}
    for name, values in (("features", features), ("pids", pids), ("camids", rng.integers(0, 3, len(pids)))):
        case[f"query_{name}"], case[f"gallery_{name}"] = values[:queries], values[queries:]
    return case


def same(a: RankingResult, b: RankingResult) -> bool:
    """Return True if two results are equal to the last bit."""
    return a.to_frame().equals(b.to_frame()) and a.to_dict() == b.to_dict()


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """Arguments of ``evaluate_ranking``."""
    with np.load(FIXTURES / "ranking.npz") as file:
        return {name: file[name] for name in file.files if name != "reranked_distance"}


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """Metrics of ``reference`` by the published evaluators."""
    return json.loads((FIXTURES / "ranking.json").read_text())


@pytest.fixture
def limit_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set the number of entries and of queries that are held at a time."""

    def limit(entries: int, queries: int) -> None:
        for module, name in (
            (match_ranks, "_TILE"),
            (topk, "_PENDING"),
            (topk, "_STRIP"),
            (rerank, "_ENTRIES"),
        ):
            monkeypatch.setattr(module, name, entries)
        monkeypatch.setattr(match_ranks, "_QUERIES", queries)
        monkeypatch.setattr(query_expansion, "_QUERIES", queries)

    return limit


@pytest.fixture
def vary(limit_memory: Callable[[int, int], None]) -> Iterator[Callable[[], Iterator[int]]]:
    """Iterate over block sizes, each with another number of threads and other parts of the work."""
    threads = torch.get_num_threads()

    def variants() -> Iterator[int]:
        for block_size, count, entries, queries in ((7, 1, 50, 7), (1000, 3, 999, 1)):
            torch.set_num_threads(count)
            limit_memory(entries, queries)
            yield block_size

    yield variants
    torch.set_num_threads(threads)
