"""The best matches of a query equal a sorted list, and explain the metrics of the same ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import (
    LabelledFeatures,
    ReRanking,
    evaluate_features,
    ranked_lists,
    re_ranked_distances,
    top_matches,
)
from rga_reid.evaluation import ranking as module

Sides = tuple[LabelledFeatures, LabelledFeatures]


@pytest.fixture
def sides() -> Sides:
    rng = np.random.default_rng(0)
    found = []
    for name, count in (("query", 6), ("gallery", 40)):
        features = rng.normal(size=(count, 8)).astype(np.float32)
        pids = pd.array(rng.integers(-1 if name == "gallery" else 0, 4, count), dtype="Int64")
        camids = pd.array(rng.integers(1, 3, count), dtype="Int64")
        paths = [f"{name}{n}.jpg" for n in range(count)]
        if name == "gallery":
            features[7] = features[3]  # a tie
            pids[12], camids[13] = pd.NA, pd.NA
            paths[5] = "./query2.jpg"  # a query's own file
        found.append(LabelledFeatures(features, pids, camids, paths, name=name))
    return found[0], found[1]


@pytest.mark.parametrize("rerank", [None, ReRanking(4, 2)])
def test_lists_are_those_of_the_evaluation(
    sides: Sides, rerank: ReRanking | None, vary: Callable[[], Iterator[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, gallery = sides
    unit = [side.features.astype(float) for side in sides]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    cosine = unit[0] @ unit[1].T
    labels = gallery.table
    kept = np.flatnonzero(~labels.pid.isin([-1]))
    order = cosine
    if rerank is not None:
        order = np.full_like(cosine, -2)
        order[:, kept] = -re_ranked_distances(query.features, gallery.features[kept], k1=4, k2=2)
    frame = evaluate_features(query, gallery, rerank=rerank).to_frame()
    for block_size in vary():
        monkeypatch.setattr(module, "BLOCK_SIZE", block_size)
        monkeypatch.setattr(module, "_QUERIES", 4)
        lists = top_matches(query, gallery, [4, 2, 0, 5, 1, 3], top_k=40, rerank=rerank)
        assert [one.query for one in lists] == [4, 2, 0, 5, 1, 3]
        for one in lists:
            own = query.table.loc[one.query]
            removed = (labels.pid == own.pid) & (labels.camid == own.camid)
            removed |= labels.path == f"./{own.path}"
            removed = removed.fillna(False)
            rows = [
                row
                for row in np.argsort(-order[one.query], kind="stable")
                if row in kept and not removed[row]
            ]
            if rerank is None:
                assert one.rows.tolist() == rows
            else:  # float32 distances may tie where exact ones do not
                assert set(one.rows) == set(rows)
                assert np.diff(order[one.query][one.rows]).max() < 1e-5
            np.testing.assert_allclose(one.scores, cosine[one.query, one.rows], rtol=1e-6, atol=1e-7)
            correct = (labels.pid[one.rows] == own.pid).fillna(False).to_numpy(dtype=bool)
            precision = np.cumsum(correct)[correct] / (np.flatnonzero(correct) + 1)
            assert frame.AP_step[one.query] == pytest.approx(precision.mean())


def test_lists_are_cut(sides: Sides) -> None:
    for whole, short in zip(top_matches(*sides, top_k=10**6), top_matches(*sides, top_k=3), strict=True):
        assert short.rows.tolist() == whole.rows[:3].tolist()
        assert short.scores.tolist() == whole.scores[:3].tolist()
    assert top_matches(*sides, []) == []


def test_arrays_and_tables_give_the_same(sides: Sides) -> None:
    query, gallery = sides
    lists = ranked_lists(query.features, gallery.features, query.table, gallery.table, [3], top_k=5)
    assert [one.rows.tolist() for one in lists] == [
        one.rows.tolist() for one in top_matches(*sides, [3], top_k=5)
    ]


@pytest.mark.parametrize("rerank", [None, ReRanking(4, 2)])
def test_a_gallery_of_junk_is_rejected(sides: Sides, rerank: ReRanking | None) -> None:
    query, gallery = sides
    junk = LabelledFeatures(gallery.features, [-1] * 40, gallery.camids)
    with pytest.raises(InputError, match="gallery_pids: every item is junk"):
        top_matches(query, junk, [0], rerank=rerank)
    assert top_matches(query, junk, [0], junk_pids=())


@pytest.mark.parametrize("option", [{"metric": "cos"}, {"top_k": 0}, {"device": "nowhere"}])
def test_bad_options_are_named(sides: Sides, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        top_matches(*sides, [0], **option)
