"""The client: its methods are those of ``Gallery``, and find and change the same."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from rga_reid.gallery.store import DeletionRecord, RemovalResult
from rga_reid.inference.feature_files import read_features
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.serving import Client
from rga_reid.serving import client as module
from rga_reid.serving.client import ServerError
from tests.serving.conftest import EMBEDDER, Served, Start, draw

FEATURES = np.asarray(EMBEDDER.embed([draw(1, 9), draw(2, 9)]))
#: what a client does not have: folders of the server's machine, and names of version 1
LOCAL = {"build", "open", "save", "merge", "size_on_disk", "removals"}
#: compares two pictures; the deprecated method of a gallery is called ``check`` now
OTHER = {"verify"}
#: arguments that a client does not have: the types of a larger table, and progress
LOCAL_ARGUMENTS = {("add", "columns"), ("check", "progress")}
#: arguments with other defaults: a server names images by ids
OTHER_DEFAULTS = {("search", "with_ids")}


def connect(served: Served) -> Client:
    """Return a client of a server in this process."""

    def send(request: httpx.Request) -> httpx.Response:
        answer = served.http.request(
            request.method, str(request.url), content=request.read(), headers=request.headers
        )
        headers = [(name, value) for name, value in answer.headers.items() if name != "content-length"]
        return httpx.Response(answer.status_code, headers=headers, content=answer.content)

    return Client("http://localhost", transport=httpx.MockTransport(send))


@pytest.fixture
def client(served: Served) -> Client:
    return connect(served)


@pytest.fixture
def reader(shared: Served) -> Client:
    """A client for tests that change nothing."""
    return connect(shared)


@pytest.fixture
def gallery(shared: Served) -> Gallery:
    """The gallery of ``reader``."""
    return Gallery.open(shared.location)


# ---------- names ----------


def members(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")} | {"__len__"}


def test_client_has_the_members_of_a_gallery() -> None:
    assert members(Gallery) - members(Client) == LOCAL
    for name in members(Gallery) - LOCAL - OTHER:
        own, other = (inspect.getattr_static(cls, name) for cls in (Gallery, Client))
        assert isinstance(own, property) == isinstance(other, property), name


@pytest.mark.parametrize("name", sorted(members(Gallery) - LOCAL - OTHER))
def test_methods_take_the_arguments_of_those_of_a_gallery(name: str) -> None:
    if isinstance(inspect.getattr_static(Gallery, name), property):
        return
    own, other = (inspect.signature(getattr(cls, name)).parameters for cls in (Gallery, Client))
    shared = [one for one in own if (name, one) not in LOCAL_ARGUMENTS]
    assert list(other)[: len(shared)] == shared
    for one in shared:
        assert own[one].kind == other[one].kind, one
        required = own[one].default is inspect.Parameter.empty
        if not required and (name, one) not in OTHER_DEFAULTS:
            assert own[one].default == other[one].default, one
    for one in list(other)[len(shared) :]:  # its own ones
        assert other[one].kind == inspect.Parameter.KEYWORD_ONLY, one
        assert other[one].default is not inspect.Parameter.empty, one


def test_results_have_the_fields_of_those_of_a_gallery() -> None:
    def fields(cls: Any) -> list[tuple[str, Any]]:
        return [(field.name, field.default) for field in dataclasses.fields(cls)]

    assert fields(module.DeletionRecord) == fields(DeletionRecord)
    assert set(fields(module.RemovalResult)) <= set(fields(RemovalResult))


# ---------- reading ----------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "camera = 0"},
        {"exclude_camera": 1},
        {"group_by": "track", "per_group": 2},
        {"rerank": ReRanking()},
        {"rerank": ReRanking(k1=3, k2=3, lambda_value=0.3), "shortlist": 10},  # another order
        {"with_ids": False},
    ],
)
def test_search_finds_what_the_gallery_finds(
    reader: Client, gallery: Gallery, options: dict[str, Any]
) -> None:
    wanted = gallery.search(FEATURES, 4, **{"with_ids": True, **options})
    pd.testing.assert_frame_equal(reader.search(FEATURES, 4, **options), wanted, check_column_type=False)
    pictures = reader.search(images=[draw(1, 9), draw(2, 9)], top_k=4, **options)
    pd.testing.assert_frame_equal(pictures, wanted, check_column_type=False)


def test_search_by_ids_and_several_pictures(reader: Client, gallery: Gallery) -> None:
    mean = FEATURES.mean(axis=0, keepdims=True)
    found = reader.search(FEATURES, 3, multi=True)
    assert found["id"].tolist() == gallery.search(mean, 3, with_ids=True)["id"].tolist()
    assert 3 not in reader.search(ids=[3], not_ids=[6], top_k=12)["id"].tolist()
    assert reader.search(FEATURES, 3, threshold=1).empty
    assert list(reader.search(FEATURES, 3, threshold=1).columns) == list(found.columns)
    assert reader.search(FEATURES[:1], 3, rerank=True)["id"].tolist() == (
        gallery.search(FEATURES[:1], 3, rerank=ReRanking(), with_ids=True)["id"].tolist()
    )


def test_table_is_that_of_the_gallery(
    reader: Client, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 5)
    pd.testing.assert_frame_equal(reader.table, gallery.table, check_column_type=False)
    assert reader.ids.tolist() == gallery.ids.tolist()
    paths = gallery.table["path"].tolist()
    for options in (
        {"where": "pid > 1"},
        {"pids": 1},
        {"pids": ["1", 2], "paths": paths[:4]},
        {"paths": paths[0]},
    ):
        found = reader.find(**options)
        wanted = gallery.find(**options).reset_index(drop=True)
        pd.testing.assert_frame_equal(found, wanted, check_column_type=False)
    assert reader.find(where="id = 99").empty
    assert reader.known_paths([*paths[2:9], "/etc/passwd"]) == set(paths[2:9])
    for missing in ({"pids": [1, 77]}, {"paths": "/etc/passwd"}, {"pids": 1, "where": "pid = 1"}):
        with pytest.raises(ServerError):
            reader.find(**missing)


def test_numbers_and_model_of_the_gallery(reader: Client, gallery: Gallery) -> None:
    assert (len(reader), reader.count(), reader.count(where="pid = 1")) == (12, 12, 3)
    assert reader.count(exclude_camera=1, where="pid = 1") == gallery.count(exclude_camera=1, where="pid = 1")
    assert (reader.dimension, reader.columns, reader.model) == (
        gallery.dimension,
        dict(gallery.columns),
        None,
    )
    assert np.allclose(reader.embed([draw(1, 9)]), FEATURES[:1], atol=1e-6)
    assert reader.verify(draw(1), gallery.table["path"].iloc[3], 0.9)["same"] is True
    with pytest.raises(ServerError) as refused:
        reader.search(FEATURES, where="colour = 1")
    assert refused.value.status == 422


def test_features_of_another_model_are_refused(serve: Callable[..., Served], people: Path) -> None:
    model = ModelFingerprint("model.ckpt", "0" * 64, (64, 32))
    table = Gallery.open(people).table.head(2)
    Gallery.build(FEATURES, table, model=model).save(people, overwrite=True)
    client = connect(serve())
    assert ModelFingerprint.from_json(client.model) == model
    client.require_model(dataclasses.replace(model, checkpoint="moved.ckpt"))
    other = dataclasses.replace(model, sha256="1" * 64)
    with pytest.raises(ValueError, match="another model"):
        client.add(FEATURES, table, model=other)
    assert client.add(FEATURES, table, model=model).tolist() == [2, 3]


def test_a_gallery_is_built_again_from_an_export(
    reader: Client, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_FEATURES", 5)
    reader.export(tmp_path / "client.npz")
    gallery.export(tmp_path / "own.npz")
    one, two = (read_features(tmp_path / name) for name in ("client.npz", "own.npz"))
    assert np.array_equal(one[0], two[0])
    pd.testing.assert_frame_equal(one[1], two[1])


# ---------- changes ----------


def test_images_are_added_labelled_and_removed(client: Client, people: Path) -> None:
    table = Gallery.open(people).table
    assert client.add(FEATURES, table.head(2)).tolist() == [12, 13]
    assert client.add(images=[draw(5)]).tolist() == [14]
    assert client.thumbnail(14)[:2] == b"\xff\xd8"
    assert client.label("id = 14", "Anna") == 1
    assert client.find(pids="Anna")["id"].tolist() == [14]  # pids are text now
    assert client.label("pid = 'Anna'", None) == 1
    assert client.find(where="pid is null")["id"].tolist() == [14]
    with pytest.raises(ServerError):
        client.label("id = 14")  # a forgotten pid takes no label off
    assert client.label("id = 14", "Anna") == 1
    assert client.label(ids=[12], pid=3) == 1
    assert client.remove(where="id = 12").images == 1
    assert client.remove(ids=[13]).images == 1
    with pytest.raises(ServerError):
        client.remove(pids=["Anna", "unknown"])
    assert client.remove(pids=["Anna", 1], paths=table["path"].iloc[0]).images == 5
    assert Gallery.open(people).ids.tolist() == [1, 2, 6, 7, 8, 9, 10, 11]
    with pytest.raises(ServerError):
        client.remove()


def test_erased_images_are_in_the_log(client: Client, people: Path) -> None:
    client.label("pid = 3", 2)
    client.remove(pids=2)
    log = client.deletion_log
    assert [(record.pid, record.count, record.label) for record in log] == [(3, 3, 2), (2, 6, None)]
    assert [dataclasses.astuple(record) for record in log] == [
        dataclasses.astuple(record) for record in Gallery.open(people).deletion_log
    ]


def test_columns_are_changed(client: Client, people: Path) -> None:
    client.search(FEATURES)  # the client knows the columns before
    time = pd.Timestamp("2026-11-22T09:00Z")
    client.update([4, 2], pd.DataFrame({"zone": ["east", None], "height": [1.8, 1.7], "time": [time] * 2}))
    changed = Gallery.open(people).find(where="id in (2, 4)")
    assert changed["height"].tolist() == [1.7, 1.8]
    assert changed["zone"].isna().tolist() == [True, False]
    assert changed["time"].tolist() == [time] * 2
    pd.testing.assert_frame_equal(
        client.find(where="id in (2, 4)"), changed.reset_index(drop=True), check_column_type=False
    )
    for ids, table in (([99], {"zone": ["a"]}), ([1], {"path": ["a"]}), ([1], {"upload": ["a"]}), ([1], {})):
        with pytest.raises(ServerError):
            client.update(ids, pd.DataFrame(table, index=[0]))


def test_segments_are_joined(
    serve: Callable[..., Served], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = np.random.default_rng(0).standard_normal((1024, 8))
    table = pd.DataFrame({"path": [str(row) for row in range(1024)]})
    Gallery.build(features, table, index="hnsw").save(tmp_path / "indexed")
    client = connect(serve(tmp_path / "indexed", None))
    client.add(features[:1], table.head(1))
    before = client.find()
    assert client.describe()["segments"] == 2
    client.compact()
    assert client.describe()["segments"] == 1
    pd.testing.assert_frame_equal(client.find(), before)
    assert client.check() == Gallery.open(tmp_path / "indexed").check()
    called: list[Gallery] = []
    monkeypatch.setattr(Gallery, "maintain", lambda gallery: called.append(gallery))
    client.maintain()
    assert len(called) == 1


def test_damage_is_found(client: Client, people: Path) -> None:
    (file,) = people.rglob("vectors*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ServerError) as damaged:
        client.check()
    assert (damaged.value.status, file.name in damaged.value.detail) == (503, True)


def test_changes_need_a_server_that_writes(serve: Callable[..., Served], people: Path) -> None:
    client = connect(serve(read_only=True, images_root=people.parent))
    for change in (
        client.compact,
        client.maintain,
        lambda: client.update([1], pd.DataFrame({"zone": ["a"]})),
    ):
        with pytest.raises(ServerError) as refused:
            change()
        assert refused.value.status == 403
    assert client.check() > 0
    assert not (people.parent / "uploads").exists()


@pytest.mark.slow
def test_client_of_a_process(start: Start, people: Path) -> None:
    _, address = start("--images-root", str(people.parent))
    with Client(address, timeout=600) as client:
        (id,) = client.add(FEATURES[:1], pd.DataFrame({"path": ["a"]}))
        client.update([id], pd.DataFrame({"zone": ["west"]}))
        assert client.search(FEATURES[:1], top_k=1)["zone"].tolist() == ["west"]
        client.compact()
        assert client.check() > 0
        assert client.remove(ids=[int(id)]).images == 1
        assert [record.count for record in client.deletion_log] == [1]
        assert len(client.table) == 12
