"""Ranked lists, against sorting by hand, and against the metrics of the same ranking."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking, evaluate_ranking, ranked_lists, re_ranked_distances


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(6, 8)), rng.normal(size=(40, 8))
    gallery[7] = gallery[3]  # a tie
    tables = [
        pd.DataFrame(
            {
                "path": [f"{name}{n}.jpg" for n in range(count)],
                "pid": pd.array(rng.integers(-1 if name == "g" else 0, 4, count), dtype="Int64"),
                "camid": pd.array(rng.integers(1, 3, count), dtype="Int64"),
            }
        )
        for name, count in (("q", 6), ("g", 40))
    ]
    tables[1].loc[5, "path"] = "q2.jpg"  # a query's own file
    return query, gallery, tables[0], tables[1]


@pytest.mark.parametrize("rerank", [None, ReRanking(4, 2)])
def test_lists_are_those_of_the_evaluation(
    data: tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame], rerank: ReRanking | None
) -> None:
    query, gallery, asked, held = data
    lists = ranked_lists(query, gallery, asked, held, [4, 2], top_k=40, rerank=rerank)
    assert [one.query for one in lists] == [4, 2]
    unit = [rows.astype(np.float32).astype(float) for rows in (query, gallery)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in unit]
    cosine = unit[0] @ unit[1].T
    kept = np.flatnonzero(held.pid != -1)
    order = cosine if rerank is None else np.full_like(cosine, -2)
    if rerank is not None:
        order[:, kept] = -re_ranked_distances(query, gallery[kept], k1=4, k2=2)
    result = evaluate_ranking(
        query,
        gallery,
        asked.pid,
        held.pid,
        asked.camid,
        held.camid,
        query_paths=asked.path,
        gallery_paths=held.path,
        rerank=rerank,
    )
    for one in lists:
        mine = asked.loc[one.query]
        same = (held.pid == mine.pid) & (held.camid == mine.camid) | (held.path == mine.path)
        rows = [row for row in np.argsort(-order[one.query], kind="stable") if row in kept and not same[row]]
        if rerank is None:
            assert one.rows.tolist() == rows
        else:  # distances of float32 may tie where exact ones do not
            assert set(one.rows) == set(rows)
            assert np.diff(order[one.query][one.rows]).max() < 1e-5
        np.testing.assert_allclose(one.scores, cosine[one.query, one.rows], rtol=1e-6, atol=1e-7)
        correct = (held.pid.to_numpy()[one.rows] == mine.pid).astype(bool)
        precision = np.cumsum(correct)[correct] / (np.flatnonzero(correct) + 1)
        assert result.to_frame().AP_step[one.query] == pytest.approx(precision.mean())


def test_a_list_is_cut(data: tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame]) -> None:
    whole, short = (ranked_lists(*data, [0], top_k=top_k)[0] for top_k in (40, 3))
    assert short.rows.tolist() == whole.rows[:3].tolist()


@pytest.mark.parametrize("rerank", [None, ReRanking(4, 2)])
def test_a_gallery_without_items_is_refused(
    data: tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame], rerank: ReRanking | None
) -> None:
    query, gallery, asked, held = data
    junk = held.assign(pid=pd.array([-1] * len(held), dtype="Int64"))
    with pytest.raises(InputError, match="gallery_pids: every item is junk"):
        ranked_lists(query, gallery, asked, junk, [0], rerank=rerank)
    with pytest.raises(InputError, match="gallery_pids: every item is junk"):
        evaluate_ranking(query, gallery, asked.pid, junk.pid)
    assert ranked_lists(query, gallery, asked, junk, [0], junk_pids=())  # junk is what one says it is
    with pytest.raises(InputError, match=r"gallery_features: expected a matrix \(n, d\) .* \(0, 8\)"):
        ranked_lists(query, gallery[:0], asked, held[:0], [0], rerank=rerank)


def test_no_query_no_list(data: tuple[np.ndarray, np.ndarray, pd.DataFrame, pd.DataFrame]) -> None:
    assert ranked_lists(*data, []) == []
    with pytest.raises(InputError, match="metric: expected cosine or euclidean, got 'cos'"):
        ranked_lists(*data, [0], metric="cos")  # type: ignore[arg-type]
