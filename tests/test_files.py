"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rga_reid.errors import InputError
from rga_reid.files import atomic_file, atomic_folder, require_new, reserve, unchanged, write_json

Room = Callable[[int], AbstractContextManager[None]]


class Stop(Exception):
    pass


def test_file_is_replaced_only_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(Stop), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise Stop
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_outputs_follow_the_umask_and_are_private_before(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        with atomic_file(tmp_path / "a") as file, atomic_folder(tmp_path / "b") as folder:
            assert [path.stat().st_mode & 0o777 for path in (file, folder)] == [0o600, 0o700]
        with atomic_folder(tmp_path / "b", overwrite=True):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_folder_stays_its_group_s(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)  # what is made there belongs to the folder's group, and so on below
    with atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o2000


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ("first", "second"):
        with atomic_folder(target, overwrite=True) as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(target) == ["second"]
    with pytest.raises(Stop), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "third").write_text("x")
        raise Stop
    assert os.listdir(target) == ["second"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_stays_where_its_replacement_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, moves = tmp_path / "out", []
    with atomic_folder(target) as temporary:
        (temporary / "first").touch()

    def second_fails(source: Path, place: Path, move: Callable = os.replace) -> None:
        moves.append(source)
        if len(moves) == 2:
            raise KeyboardInterrupt
        move(source, place)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "second").touch()
    assert os.listdir(target) == ["first"]
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from rga_reid.files import atomic_file, atomic_folder
with {writer}(sys.argv[1]) as temporary:
    print(temporary, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("writer", ["atomic_file", "atomic_folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path, writer: str) -> None:
    target, other = tmp_path / "out.pt", tmp_path / "out.pt.pt"
    command = [sys.executable, "-c", KILLED.format(writer=writer)]
    for file in (target, target, other):
        subprocess.run([*command, str(file)], cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
    (tmp_path / ".out.pt.mine.pt").touch()  # somebody's own
    assert len(os.listdir(tmp_path)) == 3  # the second removed the first one's
    with {"atomic_file": atomic_file, "atomic_folder": atomic_folder}[writer](target):
        assert len(os.listdir(tmp_path)) == 3
    assert len([name for name in os.listdir(tmp_path) if name.startswith(".out.pt.pt.")]) == 1
    assert {".out.pt.mine.pt", "out.pt"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("writer", ["atomic_file", "atomic_folder"])
def test_a_writer_at_work_is_left_alone(tmp_path: Path, writer: str) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(writer=writer), str(target), "waits"],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    draft = Path(process.stdout.readline().strip())
    write = {"atomic_file": atomic_file, "atomic_folder": atomic_folder}[writer]
    with write(target):
        assert draft.exists()
    assert draft.exists()
    process.communicate("")  # now it kills itself
    with write(target, **({"overwrite": True} if writer == "atomic_folder" else {})):
        assert not draft.exists()


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_file(target) as first:
        first.write_text("first")
        with atomic_file(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert os.listdir(tmp_path) == ["out"]


def write_array(file: Path) -> None:
    with open(file, "wb") as opened:
        np.save(opened, np.zeros(200_000))


WRITERS = {
    "text": lambda file: file.write_text("x" * 1_000_000),
    "numpy": write_array,  # says "N requested and M written", without a number of the error
    "torch": lambda file: torch.save(torch.zeros(300_000), file),
    "safetensors": lambda file: save_file({"a": torch.zeros(300_000)}, file),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_in_one_line(disk: tuple[Path, Room], writer: str) -> None:
    place, room = disk
    target = place / "out"
    target.write_text("old")
    with (
        room(100_000),
        pytest.raises(InputError, match=r"out: cannot write there \((No space left|File too large)"),
        atomic_file(target) as temporary,
    ):
        WRITERS[writer](temporary)
    assert target.read_text() == "old"
    assert os.listdir(place) == ["out"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "missing").read_text()
    with pytest.raises(PermissionError), atomic_file(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "an input"))
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "folder"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    file.write_text("one")
    with unchanged(file):
        file.read_text()
    with (
        pytest.raises(InputError, match=r"last\.ckpt: changed while it was read"),
        unchanged(file),
        atomic_file(file) as temporary,  # of the same length: another file all the same
    ):
        temporary.write_text("two")
    with unchanged(tmp_path / "missing"):
        pass  # whoever reads it says so


def test_room_is_set_aside(disk: tuple[Path, Room]) -> None:
    place, room = disk

    def fill(name: str, size: int) -> None:
        with open(place / name, "wb") as file:
            file.truncate(size)
        assert (place / name).stat().st_blocks == 0  # a hole
        reserve(place / name)

    with room(300_000):
        fill("fits", 200_000)
    assert (place / "fits").stat().st_blocks * 512 >= 200_000
    with room(100_000), pytest.raises(OSError, match=r"No space|too large"):
        fill("does not", 3_000_000)


def test_outputs_that_exist_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    require_new(tmp_path / "empty")
    require_new(tmp_path / "new")
    require_new(tmp_path / "full", overwrite=True)
    with pytest.raises(InputError, match=r"full: exists already; .*--overwrite"):
        require_new(tmp_path / "full")


def test_an_output_in_a_missing_folder_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"no/out\.txt: cannot write there"),
        atomic_file(tmp_path / "no" / "out.txt"),
    ):
        pass


def test_json_is_valid_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"名": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"名": [1, 2.5]}
