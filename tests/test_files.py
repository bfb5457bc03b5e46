"""Outputs appear whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rga_reid.errors import InputError
from rga_reid.files import atomic_file, atomic_folder, require_new, write_json


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


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


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
