"""Identities and cameras from the names of files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from rga_reid.data import table_from_files, table_from_images
from rga_reid.data.labels import parse_pid, summarize_labels
from rga_reid.errors import InputError
from tests.folders import touch

NAMES = {
    "0002_c1s1_000451_03.jpg": (2, 1),
    "-1_c6_x.png": (-1, 6),
    "00-1_c6_x.png": (-1, 6),
    "0009_c12.jpg": (9, 12),
    "20261128_c1_083015.jpg": (None, 1),  # a date
    "20261128153000_c1.jpg": (None, 1),
    "19991128_c1.jpg": (None, 1),
    "20261328_c1.jpg": (20261328, 1),  # not a date
    "0031/anything.jpg": (31, None),
    "0031/0031_c2s1.jpg": (31, 2),
    "00-1/anything.jpg": (-1, None),
    "20261128/x.jpg": (None, None),
    "2024/05/17.jpg": (None, None),
    "anna/a.jpg": (None, None),
    "anna/0007_c2s1.jpg": (7, 2),
    "x0002_c1s1.jpg": (None, None),
    "12.jpg": (None, None),
    "0002_cam.jpg": (None, None),
}


def labels(table: pd.DataFrame, folder: Path) -> dict[str, tuple[int | None, int | None]]:
    return {
        os.path.relpath(path, folder): tuple(None if pd.isna(value) else value for value in (pid, camid))
        for path, pid, camid in table.itertuples(index=False)
    }


def test_labels_of_images_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, *NAMES)
    table = table_from_images(tmp_path)
    assert list(table.columns) == ["path", "pid", "camid"]
    assert str(table.pid.dtype) == str(table.camid.dtype) == "Int64"
    assert labels(table, tmp_path) == NAMES
    assert list(labels(table, tmp_path)) == sorted(NAMES)
    assert table_from_images(tmp_path / "0031").pid.isna().tolist() == [False, True]  # not its own name


def test_labels_of_files_need_no_files(tmp_path: Path) -> None:
    names = [name for name in NAMES if "/" not in name]
    table = table_from_files([tmp_path / name for name in names])
    assert labels(table, tmp_path) == {name: NAMES[name] for name in names}


def test_a_folder_and_a_name_that_disagree_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "129/0001_c1_frame.jpg", "129/0002_c1_frame.jpg", "129/0129_c1_frame.jpg")
    with pytest.raises(
        InputError, match=r"129/0001_c1_frame\.jpg: .*person 129, .*person 1 \(2 such files\)"
    ):
        table_from_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "pid"),
    [
        ("7", 7),
        ("0000", 0),
        ("-1", -1),
        ("00-1", -1),
        ("--1", None),
        ("1.5", None),
        ("", None),
        ("1" * 19, None),
    ],
)
def test_pids(name: str, pid: int | None) -> None:
    assert parse_pid(name) == pid


def test_a_summary_shows_counts_and_first_rows() -> None:
    table = table_from_files(["a/0001_c1.jpg", "a/0001_c2.jpg", "a/x\x1b.jpg", "a/0002_c2.jpg"])
    lines = list(summarize_labels(table, rows=3))
    assert lines[0] == "images: 4, persons: 2, cameras: 2, images without a person: 1"
    assert lines[1:3] == ["  a/0001_c1.jpg: person 1, camera 1", "  a/0001_c2.jpg: person 1, camera 2"]
    assert lines[3] == "  a/x�.jpg: person unknown, camera unknown"
    assert len(lines) == 4
    with_junk = table_from_files(["a/0001_c1.jpg", "a/-1_c1.jpg", "a/-1_c2.jpg"])
    junk = "images: 3, persons: 1, cameras: 2, images without a person: 0, junk images: 2"
    assert next(summarize_labels(with_junk)) == junk
    assert next(summarize_labels(with_junk.assign(pid=["Anna", "-1", None]))) == (
        "images: 3, persons: 1, cameras: 2, images without a person: 1, junk images: 1"
    )
