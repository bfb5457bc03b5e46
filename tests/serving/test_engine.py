"""Batches, commits that are shared, readers beside a writer, and files of pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rga_reid.gallery import Gallery
from rga_reid.serving.batching import MAX_WAITING, Batcher, chain
from rga_reid.serving.engine import Addition, Engine
from rga_reid.serving.problems import Problem
from rga_reid.serving.uploads import UploadStore, decode_upload
from tests.serving.conftest import EMBEDDER, Served, draw


class Gate:
    """A function for a batcher that waits until it is opened, and notes its batches."""

    def __init__(self) -> None:
        self.open, self.started = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, key: object, items: Sequence[int]) -> list[int]:
        self.started.set()
        assert self.open.wait(60)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [10 * item for item in items]


def test_items_that_wait_are_the_next_batch() -> None:
    gate, sizes = Gate(), list[int]()
    batcher = Batcher("test", gate, max_size=4, observe=sizes.append)
    first = batcher.submit(1)
    assert gate.started.wait(60)
    others = [batcher.submit(item, key="a" if item == 3 else None) for item in (2, 3, 4, 5, 6, 7)]
    assert batcher.rows_waiting == 6
    gate.open.set()
    assert [future.result(60) for future in (first, *others)] == [10, 20, 30, 40, 50, 60, 70]
    batcher.close()
    assert gate.batches == [[1], [2, 4, 5, 6], [3], [7]]
    assert sizes == [1, 4, 1, 1]
    with pytest.raises(Problem):
        batcher.submit(8)


def test_only_the_item_that_causes_an_error_gets_it() -> None:
    gate = Gate()
    batcher = Batcher("test", gate)
    batcher.submit(0)
    assert gate.started.wait(60)
    good, bad, gone = batcher.submit(1), batcher.submit(13), batcher.submit(2)
    assert gone.cancel()  # its client has gone
    gate.open.set()
    assert good.result(60) == 10
    with pytest.raises(ValueError, match="13"):
        bad.result(60)
    batcher.close()
    assert gate.batches == [[0], [1, 13], [1], [13]]


def test_a_batch_waits_for_items_that_are_expected() -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher("test", gate, wait=60)
    with batcher.expect():
        first = batcher.submit(1)
        assert not gate.started.wait(0.3)  # it waits, up to 60 s
        second = batcher.submit(2)
    assert (first.result(60), second.result(60)) == (10, 20)
    assert gate.batches == [[1, 2]]
    batcher.close()


def test_requests_are_refused_when_too_many_wait() -> None:
    gate = Gate()
    batcher = Batcher("test", gate)
    batcher.submit(0)
    assert gate.started.wait(60)
    batcher.submit(1, MAX_WAITING)
    with pytest.raises(Problem) as refused:
        batcher.submit(2)
    assert refused.value.status == 503
    gate.open.set()
    batcher.close()


def test_a_future_of_what_follows_has_its_result_or_any_error() -> None:
    first_gate, then_gate = Gate(), Gate()
    then_gate.open.set()
    first, then = Batcher("first", first_gate), Batcher("then", then_gate)
    first.submit(0)
    assert first_gate.started.wait(60)
    one, two, failed = (chain(first.submit(item), then.submit) for item in (1, 2, 13))

    def refuse(item: int) -> Future[int]:
        raise Problem(503, "the server is stopping")

    refused, gone = chain(first.submit(3), refuse), chain(first.submit(4), then.submit)
    assert gone.cancel()  # its client has gone
    first_gate.open.set()
    assert (one.result(60), two.result(60)) == (100, 200)
    with pytest.raises(ValueError, match="13"):
        failed.result(60)
    with pytest.raises(Problem):
        refused.result(60)
    first.close()
    then.close()
    assert first_gate.batches == [[0], [1, 2, 13, 3], [1], [2], [13], [3]]
    assert [item for batch in then_gate.batches for item in batch] == [10, 20]


def additions(count: int) -> list[Addition]:
    features = np.asarray(EMBEDDER.embed([draw(100 + number) for number in range(count)]))
    return [Addition(features[number : number + 1], [{"pid": number}]) for number in range(count)]


def test_adds_that_arrive_together_share_commits(people: Path) -> None:
    engine = Engine(str(people), EMBEDDER)
    generation = _generation(people)
    with ThreadPoolExecutor(32) as pool:
        ids = [future.result() for future in pool.map(engine.add, additions(64))]
    commits = _generation(people) - generation
    engine.close()
    assert sorted(id for (id,) in ids) == list(range(12, 76))
    stored = Gallery.open(people).find(where="id >= 12")
    assert dict(zip(stored["id"], stored["pid"], strict=True)) == {id: pid for pid, (id,) in enumerate(ids)}
    assert 1 <= commits < 64


def _generation(folder: Path) -> int:
    from rga_reid.gallery.manifest import MANIFEST, read_manifest

    return read_manifest(folder / MANIFEST).generation


def test_a_bad_addition_does_not_stop_the_others(people: Path) -> None:
    engine = Engine(str(people), EMBEDDER)
    one, two, three = additions(3)
    futures = [
        engine._writing.submit(Addition(one.features, [{"height": 1.8}]), 1, "add"),
        engine._writing.submit(Addition(two.features, [{"height": "tall"}]), 1, "add"),
        engine._writing.submit(Addition(three.features, [{"height": 1.7}]), 1, "add"),
    ]
    done = [future.exception() is None for future in futures]
    engine.close()
    assert done.count(True) == 2
    assert len(Gallery.open(people)) == 14


def test_searches_run_beside_a_writer(serve: Callable[..., Served]) -> None:
    served = serve()
    stop, problems = threading.Event(), list[str]()
    query = np.asarray(EMBEDDER.embed([draw(1)])).tolist()

    def search() -> None:
        while not stop.is_set():
            answer = served.http.post("/v1/search", json={"features": query, "top_k": 100})
            matches = answer.json()["queries"][0]["matches"]
            if answer.status_code != 200 or len({match["id"] for match in matches}) != len(matches):
                problems.append(answer.text)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(3):
        (id,) = served.http.post("/v1/images", json={"features": query, "rows": [{"pid": number}]}).json()[
            "ids"
        ]
        found = served.http.post("/v1/search", json={"features": query, "where": f"id = {id}"}).json()
        assert [match["pid"] for match in found["queries"][0]["matches"]] == [number]  # seen at once
        served.http.request("DELETE", "/v1/images", json={"ids": [id]})
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_columns_are_added_and_rows_maintained(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rga_reid.serving.engine.MAINTAINED_ROWS", 4)
    maintained = threading.Event()
    engine = Engine(str(people), EMBEDDER)
    monkeypatch.setattr(engine._writer, "maintain", maintained.set)
    for addition in additions(4):
        engine.add(addition).result(60)
    assert maintained.wait(60)
    engine.close()


# ---------- files of pictures ----------


def test_interrupted_changes_of_files_are_decided_by_rows(people: Path) -> None:
    """As after ``kill -9`` between a commit and the files: pending files of rows stay, others go."""
    root = people.parent / "root"
    engine = Engine(str(people), EMBEDDER, images_root=root)
    pictures = [decode_upload(draw(number), (64, 32), "x") for number in (20, 21)]
    features = np.asarray(EMBEDDER.embed([draw(20)]))
    engine.add(Addition(features, [{}], pictures[:1])).result(60)
    engine.close()
    store = UploadStore(root)
    kept, lost = (store.path(picture.name) for picture in pictures)
    kept.rename(f"{kept}.pending")
    lost.parent.mkdir(exist_ok=True)
    Path(f"{lost}.pending").write_bytes(pictures[1].content)
    engine = Engine(str(people), EMBEDDER, images_root=root)
    engine.close()
    assert kept.read_bytes() == pictures[0].content
    assert [file.name for file in root.glob("uploads/*/*")] == [kept.name]


def test_a_failed_addition_leaves_no_file(tmp_path: Path) -> None:
    store, picture = UploadStore(tmp_path), decode_upload(draw(1), (64, 32), "x")
    store.create()
    with pytest.raises(RuntimeError), store.adding([picture]):
        assert list(tmp_path.glob("uploads/*/*.pending"))
        raise RuntimeError
    assert not list(tmp_path.glob("uploads/*/*"))
    with store.adding([picture]):
        pass
    with pytest.raises(RuntimeError), store.erasing([picture.name], set):
        raise RuntimeError  # nothing was erased: the rows still name the file
    assert store.path(picture.name).exists()
    with store.erasing([picture.name], lambda names: set()):
        pass
    assert not store.path(picture.name).exists()


def test_names_from_a_gallery_stay_in_the_folder(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "root")
    (tmp_path / "secret").touch()
    for name in ("../../secret", "/etc/passwd", "a" * 64, "", "A" * 64 + ".png"):
        assert store.find(name, str(tmp_path / "secret")) is None
    assert store.find(None, "x\x00y") is None
    assert store.find(None, str(tmp_path / "root" / ".." / "secret")) is None
