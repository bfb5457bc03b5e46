"""Writers that add at the same time: the one that holds the lock adds the rows of those that wait."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery.folder_store import orphaned_files, writing
from rga_reid.gallery.manifest import read_manifest
from rga_reid.inference import ModelFingerprint

HANGS = 60  # seconds; only ends what would never end


def rows(name: str, count: int = 3, dimension: int = 8, **columns: object) -> tuple[np.ndarray, pd.DataFrame]:
    features = np.random.default_rng(sum(name.encode())).normal(size=(count, dimension)).astype(np.float32)
    return features, pd.DataFrame({"path": [f"{name}/{row}" for row in range(count)], **columns})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Gallery.build(*rows("first", 20, pid=list(range(20)))).save(tmp_path / "gallery")
    return tmp_path / "gallery"


def waiting(folder: Path) -> list[Path]:
    return sorted(folder.glob("add-*"))


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock as another program would."""
    with open(folder / "lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def generation(folder: Path) -> int:
    return read_manifest(folder / "manifest.json").generation


def add_while_locked(
    folder: Path, additions: list[Callable[[], np.ndarray]]
) -> list[np.ndarray | InputError]:
    """Start additions while the lock is held, one after the other; return their results."""

    def attempt(add: Callable[[], np.ndarray]) -> np.ndarray | InputError:
        try:
            return add()
        except InputError as error:
            return error

    with ThreadPoolExecutor(len(additions)) as pool:
        with locked(folder):
            futures = []
            for number, add in enumerate(additions):
                futures.append(pool.submit(attempt, add))
                wait_until(lambda number=number: len(list(folder.glob("*.waiting"))) > number)
        return [future.result() for future in futures]


def test_those_that_wait_are_added_in_one_change(folder: Path) -> None:
    galleries = [Gallery.open(folder) for _ in range(5)]
    before = generation(folder)
    data = [rows(f"late{number}", 2 + number, pid=[f"p{number}"] * (2 + number)) for number in range(5)]
    data = [(features, table.assign(pid=100 + number)) for number, (features, table) in enumerate(data)]
    found = add_while_locked(
        folder, [lambda g=g, d=d: g.add(*d) for g, d in zip(galleries, data, strict=True)]
    )
    assert generation(folder) == before + 1
    assert sorted(np.concatenate(found)) == list(range(20, 40))
    for gallery, ids, (features, table) in zip(galleries, found, data, strict=True):
        for opened in (gallery, Gallery.open(folder)):  # each sees its own rows
            at = np.isin(opened.ids, ids)
            assert opened.table[at]["path"].tolist() == table["path"].tolist()
            assert opened.table[at]["pid"].tolist() == table["pid"].tolist()
            assert opened.search(features, 1, with_ids=True)["id"].tolist() == ids.tolist()
    assert (waiting(folder), orphaned_files(folder)) == ([], [])
    assert Gallery.open(folder).check() > 2
    assert galleries[0].add(*rows("next")).tolist() == [40, 41, 42]


def test_threads_that_share_a_gallery(folder: Path) -> None:
    gallery = Gallery.open(folder)
    with ThreadPoolExecutor(4) as pool:
        names = [f"t{number}" for number in range(40)]
        found = dict(zip(names, pool.map(lambda name: gallery.add(*rows(name)), names), strict=True))
    assert sorted(np.concatenate(list(found.values()))) == list(range(20, 140))
    for opened in (gallery, Gallery.open(folder)):
        paths = dict(zip(opened.ids.tolist(), opened.table["path"], strict=True))
        for name, ids in found.items():
            assert [paths[number] for number in ids] == [f"{name}/{row}" for row in range(3)]


def test_rows_that_do_not_fit_any_more_are_refused_alone(folder: Path) -> None:
    early, other, good = (Gallery.open(folder) for _ in range(3))
    Gallery.open(folder).add(*rows("text", zone=["hall"] * 3))  # the others do not know of it
    found = add_while_locked(
        folder,
        [
            lambda: good.add(*rows("good", pid=[1, 2, 3])),
            lambda: early.add(*rows("early", zone=[1, 2, 3])),
            lambda: other.add(*rows("other", zone=["a", "b", "c"])),  # new to it, but of the same type
        ],
    )
    assert isinstance(found[1], InputError)
    assert "zone" in str(found[1])
    assert sorted(np.concatenate([found[0], found[2]])) == list(range(23, 29))
    table = Gallery.open(folder).table.set_index("path")
    assert table["zone"].dropna().tolist() == ["hall"] * 3 + ["a", "b", "c"]
    assert waiting(folder) == []


def test_of_another_dimension(folder: Path) -> None:
    """The gallery was replaced meanwhile."""
    old = [Gallery.open(folder), Gallery.open(folder)]
    Gallery.build(*rows("new", 5, dimension=6)).save(folder, overwrite=True)
    new = Gallery.open(folder)
    found = add_while_locked(
        folder,
        [
            lambda: old[0].add(*rows("a")),
            lambda: new.add(*rows("b", dimension=6)),
            lambda: old[1].add(*rows("c")),
        ],
    )
    assert [isinstance(one, InputError) for one in found] == [True, False, True]
    assert found[1].tolist() == [5, 6, 7]
    assert len(Gallery.open(folder)) == 8


def test_of_another_model(folder: Path) -> None:
    """The gallery was replaced meanwhile by one of another model, whose vectors are as long."""
    models = [ModelFingerprint(f"/models/{name}.ckpt", name * 64, (256, 128)) for name in "ab"]
    Gallery.build(*rows("first", 20), model=models[0]).save(folder, overwrite=True)
    old = [Gallery.open(folder), Gallery.open(folder)]
    Gallery.build(*rows("new", 5), model=models[1]).save(folder, overwrite=True)
    new = Gallery.open(folder)
    found = add_while_locked(
        folder,
        [
            lambda: new.add(*rows("a"), model=models[1]),
            lambda: old[0].add(*rows("b"), model=models[0]),
            lambda: old[1].add(*rows("c")),  # in the space that it has opened
            lambda: new.add(*rows("d")),
        ],
    )
    assert [isinstance(one, InputError) for one in found] == [False, True, True, False]
    assert sorted(np.concatenate([found[0], found[3]])) == list(range(5, 11))
    paths = Gallery.open(folder).table["path"]
    assert sorted({path[0] for path in paths}) == ["a", "d", "n"]
    assert waiting(folder) == []


def test_one_that_gives_up_leaves_nothing(folder: Path) -> None:
    gallery = Gallery.open(folder, wait=0.05)
    with locked(folder), pytest.raises(InputError, match=r"locked.*a server without --read-only"):
        gallery.add(*rows("late"))
    assert waiting(folder) == []
    assert gallery.add(*rows("again")).tolist() == [20, 21, 22]
    assert len(Gallery.open(folder)) == 23


def test_removals_pass_between(folder: Path) -> None:
    """Rows that wait are added after a removal, which leaves them where they are."""
    gallery, other = Gallery.open(folder), Gallery.open(folder)
    with ThreadPoolExecutor(1) as pool:
        with writing(folder):
            future = pool.submit(gallery.add, *rows("late", pid=[3, 3, 3]))
            wait_until(lambda: waiting(folder))
        future.result()
    assert other.remove(pids=3).images == 4
    assert len(Gallery.open(folder)) == 19


ADDER = [sys.executable, "-m", "tests.gallery.adder"]


def start_adder(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [*ADDER, str(folder), name, str(count)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("commit", ["add", "remove"])
def test_the_rows_of_a_killed_process_that_waited_are_never_added(folder: Path, commit: str) -> None:
    with locked(folder), start_adder(folder, "dead", 1) as process:
        wait_until(lambda: list(folder.glob("*.waiting")))
        process.kill()
    assert len(waiting(folder)) == 1
    gallery = Gallery.open(folder)
    gallery.add(*rows("alive")) if commit == "add" else gallery.remove(pids=3)
    assert waiting(folder) == []
    assert not any("dead" in path for path in Gallery.open(folder).table["path"])


@pytest.mark.slow
def test_processes_that_are_killed_while_all_add(folder: Path) -> None:
    """Acknowledged rows exist once; of other additions, all three rows exist or none."""
    generator, said = np.random.default_rng(0), list[str]()
    for turn in range(8):
        adders = [start_adder(folder, f"{turn}-{number}", 10_000) for number in range(4)]
        lines = [list[str]() for _ in adders]
        readers = [
            threading.Thread(target=lambda p=process, kept=kept: kept.extend(p.stdout or ()))
            for process, kept in zip(adders, lines, strict=True)
        ]
        for reader in readers:
            reader.start()
        wait_until(lambda lines=lines: all(len(kept) > 30 for kept in lines))
        for process in generator.permutation(np.array(adders, dtype=object)):
            time.sleep(generator.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        for process, reader in zip(adders, readers, strict=True):
            process.wait()
            reader.join()
        said += [line.strip() for kept in lines for line in kept if line.endswith("\n")]
        gallery = Gallery.open(folder)
        paths = gallery.table["path"]
        assert paths.is_unique
        assert set(said) <= set(paths)
        additions = paths[20:].str.rsplit("_", n=1).str[0].value_counts()
        assert (additions == 3).all()
        assert np.unique(gallery.ids).size == len(gallery)
        gallery.remove(paths=str(paths.iloc[-1]))
        gallery.add(np.ones((1, 8)), pd.DataFrame({"path": [paths.iloc[-1]]}))
        assert (waiting(folder), orphaned_files(folder)) == ([], [])
        gallery.check()
