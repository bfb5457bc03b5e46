"""People in feature space, for the tests of galleries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

Crowd = tuple[np.ndarray, pd.DataFrame]


@pytest.fixture(scope="session")
def crowd() -> Callable[..., Crowd]:
    """Makes features of people, each near its own centre, and the table that describes them."""

    def make(count: int, *, dimension: int = 32, people: int = 40, seed: int = 0) -> Crowd:
        centres = np.random.default_rng(99).normal(size=(people, dimension))
        generator = np.random.default_rng(seed)
        pids = generator.integers(0, people, count)
        features = (centres[pids] + 0.6 * generator.normal(size=(count, dimension))).astype(np.float32)
        table = pd.DataFrame(
            {
                "path": [f"people/{seed}/{row:05d}.jpg" for row in range(count)],
                "pid": pd.array(pids, dtype="Int64"),
                "camid": pd.array(generator.integers(1, 4, count), dtype="Int64"),
            }
        )
        return features, table

    return make
