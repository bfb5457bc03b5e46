"""Tables of images: CSV and Parquet files, patterns over paths."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from rga_reid.data.columns import RESERVED, plain_records
from rga_reid.data.events import read_events, table_from_pattern
from rga_reid.errors import InputError

PATTERN = r"(?P<camera>cam\d+)/.*?(?P<time>\d{8}T\d{6})_trk(?P<track>\d+)"
CSV = """path,camid,pid,time,speed,night,locker
cam1/a.jpg,cam1,,2026-11-20T10:15:00+01:00,2,true,A1
cam1/b.jpg,7,007,NA,1.5,,7

cam2/c.jpg,NA,8,2026-11-20T10:15:00Z,,False,NA
"""
TYPES = {"speed": "float", "night": "boolean", "locker": "string"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cam1/a.jpg", "cam1/b.jpg", "cam2/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "events.csv").write_text(text, encoding="utf-8")
    return folder / "events.csv"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_of_a_table(folder: Path, suffix: str) -> None:
    file = write(folder, CSV)
    if suffix == "parquet":
        table = pd.read_csv(file, dtype={"pid": "Int64", "camid": "str"})
        table["time"] = pd.to_datetime(table["time"], utc=True)
        file = folder / "events.parquet"
        table.to_parquet(file)
    table, schema = read_events(file)
    assert schema == {**RESERVED, "camera": "string", **TYPES}
    first, second, third = plain_records(table)
    assert first == {
        "path": str(folder / "cam1/a.jpg"),
        "pid": None,
        "camera": "cam1",
        "time": "2026-11-20T09:15:00+00:00",
        "track": None,
        "speed": 2.0,
        "night": True,
        "locker": "A1",
    }
    assert (second["pid"], second["camera"], second["time"], second["locker"]) == (7, "7", None, "7")
    assert (third["pid"], third["camera"], third["night"], third["locker"]) == (8, None, False, None)


def test_columns_of_the_gallery_keep_their_types(folder: Path) -> None:
    known = {**RESERVED, "pid": "string", "speed": "float", "locker": "string"}
    file = write(folder, "path,pid,speed,locker\ncam1/a.jpg,007,3,12\n")
    table, schema = read_events(file, schema=known)
    assert schema == known
    assert plain_records(table[["pid", "speed", "locker"]]) == [{"pid": "007", "speed": 3.0, "locker": "12"}]


def test_paths_are_below_the_root_of_the_images(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write(elsewhere, f"path\ncam1/a.jpg\n{folder}/cam2/c.jpg\n")
    table, _ = read_events(file, images_root=folder)
    assert table["path"].tolist() == [str(folder / "cam1/a.jpg"), str(folder / "cam2/c.jpg")]
    with pytest.raises(InputError, match="line 2: path: no such image file"):
        read_events(file)
    assert len(read_events(file, must_exist=False)[0]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,speed\ncam1/a.jpg,1\ncam1/b.jpg,2.5\ncam2/c.jpg,fast\n",
            "line 4: speed: .*as in line 2, got 'fast'",
        ),
        ("path,night\ncam1/a.jpg,true\ncam1/b.jpg,1\n", "line 3: night: "),
        ("path,time\ncam1/a.jpg,2026-11-20 10:15\n", "line 2: time: .*--timezone"),
        ("path,time\ncam1/a.jpg,noon\n", "line 2: time: .*'noon'"),
        ("path,seen\ncam1/a.jpg,2026-11-20 10:15Z\ncam1/b.jpg,1\n", "line 3: seen: "),
        ("path,pid\ncam1/a.jpg\n", "line 2: expected 2 cells"),
        ("name,pid\ncam1/a.jpg,1\n", "expected a column 'path', found name, pid"),
        ("path,pid,pid\ncam1/a.jpg,1,2\n", "'pid' twice"),
        ("path,id\ncam1/a.jpg,1\n", "column 'id'"),
        ("path\n\n,\n", "line 3: expected 1 cells"),
        ("path,pid\n,1\n", "line 2: path: "),
        ("path\n", "no rows"),
        ("", "first line is empty"),
        ('path\n"cam1\n', "not valid CSV"),
    ],
)
def test_tables_that_are_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"events\.csv.*{message}"):
        read_events(write(folder, text))


def test_other_files_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.csv or \.parquet"):
        read_events(folder / "events.txt")
    (folder / "events.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match=r"events\.parquet"):
        read_events(folder / "events.parquet")


def test_a_pattern_over_paths(tmp_path: Path) -> None:
    names = ["cam1/20261120T101500_trk000008_03.jpg", "cam2/20261120T101501_trk12.jpg", "other/x.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table, schema, matching = table_from_pattern(tmp_path, PATTERN, timezone="Europe/Berlin")
    assert schema == {**RESERVED, "camera": "string"}
    assert matching.tolist() == [True, True, False]
    assert plain_records(table)[0] == {
        "path": str(tmp_path / names[0]),
        "pid": None,
        "camera": "cam1",
        "time": "2026-11-20T09:15:00+00:00",
        "track": 8,
    }
    assert set(plain_records(table)[2].values()) == {str(tmp_path / names[2]), None}
    three = "cam1/.*cam2/.*other/x.jpg"
    for pattern, message in [
        (PATTERN, f"^{re.escape(str(tmp_path / names[0]))}: time: .*--timezone"),
        ("cam", f"named groups.*{three}"),
        ("(?P<zone>nowhere)", f"none of 3 images.*{three}"),
        ("(?P<path>.)", "called path"),
        ("(", "regular expression"),
    ]:
        with pytest.raises(InputError, match=message):
            table_from_pattern(tmp_path, pattern)
