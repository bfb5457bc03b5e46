"""Columns of galleries: kept, filtered, labelled, merged, exported."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, GalleryBuilder, segments
from rga_reid.gallery.folder_store import writing
from rga_reid.inference import ModelFingerprint
from rga_reid.inference.feature_files import read_features

FINGERPRINT = ModelFingerprint("/models/a.ckpt", "0" * 64, (256, 128))


def events(count: int, start: int = 0, **columns: object) -> tuple[np.ndarray, pd.DataFrame]:
    rows = np.arange(start, start + count)
    table = pd.DataFrame(
        {
            "path": [f"{row}.jpg" for row in rows],
            "pid": pd.array([None if row % 5 == 0 else row % 4 for row in rows], dtype="Int64"),
            "camera": [f"cam{row % 3}" for row in rows],
            "time": pd.Timestamp("2026-11-20", tz="UTC") + pd.to_timedelta(rows, unit="h"),
            "track": rows // 3,
        }
    )
    return np.random.default_rng(start).normal(size=(count, 16)), table.assign(**columns)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Gallery.build(*events(40), model=FINGERPRINT).save(tmp_path / "gallery")
    return tmp_path / "gallery"


def test_columns_come_back_as_they_were_given(saved: Path) -> None:
    gallery = Gallery.open(saved)
    _, table = events(40)
    assert gallery.table["camera"].tolist() == gallery.table["camid"].tolist() == table["camera"].tolist()
    assert gallery.table["time"].tolist() == table["time"].tolist()
    found = gallery.search(np.ones((1, 16)), 40, where="camera == 'cam1' and time < '2026-11-20T10:00'")
    assert sorted(found["path"]) == ["1.jpg", "4.jpg", "7.jpg"]
    described = gallery.describe()
    assert described["cameras"] == ["cam0", "cam1", "cam2"]
    assert described["times"] == ["2026-11-20T00:00:00+00:00", "2026-11-21T15:00:00+00:00"]


def test_columns_are_added_with_the_rows_that_have_them(saved: Path) -> None:
    gallery = Gallery.open(saved)
    gallery.add(*events(3, 40, speed=[1.5, None, 3]))
    gallery.add(*events(2, 43))
    again = Gallery.open(saved)
    assert again.columns["speed"] == "float"
    assert again.table["speed"].isna().sum() == 43
    assert again.count(where="speed > 1") == 2
    with pytest.raises(InputError, match="row 0: speed: expected numbers, got 'fast'"):
        again.add(*events(1, 50, speed=["fast"]))
    assert len(Gallery.open(saved)) == 45


def test_numbers_become_text_beside_text(saved: Path) -> None:
    gallery = Gallery.open(saved)
    before = gallery.table["pid"]
    gallery.add(*events(1, 40, pid=["007x"]))
    assert gallery.table["pid"].tolist()[:40] == before.astype("string").tolist()
    gallery.add(*events(1, 41, pid=["007"]))  # stays unchanged in a column of text
    assert Gallery.open(saved).table["pid"].tolist()[-2:] == ["007x", "007"]
    assert gallery.count(where="pid = 3") == gallery.count(where="pid in ('3')") == (before == 3).sum()
    assert gallery.remove(pids=[3, "007"]).images == (before == 3).sum() + 1
    with pytest.raises(InputError, match="pid is compared with strings"):
        gallery.count(where="pid > 3")


def test_parts_of_one_table_have_its_types(tmp_path: Path) -> None:
    features, table = events(20, pid=["01"] * 10 + ["anna"] * 10)
    whole = Gallery.build(features, table).table
    with GalleryBuilder(tmp_path / "built", columns=Gallery.build(features, table).columns) as builder:
        for start in (0, 10):
            builder.add(features[start : start + 10], table[start : start + 10])
        built = builder.finish()
    pd.testing.assert_frame_equal(built.table, whole)
    gallery = Gallery.build(*events(1, 50))
    for start in (0, 10):
        gallery.add(features[start : start + 10], table[start : start + 10], columns=built.columns)
    assert gallery.table["pid"].tolist()[1:] == whole["pid"].tolist()


def test_labels_are_written_without_the_vectors(saved: Path) -> None:
    gallery = Gallery.open(saved)
    (segment,) = (saved / "segments").iterdir()
    inode, queries = (segment / "vectors.npy").stat().st_ino, np.ones((2, 16))
    before = gallery.search(queries, 40)
    assert gallery.label("camera = 'cam2' and pid is null", 3) == 3
    assert gallery.label("camera = 'cam2' and pid = 3", 3) == 0  # they have it already
    (segment,) = (saved / "segments").iterdir()
    assert (segment / "vectors.npy").stat().st_ino == inode
    again = Gallery.open(saved)
    assert again.check() == 4
    after = again.search(queries, 40)
    pd.testing.assert_frame_equal(after.drop(columns="pid"), before.drop(columns="pid"))
    assert (after["pid"] == 3).sum() == (before["pid"] == 3).sum() + 2 * 3
    assert [(line.pid, line.count, line.label) for line in again.deletion_log] == [(None, 3, 3)]
    assert again.describe()["removals"] == 0
    for pid in ("", 1.5):
        with pytest.raises(InputError, match="pid: "):
            again.label("pid = 1", pid)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [33, "Anna"])
def test_labels_are_taken_off(saved: Path, name: int | str) -> None:
    gallery = Gallery.open(saved)
    before = gallery.table
    assert gallery.label("camera = 'cam2' and pid is null", name) == 3
    assert gallery.label("camera = 'cam2' and pid is null", None) == 0
    assert gallery.label(f"pid = {name!r} and id > 9", None) == 2  # not image 5
    assert gallery.label(f"pid = {name!r}", None) == 1
    again = Gallery.open(saved)
    pd.testing.assert_frame_equal(again.table.astype({"pid": "string"}), before.astype({"pid": "string"}))
    assert [(line.pid, line.count, line.label) for line in again.deletion_log] == [
        (None, 3, name),
        (name, 2, ""),
        (name, 1, ""),
    ]
    assert gallery.describe()["removals"] == 0


def test_other_columns_are_updated_by_id(saved: Path) -> None:
    gallery = Gallery.open(saved)
    gallery.update([7, 3], pd.DataFrame({"person": [70, 30], "camid": ["x", None]}))
    table = Gallery.open(saved).table
    assert table["person"].dropna().to_dict() == {3: 30, 7: 70}
    assert (table["camera"][7], table["camera"][3]) == ("x", pd.NA)
    for ids, columns, message in [
        ([1, 1], {"person": [1, 2]}, "different ids"),
        ([99], {"person": [1]}, "not in the gallery"),
        ([1], {"person": ["a"]}, "person: expected whole numbers"),
        ([1], {"pid": [1]}, "'pid'"),
    ]:
        with pytest.raises(InputError, match=message):
            gallery.update(ids, pd.DataFrame(columns))


def test_removal_by_filter_is_what_find_shows(saved: Path) -> None:
    gallery, where = Gallery.open(saved), "time < '2026-11-20T06:00' or track is null"
    shown = gallery.find(where=where)
    assert shown["id"].tolist() == list(range(6))
    assert gallery.remove(where=where).images == 6
    assert gallery.ids.tolist() == list(range(6, 40))
    assert gallery.remove(where=where).images == 0
    assert gallery.find(pids=2)["pid"].tolist() == [2] * len(gallery.find(pids=2))
    for wrong in ({}, {"where": where, "pids": 1}):
        with pytest.raises(InputError, match="expected pids or paths, or a filter"):
            gallery.remove(**wrong)
    with pytest.raises(InputError, match="did you mean time"):
        gallery.remove(where="tme < now")


def test_galleries_are_merged(saved: Path, tmp_path: Path) -> None:
    first = Gallery.open(saved)
    second = Gallery.build(*events(10, 35, speed=1.5, pid="anna"), model=FINGERPRINT)
    with pytest.raises(InputError, match=r"35\.jpg: in both"):
        first.merge(second)
    before = Gallery.open(saved)
    assert (first.ids.tolist(), first.columns) == (before.ids.tolist(), before.columns)  # nothing was added
    assert first.merge(second, skip_known=True) == 5
    again = Gallery.open(saved)
    assert again.ids.tolist() == list(range(45))
    assert again.table["pid"].tolist()[-5:] == ["anna"] * 5
    assert again.table["speed"].count() == 5
    expected = second.search(np.ones((1, 16)), 10)
    found = again.search(
        np.ones((1, 16)), 5, where="path in ('40.jpg', '41.jpg', '42.jpg', '43.jpg', '44.jpg')"
    )
    kept = expected[expected["path"].isin(found["path"])]
    assert (found["path"].tolist(), found["score"].tolist()) == (
        kept["path"].tolist(),
        kept["score"].tolist(),
    )
    unknown = Gallery.build(*events(2, 60))
    with pytest.raises(InputError, match="--same-features"):
        again.merge(unknown)
    assert again.merge(unknown, same_features=True) == 2
    with pytest.raises(InputError, match="another gallery"):
        again.merge(Gallery.open(saved))
    with pytest.raises(InputError, match="dimension"):
        again.merge(Gallery.build(np.eye(3), events(3, 70)[1]))


def test_an_export_makes_the_same_gallery(saved: Path, tmp_path: Path) -> None:
    gallery = Gallery.open(saved)
    gallery.add(
        *events(
            3, 40, speed=[1.5, None, 3], night=[True, None, False], seen=pd.Timestamp("2026-01-01", tz="UTC")
        )
    )
    gallery.add(*events(1, 43, pid="anna", **{"full name": "A B"}))
    gallery.export(tmp_path / "F.npz")
    built = Gallery.build(*read_features(tmp_path / "F.npz"))
    assert built.columns == gallery.columns
    pd.testing.assert_frame_equal(built.table, gallery.table)


def test_a_writer_waits_for_another(saved: Path) -> None:
    waiting, done = Gallery.open(saved), threading.Event()
    with writing(saved):
        with pytest.raises(InputError, match=r"locked.*--wait"):
            Gallery.open(saved, wait=0).add(*events(1, 40))
        thread = threading.Thread(target=lambda: (waiting.add(*events(1, 40)), done.set()))
        thread.start()
        assert not done.wait(0.2)
    thread.join()
    assert len(Gallery.open(saved)) == 41


def test_adding_never_rebuilds_an_index(
    tmp_path: Path, crowd: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, table = crowd(1300)
    Gallery.build(features[:1200], table[:1200], index="ivf").save(tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g")
    index = next((tmp_path / "g" / "segments").glob("*/index.faiss")).stat()
    for row in range(1200, 1300):
        gallery.add(features[row : row + 1], table[row : row + 1])
    indexes = list((tmp_path / "g" / "segments").glob("*/index.faiss"))
    assert [path.stat().st_ino for path in indexes] == [index.st_ino]
    assert gallery.describe()["segments"] < 10
    before_index = index.st_ino
    gallery.add(*crowd(1500, seed=7))  # more than the segment with the index has
    assert before_index in [
        path.stat().st_ino for path in (tmp_path / "g" / "segments").glob("*/index.faiss")
    ]
    gallery.remove(where="path like 'people/7/%'")
    queries = crowd(5, seed=1)[0]
    before = gallery.search(queries, 5)
    gallery.maintain()  # too few for now
    assert len(list((tmp_path / "g" / "segments").glob("*/index.faiss"))) == 1
    monkeypatch.setattr(segments, "MERGED_ROWS", (1250, 50))
    gallery.maintain()
    assert gallery.describe()["segments"] == 1
    assert gallery.ids.tolist() == list(range(1300))
    exact = Gallery.build(features, table).search(queries, 5)
    assert len(before.merge(exact, on=["query", "path"])) > 20


def test_few_rows_that_a_filter_leaves_are_compared_exactly(crowd: Callable) -> None:
    features, table = crowd(3000)
    table = table.assign(share=np.arange(3000) % 10)
    settings = {"nlist": 64, "nprobe": 1}
    approximate, exact = (
        Gallery.build(features, table, index="ivf", **settings),
        Gallery.build(features, table),
    )
    queries = crowd(20, seed=1)[0]
    pd.testing.assert_frame_equal(
        approximate.search(queries, where="share < 5"), exact.search(queries, where="share < 5")
    )
