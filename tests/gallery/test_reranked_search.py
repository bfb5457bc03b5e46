"""The re-ranked shortlist, against the definition with dense matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from tests.oracles import naive_re_ranking, squared_distances


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_the_shortlist_is_re_ranked_and_nothing_else(crowd: Callable, index: str) -> None:
    features, table = crowd(1100)
    gallery = Gallery.build(features, table, index=index)
    queries, _ = crowd(6, seed=1)
    plain = gallery.search(queries, 50, where="camid != 2", with_ids=True)
    found = gallery.search(
        queries, 20, where="camid != 2", rerank=ReRanking(k1=12), shortlist=50, with_ids=True
    )
    assert found["rank"].tolist() == list(range(1, 21)) * 6
    changed = 0
    for number, query in enumerate(queries):
        shortlist = plain[plain["query"] == number]["id"].to_numpy()
        squares = squared_distances(np.vstack([query[None], features[shortlist]]), "cosine")
        distances = naive_re_ranking(squares, 1, 12, 6, 0.3)[0]
        mine = found[found["query"] == number]
        assert mine["id"].tolist() == shortlist[np.argsort(distances, kind="stable")[:20]].tolist()
        changed += mine["id"].tolist() != shortlist[:20].tolist()
    assert changed > 3
    scores = plain.set_index(["query", "id"])["score"]
    pd.testing.assert_series_equal(
        found.set_index(["query", "id"])["score"],
        scores.loc[list(zip(found["query"], found["id"], strict=True))],
    )


def test_few_images_are_all_neighbours(crowd: Callable) -> None:
    features, table = crowd(5)
    gallery = Gallery.build(features, table)
    found = gallery.search(features[:2], 10, rerank=ReRanking())
    assert found["path"].value_counts().tolist() == [2] * 5
    assert found[found["rank"] == 1]["path"].tolist() == table["path"][:2].tolist()
    assert len(gallery.search(features[:2], rerank=ReRanking(), where="camid == 99")) == 0
    with pytest.raises(InputError, match="shortlist: expected a whole number of at least 10, got 9"):
        gallery.search(features[:2], 10, rerank=ReRanking(), shortlist=9)
