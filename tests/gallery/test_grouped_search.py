"""Searching for groups of images, compared with grouping all images sorted by brute force."""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from tests.oracles import naive_re_ranking, squared_distances

DIMENSION = 8
Rows = tuple[np.ndarray, pd.DataFrame]


def unit(features: np.ndarray) -> np.ndarray:
    exact = features.astype(np.float64)
    return (exact / np.sqrt((exact**2).sum(axis=1, keepdims=True))).astype(np.float32)


def events(count: int = 4000, seed: int = 0) -> Rows:
    """Images of a few large tracks and many small ones; some have no track, camera or pid, and some tie.

    Cameras and tracks share numbers: 20 cameras have a track 0.
    """
    generator = np.random.default_rng(seed)
    track = np.where(
        generator.random(count) < 0.7, generator.integers(0, 2, count), np.arange(count) // 5 % 9
    )
    camera = np.where(track < 2, track, generator.integers(0, 20, count))
    centres = generator.normal(size=(20, 9, DIMENSION))
    features = centres[camera, track] + 0.3 * generator.normal(size=(count, DIMENSION))
    features[1::97] = features[::97][: len(features[1::97])]
    labels = pd.DataFrame({"camera": camera, "track": track, "pid": track * 3 + camera % 3}).astype("Int64")
    for column in labels:
        labels.loc[generator.random(count) < 0.01, column] = pd.NA
    labels["camera"] = labels["camera"].map(lambda number: f"cam{number}", na_action="ignore")
    return features.astype(np.float32), labels.assign(path=[f"{row}.jpg" for row in range(count)])


def expected(
    order: list[int], table: pd.DataFrame, columns: list[str], top_k: int, per_group: int
) -> list[tuple[int, int]]:
    """Ranks and rows: of the images in their order, the first of the first groups."""
    values = list(zip(*(table[column].tolist() for column in columns), strict=True))
    groups: dict[Hashable, list[int]] = {}
    for row in order:
        key = row if any(map(pd.isna, values[row])) else values[row]
        groups.setdefault(key, []).append(row)
    best = enumerate(list(groups.values())[:top_k], 1)
    return [(rank, row) for rank, rows in best for row in rows[:per_group]]


def sorted_rows(features: np.ndarray, query: np.ndarray, rows: Any) -> list[int]:
    chosen = np.sort(np.fromiter(rows, np.int64))
    scores = (unit(features[chosen]).astype(np.float64) * unit(query[None])[0]).sum(axis=1)
    return chosen[np.argsort(-scores, kind="stable")].tolist()


def found(matches: pd.DataFrame, query: int = 0) -> list[tuple[int, int]]:
    mine = matches[matches["query"] == query]
    return list(zip(mine["rank"], mine["id"], strict=True))


@pytest.fixture(scope="module")
def crowded() -> tuple[np.ndarray, pd.DataFrame, Gallery]:
    features, table = events()
    return features, table, Gallery.build(features, table)


@pytest.mark.parametrize(
    ("group_by", "columns"),
    [("track", ["camera", "track"]), ("camera", ["camera"]), ("camid", ["camera"]), ("pid", ["pid"])],
)
@pytest.mark.parametrize(("top_k", "per_group"), [(1, 1), (2, 4), (30, 2), (1000, 3)])
def test_groups_are_those_of_all_images_sorted(
    crowded: Any, group_by: str, columns: list[str], top_k: int, per_group: int
) -> None:
    features, table, gallery = crowded
    queries = np.stack([features[0], features[5], -features[7]]) + 0.01
    matches = gallery.search(queries, top_k, group_by=group_by, per_group=per_group, with_ids=True)
    for number, query in enumerate(queries):
        order = sorted_rows(features, query, range(len(table)))
        assert found(matches, number) == expected(order, table, columns, top_k, per_group)
    plain = gallery.search(queries, len(table), with_ids=True).set_index(["query", "id"])
    pd.testing.assert_frame_equal(
        matches.set_index(["query", "id"]).drop(columns="rank"),
        plain.loc[list(zip(matches["query"], matches["id"], strict=True))].drop(columns="rank"),
    )


@pytest.mark.parametrize("size", [1100, 2400])
def test_a_group_that_fills_every_search_hides_no_other(size: int) -> None:
    """The nearest images are of three tracks; those without a track, and two others, come last."""
    generator = np.random.default_rng(1)
    features = np.ones((3 * size + 12, DIMENSION)) + 0.01 * generator.normal(size=(3 * size + 12, DIMENSION))
    features[size : 2 * size, 0] -= 0.3
    features[2 * size : 3 * size, 0] -= 0.6
    features[3 * size :, 0] -= np.linspace(1, 6, 12)
    track = [*np.arange(3 * size) // size, None, 8, None, 8, None, None, 9, None, 8, 9, None, 9]
    table = pd.DataFrame({"path": "x.jpg", "camera": 1, "track": pd.array(track, dtype="Int64")})
    gallery = Gallery.build(features, table)
    order = sorted_rows(features, np.ones(DIMENSION), range(len(table)))
    for top_k in (4, 5, 8, 11, 20):
        matches = gallery.search(np.ones((1, DIMENSION)), top_k, group_by="track", with_ids=True)
        assert found(matches) == expected(order, table, ["camera", "track"], top_k, 3)


def test_filters_go_along(crowded: Any) -> None:
    features, table, gallery = crowded
    matches = gallery.search(
        features[:2],
        40,
        group_by="pid",
        per_group=2,
        where="track > 1",
        exclude_camera="cam3",
        with_ids=True,
    )
    kept = (table["track"].fillna(0) > 1) & (table["camera"].fillna("") != "cam3")
    for number in range(2):
        order = sorted_rows(features, features[number], np.flatnonzero(kept))
        assert found(matches, number) == expected(order, table, ["pid"], 40, 2)
    assert gallery.search(features[:2], group_by="pid", where="track > 99").empty


def test_the_shortlist_and_the_nearest_groups_are_reranked_together(crowded: Any) -> None:
    features, table, gallery = crowded
    changed = 0
    for query in features[:4] + 0.05:
        order = sorted_rows(features, query, range(len(table)))
        wanted = {*order[:30], *(row for _, row in expected(order, table, ["camera", "track"], 10, 2))}
        candidates = sorted_rows(features, query, wanted)
        squares = squared_distances(np.vstack([query[None], features[candidates]]), "cosine")
        distances = naive_re_ranking(squares, 1, 8, 3, 0.3)[0]
        reranked = [candidates[place] for place in np.argsort(distances, kind="stable")]
        matches = gallery.search(
            query[None],
            10,
            group_by="track",
            per_group=2,
            rerank=ReRanking(k1=8, k2=3),
            shortlist=30,
            with_ids=True,
        )
        assert found(matches) == expected(reranked, table, ["camera", "track"], 10, 2)
        assert matches["rank"].max() == 10
        changed += reranked != candidates
    assert changed


def test_without_cameras_a_track_is_its_number() -> None:
    features, table = events(60)
    table["camera"] = pd.array([None] * 60, dtype="Int64")
    matches = Gallery.build(features, table).search(features[:1], 30, group_by="track", with_ids=True)
    order = sorted_rows(features, features[0], range(60))
    assert found(matches) == expected(order, table, ["track"], 30, 3)


@pytest.mark.parametrize("column", ["zone", "time", "night", "speed"])
def test_any_column_makes_groups(column: str) -> None:
    features, table = events(80)
    hours = pd.to_timedelta(np.arange(80) % 7, unit="h")
    table["zone"] = [None if row % 9 == 0 else f"zone '{row % 4}\"" for row in range(80)]
    table["time"] = (pd.Timestamp("2026-11-20T12:00:00.000001", tz="UTC") + hours).where(
        hours > hours[1], pd.NaT
    )
    table["night"] = pd.array([None, True, False, False] * 20, dtype="boolean")
    table["speed"] = pd.array([None, 0.1, 0.3, 0.1 + 0.2] * 20, dtype="Float64")
    gallery = Gallery.build(features, table)
    matches = gallery.search(features[:1], 80, group_by=column, per_group=4, with_ids=True)
    order = sorted_rows(features, features[0], range(80))
    table[column] = gallery.table[column].astype(object).where(gallery.table[column].notna(), pd.NA)
    assert found(matches) == expected(order, table, [column], 80, 4)
    assert gallery.columns[column] != "null"


def test_columns_of_older_rows_are_unknown(tmp_path: Path) -> None:
    features, table = events(50)
    gallery = Gallery.build(features, table[["path"]])
    gallery.save(tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    gallery.add(features, table)
    matches = gallery.search(features[:1], 70, group_by="track", with_ids=True)
    both = pd.concat([table.assign(camera=pd.NA, track=pd.NA), table], ignore_index=True)
    order = sorted_rows(np.concatenate([features, features]), features[0], range(100))
    assert found(matches) == expected(order, both, ["camera", "track"], 70, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tests.gallery.list_store.ListStore:{name}", "{folder}/{name}.db"])
def test_every_store_finds_the_same_groups(tmp_path: Path, crowded: Any, name: str) -> None:
    location = name.format(name=uuid.uuid4().hex, folder=tmp_path)
    features, _, gallery = crowded
    gallery.save(location)
    stored = Gallery.open(location)
    for options in (
        {"top_k": 5, "group_by": "track"},
        {"top_k": 60, "group_by": "track", "per_group": 2, "where": "pid > 2 or pid is null"},
        {"top_k": 30, "group_by": "camera", "exclude_camera": "cam1", "per_group": 1},
        {"top_k": 8, "group_by": "pid", "rerank": ReRanking(k1=5, k2=2), "shortlist": 20},
    ):
        options = {"with_ids": True, **options}
        pd.testing.assert_frame_equal(
            stored.search(features[:3], **options), gallery.search(features[:3], **options)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "trak"}, "group_by: unknown column 'trak'; .*did you mean track"),
        ({"group_by": "track", "per_group": 0}, "per_group"),
        ({"group_by": "track", "top_k": 0}, "top_k"),
        ({"group_by": "track", "rerank": ReRanking(), "shortlist": 3}, "shortlist"),
    ],
)
def test_bad_input_is_refused(crowded: Any, options: dict[str, Any], message: str) -> None:
    features, _, gallery = crowded
    with pytest.raises(InputError, match=message):
        gallery.search(features[:1], **options)
