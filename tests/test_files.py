"""Outputs appear complete or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from rga_reid.errors import InputError
from rga_reid.files import (
    atomic_file,
    atomic_folder,
    require_new,
    reserve,
    size_of,
    write_json,
    write_json_lines,
    write_table,
)

Room = Callable[[int], AbstractContextManager[None]]
Writer = Callable[..., AbstractContextManager[Path]]


def write(draft: Path, text: str) -> None:
    """Write a text into a draft, which may be a folder."""
    (draft / "content" if draft.is_dir() else draft).write_text(text)


def read(target: Path) -> str:
    return (target / "content" if target.is_dir() else target).read_text()


def replace_folder(path: Path) -> AbstractContextManager[Path]:
    return atomic_folder(path, overwrite=True)


@pytest.mark.parametrize("writer", [atomic_file, replace_folder])
def test_an_output_is_replaced_only_when_the_block_ends(tmp_path: Path, writer: Writer) -> None:
    target = tmp_path / "out.txt"
    for old, new in ((None, "first"), ("first", "second")):
        with writer(target) as temporary:
            write(temporary, new)
            assert temporary.parent == tmp_path
            assert (read(target) if target.exists() else None) == old
        assert read(target) == new
    with pytest.raises(ZeroDivisionError), writer(target) as temporary:
        write(temporary, "half")
        raise ZeroDivisionError
    assert read(target) == "second"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_stays_where_its_replacement_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target, moves = tmp_path / "out", []
    with atomic_folder(target) as temporary:
        write(temporary, "old")

    def fail(source: Path, place: Path, move: Callable[..., None] = os.replace) -> None:
        moves.append(source)
        if len(moves) == failing:
            raise KeyboardInterrupt
        move(source, place)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt), replace_folder(target) as temporary:
        write(temporary, "new")
    assert read(target) == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_outputs_follow_the_umask_and_the_group_of_the_folder(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2775)
    old = os.umask(umask)
    try:
        with atomic_file(tmp_path / "a"), atomic_folder(tmp_path / "b"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "b").stat().st_mode & 0o2777 == 0o2000 | 0o777 & ~umask


KILL = """
import os, signal, sys
from rga_reid.files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILL, str(target)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    with atomic_file(target) as first, atomic_file(target) as second:  # and two writers at once
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"


def write_array(file: Path) -> None:
    with open(file, "wb") as opened:
        np.save(opened, np.zeros(200_000))


WRITERS = {
    "text": lambda file: file.write_text("x" * 1_000_000),
    "numpy": write_array,  # "N requested and M written", without an error number
    "torch": lambda file: torch.save(torch.zeros(300_000), file),
    "safetensors": lambda file: save_file({"a": torch.zeros(300_000)}, file),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_input_error(disk: tuple[Path, Room], writer: str) -> None:
    place, room = disk
    target = place / "out"
    target.write_text("old")
    with (
        room(100_000),
        pytest.raises(InputError, match=r"out: .*(No space left|File too large)"),
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
    assert os.listdir(tmp_path) == []
    with pytest.raises(InputError, match=r"no/out\.txt: "), atomic_file(tmp_path / "no" / "out.txt"):
        pass


def test_disk_space_is_reserved(disk: tuple[Path, Room]) -> None:
    place, room = disk

    def fill(name: str, size: int) -> None:
        with open(place / name, "wb") as file:
            file.truncate(size)
        assert (place / name).stat().st_blocks == 0  # sparse
        reserve(place / name)

    with room(300_000):
        fill("fits", 200_000)
    assert (place / "fits").stat().st_blocks * 512 >= 200_000
    with room(100_000), pytest.raises(OSError, match=r"No space|too large"):
        fill("does not", 3_000_000)


def test_existing_outputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    require_new(tmp_path / "empty")
    require_new(tmp_path / "new")
    require_new(tmp_path / "full", overwrite=True)
    for path in ("full", "full/x/below"):
        with pytest.raises(InputError, match=path):
            require_new(tmp_path / path)
    with pytest.raises(InputError, match="full: exists"), atomic_folder(tmp_path / "full"):
        pass
    assert size_of(tmp_path) == 1


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (write_json, {"名": [1, 2.5]}, '{\n  "名": [\n    1,\n    2.5\n  ]\n}\n'),
        (write_json_lines, [{"名": 1}, 2], '{"名": 1}\n2\n'),
        (write_table, pd.DataFrame({"a": [1, 2]}), "a\n1\n2\n"),
    ],
)
def test_texts_and_tables(tmp_path: Path, write: Callable[..., None], value: Any, expected: str) -> None:
    path = tmp_path / "a.csv"
    write(path, value)
    if write is not write_table:
        with pytest.raises(ValueError, match="JSON"):
            write(path, [float("nan")])
    assert path.read_text(encoding="utf-8") == expected
