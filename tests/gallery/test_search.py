"""Searching a gallery, compared with brute force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from rga_reid.gallery import index as indexes
from tests.oracles import naive_re_ranking, squared_distances

COLUMNS = ["query", "rank", "score", "path", "pid", "camera", "camid", "time", "track"]


def table_of(count: int) -> pd.DataFrame:
    """Paths, pids 0 to 4 with some unknown, cameras 1 to 3 with some unknown."""
    rows = range(count)
    return pd.DataFrame(
        {
            "path": [f"people/{row:05d}.jpg" for row in rows],
            "pid": pd.array([None if row % 7 == 3 else row % 5 for row in rows], dtype="Int64"),
            "camid": pd.array([None if row % 11 == 5 else row % 3 + 1 for row in rows], dtype="Int64"),
        }
    )


def random_features(count: int, dimension: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def brute_force(gallery: np.ndarray, query: np.ndarray, top_k: int, rows: list[int]) -> list[int]:
    """Rows by the definition: float64 dot product of float32 unit rows, ties by row."""

    def unit(row: np.ndarray) -> np.ndarray:
        exact = row.astype(np.float64)
        return (exact / np.sqrt(np.sum(exact**2))).astype(np.float32).astype(np.float64)

    scores = {row: float(np.sum(unit(gallery[row]) * unit(query))) for row in rows}
    return sorted(rows, key=lambda row: (-scores[row], row))[:top_k]


def found_rows(matches: pd.DataFrame, query: int = 0) -> list[int]:
    return [int(Path(path).stem) for path in matches[matches["query"] == query]["path"]]


@pytest.mark.parametrize("top_k", [1, 10, 300])
def test_search_is_brute_force(top_k: int) -> None:
    features, queries = random_features(200), random_features(9, seed=1)
    matches = Gallery.build(features, table_of(200)).search(queries, top_k)
    assert list(matches.columns) == COLUMNS
    for number, query in enumerate(queries):
        assert found_rows(matches, number) == brute_force(features, query, top_k, list(range(200)))
        ranks = matches[matches["query"] == number]["rank"].tolist()
        assert ranks == list(range(1, min(top_k, 200) + 1))
    assert matches["query"].is_monotonic_increasing


def test_scores_are_cosines_and_rows_keep_their_labels() -> None:
    features, queries, table = random_features(50), random_features(3, seed=1), table_of(50)
    matches = Gallery.build(features * 1000, table).search(queries / 1000)
    lengths = np.linalg.norm(features, axis=1)
    for match in matches.itertuples():
        row = int(Path(match.path).stem)
        query = queries[match.query].astype(np.float64)
        cosine = features[row] @ query / (lengths[row] * np.linalg.norm(query))
        assert match.score == pytest.approx(cosine, abs=1e-6)
    expected = table.set_index("path").loc[matches["path"]]
    for column in ("pid", "camid"):
        assert matches[column].dtype == "Int64"
        assert matches[column].to_list() == expected[column].to_list()


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_ties_go_to_the_earlier_row_whatever_the_batch(batch: int) -> None:
    people = random_features(40, dimension=129)
    features = np.concatenate([people] * 5)  # row r and r + 40, r + 80, ... tie exactly
    gallery = Gallery.build(features, table_of(200))
    for start in range(0, 40, batch):
        matches = gallery.search(people[start : start + batch], 7)
        for number in range(len(people[start : start + batch])):
            person = start + number
            assert found_rows(matches, number)[:5] == [person + 40 * copy for copy in range(5)]


def test_thousands_of_ties() -> None:
    one = random_features(1, dimension=65)
    gallery = Gallery.build(np.repeat(one, 5000, axis=0), table_of(5000))
    matches = gallery.search(random_features(2, dimension=65, seed=1), 3)
    assert found_rows(matches, 0) == found_rows(matches, 1) == [0, 1, 2]
    assert matches.groupby("query")["score"].nunique().tolist() == [1, 1]


def test_batches_of_queries_are_compared_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one: tensors stay where they are, and the devices asked for are recorded."""
    features, queries, devices = random_features(200), random_features(20, seed=1), set()

    def move(tensor: torch.Tensor, device: object) -> torch.Tensor:
        devices.add(str(device))
        return tensor

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", move)
    gallery = Gallery.build(features, table_of(200))
    assert found_rows(gallery.search(queries[:1], 5)) == brute_force(
        features, queries[0], 5, list(range(200))
    )
    assert "cuda" not in devices
    matches = gallery.search(queries, 5)
    assert "cuda" in devices
    for number, query in enumerate(queries):
        assert found_rows(matches, number) == brute_force(features, query, 5, list(range(200)))


def test_near_ties_below_float32_resolution_are_ranked_exactly() -> None:
    generator = np.random.default_rng(3)
    centre = generator.normal(size=256)
    features = (centre + 2e-6 * generator.normal(size=(600, 256))).astype(np.float32)
    query = (centre + generator.normal(size=(1, 256))).astype(np.float32)
    matches = Gallery.build(features, table_of(600)).search(query, 20)
    assert found_rows(matches) == brute_force(features, query[0], 20, list(range(600)))


@pytest.mark.parametrize("where", [None, "camid in (1, 2)"])
def test_a_search_in_many_blocks_is_brute_force(monkeypatch: pytest.MonkeyPatch, where: str | None) -> None:
    monkeypatch.setattr(indexes, "_BLOCK_BYTES", 24 * 4 * 7)  # seven rows
    monkeypatch.setattr(indexes, "_QUERIES", 3)
    features, queries, table = random_features(200), random_features(5, seed=1), table_of(200)
    features[150:] = features[:50]  # ties, blocks apart
    matches = Gallery.build(features, table).search(queries, 40, where=where)
    kept = [row for row in range(200) if where is None or table["camid"].isin([1, 2])[row]]
    for number, query in enumerate(queries):
        assert found_rows(matches, number) == brute_force(features, query, 40, kept)


def test_no_queries() -> None:
    matches = Gallery.build(random_features(4), table_of(4)).search(np.empty((0, 24), np.float32))
    assert list(matches.columns) == COLUMNS
    assert matches.empty


def test_exclude_camera_keeps_other_and_unknown_cameras() -> None:
    features, query, table = random_features(90), random_features(1, seed=1), table_of(90)
    matches = Gallery.build(features, table).search(query, 90, exclude_camera=2)
    kept = [row for row, camid in enumerate(table["camid"]) if camid is pd.NA or camid != 2]
    assert len(kept) < 90
    assert found_rows(matches) == brute_force(features, query[0], 90, kept)


def test_exclude_camera_needs_a_known_camera() -> None:
    gallery = Gallery.build(random_features(3), table_of(3)[["path"]])
    with pytest.raises(InputError, match="exclude_camera 1: "):
        gallery.search(random_features(1), exclude_camera=1)


def test_labels_may_be_floats_with_nan_as_csv_readers_give_them() -> None:
    table = pd.DataFrame({"path": ["a", "b"], "pid": [3.0, np.nan], "camid": [1, 2]})
    kept = Gallery.build(random_features(2), table).table
    assert kept["pid"].to_list() == [3, pd.NA]
    assert kept["camid"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("features", "table", "message"),
    [
        (random_features(3), table_of(2), "features: 3 rows, but the table has 2"),
        (random_features(2)[0], table_of(2), "matrix"),
        (np.empty((0, 8), np.float32), table_of(0), "empty gallery"),
        (np.array([["a"], ["b"]]), table_of(2), "of numbers"),
        (random_features(2), table_of(2)[["pid"]], "expected a column 'path', found pid"),
        (random_features(2), table_of(2).assign(path=["a", None]), "row 1: expected a path"),
        (random_features(2), table_of(2).assign(pid=[1.5, 2]), "row 0: pid: expected whole numbers"),
        (random_features(2), table_of(2).assign(camid=[True, False]), "camera: expected whole numbers"),
    ],
)
def test_build_refuses(features: np.ndarray, table: pd.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gallery.build(features, table)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinity"), (-np.inf, "NaN or infinity"), (0, "only zeros")],
)
def test_rows_that_cannot_be_normalised_are_named(value: float, message: str) -> None:
    features = random_features(20000, dimension=2)
    features[17000] = value
    with pytest.raises(InputError, match=f"features: row 17000 .*{message}"):
        Gallery.build(features, table_of(20000))


def test_lengths_may_be_extreme() -> None:
    features = random_features(6).astype(np.float64)
    scaled = features * np.array([[1e-300], [1e300], [1], [1e-20], [1e20], [7]])
    query = random_features(1, seed=1)
    expected = Gallery.build(features, table_of(6)).search(query)
    pd.testing.assert_frame_equal(Gallery.build(scaled, table_of(6)).search(query), expected)


def test_search_refuses_another_dimension() -> None:
    gallery = Gallery.build(random_features(3), table_of(3))
    with pytest.raises(InputError, match="query features: of dimension 23"):
        gallery.search(random_features(1, dimension=23))


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "many"])
def test_search_refuses_top_k(top_k: object) -> None:
    gallery = Gallery.build(random_features(3), table_of(3))
    with pytest.raises(InputError, match="top_k: "):
        gallery.search(random_features(1), top_k)  # type: ignore[arg-type]


def test_repr_is_short() -> None:
    table = pd.DataFrame({"path": map(str, range(1200))})
    assert repr(Gallery.build(random_features(1200, 3), table)) == "Gallery(1,200 images, 3 dimensions)"


def test_describe_counts_labels() -> None:
    table = pd.DataFrame(
        {
            "path": list("abcde"),
            "pid": [7, 7, -1, None, 0],
            "camid": pd.array([3, None, 1, 3, 1], dtype="Int64"),
        }
    )
    facts = Gallery.build(random_features(5), table).describe()
    assert (facts["identities"], facts["unlabelled"], facts["cameras"]) == (2, 1, [1, 3])
    assert (facts["without_camera"], facts["times"], facts["without_time"]) == (1, None, 5)
    assert facts["model"] is None


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_the_shortlist_is_reranked_and_nothing_else(crowd: Callable, index: str) -> None:
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
    with pytest.raises(InputError, match="shortlist: "):
        gallery.search(features[:2], 10, rerank=ReRanking(), shortlist=9)
