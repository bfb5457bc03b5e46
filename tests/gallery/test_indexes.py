"""Approximate indexes, compared with exact search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery import index as indexes
from rga_reid.gallery.index import SETTINGS, IndexConfig
from rga_reid.gallery.validation import normalize_rows

APPROXIMATE = ["hnsw", "ivf", "ivfpq"]


@pytest.fixture(scope="module")
def galleries(crowd: Callable) -> dict[str, Gallery]:
    return {kind: Gallery.build(*crowd(4000), index=kind) for kind in SETTINGS}


@pytest.fixture(scope="module")
def queries(crowd: Callable) -> np.ndarray:
    return crowd(60, seed=1)[0]


def recall(found: pd.DataFrame, true: pd.DataFrame) -> float:
    return len(pd.merge(found, true, on=["query", "path"])) / len(true)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_recall_is_measured_and_scores_are_exact(
    galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    facts, found = galleries[kind].describe(), galleries[kind].search(queries)
    assert facts["settings"].keys() == set(SETTINGS[kind])
    measured = recall(found, galleries["flat"].search(queries))
    assert measured > 0.85
    assert facts["recall_at_10"] == pytest.approx(measured, abs=0.06)
    every = galleries["flat"].search(queries, 4000).set_index(["query", "path"])["score"]
    scores = found.set_index(["query", "path"])["score"]
    assert (scores == every.loc[scores.index]).all()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_search_that_looks_everywhere_is_exact(
    crowd: Callable, galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    widest = {"hnsw": {"ef_search": 4000}, "ivf": {"nprobe": 4000}, "ivfpq": {"nprobe": 4000, "refine": 30}}
    gallery = Gallery.build(*crowd(4000), index=kind, **widest[kind])
    pd.testing.assert_frame_equal(gallery.search(queries), galleries["flat"].search(queries))
    assert gallery.describe()["recall_at_10"] == 1


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_filters_and_deep_searches_miss_no_one(
    galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    for where in ("camid == 1", "pid == 7", "pid is None"):
        true, found = (galleries[name].search(queries, where=where) for name in ("flat", kind))
        assert len(found) == len(true)
        assert not len(true) or recall(found, true) > 0.85
    deep = galleries[kind].search(queries[:2], 3900)  # more than an index can find, so it is searched exactly
    pd.testing.assert_frame_equal(deep, galleries["flat"].search(queries[:2], 3900))


def test_a_query_for_which_the_index_finds_too_few_is_searched_exactly(
    crowd: Callable, galleries: dict[str, Gallery]
) -> None:
    """A list may have fewer images than are asked for: here about 40."""
    features, table = crowd(4000)
    gallery = Gallery.build(features, table, index="ivf", nlist=100, nprobe=1)
    expected = galleries["flat"].search(features[:50], 60)
    short = gallery.search(features[:50], 60)
    assert (short.groupby("query").size() == 60).all()
    same = [
        short[short["query"] == query]["path"].tolist()
        == expected[expected["query"] == query]["path"].tolist()
        for query in range(50)
    ]
    assert sum(same) > 25


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_few_images_are_searched_exactly(crowd: Callable, queries: np.ndarray, kind: str) -> None:
    features, table = crowd(1000)
    gallery = Gallery.build(features, table, index=kind)
    assert (gallery.describe()["settings"], gallery.describe()["recall_at_10"]) == (None, None)
    pd.testing.assert_frame_equal(gallery.search(queries), Gallery.build(features, table).search(queries))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_opened_index_answers_as_the_saved_one(
    tmp_path: Path, galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    galleries[kind].save(tmp_path / "gallery")
    opened = Gallery.open(tmp_path / "gallery")
    pd.testing.assert_frame_equal(opened.search(queries), galleries[kind].search(queries))
    assert opened.describe() == galleries[kind].describe()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_lists_contain_what_faiss_would_put_there(
    monkeypatch: pytest.MonkeyPatch, crowd: Callable, kind: str
) -> None:
    """Though they are sized first, and filled block by block."""
    monkeypatch.setattr(indexes, "_FILL_BLOCK", 700)
    vectors = normalize_rows(crowd(2500)[0])
    index = IndexConfig(kind).build(vectors)
    assert index is not None
    plain = faiss.clone_index(index.loaded)
    plain.reset()
    plain.add(vectors)
    assert index.loaded.ntotal == 2500

    def content(lists: object, get: str, number: int, size: int) -> np.ndarray:
        return faiss.rev_swig_ptr(getattr(lists, get)(number), lists.list_size(number) * size)

    for number in range(plain.nlist):
        for get, size in (("get_ids", 1), ("get_codes", plain.code_size)):
            np.testing.assert_array_equal(
                *(content(lists, get, number, size) for lists in (index.loaded.invlists, plain.invlists))
            )


def test_settings_follow_the_size() -> None:
    config = IndexConfig("ivfpq")
    large = {"nlist": 1024, "nprobe": 128, "pq_m": 64, "pq_bits": 8, "refine": 16}
    assert config.resolve(1024, 2048) == {"nlist": 26, "nprobe": 16, "pq_m": 64, "pq_bits": 4, "refine": 16}
    assert config.resolve(65_536, 2048) == large
    assert config.resolve(65_536, 127)["pq_m"] == 1
    # given settings are limited to what the images can train
    given = IndexConfig("ivfpq", {"nlist": 5000, "nprobe": 4000, "pq_bits": 8})
    assert given.resolve(3900, 32) == {"nlist": 100, "nprobe": 100, "pq_m": 8, "pq_bits": 6, "refine": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("tree", {}, "index: .*'tree'"),
        ("flat", {"nprobe": 4}, "index flat: .*'nprobe'"),
        ("hnsw", {"M": 4}, "index hnsw: .*'M'.*hnsw_m"),
        ("hnsw", {"hnsw_m": 1}, "hnsw_m: .* 2 to 256"),
        ("ivf", {"nprobe": 0}, "nprobe: .* 1 to 65536"),
        ("ivf", {"nlist": 10.0}, "nlist: .* 10.0"),
        ("ivfpq", {"pq_bits": 9}, "pq_bits: .* 4 to 8"),
        ("ivfpq", {"pq_m": 5}, "pq_m: .*divisor"),
    ],
)
def test_wrong_settings_are_refused(crowd: Callable, kind: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gallery.build(*crowd(20), index=kind, **settings)
