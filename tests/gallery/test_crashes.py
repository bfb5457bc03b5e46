"""Writers that are killed, writers that meet, readers during a write."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery import build as builder
from rga_reid.gallery import index as indexes
from rga_reid.gallery.additions import WaitingAddition
from rga_reid.gallery.folder_store import orphaned_files, writing
from rga_reid.gallery.store import Addition
from rga_reid.gallery.validation import match_rows

DRIVER = Path(__file__).parent / "killable.py"
CHANGES = ["overwrite", "stream over", "add", "remove", "compact", "label", "events", "retire", "maintain"]
CHANGES += ["watch"]
BUILDS = ["save", "stream"]
HANGS = 600  # seconds; only ends what would never end


class Driver:
    """The process that forks, see killable.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self, operation: str, folder: Path, kill_at: int | None = None) -> int:
        """Begin an operation; return the id of its process."""
        assert self._process.stdin is not None
        task = {"operation": operation, "folder": str(folder), "kill_at": kill_at}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self.wait()["child"]

    def wait(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def run(self, operation: str, folder: Path, kill_at: int | None = None) -> dict[str, Any]:
        self.start(operation, folder, kill_at)
        return self.wait()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    # one thread: OpenMP's threads do not survive a fork
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (DRIVER.parents[2], *filter(None, sys.path))))
    with subprocess.Popen(
        [sys.executable, DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Driver(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def killable() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("killable", DRIVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_ROWS", builder.SHARD_ROWS)  # the module sets its own
        patch.setattr(indexes, "_SAMPLE", indexes._SAMPLE)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, killable: Any) -> Path:
    """A gallery of two segments, one with an index, and a log."""
    folder = tmp_path_factory.mktemp("old") / "gallery"
    killable.build(1100, 1).save(folder)
    gallery = Gallery.open(folder)
    gallery.add(*killable.people(40, 4))
    gallery.remove(pids=9)
    return folder


@pytest.fixture
def folder(tmp_path: Path, old: Path) -> Path:
    """A copy of the old gallery."""
    (tmp_path / "copy").mkdir()
    return Path(shutil.copytree(old, tmp_path / "copy" / "gallery"))


def state(gallery: Gallery, queries: np.ndarray) -> list[object]:
    matches = gallery.search(queries, 20, with_ids=True)
    table, found = gallery.table.to_dict("list"), matches.to_dict("list")
    return [gallery.ids.tolist(), table, found, len(gallery.deletion_log)]


def check_changed(killable: Any, folder: Path, allowed: list[list[object]], what: str) -> None:
    """Check that a killed change left one of the allowed states, and nothing in the way of the next writer."""
    queries = killable.people(3, 5)[0]
    survivor = Gallery.open(folder)
    assert survivor.check() >= 5
    found = state(survivor, queries)
    assert found in allowed, what
    # the next writer finds no lock, and leaves none of the killed one's files
    survivor.add(*killable.people(1, 6))
    survivor.remove(paths="6/0.jpg")
    assert orphaned_files(folder) == []
    assert not (folder / "unfinished.json").exists()
    assert state(Gallery.open(folder), queries)[:3] == found[:3]
    assert Gallery.open(folder).check() >= 5


def check_built(killable: Any, folder: Path, operation: str, after: list[object], what: str) -> None:
    """Check that a killed build left the new gallery, or nothing in the way of the same build again."""
    queries = killable.people(3, 5)[0]
    if (folder / "manifest.json").exists():
        assert state(Gallery.open(folder), queries) == after, what
    else:
        with pytest.raises(InputError, match=r"missing|found nothing"):
            Gallery.open(folder)
        if operation == "save":
            killable.build(1100, 2).save(folder)
        else:
            killable.stream(folder, resume=True)
        assert state(Gallery.open(folder), queries) == after
    assert Gallery.open(folder).check() >= 4
    with writing(folder):
        assert orphaned_files(folder) == []


@pytest.mark.parametrize("operation", CHANGES + BUILDS)
def test_every_state_of_the_files_is_the_old_gallery_or_the_new(
    killable: Any, old: Path, folder: Path, tmp_path: Path, operation: str
) -> None:
    """The states that SIGKILL would leave, without processes."""
    queries = killable.people(3, 5)[0]
    if operation in BUILDS:
        shutil.rmtree(folder)
    states = killable.watch_states(operation, folder, tmp_path / "states")
    assert len(states) > 7
    after = state(Gallery.open(folder), queries)
    # the last ones are around the switch; of those before, some
    for survivor in {*states[-3:], *states[:: max(1, len(states) // 4)]}:
        what = f"{operation}, at {survivor.name}"
        if operation in BUILDS:
            check_built(killable, survivor, operation, after, what)
        else:
            check_changed(killable, survivor, [state(Gallery.open(old), queries), after], what)


@pytest.mark.slow
@pytest.mark.parametrize("operation", CHANGES + BUILDS)
def test_killed_at_every_point(
    driver: Driver, killable: Any, old: Path, folder: Path, operation: str
) -> None:
    queries, change = killable.people(3, 5)[0], operation in CHANGES
    if not change:
        shutil.rmtree(folder)
    points = driver.run(operation, folder)["points"]
    assert len(points) > 7
    after = state(Gallery.open(folder), queries)
    for point in points:
        shutil.rmtree(folder, ignore_errors=True)
        if change:
            shutil.copytree(old, folder)
        assert driver.run(operation, folder, point)["killed"], point
        what = f"{operation}, killed at {point}"
        if change:
            check_changed(killable, folder, [state(Gallery.open(old), queries), after], what)
        else:
            check_built(killable, folder, operation, after, what)


@pytest.mark.slow
def test_an_addition_that_waited_for_a_writer_killed_at_any_point_is_added_once_or_not(
    driver: Driver, killable: Any, old: Path, folder: Path
) -> None:
    """Its own process lives, and gets the answer of the next writer."""
    vectors, table, columns = match_rows(*killable.people(5, 12), Gallery.open(old).columns)
    addition, found = Addition(table, vectors, columns, None), set()
    points = None
    while points is None or points:
        shutil.rmtree(folder)
        shutil.copytree(old, folder)
        waiting = WaitingAddition(folder, addition)
        if points is None:
            points = driver.run("add", folder)["points"]
        else:
            assert driver.run("add", folder, points.pop())["killed"]
        with writing(folder):
            pass
        rows = Gallery.open(folder).table["path"].str.startswith("12/")
        first = waiting.answer()
        assert rows.sum() == (0 if first is None else 5)
        if first is not None:
            assert Gallery.open(folder).ids[rows].tolist() == list(range(first, first + 5))
        assert waiting.withdraw() == (first is None)
        waiting.close()
        assert orphaned_files(folder) == []
        assert list(folder.glob("add-*")) == []
        found.add(first is None)
    assert found == {True, False}


def is_writing(process: int, folder: Path) -> bool:
    """Stop a process where it is; return whether it holds the lock there."""
    try:
        os.kill(process, signal.SIGSTOP)
        while Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "TZX":
            time.sleep(0.0005)
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, ProcessLookupError):  # it has no lock yet, or has ended
        return False
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
def test_200_kills_at_random_times_of_writes(
    driver: Driver, killable: Any, old: Path, tmp_path: Path
) -> None:
    """Each process is stopped first, to see that it holds the writer's lock, and is killed there."""
    queries, generator = killable.people(3, 5)[0], np.random.default_rng(0)
    before = state(Gallery.open(old), queries)
    after, seconds = {}, {}
    for operation in CHANGES + BUILDS:
        if operation in CHANGES:
            shutil.copytree(old, tmp_path / operation)
        start = time.monotonic()
        driver.run(operation, tmp_path / operation, killable.NEVER)
        seconds[operation] = time.monotonic() - start
        after[operation] = state(Gallery.open(tmp_path / operation), queries)
    folder, kills, tries, met = tmp_path / "gallery", 0, 0, set()
    while kills < 200 or met != set(CHANGES + BUILDS):  # some operations write for a short time only
        operation = str(generator.choice(CHANGES + BUILDS))
        if operation in CHANGES:
            shutil.copytree(old, folder)
        child = driver.start(operation, folder, killable.NEVER)
        time.sleep(generator.uniform(0, seconds[operation]))
        struck = is_writing(child, folder)
        with suppress(ProcessLookupError):  # it may have ended just now
            os.kill(child, signal.SIGKILL)
        killed = driver.wait()["killed"]
        assert killed or not struck
        tries += 1
        kills += struck
        met |= {operation} if struck else set()
        if operation in CHANGES:
            check_changed(killable, folder, [before, after[operation]], f"{operation}, kill {kills}")
        elif folder.exists():
            check_built(killable, folder, operation, after[operation], f"{operation}, kill {kills}")
        shutil.rmtree(folder, ignore_errors=True)
        assert tries < 4000


def test_a_resumed_build_embeds_only_the_rest(killable: Any, tmp_path: Path) -> None:
    """Finished shards are kept: of 1,200 images, 900 were written when the build failed at 1,000."""
    features, table = killable.people(1200, 2)
    folder = tmp_path / "gallery"
    with pytest.raises(ZeroDivisionError), killable.GalleryBuilder(folder) as building:
        for first in range(0, 1000, 100):
            building.add(features[first : first + 100], table[first : first + 100])
        raise ZeroDivisionError
    with pytest.raises(InputError, match="unfinished build"):
        killable.GalleryBuilder(folder)
    with (
        pytest.raises(InputError, match="pq_m"),
        killable.GalleryBuilder(folder, index="ivfpq", pq_m=7, resume=True),
    ):
        pass  # the index is checked before anything is embedded
    with killable.GalleryBuilder(folder, resume=True) as building:
        assert building.paths == set(table["path"][:900])
        building.add(features[900:], table[900:])
        gallery = building.finish()
    expected = Gallery.build(features, table)
    pd.testing.assert_frame_equal(gallery.search(features[:5]), expected.search(features[:5]))
    assert gallery.ids.tolist() == list(range(1200))
    assert (gallery.check(), orphaned_files(folder)) == (3, [])


def test_only_one_writer_at_a_time(killable: Any, folder: Path) -> None:
    gallery = Gallery.open(folder, wait=0)
    changes: list[Callable[[], object]] = [
        lambda: gallery.add(*killable.people(1, 6)),
        lambda: gallery.remove(pids=7),
        lambda: gallery.compact(),
        lambda: gallery.save(folder, overwrite=True, wait=0),
        lambda: killable.stream(folder, overwrite=True, wait=0),
    ]
    with writing(folder):
        for change in changes:
            with pytest.raises(InputError, match="gallery: locked"):
                change()
        assert len(Gallery.open(folder).search(killable.people(1, 6)[0])) == 10  # readers need no lock
    changes[0]()
    assert len(Gallery.open(folder)) == 1118


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_readers_continue_while_another_program_writes(driver: Driver, killable: Any, folder: Path) -> None:
    queries = killable.people(3, 5)[0]
    early, late = Gallery.open(folder), Gallery.open(folder)
    before = state(early, queries)
    child = driver.start("churn", folder, killable.NEVER)
    opened, until = 0, time.monotonic() + HANGS
    while is_alive(child):  # a new reader all the time
        assert time.monotonic() < until, "the writer did not end"
        assert len(Gallery.open(folder).search(queries)) == 30
        opened += 1
    assert not driver.wait()["killed"]
    assert opened > 1
    # one that has read its index, and one that reads it now, from files without a name
    assert state(early, queries) == state(late, queries) == before
    assert Gallery.open(folder).describe()["segments"] == 1


def test_an_opened_gallery_stays_readable_when_its_files_are_gone(killable: Any, folder: Path) -> None:
    queries = killable.people(3, 5)[0]
    early, late = Gallery.open(folder), Gallery.open(folder)
    before = state(early, queries)
    killable.churn(folder)
    assert not any((folder / "segments" / name).exists() for name in ("000001-0", "000002-0"))
    assert state(early, queries) == state(late, queries) == before
