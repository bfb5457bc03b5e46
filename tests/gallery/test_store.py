"""Vector stores behave alike; galleries of 1.0 and locations."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery, GalleryBuilder
from rga_reid.gallery.location import parse_location
from rga_reid.gallery.milvus_uri import MilvusURI
from rga_reid.inference import ModelFingerprint

OLD = Path(__file__).parents[1] / "fixtures" / "v1" / "gallery"
LIST_STORE = "tests.gallery.list_store.ListStore:"
FINGERPRINT = ModelFingerprint("/models/a.ckpt", "0" * 64, (256, 128))


@pytest.fixture(params=["folder", "class path", pytest.param("milvus", marks=pytest.mark.slow)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = uuid.uuid4().hex
    if request.param != "milvus":
        yield str(tmp_path / name) if request.param == "folder" else LIST_STORE + name
        return
    from milvus_lite.server_manager import server_manager_instance

    yield str(tmp_path / f"{name}.db")
    server_manager_instance.release_server(str(tmp_path / f"{name}.db"))


def events(crowd: Callable, count: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """People with cameras that have names, times, and columns of their own."""
    features, table = crowd(count, seed=seed)
    table = table.rename(columns={"camid": "camera"}).astype({"camera": "str"})
    table["time"] = pd.date_range("2026-11-20", periods=count, freq="h", tz="Europe/Berlin")
    table.loc[0, "time"] = pd.NaT
    return features, table.assign(
        speed=[None, *(row / 2 for row in range(count - 1))], zone="north", night=True
    )


def test_stores_agree_with_a_gallery_in_memory(location: str, crowd: Callable) -> None:
    memory = Gallery.build(*crowd(60), model=FINGERPRINT)
    pids = sorted(memory.table["pid"].unique())[2:5]
    memory.remove(paths="people/0/00003.jpg")
    memory.save(location)
    with pytest.raises(InputError, match="exists already"):
        memory.save(location)
    stored, queries = Gallery.open(location), crowd(4, seed=1)[0]
    changes: list[Callable[[Gallery], object]] = [
        lambda gallery: gallery.add(*crowd(5, seed=2), model=FINGERPRINT),
        lambda gallery: gallery.remove(pids=pids[:2], paths="people/2/00002.jpg").images,
        lambda gallery: gallery.add(*crowd(3, seed=3)),
        lambda gallery: gallery.remove(paths=["people/3/00002.jpg"]).images,  # the last id is not reused
        lambda gallery: gallery.add(*crowd(2, seed=4)),
        lambda gallery: gallery.compact(),
        lambda gallery: gallery.add(*events(crowd, 9, seed=5)),
        lambda gallery: gallery.label(f"pid = {pids[2]} or speed >= 3", 555),
        lambda gallery: gallery.label("pid = 555 and speed < 4", None),
        lambda gallery: gallery.label("camera = 2 and speed < 2", "Anna"),
        lambda gallery: gallery.label("pid = 'Anna' and speed < 1 or pid is null", None),
        lambda gallery: gallery.add(*events(crowd, 3, seed=6)),
        lambda gallery: gallery.update([0, 70], pd.DataFrame({"zone": ["south", None], "person": [1, 2]})),
        lambda gallery: gallery.remove(where="time between '2026-11-20' and '2026-11-20T03:00Z'").images,
        lambda gallery: gallery.remove(where="zone = 'nowhere'").images,
        lambda gallery: gallery.maintain(),
    ]
    for change in changes:
        assert np.array_equal(change(stored), change(memory))
        for gallery in (stored, Gallery.open(location)):
            assert gallery.ids.tolist() == memory.ids.tolist()
            pd.testing.assert_frame_equal(gallery.table, memory.table)
            for options in (
                {},
                {"exclude_camera": 2, "where": "pid not in (1, 2)"},
                {"where": "id >= 3 and id not in (4, 70)"},
                {"rerank": ReRanking(k1=5, k2=2), "shortlist": 20},
            ):
                found = gallery.search(queries, 7, with_ids=True, **options)
                pd.testing.assert_frame_equal(found, memory.search(queries, 7, with_ids=True, **options))
            assert gallery.count(where="camera == 1") == memory.count(where="camid == 1")
            assert gallery.check() > 0
    assert [(line.pid, line.count, line.label) for line in stored.deletion_log] == [
        (line.pid, line.count, line.label) for line in memory.deletion_log
    ]
    assert {"Anna", "555"} <= {str(line.label) for line in memory.deletion_log}
    described, expected = stored.describe(), memory.describe()
    for key in expected.keys() - {"segments"}:
        assert described[key] == expected[key]
    before = len(stored)
    for wrong in ({"pids": [pids[2], 999]}, {"paths": ["people/0/00001.jpg", "none.jpg"]}, {}):
        with pytest.raises(InputError, match=r"nothing was removed|expected pids or paths"):
            stored.remove(**wrong)
    with pytest.raises(InputError, match="dimension 3"):
        stored.add(np.eye(3), pd.DataFrame({"path": ["a", "b", "c"]}))
    with pytest.raises(InputError, match="another model"):
        stored.add(*crowd(2), model=ModelFingerprint("/models/b.ckpt", "1" * 64, (256, 128)))
    assert len(Gallery.open(location)) == before == len(memory)


def test_builders_write_to_every_store(location: str, crowd: Callable) -> None:
    features, table = crowd(30)
    with GalleryBuilder(location, model=FINGERPRINT) as builder:
        builder.add(features[:20], table[:20])
        builder.add(features[20:], table[20:])
        built = builder.finish()
    pd.testing.assert_frame_equal(built.table, Gallery.build(features, table).table)
    assert (built.model, built.dimension) == (FINGERPRINT, 32)
    with pytest.raises(InputError, match="exists already"):
        GalleryBuilder(location)
    with (
        pytest.raises(InputError, match="at least one row"),
        GalleryBuilder(location, overwrite=True) as builder,
    ):
        builder.finish()
    assert len(Gallery.open(location)) == 30


def test_commands_open_a_store_by_class_path(
    tmp_path: Path, crowd: Callable, capsys: pytest.CaptureFixture, refused: Callable
) -> None:
    for name, seed in (("first", 1), ("second", 2)):
        features, table = crowd(20, seed=seed)
        np.savez(
            tmp_path / f"{name}.npz", features=features, paths=table["path"].to_numpy(str), pids=table["pid"]
        )
    gallery = ["--gallery", f"{LIST_STORE}{uuid.uuid4().hex}"]
    assert main(["gallery", "build", *gallery, "--features", str(tmp_path / "first.npz")]) == 0
    assert "exists already" in refused(
        "gallery", "build", *gallery, "--features", str(tmp_path / "first.npz")
    )
    assert main(["gallery", "add", *gallery, "--features", str(tmp_path / "second.npz")]) == 0
    assert main(["gallery", "remove", *gallery, "--path", "people/2/00001.jpg"]) == 0
    for action in ("compact", "check"):
        assert main(["gallery", action, *gallery]) == 0
    capsys.readouterr()
    assert main(["gallery", "info", *gallery, "--json", str(tmp_path / "info.json")]) == 0
    facts = json.loads((tmp_path / "info.json").read_text())
    assert (facts["location"], facts["count"], facts["removals"], facts["bytes"]) == (gallery[1], 39, 1, None)


def test_a_damaged_store_is_named(crowd: Callable) -> None:
    location = LIST_STORE + uuid.uuid4().hex
    Gallery.build(*crowd(9)).save(location)
    store = parse_location(location).factory.open(location.rpartition(":")[2])
    (rows,) = store.rows()
    rows.vectors[3] *= 2
    with pytest.raises(InputError, match="image 3 is not of length 1"):
        Gallery.open(location).check()
    rows.vectors[3] = np.nan
    with pytest.raises(InputError, match="gallery check"):
        Gallery.open(location).search(crowd(1)[0])


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = parse_location("milvus://host-1.lan:19530/people")
    assert server.target == MilvusURI("http://host-1.lan:19530", "people", embedded=False)
    assert str(server) == str(server.target) == "milvus://host-1.lan:19530/people"
    assert parse_location("a.db").target == MilvusURI(str(tmp_path / "a.db"), "gallery", embedded=True)
    for folder in ("folder", "./tests.gallery:x", "a/b.c:d", "2026-11-28:evening"):
        assert parse_location(folder).target == Path(folder)
        assert str(parse_location(folder)) == str((tmp_path / folder).absolute())
    for wrong in ("milvus://host", "milvus://host:1/", "milvus://host:99999/a", "milvus://h:1/a;drop"):
        with pytest.raises(InputError, match=re.escape(wrong)):
            Gallery.open(wrong)
    with pytest.raises(InputError, match="__images_"):
        parse_location("milvus://host:19530/people__images_3")
    for wrong in ("no_such_module.Store:x", f"{LIST_STORE[:-1]}s:x", "rga_reid.gallery.filters.Filter:x"):
        with pytest.raises(InputError, match=re.escape(wrong)):
            Gallery.open(wrong)


def test_a_gallery_of_version_1_opens_and_changes(tmp_path: Path) -> None:
    """``fixtures/v1/gallery`` was written by rga-reid 1.0.0: 23 random vectors, of which 2 were removed."""
    shutil.copytree(OLD, tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    assert gallery.ids.tolist() == [0, 1, 2, *range(5, 23)]
    assert gallery.model == ModelFingerprint(
        "/models/person.ckpt", "ab" * 32, (256, 128), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    queries = np.array(
        [
            [-0.151, 0.022, 1.177, 0.681, 0.383, -0.564, -1.382, 0.95],
            [0.966, -0.141, 0.542, 0.781, 0.831, 0.921, -0.456, 1.515],
        ],
        np.float32,
    )
    found = gallery.search(queries, 4, with_ids=True)
    assert found["id"].tolist() == [9, 1, 20, 18, 11, 9, 18, 1]
    scores = [0.7743978546245519, 0.6162683216917552, 0.6094442106686923, 0.47612311632623616]
    assert found["score"].tolist()[:4] == scores
    assert [(line.pid, line.count) for line in gallery.deletion_log] == [(3, 1), (None, 1)]
    assert gallery.check() == 6
    gallery.add(queries, pd.DataFrame({"path": ["new/0.jpg", "new/1.jpg"], "pid": [7, 7]}))
    assert gallery.search(queries, 1, with_ids=True)["id"].tolist() == [23, 24]
    gallery.remove(pids=1)
    again = Gallery.open(tmp_path / "gallery")
    assert len(again) == 18
    assert [line.pid for line in again.deletion_log] == [3, None, 1]
    assert again.check() == 8


def test_names_of_version_1_still_work(
    tmp_path: Path, crowd: Callable, capsys: pytest.CaptureFixture
) -> None:
    Gallery.build(*crowd(9)).save(tmp_path / "gallery")
    gallery = Gallery.open(tmp_path / "gallery")
    with pytest.warns(DeprecationWarning, match="check"):
        assert gallery.verify() == 3
    with pytest.warns(DeprecationWarning, match="deletion_log"):
        assert gallery.removals == ()
    assert main(["gallery", "verify", "--gallery", str(tmp_path / "gallery")]) == 0
    assert "checked" in capsys.readouterr().out
