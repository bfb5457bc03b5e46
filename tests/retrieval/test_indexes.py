"""Approximate indexes against the exact search."""

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
from rga_reid.gallery.index import SETTINGS, IndexConfig, Vectors
from rga_reid.gallery.validation import normalized_matrix

APPROXIMATE = ["hnsw", "ivf", "ivfpq"]


@pytest.fixture(scope="module")
def galleries(crowd: Callable) -> dict[str, Gallery]:
    return {kind: Gallery.build(*crowd(4000), index=kind) for kind in SETTINGS}


@pytest.fixture(scope="module")
def queries(crowd: Callable) -> np.ndarray:
    return crowd(60, seed=1)[0]


def shares(found: pd.DataFrame, true: pd.DataFrame) -> float:
    """Share of the true matches that were found."""
    return len(pd.merge(found, true, on=["query", "path"])) / len(true)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_recall_is_what_a_search_has(
    galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    facts = galleries[kind].describe()
    assert facts["settings"].keys() == set(SETTINGS[kind])
    measured = shares(galleries[kind].search(queries), galleries["flat"].search(queries))
    assert measured > 0.85
    assert facts["recall_at_10"] == pytest.approx(measured, abs=0.06)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_reported_scores_are_exact(galleries: dict[str, Gallery], queries: np.ndarray, kind: str) -> None:
    every = galleries["flat"].search(queries, 4000).set_index(["query", "path"])["score"]
    found = galleries[kind].search(queries).set_index(["query", "path"])["score"]
    assert (found == every.loc[found.index]).all()


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_a_search_that_looks_everywhere_is_exact(
    crowd: Callable, galleries: dict[str, Gallery], queries: np.ndarray, kind: str
) -> None:
    widest = {"hnsw": {"ef_search": 4000}, "ivf": {"nprobe": 4000}, "ivfpq": {"nprobe": 4000, "refine": 30}}
    gallery = Gallery.build(*crowd(4000), index=kind, **widest[kind])
    pd.testing.assert_frame_equal(gallery.search(queries), galleries["flat"].search(queries))
    assert gallery.describe()["recall_at_10"] == 1


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.parametrize("where", ["camid == 1", "pid == 7", "pid is None"])
def test_filters_and_deep_searches_miss_no_one(
    galleries: dict[str, Gallery], queries: np.ndarray, kind: str, where: str
) -> None:
    true, found = (galleries[name].search(queries, where=where) for name in ("flat", kind))
    assert len(found) == len(true)
    if len(true):
        assert shares(found, true) > 0.85
    deep = galleries[kind].search(queries[:2], 3900)  # more than an index can find: exactly, then
    pd.testing.assert_frame_equal(deep, galleries["flat"].search(queries[:2], 3900))


def test_an_index_that_finds_too_few_is_not_believed(crowd: Callable) -> None:
    """A list may hold fewer images than are asked for: here about 40."""
    features, table = crowd(4000)
    gallery = Gallery.build(features, table, index="ivf", nlist=100, nprobe=1)
    matches = gallery.search(features[:50], 60)
    assert (matches.groupby("query").size() == 60).all()


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
def test_lists_hold_what_faiss_would_put_there(
    monkeypatch: pytest.MonkeyPatch, crowd: Callable, kind: str
) -> None:
    """Though sized first, and filled block by block."""
    monkeypatch.setattr(indexes, "_BLOCK", 700)
    vectors = normalized_matrix(crowd(2500)[0])
    made = IndexConfig(kind).build(vectors)
    assert made is not None
    plain = faiss.clone_index(made.loaded)
    plain.reset()
    plain.add(vectors)
    assert made.loaded.ntotal == 2500
    for number in range(plain.nlist):
        ids, codes = (
            [
                faiss.rev_swig_ptr(
                    getattr(index.invlists, get)(number), index.invlists.list_size(number) * size
                )
                for index in (made.loaded, plain)
            ]
            for get, size in (("get_ids", 1), ("get_codes", plain.code_size))
        )
        np.testing.assert_array_equal(*ids)
        np.testing.assert_array_equal(*codes)


def test_products_are_those_of_the_rows_named(crowd: Callable) -> None:
    rows, queries = crowd(30)[0], crowd(5, seed=1)[0]
    chosen = np.random.default_rng(0).integers(0, 30, (5, 12))
    for parts in ([rows], [rows[:7], rows[7:11], rows[11:]]):
        products = Vectors(parts).products(queries, chosen)
        expected = np.einsum("qd,qcd->qc", queries.astype(np.float64), rows[chosen].astype(np.float64))
        np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-4)


def test_settings_follow_the_size() -> None:
    plan = IndexConfig("ivfpq")
    assert plan.chosen(1024, 2048) == {"nlist": 26, "nprobe": 16, "pq_m": 64, "pq_bits": 4, "refine": 16}
    assert plan.chosen(65_536, 2048) == {"nlist": 1024, "nprobe": 128, "pq_m": 64, "pq_bits": 8, "refine": 16}
    assert plan.chosen(65_536, 127)["pq_m"] == 1
    # what was given is kept as far as the images can train it
    given = IndexConfig("ivfpq", {"nlist": 5000, "nprobe": 4000, "pq_bits": 8})
    assert given.chosen(3900, 32) == {"nlist": 100, "nprobe": 100, "pq_m": 8, "pq_bits": 6, "refine": 16}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("tree", {}, "index: expected flat, hnsw, ivf, ivfpq, got 'tree'"),
        ("flat", {"nprobe": 4}, r"index flat: unknown setting 'nprobe' \(known: none\)"),
        ("hnsw", {"M": 4}, r"index hnsw: unknown setting 'M' \(known: hnsw_m, ef_construction, ef_search\)"),
        ("hnsw", {"hnsw_m": 1}, "hnsw_m: expected a whole number from 2 to 256, got 1"),
        ("ivf", {"nprobe": 0}, "nprobe: expected a whole number from 1 to 65536, got 0"),
        ("ivf", {"nlist": 10.0}, "nlist: expected a whole number .* got 10.0"),
        ("ivfpq", {"pq_bits": 9}, "pq_bits: expected a whole number from 4 to 8, got 9"),
        ("ivfpq", {"pq_m": 5}, "pq_m: expected a divisor of the dimension 32, got 5"),
    ],
)
def test_wrong_settings_are_refused(crowd: Callable, kind: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gallery.build(*crowd(20), index=kind, **settings)
