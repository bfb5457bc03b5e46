"""The best matches of each query, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rga_reid.experiments.evaluate_model import tabulate_top_matches


def naive(features: np.ndarray, table: pd.DataFrame, count: int) -> list[tuple[int, int, int]]:
    queries = [n for n in range(len(table)) if table.split[n] == "query"]
    gallery = [n for n in range(len(table)) if table.split[n] == "gallery"]
    found = []
    for number, q in enumerate(queries):
        scored = []
        for place, g in enumerate(gallery):
            pid, camera = table.pid[q] == table.pid[g], table.camid[q] == table.camid[g]
            same_shot = pid is not pd.NA and bool(pid) and camera is not pd.NA and bool(camera)
            if table.pid[g] is not pd.NA and table.pid[g] == -1:
                continue
            if same_shot or table.path[q] == table.path[g]:
                continue
            scored.append((-float(features[q].astype(np.float64) @ features[g].astype(np.float64)), place))
        for rank, (_, place) in enumerate(sorted(scored)[:count], 1):
            found.append((number, rank, place))
    return found


@pytest.mark.parametrize(("queries", "gallery", "count"), [(300, 40, 10), (7, 5, 10), (3, 30, 1)])
def test_against_a_loop(queries: int, gallery: int, count: int) -> None:
    rng = np.random.default_rng(queries)
    n = queries + gallery
    features = rng.standard_normal((n, 6)).astype(np.float32)
    features[queries + 1] = features[queries]  # equal scores: the earlier row first
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(n)],
            "pid": pd.array(rng.integers(-1, 5, n), dtype="Int64"),
            "camid": pd.array(rng.integers(0, 3, n), dtype="Int64"),
            "split": ["query"] * queries + ["gallery"] * gallery,
        }
    )
    table.loc[n - 2, "pid"] = pd.NA
    table.loc[[1, n - 1], "camid"] = pd.NA
    table.loc[n - 3, "path"] = "0.jpg"
    found = tabulate_top_matches(features, table, count)
    assert list(zip(found["query"], found["rank"], found["gallery"], strict=True)) == naive(
        features, table, count
    )
    rows = table[table.split == "gallery"].reset_index(drop=True)
    assert found.path.tolist() == rows.path[found.gallery].tolist()
