"""Galleries on disk: whole, replaced, damaged, foreign."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pandas as pd
import pytest
import torch

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, GalleryBuilder, folder_store, segments
from rga_reid.gallery import gallery as builder
from rga_reid.gallery.manifest import canonical_json
from rga_reid.inference import ModelFingerprint
from tests.folders import files_below
from tests.security.hostile import put, reseal

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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def record(checkpoint: Path) -> ModelFingerprint:
    model = SimpleNamespace(size=(256, 128), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    return ModelFingerprint.of(model, checkpoint)


@pytest.fixture
def saved(tmp_path: Path, record: ModelFingerprint) -> Path:
    gallery_of(30, record).save(tmp_path / "gallery")
    return tmp_path / "gallery"


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A gallery with all kinds of files: an index, and a log of removals."""
    gallery_of(1200, index="ivf").save(tmp_path / "indexed")
    Gallery.open(tmp_path / "indexed").remove(paths="people/3.jpg")
    return tmp_path / "indexed"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_an_opened_gallery_is_the_saved_one(saved: Path, checkpoint: Path) -> None:
    built, opened = gallery_of(30), Gallery.open(saved)
    query = random_features(2, seed=1)
    pd.testing.assert_frame_equal(opened.search(query, 30), built.search(query, 30))
    pd.testing.assert_frame_equal(opened.table, built.table)
    assert (len(opened), opened.dimension) == (30, 24)
    assert opened.model == ModelFingerprint(
        str(checkpoint), hashlib.sha256(b"weights").hexdigest(), (256, 128), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    )


def test_the_manifest_tells_what_is_there(indexed: Path) -> None:
    manifest = json.loads((indexed / "manifest.json").read_text())
    expected = {
        "version": 2,
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


def test_the_vectors_are_a_plain_array(saved: Path) -> None:
    """As docs/galleries.md says: unit rows that NumPy reads, in the order of a table that pandas reads."""
    vectors = np.load(saved / SEGMENT / "vectors.npy", allow_pickle=False)
    features = random_features(30)
    np.testing.assert_allclose(vectors, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6)
    table = pd.read_parquet(saved / SEGMENT / "table.parquet")
    assert table.columns.tolist() == ["path", "pid", "camid", "id"]
    assert table["id"].tolist() == list(range(30))


def test_save_refuses_what_exists(saved: Path) -> None:
    other = gallery_of(5)
    with pytest.raises(InputError, match="exists already"):
        other.save(saved)
    assert len(Gallery.open(saved)) == 30
    other.save(saved, overwrite=True)
    assert len(Gallery.open(saved)) == 5
    assert len(files_of(saved)) == 3


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
def test_the_log_of_removals_outlives_another_gallery_in_its_place(saved: Path, how: str) -> None:
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
        file = saved.parent / "features.npz"
        np.savez(file, features=features, paths=table.path.to_numpy(dtype=str))
        words = ["--gallery", str(saved), "--features", str(file), "--overwrite"]
        assert main(["gallery", "build", *words]) == 0
    replaced = Gallery.open(saved)
    assert len(replaced) == 6
    assert replaced.deletion_log == (logged,)
    assert replaced.check()
    assert "removals" in json.loads((saved / "manifest.json").read_text())["removals"]["name"]


def test_what_was_removed_in_memory_is_logged_where_it_is_saved(saved: Path, tmp_path: Path) -> None:
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


def test_what_file_managers_leave_is_no_obstacle(saved: Path) -> None:
    for folder in (saved, saved / "segments"):
        (folder / ".DS_Store").write_bytes(b"a view")
    gallery_of(5).save(saved, overwrite=True)
    assert len(Gallery.open(saved)) == 5
    assert (saved / ".DS_Store").read_bytes() == b"a view"


def test_overwrite_never_deletes_other_files(saved: Path) -> None:
    (saved / "holiday.jpg").write_bytes(b"a picture")
    with pytest.raises(InputError, match=r"'holiday.jpg' in it is not part of a gallery"):
        gallery_of(5).save(saved, overwrite=True)
    assert (saved / "holiday.jpg").read_bytes() == b"a picture"
    with pytest.raises(InputError, match="found a file"):
        gallery_of(5).save(saved / "holiday.jpg", overwrite=True)
    Gallery.open(saved).remove(pids=1)
    assert (saved / "holiday.jpg").read_bytes() == b"a picture"


def test_a_damaged_gallery_may_be_overwritten(saved: Path) -> None:
    (saved / "manifest.json").write_text("{")
    gallery_of(5).save(saved, overwrite=True)
    assert len(Gallery.open(saved)) == 5
    assert len(files_of(saved)) == 3


@pytest.mark.parametrize("manifest", ["{", '{"format": "rga-reid gallery", "version": 99}'])
def test_a_gallery_that_cannot_be_read_stays_until_there_is_another(indexed: Path, manifest: str) -> None:
    """A later program may read it: a build that fails, or is killed and goes on, takes nothing from it."""
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
    assert len(list((indexed / "segments").iterdir())) == len(Gallery.open(indexed)._store.segments)


def test_a_build_goes_on_where_the_gallery_was_damaged_meanwhile(indexed: Path) -> None:
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


@pytest.mark.parametrize("fails", ["table", "manifest"])
def test_a_failed_save_over_a_gallery_that_cannot_be_read(
    indexed: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    (indexed / "manifest.json").write_text("{")
    before = files_below(indexed)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace") if fails == "manifest" else (pd.DataFrame, "to_parquet")), full)
        with pytest.raises(InputError, match="No space left"):
            gallery_of(5).save(indexed, overwrite=True)
    assert files_below(indexed) == before
    gallery_of(5).save(indexed, overwrite=True)
    assert len(files_of(indexed)) == 3


def test_a_long_log_of_removals(saved: Path) -> None:
    """It grows with each erasure: a gallery of which very many were erased still opens and changes."""
    Gallery.open(saved).remove(pids=1)
    (log,) = saved.glob("removals-*.jsonl")
    line = log.read_text().rstrip("\n")
    log.write_text("".join(line + " " * 900_000 + "\n" for _ in range(80)))  # 72 MB
    manifest = json.loads((saved / "manifest.json").read_text())
    content = log.read_bytes()
    manifest["removals"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    (saved / "manifest.json").write_bytes(canonical_json(manifest))
    Gallery.open(saved).remove(pids=2)
    assert [removal.pid for removal in Gallery.open(saved).deletion_log] == [1] * 80 + [2]
    assert Gallery.open(saved).check()


@pytest.mark.parametrize(
    ("fresh", "stage"),
    [
        *((False, stage) for stage in ("vectors", "table", "index", "log", "manifest")),
        *((True, stage) for stage in ("vectors", "table", "index", "manifest")),  # a new gallery has no log
    ],
)
def test_a_full_disk_leaves_the_old_gallery(
    indexed: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    fresh: bool,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "vectors": (np.lib.format, "write_array_header_1_0"),
        "table": (pd.DataFrame, "to_parquet"),
        "index": (faiss, "write_index"),
        "log": (Path, "write_text"),
        "manifest": (os, "replace"),
    }[stage]
    target = indexed.parent / "new" if fresh else indexed
    before, beside = files_below(indexed), sorted(indexed.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(InputError, match=r"cannot write the gallery .No space left on device"):
            gallery_of(1100, index="ivf").save(target, overwrite=True)
    assert files_below(indexed) == before
    assert sorted(indexed.parent.iterdir()) == beside


@pytest.mark.parametrize("name", ["index.faiss", "table.parquet", "vectors.npy", "removals-2.jsonl"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "folder"])
def test_a_file_of_another_size_is_refused(indexed: Path, name: str, damage: str) -> None:
    (file,) = indexed.rglob(name)
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "longer":
        file.write_bytes(content + b"\0")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    with pytest.raises(InputError, match=rf"{name}: (damaged|missing)"):
        Gallery.open(indexed)


def test_any_flipped_byte_is_named(indexed: Path) -> None:
    gallery = Gallery.open(indexed)
    assert gallery.check() == 5
    generator = np.random.default_rng(0)
    for file in files_of(indexed):
        content = file.read_bytes()
        for place in (0, len(content) - 1, *generator.integers(0, len(content), 6)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{file.name}: "):
                gallery.check()
        file.write_bytes(content)
    assert gallery.check() == 5


def test_all_damaged_files_are_named(indexed: Path) -> None:
    gallery = Gallery.open(indexed)
    next(indexed.rglob("index.faiss")).unlink()
    table = next(indexed.rglob("table.parquet"))
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"index.faiss: missing") as caught:
        gallery.check()
    assert "table.parquet: damaged" in str(caught.value)


def test_a_damaged_index_never_reaches_faiss(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = next(indexed.rglob("index.faiss"))
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    gallery = Gallery.open(indexed)  # sizes and headers are right
    monkeypatch.setattr(faiss, "read_index", None)
    with pytest.raises(InputError, match=r"index.faiss: damaged: its checksum"):
        gallery.search(random_features(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged: not JSON"),
        ("{", "damaged: not JSON"),
        ("[" * 100_000, "damaged: not JSON"),
        ("[]", "not the manifest of a gallery"),
        ('{"name": "an app"}', "not the manifest of a gallery"),
        ('{"format": "rga-reid gallery", "version": 3}', "format version 3; this program reads 2"),
        ('{"format": "rga-reid gallery", "version": 2}', "damaged or edited"),
        ('{"format": "rga-reid gallery", "version": 2, "sha256": "\\ud800"}', "damaged or edited"),
        (canonical_json({"format": "rga-reid gallery", "version": 2}).decode(), "damaged manifest"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_named(saved: Path, text: str, message: str) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=f"manifest.json: .*{message}"):
        Gallery.open(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", None),
        ("dimension", "24"),
        ("count", 29),
        ("next_id", True),
        ("next_id", -3),
        ("metric", "euclidean"),
        ("index", {"kind": "tree", "settings": {}}),
        ("index", {"kind": "ivf", "settings": {"hnsw_m": 4}}),
        ("index", "flat"),
        ("segments", {}),
        ("segments", [{"name": "../../other"}]),
        ("segments", None),
        ("removals", {"name": "../removals-1.jsonl", "bytes": 1, "sha256": ""}),
        ("model", {"checkpoint": "x"}),
        ("model", 5),
    ],
)
def test_a_manifest_of_odd_values_is_named(saved: Path, key: str, value: object) -> None:
    reseal(saved, lambda manifest: manifest.update({key: value}))
    with pytest.raises(InputError, match=r"manifest.json: damaged manifest"):
        Gallery.open(saved)


@pytest.mark.parametrize(
    ("spec", "count", "message"),
    [
        ("IVF30,Flat", 0, "not the header of a FAISS index of 1199 x 24"),
        ("HNSW8,Flat", 1199, "expected an inner-product index of kind ivf, 1199 x 24; found IndexHNSWFlat"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(indexed: Path, spec: str, count: int, message: str) -> None:
    index = faiss.index_factory(24, spec, faiss.METRIC_INNER_PRODUCT)
    index.train(random_features(1199))
    index.add(random_features(count))
    put(indexed, "index.faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(InputError, match=rf"index.faiss: .*{message}"):
        Gallery.open(indexed).search(random_features(1))


def test_files_of_another_kind_are_refused(indexed: Path) -> None:
    whole = {file.name: file.read_bytes() for file in files_of(indexed)}
    array, other = indexed.parent / "a.npy", {"vectors.npy": b"no array"}
    np.save(array, random_features(1199).astype(np.float64))
    for name, content, message in [
        ("table.parquet", b"PAR1 no table PAR1", "not a Parquet table"),
        ("vectors.npy", other["vectors.npy"], "not an array of NumPy"),
        ("vectors.npy", array.read_bytes(), r"expected float32 \(1199, 24\), found float64"),
        ("index.faiss", whole["index.faiss"][:40], "not a FAISS index"),
    ]:
        put(indexed, name, content)
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            Gallery.open(indexed).search(random_features(1))
        put(indexed, name, whole[name])
    assert len(Gallery.open(indexed)) == 1199


def test_a_table_of_another_gallery_is_refused(saved: Path, tmp_path: Path) -> None:
    gallery_of(29).save(tmp_path / "other")
    put(saved, "table.parquet", (tmp_path / "other" / SEGMENT / "table.parquet").read_bytes())
    with pytest.raises(InputError, match=r"table.parquet: expected 30 rows, found 29"):
        Gallery.open(saved)


def test_no_gallery_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected a gallery, a folder; found nothing"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"manifest.json: missing; is this folder a gallery"):
        Gallery.open(tmp_path)
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"photo.jpg: expected a gallery, a folder; found a file"):
        Gallery.open(file)
    assert sorted(tmp_path.iterdir()) == [file]  # a reader leaves no lock


def test_features_of_another_model_are_refused(saved: Path, record: ModelFingerprint, tmp_path: Path) -> None:
    gallery = Gallery.open(saved)
    table = pd.DataFrame({"path": ["new.jpg"]})
    (tmp_path / "other.ckpt").write_bytes(b"other weights")
    other = ModelFingerprint.of(SimpleNamespace(size=(256, 128)), tmp_path / "other.ckpt")
    for wrong in (other, replace(record, size=(128, 64)), replace(record, mean=(0.0, 0.0, 0.0))):
        with pytest.raises(InputError, match="the gallery was built with another model"):
            gallery.add(random_features(1), table, model=wrong)
    gallery.add(random_features(1), table, model=replace(record, checkpoint="/moved/model.ckpt"))
    assert len(Gallery.open(saved)) == 31


def test_the_remembered_checkpoint_is_found(saved: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = Gallery.open(saved).model
    assert model is not None
    assert model.find_checkpoint() == checkpoint
    moved = checkpoint.rename(tmp_path / "elsewhere.ckpt")
    assert model.find_checkpoint(moved) == moved
    with pytest.raises(
        InputError, match=r"model.ckpt: no such checkpoint; .*if it has moved, give --checkpoint"
    ):
        model.find_checkpoint()


def test_another_checkpoint_is_refused(saved: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = Gallery.open(saved).model
    assert model is not None
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"other weights")
    with pytest.raises(
        InputError, match=r"other.ckpt: the gallery was built with another model: .*model.ckpt"
    ):
        model.find_checkpoint(other)
    checkpoint.write_bytes(b"trained further")
    with pytest.raises(
        InputError, match=r"model.ckpt: the gallery was built with another model.*has changed"
    ):
        model.find_checkpoint()


@pytest.mark.parametrize("dimension", [24, 5])
def test_rows_are_not_added_to_another_gallery_that_came_into_the_place(
    tmp_path: Path, saved: Path, record: ModelFingerprint, dimension: int
) -> None:
    opened = Gallery.open(saved)
    file = tmp_path / "other.ckpt"
    file.write_bytes(b"other weights")
    shape = SimpleNamespace(size=(256, 128), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    other = ModelFingerprint.of(shape, file)  # type: ignore[arg-type]
    random = np.random.default_rng(0)
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(4)]})
    Gallery.build(random.normal(size=(4, dimension)), table, model=other).save(saved, overwrite=True)
    said = "another model"
    for model in (None, record):
        with pytest.raises(InputError, match=said):
            opened.add(random_features(2), table[:2], model=model)
    assert len(Gallery.open(saved)) == 4
    assert Gallery.open(saved).check()


def test_vectors_that_go_on_beyond_their_header_are_damaged(saved: Path) -> None:
    (file,) = saved.rglob("vectors.npy")
    with pytest.raises(InputError, match="expected 2880 bytes of numbers after its header"):
        segments._read_vectors(longer(file), (30, 24))


def longer(file: Path) -> Path:
    other = file.with_name("longer.npy")
    other.write_bytes(file.read_bytes() + b"more")
    return other


def test_a_build_that_goes_on_checks_its_index_before_it_embeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SHARD_ROWS", 16)
    table = pd.DataFrame({"path": [f"{n}.jpg" for n in range(16)]})
    with pytest.raises(KeyboardInterrupt), GalleryBuilder(tmp_path / "g") as building:
        building.add(random_features(16), table)
        raise KeyboardInterrupt
    settings = {"index": "ivfpq", "pq_m": 7, "resume": True}
    with pytest.raises(InputError, match="pq_m"), GalleryBuilder(tmp_path / "g", **settings):
        pass
    with GalleryBuilder(tmp_path / "g", resume=True) as building:
        assert len(building.paths) == 16
        building.finish()


def test_a_file_system_without_locks_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match="No locks available"):
        Gallery.open(saved).remove(pids=1)
    assert len(Gallery.open(saved)) == 30


def test_size_while_files_vanish(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Gallery.open(saved).size_on_disk()
    assert whole == sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    files = list(saved.rglob("*"))
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter([*files, self / "gone"]))
    assert Gallery.open(saved).size_on_disk() == whole


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


@pytest.mark.parametrize("camera", ["3", 1.5, True])
def test_a_camera_is_a_number(saved: Path, camera: object) -> None:
    opened = Gallery.open(saved)
    with pytest.raises(InputError, match="exclude_camera: expected a whole number"):
        opened.search(random_features(1), exclude_camera=camera)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exclude_camera: expected a whole number"):
        opened.count(exclude_camera=camera)  # type: ignore[arg-type]


def test_features_may_be_tensors_of_any_kind(saved: Path) -> None:
    opened = Gallery.open(saved)
    rows = torch.from_numpy(random_features(2, seed=9))
    expected = opened.search(rows.numpy(), 3)
    pd.testing.assert_frame_equal(opened.search(rows.requires_grad_(), 3), expected)
    rounded = rows.detach().bfloat16()
    pd.testing.assert_frame_equal(opened.search(rounded, 3), opened.search(rounded.float().numpy(), 3))


def test_a_manifest_that_cannot_be_read_now_is_not_dropped(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> bytes:
        raise InputError(f"{path}: cannot read this file (Input/output error)")

    monkeypatch.setattr(folder_store, "read_file", broken)
    monkeypatch.setattr("rga_reid.gallery.manifest.read_file", broken)
    with pytest.raises(InputError, match="Input/output error"):
        gallery_of(5).save(saved, overwrite=True)
    monkeypatch.undo()
    assert len(Gallery.open(saved)) == 30
