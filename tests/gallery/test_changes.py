"""Adding, removing and compacting, compared with a list that does the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, RemovalResult, segments
from rga_reid.gallery import index as indexes
from tests.folders import files_below

COLUMNS = ["path", "pid", "camera", "camid", "time", "track"]
KINDS = ["flat", "hnsw", "ivf", "ivfpq"]


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path, crowd: Callable) -> Callable[..., Gallery]:
    """Builds a gallery of people, in memory or on disk."""

    def build(count: int, **settings: object) -> Gallery:
        gallery = Gallery.build(*crowd(count), **settings)
        if request.param == "memory":
            return gallery
        gallery.save(tmp_path / "gallery")
        return Gallery.open(tmp_path / "gallery")

    return build


def test_added_images_are_found_and_ids_go_on(make: Callable[..., Gallery], crowd: Callable) -> None:
    gallery, (features, table) = make(50), crowd(3, seed=5)
    gallery.add(features * 100, table)
    assert gallery.ids.tolist() == list(range(53))
    matches = gallery.search(features, 1, with_ids=True)
    assert matches["path"].tolist() == table["path"].tolist()
    assert matches["score"].tolist() == pytest.approx([1, 1, 1])
    assert matches["id"].tolist() == [50, 51, 52]
    assert list(matches.columns) == ["query", "rank", "score", *COLUMNS, "id"]


def test_ids_and_order_outlive_removals(make: Callable[..., Gallery], crowd: Callable) -> None:
    gallery, table = make(200), crowd(200)[1]
    gone = (table["pid"] == 7) | (table["path"] == table["path"][199])
    done = gallery.remove(pids=7, paths=table["path"][199])
    assert done == RemovalResult(images=gone.sum(), segments=1, indexes=0, rewritten=200 - gone.sum())
    kept = np.flatnonzero(~gone)
    assert gallery.ids.tolist() == kept.tolist()
    assert gallery.table["path"].tolist() == table["path"][kept].tolist()
    gallery.add(*crowd(1, seed=5))
    assert gallery.ids.tolist() == [*kept.tolist(), 200]  # the id of a removed image is not given again


def test_all_may_go_and_others_come(make: Callable[..., Gallery], crowd: Callable) -> None:
    gallery, (features, table) = make(20), crowd(20)
    gallery.remove(pids=table["pid"].unique(), paths=[table["path"][0]])
    assert (len(gallery), gallery.describe()["segments"], gallery.dimension) == (0, 0, 32)
    assert gallery.search(features[:2]).empty
    assert gallery.table.empty
    texts = pd.Series(["a"], dtype="str").dtype  # pandas 2 calls it object
    whole = pd.Int64Dtype()
    assert gallery.table.dtypes.tolist() == [texts, *[whole] * 3, "datetime64[us, UTC]", whole]
    with pytest.raises(InputError, match="not in the gallery"):
        gallery.remove(pids=[int(table["pid"][0])])
    gallery.add(features, table)
    assert gallery.ids.tolist() == list(range(20, 40))


def test_the_deletion_log_has_time_pid_and_number(tmp_path: Path) -> None:
    table = pd.DataFrame({"path": list("abcde"), "pid": [7, 7, 8, None, 9]})
    Gallery.build(np.eye(5), table).save(tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    gallery.remove(pids=[7], paths=["d"])
    gallery.remove(pids=[9])
    (log,) = (tmp_path / "gallery").glob("removals-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["pid"], line["count"]) for line in lines] == [(7, 2), (None, 1), (9, 1)]
    assert {tuple(line) for line in lines} == {("time", "pid", "count")}
    assert datetime.fromisoformat(lines[0]["time"]).utcoffset() == timedelta(0)
    assert len(Gallery.open(tmp_path / "gallery").deletion_log) == gallery.describe()["removals"] == 3


def test_adding_no_rows_is_no_change(make: Callable[..., Gallery]) -> None:
    gallery = make(5)
    gallery.add(np.empty((0, 32)), pd.DataFrame({"path": []}))
    assert len(gallery) == 5


def test_one_image_does_not_rewrite_a_gallery(tmp_path: Path, crowd: Callable) -> None:
    """Images that come one by one stay in few segments, none of which is the large one's."""
    Gallery.build(*crowd(5000)).save(tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    large = tmp_path / "gallery" / "segments" / "000001-0"
    inodes = {path: path.stat().st_ino for path in large.iterdir()}
    features, table = crowd(33, seed=5)
    for row in range(33):
        gallery.add(features[row : row + 1], table[row : row + 1])
    assert [len(segment) for segment in gallery._store.segments] == [5000, 32, 1]
    assert {path: path.stat().st_ino for path in large.iterdir()} == inodes
    gallery.compact()
    assert (gallery.describe()["segments"], len(gallery)) == (1, 5033)
    assert not large.exists()
    files = files_below(tmp_path / "gallery")
    gallery.compact()  # nothing to do
    assert files_below(tmp_path / "gallery") == files


def test_many_additions_leave_few_segments(crowd: Callable) -> None:
    gallery = Gallery.build(*crowd(3, dimension=4))
    for seed in range(9):
        gallery.add(*crowd(4096, dimension=4, seed=seed))
    lengths = [len(segment) for segment in gallery._store.segments]
    assert lengths == [28_675, 8192]


@pytest.mark.parametrize("kind", KINDS)
def test_segments_answer_as_one(monkeypatch: pytest.MonkeyPatch, crowd: Callable, kind: str) -> None:
    """However the images are spread over segments, with or without an index."""
    for name in ("SEGMENT_ROWS", "INDEXED_ROWS"):
        monkeypatch.setattr(segments, name, 1100)
    wide = {"hnsw": {"ef_search": 1100}, "ivf": {"nprobe": 1100}, "ivfpq": {"nprobe": 1100, "refine": 50}}
    (features, table), queries = crowd(2500), crowd(20, seed=1)[0]
    gallery = Gallery.build(features[:2300], table[:2300], index=kind, **wide.get(kind, {}))
    for start in (2300, 2301, 2400):
        stop = {2300: 2301, 2301: 2400, 2400: 2500}[start]
        gallery.add(features[start:stop], table[start:stop])
    gallery.remove(pids=[3])
    kept = (table["pid"] != 3).to_numpy()
    expected = Gallery.build(features[kept], table[kept]).search(queries, where="camid != 2")
    pd.testing.assert_frame_equal(gallery.search(queries, where="camid != 2"), expected)
    gallery.compact()
    assert [len(segment) for segment in gallery._store.segments] == [1100, 1100, kept.sum() - 2200]
    pd.testing.assert_frame_equal(gallery.search(queries, where="camid != 2"), expected)


def test_a_writer_starts_from_what_is_on_disk(tmp_path: Path, crowd: Callable) -> None:
    Gallery.build(*crowd(10)).save(tmp_path / "gallery")
    first, second = (Gallery.open(tmp_path / "gallery") for _ in range(2))
    first.add(*crowd(2, seed=5))
    second.add(*crowd(3, seed=6))
    assert (len(first), len(second)) == (12, 15)
    second.remove(paths="people/5/00000.jpg")  # which the other one added
    assert len(Gallery.open(tmp_path / "gallery")) == 14


class Model(RuleBasedStateMachine):
    """A gallery on disk beside a list of (id, path, pid, camid, unit row). Small numbers make ties."""

    folder: Path
    settings: dict

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, int | None, int | None, np.ndarray]] = []
        self.next_id = 0

    def take(self, people: list[tuple[int | None, int | None, tuple[int, ...]]]) -> tuple:
        vectors = np.array([vector for _, _, vector in people], dtype=np.float64) + 0.5
        unit = (vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))).astype(np.float32)
        paths = [f"{self.next_id + row}.jpg" for row in range(len(people))]
        for row, (pid, camid, _) in enumerate(people):
            self.rows.append((self.next_id + row, paths[row], pid, camid, unit[row].astype(np.float64)))
        self.next_id += len(people)
        table = pd.DataFrame({"path": paths})
        table["pid"] = pd.array([pid for pid, _, _ in people], dtype="Int64")
        table["camid"] = pd.array([camid for _, camid, _ in people], dtype="Int64")
        return vectors, table

    labels = st.none() | st.integers(-1, 3)
    vectors = st.tuples(*[st.integers(-2, 2)] * 4)
    people = st.lists(st.tuples(labels, labels, vectors), min_size=1, max_size=9)

    @initialize(people=people)
    def build(self, people: list) -> None:
        Gallery.build(*self.take(people), **self.settings).save(self.folder, overwrite=True)
        self.gallery = Gallery.open(self.folder)

    @rule(people=people)
    def add(self, people: list) -> None:
        self.gallery.add(*self.take(people))

    @rule(pid=st.integers(-1, 3), row=st.integers(0, 100))
    def remove(self, pid: int, row: int) -> None:
        paths = [self.rows[row][1]] if row < len(self.rows) else []
        gone = [known for known in self.rows if known[2] == pid or known[1] in paths]
        if all(known[2] != pid for known in gone):
            with pytest.raises(InputError, match="not in the gallery"):
                self.gallery.remove(pids=[pid], paths=paths)
        else:
            assert self.gallery.remove(pids=[pid], paths=paths).images == len(gone)
            self.rows = [known for known in self.rows if not any(known is one for one in gone)]

    @rule()
    def compact(self) -> None:
        self.gallery.compact()

    @rule()
    def open(self) -> None:
        self.gallery = Gallery.open(self.folder)
        self.gallery.check()

    @rule(vector=vectors, top_k=st.integers(1, 30), pid=labels, camera=st.none() | st.integers(-1, 3))
    def search(self, vector: tuple[int, ...], top_k: int, pid: int | None, camera: int | None) -> None:
        known = [camid for _, _, _, camid, _ in self.rows if camid is not None]
        camera = camera if known else None
        where = None if pid is None else f"pid != {pid}"
        found = self.gallery.search(
            np.array([vector]) + 0.5, top_k, exclude_camera=camera, where=where, with_ids=True
        )
        query = np.array(vector) + 0.5
        query = (query / np.sqrt((query**2).sum())).astype(np.float32).astype(np.float64)
        kept = [row for row in self.rows if pid is None or (row[2] is not None and row[2] != pid)]
        kept = [row for row in kept if camera is None or row[3] != camera]
        best = sorted(kept, key=lambda row: (-(row[4] * query).sum(), row[0]))[:top_k]
        assert found["id"].tolist() == [row[0] for row in best]
        assert found["path"].tolist() == [row[1] for row in best]
        assert found["score"].tolist() == [(row[4] * query).sum() for row in best]

    @invariant()
    def ids_are_the_list(self) -> None:
        if hasattr(self, "gallery"):
            assert self.gallery.ids.tolist() == [row[0] for row in self.rows]


@pytest.mark.parametrize(("kind", "widest"), [("flat", {}), ("ivf", {"nprobe": 100})])
def test_any_sequence_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, widest: dict
) -> None:
    for module, name, value in [
        (segments, "SEGMENT_ROWS", 8),
        (segments, "INDEXED_ROWS", 8),
        (segments, "SMALL_ROWS", 5),
        (indexes, "MIN_ROWS", 4),
        (indexes, "_PER_CENTROID", 2),
        (indexes, "_EXACT_SHARE", 0),
    ]:
        monkeypatch.setattr(module, name, value)
    case = type("Case", (Model,), {"folder": tmp_path / "gallery", "settings": {"index": kind, **widest}})
    run_state_machine_as_test(case, settings=settings(max_examples=8, stateful_step_count=10, deadline=None))
