"""Galleries in folders: saved, replaced, and failing to be written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, GalleryBuilder
from rga_reid.gallery.build import save_features
from rga_reid.gallery.location import open_store
from rga_reid.inference import ModelFingerprint
from tests.folders import files_below

SEGMENT = Path("segments", "000001-0")


def random_features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


def gallery_of(count: int, model: ModelFingerprint | None = None, index: str = "flat") -> Gallery:
    """A gallery with some labels unknown."""
    table = pd.DataFrame(
        {
            "path": [f"people/{row}.jpg" for row in range(count)],
            "pid": pd.array([None if row % 7 == 3 else row % 5 for row in range(count)], dtype="Int64"),
            "camid": pd.array([None if row % 11 == 5 else row % 3 for row in range(count)], dtype="Int64"),
        }
    )
    return Gallery.build(random_features(count), table, model=model, index=index)


FINGERPRINT = ModelFingerprint("/models/a.ckpt", "0" * 64, (256, 128), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two galleries: ``saved``, and ``indexed`` with all kinds of files, an index and a deletion log."""
    folder = tmp_path_factory.mktemp("templates")
    gallery_of(30, FINGERPRINT).save(folder / "saved")
    gallery_of(1200, index="ivf").save(folder / "indexed")
    Gallery.open(folder / "indexed").remove(paths="people/3.jpg")
    return folder


@pytest.fixture
def saved(templates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates / "saved", tmp_path / "galleries" / "saved"))


@pytest.fixture
def indexed(templates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(templates / "indexed", tmp_path / "galleries" / "indexed"))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_the_manifest_lists_all_files(indexed: Path) -> None:
    manifest = json.loads((indexed / "manifest.json").read_text())
    expected = {
        "version": 3,
        "generation": 2,
        "metric": "cosine",
        "dimension": 24,
        "count": 1199,
        "next_id": 1200,
        "index": {"kind": "ivf", "settings": {}},
        "model": None,
    }
    assert {key: manifest[key] for key in expected} == expected
    (segment,) = manifest["segments"]
    assert segment["index"]["settings"] == {"nlist": 30, "nprobe": 16}
    assert 0 < segment["index"]["recall_at_10"] <= 1
    named = {indexed / "segments" / segment["name"] / name: r for name, r in segment["files"].items()}
    named[indexed / manifest["removals"].pop("name")] = manifest["removals"]
    for path, recorded in named.items():
        content = path.read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {indexed / "manifest.json", *named} == set(files_of(indexed))


def test_segments_are_plain_arrays_and_tables(saved: Path) -> None:
    """As docs/galleries.md says: unit rows that NumPy reads, in the order of a table that pandas reads."""
    vectors = np.load(saved / SEGMENT / "vectors.npy", allow_pickle=False)
    features = random_features(30)
    np.testing.assert_allclose(vectors, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6)
    table = pd.read_parquet(saved / SEGMENT / "table.parquet")
    assert table.columns.tolist() == ["path", "pid", "camera", "time", "track", "id"]
    assert table["id"].tolist() == list(range(30))


def test_a_gallery_may_be_saved_over_itself(indexed: Path) -> None:
    opened = Gallery.open(indexed)
    query = random_features(3, seed=1)
    before = opened.search(query)
    opened.save(indexed, overwrite=True)
    again = Gallery.open(indexed)
    pd.testing.assert_frame_equal(opened.search(query), before)  # of files that are gone
    pd.testing.assert_frame_equal(again.search(query), before)
    assert again.deletion_log == opened.deletion_log
    assert again.check() == 5


@pytest.mark.parametrize("how", ["save", "builder", "features"])
def test_the_deletion_log_survives_another_gallery_in_its_place(saved: Path, how: str) -> None:
    opened = Gallery.open(saved)
    opened.remove(pids=2)
    (logged,) = opened.deletion_log
    assert (logged.pid, logged.count) == (2, sum(n % 5 == 2 and n % 7 != 3 for n in range(30)))
    features, table = random_features(6, seed=3), pd.DataFrame({"path": [f"new/{n}.jpg" for n in range(6)]})
    if how == "save":
        Gallery.build(features, table).save(saved, overwrite=True)
    elif how == "builder":
        with GalleryBuilder(saved, overwrite=True) as builder:
            builder.add(features, table)
            builder.finish()
    else:
        save_features(saved, features, table, overwrite=True)
    replaced = Gallery.open(saved)
    assert len(replaced) == 6
    assert replaced.deletion_log == (logged,)
    assert replaced.check()


def test_removals_in_memory_are_logged_where_the_gallery_is_saved(saved: Path, tmp_path: Path) -> None:
    Gallery.open(saved).remove(pids=2)
    built = gallery_of(30)
    built.remove(pids=[0, 4])
    before = Gallery.open(saved).deletion_log
    for _ in range(2):
        built.save(saved, overwrite=True)
        assert Gallery.open(saved).deletion_log == (*before, *built.deletion_log)
    assert [line.pid for line in Gallery.open(saved).deletion_log] == [2, 0, 4]
    built.save(tmp_path / "new")
    opened = Gallery.open(tmp_path / "new")
    assert opened.deletion_log == built.deletion_log
    opened.save(tmp_path / "copy")  # the log of a gallery on disk stays with it
    assert Gallery.open(tmp_path / "copy").deletion_log == ()


def test_overwrite_never_deletes_other_files(saved: Path) -> None:
    for folder in (saved, saved / "segments"):
        (folder / ".DS_Store").write_bytes(b"a view")  # of a file manager, which is ignored
    gallery_of(5).save(saved, overwrite=True)
    assert (saved / ".DS_Store").read_bytes() == b"a view"
    (saved / "holiday.jpg").write_bytes(b"a picture")
    with pytest.raises(InputError, match="'holiday"):
        gallery_of(5).save(saved, overwrite=True)
    assert (saved / "holiday.jpg").read_bytes() == b"a picture"
    with pytest.raises(InputError, match="found a file"):
        gallery_of(5).save(saved / "holiday.jpg", overwrite=True)
    Gallery.open(saved).remove(pids=1)
    assert (saved / "holiday.jpg").read_bytes() == b"a picture"


@pytest.mark.parametrize("manifest", ["{", '{"format": "rga-reid gallery", "version": 99}'])
def test_a_gallery_that_cannot_be_read_stays_until_another_replaces_it(indexed: Path, manifest: str) -> None:
    """A later program may read it, so a build that fails, or is resumed, deletes nothing of it."""
    (indexed / "manifest.json").write_text(manifest)
    before = files_below(indexed)
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(9000)]})
    build = GalleryBuilder(indexed, overwrite=True)
    with pytest.raises(InputError, match="of dimension 3"), build:
        build.add(random_features(9000), table)
        build.add(np.ones((1, 3), np.float32), table[:1])
    unfinished = files_below(indexed)
    assert {name: unfinished[name] for name in before} == before
    assert len(unfinished) > len(before)  # what the build had written
    with GalleryBuilder(indexed, resume=True, overwrite=True) as build:
        assert len(build.paths) == 9000
        build.add(random_features(5), table.assign(path="more/" + table["path"])[:5])
        build.finish()
    assert len(Gallery.open(indexed)) == 9005
    assert sorted(path.name for path in indexed.iterdir()) == ["lock", "manifest.json", "segments"]
    assert len(list((indexed / "segments").iterdir())) == Gallery.open(indexed).describe()["segments"]


def test_a_build_resumes_where_the_gallery_was_damaged_meanwhile(indexed: Path) -> None:
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(9000)]})
    build = GalleryBuilder(indexed, overwrite=True)
    with pytest.raises(KeyboardInterrupt), build:
        build.add(random_features(9000), table)
        raise KeyboardInterrupt
    (indexed / "manifest.json").write_text("{")
    with GalleryBuilder(indexed, resume=True, overwrite=True) as build:
        assert len(build.paths) == 9000
        build.finish()
    assert len(Gallery.open(indexed)) == 9000


@pytest.mark.parametrize("stage", ["vectors", "table", "index", "log", "manifest"])
@pytest.mark.parametrize("target", ["old", "unreadable", "new"])
def test_a_full_disk_leaves_everything_as_it_was(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, stage: str, target: str
) -> None:
    if stage == "log" and target != "old":
        pytest.skip("a gallery without removals has no log")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "vectors": (np.lib.format, "write_array_header_1_0"),
        "table": (pyarrow.parquet, "write_table"),
        "index": (faiss, "write_index"),
        "log": (Path, "write_text"),
        "manifest": (os, "replace"),
    }[stage]
    if target == "unreadable":
        (indexed / "manifest.json").write_text("{")
    folder = indexed.parent / "new" if target == "new" else indexed
    gallery, before, beside = (
        gallery_of(1100, index="ivf"),
        files_below(indexed),
        sorted(indexed.parent.iterdir()),
    )
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(InputError, match="No space left on device"):
            gallery.save(folder, overwrite=True)
    assert files_below(indexed) == before
    assert sorted(indexed.parent.iterdir()) == beside
    gallery.save(folder, overwrite=True)
    assert len(Gallery.open(folder)) == 1100


def test_no_gallery_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: .*nothing"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"manifest.json: missing"):
        Gallery.open(tmp_path)
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"photo.jpg: .*found a file"):
        Gallery.open(file)
    assert sorted(tmp_path.iterdir()) == [file]  # a reader leaves no lock


def test_features_of_another_model_are_refused(saved: Path) -> None:
    gallery, table = Gallery.open(saved), pd.DataFrame({"path": ["new.jpg"]})
    assert gallery.model == FINGERPRINT
    for wrong in ({"sha256": "1" * 64}, {"size": (128, 64)}, {"mean": (0.0, 0.0, 0.0)}):
        with pytest.raises(InputError, match="another model"):
            gallery.add(random_features(1), table, model=replace(FINGERPRINT, **wrong))
    gallery.add(random_features(1), table, model=replace(FINGERPRINT, checkpoint="/moved/model.ckpt"))
    assert len(Gallery.open(saved)) == 31


@pytest.mark.parametrize("dimension", [24, 5])
def test_rows_are_not_added_to_another_gallery_in_the_same_place(saved: Path, dimension: int) -> None:
    opened = Gallery.open(saved)
    features, table = (
        random_features(4)[:, :dimension],
        pd.DataFrame({"path": [f"{n}.jpg" for n in range(4)]}),
    )
    other = replace(FINGERPRINT, sha256="1" * 64)
    Gallery.build(features, table, model=other).save(saved, overwrite=True)
    for model in (None, FINGERPRINT):
        with pytest.raises(InputError, match="another model"):
            opened.add(random_features(2), table[:2], model=model)
    assert len(Gallery.open(saved)) == 4
    assert Gallery.open(saved).check()


def test_a_file_system_without_locks_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock file alone would stay after a kill."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match="not implemented"):
        Gallery.open(saved).remove(pids=1)
    assert len(Gallery.open(saved)) == 30


def test_one_index_for_threads_that_search_first_at_once(tmp_path: Path) -> None:
    gallery_of(3000, index="hnsw").save(tmp_path / "g")
    opened = Gallery.open(tmp_path / "g")
    start = threading.Barrier(8)

    def search(seed: int) -> pd.DataFrame:
        start.wait()
        return opened.search(random_features(2, seed), 3)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(search, range(8)))
    for seed, matches in enumerate(found):
        pd.testing.assert_frame_equal(matches, opened.search(random_features(2, seed), 3))


@pytest.mark.parametrize("camera", ["hall", 1.5, True])
def test_a_camera_is_a_number(saved: Path, camera: object) -> None:
    opened = Gallery.open(saved)
    with pytest.raises(InputError, match="exclude_camera: "):
        opened.search(random_features(1), exclude_camera=camera)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exclude_camera: "):
        opened.count(exclude_camera=camera)  # type: ignore[arg-type]


def test_features_may_be_tensors_of_any_kind(saved: Path) -> None:
    opened = Gallery.open(saved)
    rows = torch.from_numpy(random_features(2, seed=9))
    expected = opened.search(rows.numpy(), 3)
    pd.testing.assert_frame_equal(opened.search(rows.requires_grad_(), 3), expected)
    rounded = rows.detach().bfloat16()
    pd.testing.assert_frame_equal(opened.search(rounded, 3), opened.search(rounded.float().numpy(), 3))


def test_a_manifest_that_cannot_be_read_now_is_not_replaced(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> bytes:
        raise InputError(f"{path}: cannot read this file (Input/output error)")

    for module in ("folder_reader", "manifest"):
        monkeypatch.setattr(f"rga_reid.gallery.{module}.read_file", broken)
    with pytest.raises(InputError, match="Input/output error"):
        gallery_of(5).save(saved, overwrite=True)
    monkeypatch.undo()
    assert len(Gallery.open(saved)) == 30


def test_stores_follow_others_when_refreshed_and_their_views_do_not(tmp_path: Path, crowd: Callable) -> None:
    features, table = crowd(20)
    Gallery.build(features, table).save(tmp_path / "gallery")
    store, other = open_store(tmp_path / "gallery"), Gallery.open(tmp_path / "gallery")
    store.refresh()
    view = store.view()
    assert not store.refresh()
    assert other.add(*crowd(3, seed=1)).tolist() == [20, 21, 22]
    other.remove(where="id in (0, 21)")
    assert store.count() == 20
    assert store.refresh()
    assert (store.count(), view.count()) == (21, 20)
    found = store.vectors(np.array([1, 20, 22]))
    wanted = [*features[1:2], *crowd(3, seed=1)[0][[0, 2]]]
    assert np.allclose(found, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(view.vectors(np.array([1])), found[:1])


def test_an_exclusive_writer_keeps_the_lock_between_changes(tmp_path: Path, crowd: Callable) -> None:
    Gallery.build(*crowd(20)).save(tmp_path / "gallery")
    store, other = open_store(tmp_path / "gallery"), Gallery.open(tmp_path / "gallery", wait=0)
    with store.exclusive():
        Gallery(store).add(*crowd(3, seed=1))
        with pytest.raises(InputError, match="locked"):
            other.remove(where="id = 0")
        Gallery(store).remove(where="id = 1")
    assert other.remove(where="id = 0").images == 1
    assert other.ids.tolist() == list(range(2, 23))
