"""A model on the test images of a data set, re-ranked or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.data import read_table
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.experiments.evaluate_model import evaluate_model, rank_test_images
from rga_reid.models import ColourHistogram
from tests.oracles import float64_distance, naive_ranking


def test_re_ranking_is_passed_on(tiny_market: Path) -> None:
    table = read_table(tiny_market)
    plain, reranked = (
        evaluate_model(ColourHistogram(), table, rerank=rerank) for rerank in (None, ReRanking(4, 2))
    )
    assert (plain.to_dict()["reranked"], reranked.to_dict()["reranked"]) == (False, True)
    assert reranked.settings["k1"] == 4
    with pytest.raises(InputError, match="k1: expected at most 16, for 17 queries and gallery items"):
        evaluate_model(ColourHistogram(), table, rerank=ReRanking())


@pytest.mark.parametrize("cameras", [True, False])
def test_the_protocol_is_that_of_market1501(cameras: bool) -> None:
    random = np.random.default_rng(0)
    count = 90
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(count)],
            "pid": pd.array(random.integers(-1, 9, count), dtype="Int64"),
            "camid": pd.array(random.integers(1, 4, count) if cameras else [None] * count, dtype="Int64"),
            "split": ["query"] * 20 + ["gallery"] * (count - 20),
        }
    )
    table.loc[50:53, "path"] = table.path[:4].to_numpy()  # a query's own file is in the gallery, too
    features = random.standard_normal((count, 6)).astype(np.float32)
    features[70:74] = features[4:8]  # of the query's person and camera, and nearest
    table.loc[70:73, ["pid", "camid"]] = table.loc[4:7, ["pid", "camid"]].to_numpy()
    shuffled = random.permutation(count)
    table, features = table.iloc[shuffled], features[shuffled]
    result = rank_test_images(features, table, junk_pids=(-1, 8), max_rank=10)

    asks = (table.split == "query").to_numpy()
    labels = {
        f"{side}_{name}s": table[column][rows].tolist() if cameras or name != "camid" else None
        for side, rows in (("query", asks), ("gallery", ~asks))
        for name, column in (("pid", "pid"), ("camid", "camid"), ("path", "path"))
    }
    distance = float64_distance(features[asks], features[~asks], "cosine")
    expected = naive_ranking(distance, labels, 10, junk=(-1, 8))
    assert result.mAP_step == pytest.approx(expected["step"], abs=1e-12)
    assert result.mAP_trapezoid == pytest.approx(expected["trapezoid"], abs=1e-12)
    assert result.mINP == pytest.approx(expected["INP"], abs=1e-12)
    np.testing.assert_allclose(result.cmc, expected["cmc"], rtol=0, atol=1e-12)
    assert result.valid_queries == expected["valid"]
