"""Galleries in Milvus Lite, beside flat FAISS on the same features. See also test_store.py."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, GalleryBuilder, milvus_client
from rga_reid.gallery import build as builder_module
from rga_reid.gallery.filters import parse_filter
from rga_reid.gallery.location import parse_location
from rga_reid.gallery.milvus_client import MilvusServer
from rga_reid.inference import ModelFingerprint
from tests.gallery.random_filters import (
    FILTERS,
    NOW,
    PARTS,
    ROWS,
    SCHEMA,
    Case,
    contains,
    kept_rows,
    table_of,
)

DIMENSION = 48
FINGERPRINT = ModelFingerprint("/models/a.ckpt", "0" * 64, (256, 128))


@pytest.fixture
def location(tmp_path: Path) -> Iterator[str]:
    from milvus_lite.server_manager import server_manager_instance

    path = str(tmp_path / f"{uuid.uuid4().hex}.db")
    yield path
    server_manager_instance.release_server(path)


@pytest.fixture
def rows(crowd: Callable) -> tuple[np.ndarray, pd.DataFrame]:
    """Images with odd names, unknown labels, and rows that tie."""
    features, table = crowd(400, dimension=DIMENSION)
    features[300:340] = features[:40]
    table.loc[::7, "pid"] = pd.NA
    table.loc[::5, "camid"] = pd.NA
    table.loc[3, "path"] = "odd/50%_\\ü'\"🙂.jpg"
    return features, table


@pytest.fixture
def both(location: str, rows: tuple[np.ndarray, pd.DataFrame]) -> tuple[Gallery, Gallery]:
    flat = Gallery.build(*rows, model=FINGERPRINT)
    flat.save(location)
    return flat, Gallery.open(location)


def test_a_gallery_in_milvus_answers_as_flat_faiss(
    both: tuple[Gallery, Gallery], rows: tuple[np.ndarray, pd.DataFrame], crowd: Callable
) -> None:
    """The quick test; the others are slow."""
    flat, milvus = both
    queries = np.concatenate([crowd(8, dimension=DIMENSION, seed=1)[0], rows[0][:4]])
    for options in ({"top_k": 10}, {"top_k": 3, "where": "not pid in (1, 2)", "exclude_camera": 2}):
        found = milvus.search(queries, with_ids=True, **options)
        pd.testing.assert_frame_equal(found, flat.search(queries, with_ids=True, **options))
    ids = np.array([3, 17, 398])
    np.testing.assert_array_equal(milvus._store.vectors(ids), flat._store.vectors(ids))
    assert milvus._store.vectors(ids[:0]).shape == (0, DIMENSION)
    for where in ("id in (5, 2, 390)", "path = '{}'", "path != '{}' and pid = 3"):
        pd.testing.assert_frame_equal(milvus.find(where=where), flat.find(where=where))
    milvus.remove(paths=rows[1]["path"][3])
    assert (len(milvus), milvus.check()) == (399, 399)


@pytest.mark.slow
def test_deep_searches_and_many_ties(
    both: tuple[Gallery, Gallery],
    rows: tuple[np.ndarray, pd.DataFrame],
    location: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More rows than Milvus returns at a time, and more ties than were requested at first."""
    flat, milvus = both
    everything = milvus.search(rows[0][:1], 10_000)
    pd.testing.assert_frame_equal(everything, flat.search(rows[0][:1], 10_000))
    with pytest.raises(InputError, match="top_k: "):
        milvus.search(rows[0][:1], 20_000)
    ones = np.tile(rows[0][:1], (200, 1)), pd.DataFrame({"path": [f"same/{row}" for row in range(200)]})
    for gallery in both:
        gallery.add(*ones)
    pd.testing.assert_frame_equal(milvus.search(rows[0][:2], 3), flat.search(rows[0][:2], 3))
    assert (milvus.size_on_disk() or 0) > 600 * DIMENSION * 4
    monkeypatch.setattr(milvus_client, "LIMIT", 7)
    assert len(milvus.known_paths(ones[1]["path"])) == 200
    pd.testing.assert_frame_equal(milvus.find(where="pid < 9"), flat.find(where="pid < 9"))


@pytest.mark.slow
def test_filters_keep_the_rows_of_an_independent_evaluator(location: str) -> None:
    """Backslashes, wildcards and quotes of Milvus expressions among them."""
    Gallery.build(np.eye(len(ROWS)), table_of(ROWS)).save(location)
    gallery = Gallery.open(location)
    assert gallery.columns == SCHEMA

    def check(case: Case) -> None:
        found = gallery._store.select(parse_filter(case[0], gallery.columns, now=NOW))
        assert sorted(found["id"]) == kept_rows(case), case[0]

    for part in PARTS:
        check(contains(part, negative=False))
    settings(max_examples=300)(given(FILTERS)(check))()


def found_in_files(folder: str, name: str, vector: np.ndarray) -> list[str]:
    """Return the files with a name or a vector, in raw bytes or in a column of a table."""
    wanted = vector.astype(np.float32)
    found = []
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        content = file.read_bytes()
        hit = name.encode() in content or wanted.tobytes() in content
        if file.suffix == ".parquet":
            for column in pyarrow.parquet.read_table(file).columns:
                for value in column.to_pylist():
                    hit |= isinstance(value, str) and name in value
                    hit |= isinstance(value, list) and np.array_equal(np.float32(value), wanted)
        if hit:
            found.append(file.suffix)
    return found


@pytest.mark.slow
def test_what_is_erased_is_in_no_file(both: tuple[Gallery, Gallery], rows: tuple, location: str) -> None:
    _, milvus = both
    milvus.add(*[part[100:101] for part in rows])
    table = milvus.table
    person = 7
    goes = np.flatnonzero((table["pid"] == person).to_numpy(dtype=bool, na_value=False))
    stays = int(np.flatnonzero((table["pid"] == 8).to_numpy(dtype=bool, na_value=False))[0])
    unit = rows[0] / np.sqrt((rows[0].astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    assert all(found_in_files(location, table["path"][row], unit[row]) for row in goes if 40 <= row < 300)
    done = milvus.remove(pids=person)
    assert (done.images, done.rewritten) == (len(goes), 401 - len(goes))
    assert found_in_files(location, table["path"][stays], unit[stays])  # the search can find
    for row in goes:
        if 40 <= row < 300:  # the others have twins
            assert found_in_files(location, table["path"][row], unit[row]) == []
    assert [(line.pid, line.count) for line in milvus.deletion_log] == [(person, len(goes))]


@pytest.mark.slow
@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_approximate_indexes_score_exactly(location: str, crowd: Callable, index: str) -> None:
    rows = crowd(1500, dimension=DIMENSION)
    Gallery.build(*rows, index=index).save(location)
    queries, _ = crowd(20, dimension=DIMENSION, seed=1)
    found = Gallery.open(location).search(queries, with_ids=True)
    exact = Gallery.build(*rows).search(queries, with_ids=True)
    both = found.merge(exact, on=["query", "id"])
    assert len(both) > 0.9 * len(exact)
    assert (both["score_x"] == both["score_y"]).all()


@pytest.mark.slow
def test_building_overwriting_resuming(location: str, rows: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    features, table = rows
    monkeypatch.setattr(builder_module, "SHARD_ROWS", 100)
    with GalleryBuilder(location, model=FINGERPRINT) as builder:
        builder.add(features[:60], table[:60])
        builder.add(features[60:100], table[60:100])
        builder.add(features[100:110], table[100:110])  # interrupted here, before these were sent
    with pytest.raises(InputError, match="unfinished build"):
        GalleryBuilder(location, model=FINGERPRINT)
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    with GalleryBuilder(location, model=FINGERPRINT, resume=True) as builder:
        assert builder.paths == set(table["path"][:100])
        builder.add(features[100:], table[100:])
        built = builder.finish()
    pd.testing.assert_frame_equal(built.table, Gallery.build(features, table).table)
    with pytest.raises(InputError, match="exists already; choose another name or give --overwrite"):
        Gallery.build(features, table).save(location)
    built.remove(pids=3)
    Gallery.build(features[:9], table[:9]).save(location, overwrite=True)
    again = Gallery.open(location)
    assert (len(again), len(again.deletion_log), again.model) == (9, 1, None)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.db: .*found nothing"):
        Gallery.open(tmp_path / "none.db")
    (tmp_path / "old.db").write_bytes(b"x")
    with pytest.raises(InputError, match=r"old.db: .*found a file"):
        Gallery.open(tmp_path / "old.db")
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]


@pytest.mark.slow
def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(InputError, match=r"milvus://127\.0\.0\.1:9/people: does not answer"):
        Gallery.open("milvus://127.0.0.1:9/people")


@pytest.mark.slow
def test_collections_of_others_stay(location: str, rows: tuple[np.ndarray, pd.DataFrame]) -> None:
    features, table = rows
    Gallery.build(features, table).save(location)
    target = parse_location(location).target
    server = MilvusServer(target)
    others = {f"{target.collection}_7", f"{target.collection}__imagesque_7", "other__images_1"}
    for name in others:
        server.create_notes(name)
    Gallery.open(location).remove(paths=table.path[0])
    Gallery.build(features[:5], table[:5]).save(location, overwrite=True)
    assert len(Gallery.open(location)) == 5
    assert others <= set(server.collections())
    assert len(server.collections()) == len(others) + 2  # the notes, and one collection of images


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", ["empty", "one note"])
def test_a_build_killed_while_it_made_its_notes(
    location: str, rows: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """The same build again needs no cleaning by hand."""
    features, table = rows[0][:20], rows[1][:20]
    target = parse_location(location).target

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MilvusServer, "write_notes", killed)
        with pytest.raises(KeyboardInterrupt):
            Gallery.build(features, table).save(location)
    server = MilvusServer(target)
    assert server.collections() == [target.collection]
    if killed_at == "one note":
        server.write_notes(target.collection, {0: ""})
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    Gallery.build(features, table).save(location)
    assert len(Gallery.open(location)) == 20


@pytest.mark.slow
def test_a_collection_of_others_is_never_written_to(
    location: str, rows: tuple[np.ndarray, pd.DataFrame]
) -> None:
    """Even one of texts by their numbers, as notes are."""
    target = parse_location(location).target
    server = MilvusServer(target, create=True)
    kinds, client = server._library.DataType, server._client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.INT64, is_primary=True)
    schema.add_field("text", kinds.VARCHAR, max_length=100)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=4)
    server._create(target.collection, schema, "FLAT", {})
    client.insert(target.collection, [{"id": 0, "text": "mine", "vector": [1.0] * 4}])
    for overwrite in (False, True):
        with pytest.raises(
            InputError, match="a collection of this name exists already, and is not a gallery"
        ):
            Gallery.build(rows[0], rows[1]).save(location, overwrite=overwrite)
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    server.load(target.collection)
    assert client.query(target.collection, "id >= 0", output_fields=["text"])[0]["text"] == "mine"


@pytest.mark.slow
def test_a_gallery_that_was_emptied(
    location: str, rows: tuple[np.ndarray, pd.DataFrame], tmp_path: Path
) -> None:
    features, table = rows[0][:6], rows[1][:6].reset_index(drop=True)
    in_memory = Gallery.build(features, table)
    in_memory.remove(paths=table["path"])
    in_memory.save(location)
    assert len(Gallery.open(location)) == 0
    Gallery.build(features, table).save(location, overwrite=True)
    gallery = Gallery.open(location)
    gallery.remove(paths=table["path"])
    for emptied in (gallery, Gallery.open(location)):
        assert (len(emptied), emptied.check(), len(emptied.table), len(emptied.ids)) == (0, 0, 0, 0)
        assert len(emptied.search(features)) == 0
        assert emptied.count(where="pid == 1") == 0
        assert (emptied.describe()["count"], emptied.describe()["identities"]) == (0, 0)
        emptied.save(tmp_path / "folder", overwrite=True)
        assert Gallery.open(tmp_path / "folder").describe()["count"] == 0
    gallery.add(features, table)
    assert Gallery.open(location).ids.tolist() == [6, 7, 8, 9, 10, 11]
    assert sum(removal.count for removal in gallery.deletion_log) == 12


@pytest.mark.slow
def test_a_gallery_replaced_since_it_was_opened(
    both: tuple[Gallery, Gallery], rows: tuple[np.ndarray, pd.DataFrame], location: str
) -> None:
    """A reader that stays open for long, such as a server's."""
    _, reader = both
    others = Gallery.build(rows[0][:50], rows[1][:50], model=FINGERPRINT)
    for ask in (
        lambda gallery: gallery.search(rows[0][:3], 5).to_dict("list"),
        lambda gallery: gallery.count(where="pid > 2", exclude_camera=1),
        lambda gallery: gallery.table.to_dict("list"),
        lambda gallery: gallery.ids.tolist(),
        len,
    ):
        ask(reader)
        others.save(location, overwrite=True)
        assert ask(reader) == ask(others)
        both[0].save(location, overwrite=True)
        assert ask(reader) == ask(both[0])
    for other in (
        Gallery.build(rows[0][:50], rows[1][:50], model=replace(FINGERPRINT, sha256="1" * 64)),
        Gallery.build(rows[0][:50, :12], rows[1][:50], model=FINGERPRINT),
    ):
        reader = Gallery.open(location)
        other.save(location, overwrite=True)
        with pytest.raises(InputError, match="replaced, since it was opened, by a gallery of another model"):
            reader.search(rows[0][:3], 5)
        both[0].save(location, overwrite=True)


@pytest.mark.slow
def test_the_log_and_the_rows_change_at_once(
    both: tuple[Gallery, Gallery], location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever an erasure is interrupted, what is gone is in the log, and what is in the log is gone."""
    states = set()

    def struck(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for pid, step in enumerate(("create_images", "insert", "flush", "write_notes", "drop", "none"), 1):
        count = len(Gallery.open(location))
        with monkeypatch.context() as patch:
            if step != "none":
                patch.setattr(MilvusServer, step, struck)
            with contextlib.suppress(KeyboardInterrupt):
                Gallery.open(location).remove(pids=pid)
        now = Gallery.open(location)
        logged = sum(removal.count for removal in now.deletion_log if removal.pid == pid)
        assert logged == count - len(now)
        states.add((step, logged > 0))
    assert {step for step, gone in states if gone} == {"drop", "none"}
    Gallery.open(location).remove(pids=1)  # nothing that was left is in the way


@pytest.mark.slow
def test_large_labels_keep_their_digits(location: str, rows: tuple[np.ndarray, pd.DataFrame]) -> None:
    features, table = rows[0][:6], rows[1][:6].copy()
    table["pid"] = pd.array([2**60 + 1, None, 2**60 + 3, 5, None, 2**62 + 1], dtype="Int64")
    Gallery.build(features, table).save(location)
    opened = Gallery.open(location)
    opened.remove(paths=table.path[3])  # which writes the others again
    found = Gallery.open(location).search(features, 1)
    assert found.pid.fillna(-1).tolist()[:3] == [2**60 + 1, -1, 2**60 + 3]
    assert found.pid.fillna(-1).tolist()[5] == 2**62 + 1
