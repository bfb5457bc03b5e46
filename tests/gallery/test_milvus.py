"""Galleries in Milvus Lite, beside flat FAISS on the same features."""

from __future__ import annotations

import contextlib
import itertools
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from rga_reid.gallery import gallery as gallery_module
from rga_reid.gallery import milvus_client as milvus_server
from rga_reid.gallery.gallery import GalleryBuilder, save_features
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import parse_location
from rga_reid.gallery.milvus_client import MilvusURI
from rga_reid.inference import ModelFingerprint

DIMENSION = 48
RECORD = ModelFingerprint("/models/a.ckpt", "0" * 64, (256, 128))


@pytest.fixture
def location(tmp_path: Path) -> Iterator[str]:
    from milvus_lite.server_manager import server_manager_instance

    place = str(tmp_path / f"{uuid.uuid4().hex}.db")
    yield place
    server_manager_instance.release_server(place)


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
    flat = Gallery.build(*rows, model=RECORD)
    flat.save(location)
    return flat, Gallery.open(location)


def assert_same(flat: Gallery, milvus: Gallery, queries: np.ndarray, **limits: object) -> None:
    for top_k in (1, 10):
        found = milvus.search(queries, top_k, with_ids=True, **limits)
        pd.testing.assert_frame_equal(found, flat.search(queries, top_k, with_ids=True, **limits))


def test_every_true_match_is_found(both: tuple[Gallery, Gallery], crowd: Callable) -> None:
    """Recall@10 against lists of a plain float64 product, in a flat Milvus and a flat folder: all of them."""
    flat, milvus = both
    queries, _ = crowd(50, dimension=DIMENSION, seed=2)
    rows, _ = crowd(400, dimension=DIMENSION)
    rows[300:340] = rows[:40]
    units = (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)).astype(np.float32)
    products = queries.astype(np.float64) @ units.T.astype(np.float64)
    true = np.argsort(-products, axis=1, kind="stable")[:, :10]
    for gallery in (flat, milvus):
        found = gallery.search(queries, 10, with_ids=True)["id"].to_numpy().reshape(50, 10)
        recall = np.mean([len(np.intersect1d(*lists)) / 10 for lists in zip(found, true, strict=True)])
        assert recall == 1


def test_rows_go_to_milvus_without_an_index_of_faiss(
    location: str, rows: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Milvus makes its own; one of FAISS would be made, measured and thrown away."""

    def build(*_: object) -> None:
        raise AssertionError("an index was made")

    features, table = np.concatenate([rows[0]] * 4), pd.concat([rows[1]] * 4, ignore_index=True)
    expected = Gallery.build(features, table).table
    monkeypatch.setattr(IndexConfig, "build", build)
    saved = save_features(location, features, table, index="hnsw")
    assert len(saved) == 1600
    pd.testing.assert_frame_equal(saved.table, expected)
    other = str(tmp_path / "other.db")
    saved.save(other)
    pd.testing.assert_frame_equal(Gallery.open(other).table, saved.table)
    broken = features.copy()
    broken[1500, 3] = np.nan
    with pytest.raises(InputError, match="features: row 1500 holds NaN"):
        save_features(location, broken, table, overwrite=True)
    assert len(Gallery.open(location)) == 1600


def test_what_was_removed_in_memory_is_logged_in_milvus(
    location: str, rows: tuple[np.ndarray, pd.DataFrame]
) -> None:
    built = Gallery.build(*rows)
    pid = int(rows[1]["pid"].dropna().iloc[0])
    built.remove(pids=pid)
    built.save(location)
    opened = Gallery.open(location)
    assert opened.deletion_log == built.deletion_log
    assert [line.pid for line in opened.deletion_log] == [pid]
    milvus_server.MilvusServer(parse_location(location).target).write_notes("gallery", {2: "no line"})
    with pytest.raises(InputError, match=r"\.db: damaged: not a deletion log"):
        opened.describe()


def test_the_same_lists_as_flat(both: tuple[Gallery, Gallery], rows: tuple, crowd: Callable) -> None:
    flat, milvus = both
    queries = np.concatenate([crowd(8, dimension=DIMENSION, seed=1)[0], rows[0][:4]])
    assert_same(flat, milvus, queries)
    assert len(milvus) == 400
    assert (milvus.dimension, milvus.model, milvus.deletion_log) == (DIMENSION, RECORD, ())
    pd.testing.assert_frame_equal(milvus.table, flat.table)
    assert milvus.ids.tolist() == list(range(400))
    assert milvus.check() == 400
    described, expected = milvus.describe(), flat.describe()
    for key in ("index", "count", "dimension", "identities", "unlabelled", "cameras", "model", "removals"):
        assert described[key] == expected[key]
    assert milvus.size_on_disk() > 400 * DIMENSION * 4
    everything = milvus.search(queries[:1], 10_000)
    pd.testing.assert_frame_equal(everything, flat.search(queries[:1], 10_000))
    ranked = milvus.search(queries, 5, rerank=ReRanking(), shortlist=50)
    pd.testing.assert_frame_equal(ranked, flat.search(queries, 5, rerank=ReRanking(), shortlist=50))


ATOMS = [
    "camid == 3",
    "camid != 2",
    "2 < pid <= 9",
    "3 >= camid",
    "pid in (1, 2)",
    "pid not in (1, 2)",
    "pid in ()",
    "pid is None",
    "camid is not None",
    "'0/0000' in path",
    "'%' in path",
    "'_\\\\ü' in path",
    "'5' not in path",
    "path == 'odd/50%_\\\\ü\\'\"🙂.jpg'",
    "path != 'people/0/00001.jpg'",
]


def test_filters_keep_the_same_rows(both: tuple[Gallery, Gallery], crowd: Callable) -> None:
    flat, milvus = both
    pairs = list(itertools.combinations(ATOMS, 2))[::5]
    wheres = [*ATOMS, *(f"not ({atom})" for atom in ATOMS)]
    wheres += [
        f"{'not ' * (n % 2)}({a} {('and', 'or')[n % 3 == 0]} not {b})" for n, (a, b) in enumerate(pairs)
    ]
    kept = set()
    for where in wheres:
        count = milvus.count(where=where)
        assert count == flat.count(where=where), where
        kept.add(count)
    assert len(kept) > 12
    queries, _ = crowd(2, dimension=DIMENSION, seed=1)
    assert_same(flat, milvus, queries, where="not (pid in (1, 2) or camid == 1)", exclude_camera=2)
    assert milvus.count(exclude_camera=2) == flat.count(exclude_camera=2)
    assert_same(flat, milvus, queries, where="pid == 999")
    for where in ("id == 3", "camid = 3", "vector is None", "__import__('os')"):
        with pytest.raises(InputError, match="where: "):
            milvus.search(queries, where=where)


def test_many_rows_of_a_person_and_many_ties(
    both: tuple[Gallery, Gallery], rows: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than Milvus gives at a time, and more ties than were asked for at first."""
    flat, milvus = both
    ones = np.tile(rows[0][:1], (200, 1)), pd.DataFrame({"path": [f"same/{row}" for row in range(200)]})
    for gallery in both:
        gallery.add(*ones)
    pd.testing.assert_frame_equal(milvus.search(rows[0][:2], 3), flat.search(rows[0][:2], 3))
    monkeypatch.setattr(milvus_server, "LIMIT", 7)
    assert len(milvus.known_paths(ones[1]["path"])) == 200


def test_add_and_remove_as_in_a_folder(
    both: tuple[Gallery, Gallery], crowd: Callable, tmp_path: Path, location: str
) -> None:
    _, milvus = both
    both[0].save(tmp_path / "folder")
    folder = Gallery.open(tmp_path / "folder")
    queries, _ = crowd(4, dimension=DIMENSION, seed=1)
    changes: list[Callable[[Gallery], object]] = [
        lambda gallery: gallery.add(*crowd(30, dimension=DIMENSION, seed=3)),
        lambda gallery: gallery.remove(pids=[4, 5], paths="people/3/00007.jpg"),
        lambda gallery: gallery.add(*crowd(5, dimension=DIMENSION, seed=4)),
        lambda gallery: gallery.remove(paths=["people/4/00004.jpg"]),  # the last id is not given again
        lambda gallery: gallery.add(*crowd(5, dimension=DIMENSION, seed=5)),
        lambda gallery: gallery.compact(),
    ]
    for change in changes:
        change(folder)
        change(milvus)
        again = Gallery.open(location)
        for gallery in (milvus, again):
            assert gallery.ids.tolist() == folder.ids.tolist()
            assert_same(folder, gallery, queries)
        logs = [[(line.pid, line.count) for line in gallery.deletion_log] for gallery in (folder, again)]
        assert sorted(logs[0], key=str) == sorted(logs[1], key=str)
    before = len(milvus)
    for wrong in ({"pids": [6, 999]}, {"paths": ["people/0/00001.jpg", "none.jpg"]}):
        with pytest.raises(InputError, match=r"not in the gallery; nothing was removed"):
            milvus.remove(**wrong)
    assert len(Gallery.open(location)) == before == len(folder)
    with pytest.raises(InputError, match="of dimension 3, but the gallery's have 48"):
        milvus.add(np.eye(3), pd.DataFrame({"path": ["a", "b", "c"]}))


def found_in_files(place: str, name: str, vector: np.ndarray) -> list[str]:
    """Files that have a name or a vector: in raw bytes, or in a column of a decoded table."""
    wanted = vector.astype(np.float32)
    found = []
    for file in sorted(path for path in Path(place).rglob("*") if path.is_file()):
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


def test_building_overwriting_resuming(location: str, rows: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    features, table = rows
    monkeypatch.setattr(gallery_module, "SHARD_ROWS", 100)
    with GalleryBuilder(location, model=RECORD) as builder:
        builder.add(features[:60], table[:60])
        builder.add(features[60:100], table[60:100])
        builder.add(features[100:110], table[100:110])  # interrupted here, before these were sent
    with pytest.raises(InputError, match="unfinished build"):
        GalleryBuilder(location, model=RECORD)
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    with GalleryBuilder(location, model=RECORD, resume=True) as builder:
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


def test_places(tmp_path: Path) -> None:
    place = parse_location("milvus://host-1.lan:19530/people").target
    assert place == MilvusURI("http://host-1.lan:19530", "people", embedded=False)
    assert str(place) == "milvus://host-1.lan:19530/people"
    assert parse_location("folder").target == Path("folder")
    for wrong in ("milvus://host", "milvus://host:1/", "milvus://host:99999/a", "milvus://h:1/a;drop"):
        with pytest.raises(InputError, match=re.escape(f"{wrong}: expected milvus://HOST:PORT/COLLECTION")):
            Gallery.open(wrong)
    with pytest.raises(InputError, match=r"none.db: expected a gallery, found nothing"):
        Gallery.open(tmp_path / "none.db")
    (tmp_path / "old.db").write_bytes(b"x")
    with pytest.raises(InputError, match="expected a folder of Milvus Lite 3, found a file"):
        Gallery.open(tmp_path / "old.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.db"]


def test_nobody_answers() -> None:
    with pytest.raises(InputError, match=r"milvus://127\.0\.0\.1:9/people: does not answer"):
        Gallery.open("milvus://127.0.0.1:9/people")


def test_collections_of_others_stay(location: str, rows: tuple[np.ndarray, pd.DataFrame]) -> None:
    features, table = rows
    Gallery.build(features, table).save(location)
    place = parse_location(location).target
    server = milvus_server.MilvusServer(place)
    others = {f"{place.collection}_7", f"{place.collection}__imagesque_7", "other__images_1"}
    for name in others:
        server.create_notes(name)
    Gallery.open(location).remove(paths=table.path[0])
    Gallery.build(features[:5], table[:5]).save(location, overwrite=True)
    assert len(Gallery.open(location)) == 5
    assert others <= set(server.collections())
    assert len(server.collections()) == len(others) + 2  # the notes, and one collection of images


@pytest.mark.parametrize("killed_at", ["empty", "one note"])
def test_a_build_killed_while_it_made_its_notes(
    location: str, rows: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """The same build again needs no cleaning by hand."""
    features, table = rows[0][:20], rows[1][:20]
    place = parse_location(location).target

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(milvus_server.MilvusServer, "write_notes", killed)
        with pytest.raises(KeyboardInterrupt):
            Gallery.build(features, table).save(location)
    server = milvus_server.MilvusServer(place)
    assert server.collections() == [place.collection]
    if killed_at == "one note":
        server.write_notes(place.collection, {0: ""})
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    Gallery.build(features, table).save(location)
    assert len(Gallery.open(location)) == 20


def test_a_collection_of_others_is_never_written_to(
    location: str, rows: tuple[np.ndarray, pd.DataFrame]
) -> None:
    """Even one of texts by their numbers, as notes are."""
    place = parse_location(location).target
    server = milvus_server.MilvusServer(place, create=True)
    kinds, client = server._library.DataType, server._client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.INT64, is_primary=True)
    schema.add_field("text", kinds.VARCHAR, max_length=100)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=4)
    server._create(place.collection, schema, "FLAT", {})
    client.insert(place.collection, [{"id": 0, "text": "mine", "vector": [1.0] * 4}])
    for overwrite in (False, True):
        with pytest.raises(
            InputError, match="a collection of this name exists already, and is not a gallery"
        ):
            Gallery.build(rows[0], rows[1]).save(location, overwrite=overwrite)
    with pytest.raises(InputError, match="no gallery there"):
        Gallery.open(location)
    server.load(place.collection)
    assert client.query(place.collection, "id >= 0", output_fields=["text"])[0]["text"] == "mine"


def test_resuming_with_another_index(
    location: str, rows: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_module, "SHARD_ROWS", 50)
    with GalleryBuilder(location, index="hnsw", hnsw_m=16) as builder:
        builder.add(rows[0][:50], rows[1][:50])
    for other in ({}, {"index": "hnsw"}, {"index": "hnsw", "hnsw_m": 8}):
        builder = GalleryBuilder(location, resume=True, **other)
        with pytest.raises(InputError, match="has index hnsw, hnsw_m 16"), builder:
            pass
    with GalleryBuilder(location, index="hnsw", hnsw_m=16, resume=True) as builder:
        assert builder.finish().describe()["settings"]["hnsw_m"] == 16


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


def test_a_gallery_replaced_since_it_was_opened(
    both: tuple[Gallery, Gallery], rows: tuple[np.ndarray, pd.DataFrame], location: str
) -> None:
    """A reader that stays open for long, such as a server's."""
    _, reader = both
    others = Gallery.build(rows[0][:50], rows[1][:50], model=RECORD)
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
        Gallery.build(rows[0][:50], rows[1][:50], model=replace(RECORD, sha256="1" * 64)),
        Gallery.build(rows[0][:50, :12], rows[1][:50], model=RECORD),
    ):
        reader = Gallery.open(location)
        other.save(location, overwrite=True)
        with pytest.raises(InputError, match="replaced, since it was opened, by a gallery of another model"):
            reader.search(rows[0][:3], 5)
        both[0].save(location, overwrite=True)


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
                patch.setattr(milvus_server.MilvusServer, step, struck)
            with contextlib.suppress(KeyboardInterrupt):
                Gallery.open(location).remove(pids=pid)
        now = Gallery.open(location)
        logged = sum(removal.count for removal in now.deletion_log if removal.pid == pid)
        assert logged == count - len(now)
        states.add((step, logged > 0))
    assert {step for step, gone in states if gone} == {"drop", "none"}
    Gallery.open(location).remove(pids=1)  # nothing that was left is in the way


def test_large_labels_keep_their_digits(location: str, rows: tuple[np.ndarray, pd.DataFrame]) -> None:
    features, table = rows[0][:6], rows[1][:6].copy()
    table["pid"] = pd.array([2**60 + 1, None, 2**60 + 3, 5, None, 2**62 + 1], dtype="Int64")
    Gallery.build(features, table).save(location)
    opened = Gallery.open(location)
    opened.remove(paths=table.path[3])  # which writes the others again
    found = Gallery.open(location).search(features, 1)
    assert found.pid.fillna(-1).tolist()[:3] == [2**60 + 1, -1, 2**60 + 3]
    assert found.pid.fillna(-1).tolist()[5] == 2**62 + 1


def test_names_of_collections_of_images_are_no_galleries() -> None:
    with pytest.raises(InputError, match="expected a name without '__images_'"):
        parse_location("milvus://host:19530/people__images_3")
