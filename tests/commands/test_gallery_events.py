"""Galleries that know when and where, as a user of the commands sees them, with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import rga_reid.models
from rga_reid import Gallery
from rga_reid.commands import main
from rga_reid.gallery import segments

PATTERN = r"(?P<camera>cam\d+)/.*?(?P<time>\d{8}T\d{6})_trk(?P<track>\d+)"
NAMES = [
    "cam11/20261120T101500_trk000008_00.png",
    "cam11/20261120T101501_trk000008_01.png",
    "cam12/20261120T120000_trk000008_00.png",
    "entrance/visitor.png",
]


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Four crops, of which the last does not match the pattern."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "crops" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (60 * number, 99, 200 - 50 * number)).save(path)
    return tmp_path / "crops"


def gallery(action: str, location: Path | str, *words: object) -> int:
    return main(["gallery", action, "--gallery", str(location), *map(str, words)])


@pytest.fixture
def built(tmp_path: Path, crops: Path, checkpoint: Path) -> Path:
    words = [
        "--images",
        crops,
        "--pattern",
        PATTERN,
        "--timezone",
        "Europe/Berlin",
        "--checkpoint",
        checkpoint,
    ]
    assert gallery("build", tmp_path / "G", *words) == 0
    return tmp_path / "G"


def table_of(location: Path, crops: Path) -> list[list[Any]]:
    """Name, pid, camera, time and track of each image."""
    table = Gallery.open(location).table
    columns = table[["path", "pid", "camera", "time", "track"]].astype(object)
    rows = columns.where(columns.notna(), None).to_numpy().tolist()
    for row in rows:
        row[0] = Path(row[0]).relative_to(crops).as_posix()
        row[3] = row[3] and row[3].isoformat()
    return rows


def test_build_by_pattern(built: Path, crops: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table_of(built, crops) == [
        [NAMES[0], None, "cam11", "2026-11-20T09:15:00+00:00", 8],
        [NAMES[1], None, "cam11", "2026-11-20T09:15:01+00:00", 8],
        [NAMES[2], None, "cam12", "2026-11-20T11:00:00+00:00", 8],
        [NAMES[3], None, None, None, None],
    ]
    capsys.readouterr()
    assert gallery("info", built) == 0
    printed = capsys.readouterr().out
    assert "2026-11-20T09:15:00+00:00 to 2026-11-20T11:00:00+00:00, 1 image without\n" in printed
    assert "2 (cam11, cam12), 1 image without\n" in printed
    assert gallery("remove", built, "--where", "camera is null") == 0
    assert "without" not in capsys.readouterr().out


def test_build_without_a_pattern_warns_of_unknown_cameras_and_times(
    crops: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "warning: camera and time of all images are unknown; --pattern reads them from the paths\n"
    for number, words in enumerate((["--preview"], ["--checkpoint", checkpoint])):
        assert gallery("build", tmp_path / f"G{number}", "--images", crops, *words) == 0
        assert warning in capsys.readouterr().err
    (crops / NAMES[0]).rename(crops / "0007_c3s1_000001_00.png")  # one name has a camera
    for words in ([], ["--pattern", r"(?P<zone>entrance)/"]):
        assert gallery("build", tmp_path / "new", "--images", crops, *words, "--preview") == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("action", ["build", "add"])
def test_preview(
    built: Path,
    crops: Path,
    tmp_path: Path,
    action: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded for a preview")

    monkeypatch.setattr(rga_reid.models, "load_model", refuse)
    location = tmp_path / "new" if action == "build" else built
    for number in range(12):
        Image.new("RGB", (8, 16)).save(crops / "cam12" / f"20261121T0000{number:02d}_trk{number}.png")
    capsys.readouterr()
    words = ["--images", crops, "--pattern", PATTERN, "--timezone", "UTC", "--preview"]
    if action == "add":
        command = ["gallery", "add", "--gallery", str(location), *map(str, words)]
        assert "already in the gallery (and 3 more)" in refused(*command)
        words.append("--skip-known")
    assert gallery(action, location, *words) == 0
    printed = capsys.readouterr().out
    assert "1 of 16 images do not match the pattern, such as entrance/visitor.png\n" in printed
    cameras = "cam11: 2, cam12: 13" if action == "build" else "cam12: 12"
    assert f"images of each camera: {cameras}\n" in printed
    assert ("12 new, 4 known\n" in printed) == (action == "add")
    assert "all images is unknown" not in printed
    rows = [line for line in printed.splitlines() if line.startswith("  ")]
    assert len(rows) == 10
    first = "camera cam11, time 2026-11-20T10:15:00+00:00, track 8"
    assert (first if action == "build" else "camera cam12, time 2026-11-21T00:00:00+00:00, track 0") in rows[
        0
    ]
    assert not (tmp_path / "new").exists()
    assert len(Gallery.open(built)) == 4


def test_preview_says_that_no_group_is_named_camera_or_time(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        Image.new("RGB", (8, 16)).save(crops / "entrance" / f"{number}.png")
    words = ["--images", crops, "--pattern", r"(?P<cam>cam\d+)/(?P<time>\d{8}T\d{6})", "--timezone", "UTC"]
    assert gallery("build", tmp_path / "new", *words, "--preview") == 0
    printed = capsys.readouterr().out
    assert "the camera of all images is unknown: expected a group named camera\n" in printed
    assert "the time of all images" not in printed
    assert "5 of 8 images" in printed
    assert "such as entrance/0.png, entrance/1.png, entrance/2.png\n" in printed
    (tmp_path / "t.csv").write_text(f"path,camera\n{crops / NAMES[0]},hall\n")
    assert gallery("build", tmp_path / "new", "--table", tmp_path / "t.csv", "--preview") == 0
    assert "time of all images is unknown: expected a column named time\n" in capsys.readouterr().out


def test_add_names_the_labels_that_new_images_lack(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more"
    for name in ("cam12/20261121T100000_trk000009.png", "0007_c3s1_000001_00.jpg"):
        (more / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (90, 60, 30)).save(more / name)
    lacking = "warning: the new images have no {}, which images of the gallery have"
    hint = "; --pattern reads labels from the paths\n"
    capsys.readouterr()
    assert gallery("add", built, "--images", more / "cam12", "--preview") == 0
    assert lacking.format("camera, time, track") + hint in capsys.readouterr().err
    late = tmp_path / "late"
    late.mkdir()
    (more / "cam12").rename(late / "cam12")
    assert gallery("add", built, "--images", more) == 0  # its name has the camera
    assert lacking.format("time, track") + hint in capsys.readouterr().err
    assert gallery("add", built, "--images", late, "--pattern", PATTERN, "--timezone", "UTC") == 0
    assert "warning" not in capsys.readouterr().err
    features = {
        "features": np.eye(1, 32, dtype=np.float32),
        "paths": np.array(["x.jpg"]),
        "pids": np.array([3]),
    }
    np.savez(tmp_path / "x.npz", **features)
    assert gallery("add", built, "--features", tmp_path / "x.npz", "--preview") == 0
    assert lacking.format("camera, time, track") + "\n" in capsys.readouterr().err


def test_preview_of_features_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "f.npz", features=np.eye(2, 3, dtype=np.float32), paths=np.array(["a.jpg", "b.jpg"]))
    assert gallery("build", tmp_path / "new", "--features", tmp_path / "f.npz", "--preview") == 0
    assert "a.jpg: person unknown, camera unknown" in capsys.readouterr().out


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Two images of another camera, and a table of them with two columns of its own."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 16), "red").save(tmp_path / name)
    text = "path,pid,camid,time,speed,night\na.png,7,yard,2026-11-21 08:00,1.5,true\nb.png,,yard,,,\n"
    (tmp_path / "events.csv").write_text(text)
    return tmp_path / "events.csv"


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_build_galleries_and_are_added(
    tmp_path: Path, built: Path, more: Path, checkpoint: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "parquet":
        table = pd.read_csv(more, dtype={"pid": "Int64"})
        table["time"] = pd.to_datetime(table["time"])
        more = more.with_suffix(".parquet")
        table.to_parquet(more)
    words = ["--table", more, "--timezone", "Europe/Berlin"]
    assert gallery("build", tmp_path / "H", *words, "--checkpoint", checkpoint) == 0
    monkeypatch.chdir(more.parent.parent)
    assert gallery("add", built, *words, "--images-root", more.parent) == 0
    for location, first in ((tmp_path / "H", 0), (built, 4)):
        opened = Gallery.open(location)
        assert (opened.columns["speed"], opened.columns["night"]) == ("float", "boolean")
        rows = opened.table.iloc[first:]
        assert rows["path"].tolist() == [str(tmp_path / name) for name in ("a.png", "b.png")]
        assert rows["time"].iloc[0].isoformat() == "2026-11-21T07:00:00+00:00"
        assert (rows["camera"].tolist(), rows["pid"].iloc[0]) == (["yard", "yard"], 7)
        assert rows[["pid", "time", "speed", "night"]].iloc[1].isna().all()
        assert (rows["speed"].iloc[0], bool(rows["night"].iloc[0])) == (1.5, True)


def test_label_then_remove(
    built: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gallery("label", built, "--where", "camera = 'cam11' and track = 8", "--pid", "Anna") == 0
    assert "labelled 2 images" in capsys.readouterr().out
    assert [row[1] for row in table_of(built, crops)] == ["Anna", "Anna", None, None]
    assert gallery("label", built, "--where", "pid = 'Anna'", "--pid", "Anna") == 0
    assert "labelled 0 images" in capsys.readouterr().out
    for empty in ("", "null"):
        assert gallery("label", built, "--where", "track = 8 and camera = 'cam12'", "--pid", "Ben") == 0
        capsys.readouterr()
        assert gallery("label", built, "--where", "pid = 'Ben'", "--pid", empty) == 0
        assert "took the label off 1 image\n" in capsys.readouterr().out
        assert [row[1] for row in table_of(built, crops)] == ["Anna", "Anna", None, None]
    retention = ["--where", "time < '2026-11-20T12:00+01:00'"]
    before = sorted(path.read_bytes() for path in built.rglob("*") if path.is_file())
    assert gallery("remove", built, *retention, "--dry-run", "--json", tmp_path / "facts.json") == 0
    printed = capsys.readouterr().out
    assert "would remove 2 images" in printed
    assert NAMES[1] in printed
    assert NAMES[2] not in printed
    assert sorted(path.read_bytes() for path in built.rglob("*") if path.is_file()) == before
    assert gallery("remove", built, *retention) == 0
    assert "removed 2 images" in capsys.readouterr().out
    assert [row[0] for row in table_of(built, crops)] == NAMES[2:]
    assert gallery("remove", built, *retention) == 0
    assert "removed 0 images" in capsys.readouterr().out
    log = Gallery.open(built).deletion_log
    assert [(record.pid, record.count, record.label) for record in log] == [
        (None, 2, "Anna"),
        *[(None, 1, "Ben"), ("Ben", 1, "")] * 2,
        ("Anna", 2, None),
    ]


def test_merge_and_export(
    built: Path,
    tmp_path: Path,
    more: Path,
    checkpoint: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        gallery("build", tmp_path / "H", "--table", more, "--timezone", "UTC", "--checkpoint", checkpoint)
        == 0
    )
    capsys.readouterr()
    assert main(["gallery", "merge", str(built), str(tmp_path / "H")]) == 0
    assert "2 added" in capsys.readouterr().out
    assert "a.png" in refused("gallery", "merge", str(built), str(tmp_path / "H"))
    assert main(["gallery", "merge", str(built), str(tmp_path / "H"), "--skip-known"]) == 0
    assert "0 added, 2 known" in capsys.readouterr().out
    assert len(Gallery.open(tmp_path / "H")) == 2
    assert gallery("export", built, "--out", tmp_path / "F.npz") == 0
    assert "6 images, 3 features each" in capsys.readouterr().out
    assert gallery("build", tmp_path / "again", "--features", tmp_path / "F.npz") == 0
    merged, again = Gallery.open(built), Gallery.open(tmp_path / "again")
    pd.testing.assert_frame_equal(again.table, merged.table)
    pd.testing.assert_frame_equal(again.search(np.eye(3), 6), merged.search(np.eye(3), 6))
    assert "--out" in refused("gallery", "export", "--gallery", str(built), "--out", str(tmp_path / "F.csv"))


BAD_TABLES = {
    "zone": "path,time\na.png,2026-11-21 08:00\n",
    "mixed": "path,speed\na.png,1\nb.png,fast\n",
}


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["add", "--table", "zone.csv"], ["zone.csv, line 2: time", "--timezone"]),
        (["add", "--table", "mixed.csv"], ["mixed.csv, line 3: speed", "'fast'"]),
        (["add", "--images", "crops", "--pattern", PATTERN], [NAMES[0], "--timezone"]),
        (["add", "--images", "crops", "--pattern", r"cam\d+"], ["named groups", *NAMES[:3]]),
        (["add", "--images", "crops", "--pattern", "(?P<camera>gate)"], ["none of 4 images", *NAMES[:3]]),
        (["add", "--images", "crops", "--pattern", PATTERN, "--timezone", "Europe/Berln"], ["Europe/Berln"]),
        (["add", "--table", "events.csv", "--pattern", PATTERN], ["--pattern"]),
        (["remove", "--where", "tim < now - 30d"], ["tim", "time"]),
        (["label", "--where", "camra = 'cam11'", "--pid", "7"], ["camra", "camera"]),
        (["remove", "--where", "time <"], ["time <"]),
        (["remove", "--where", "track = 8", "--pid", "7"], ["--where"]),
        (["remove", "--where", "track = 8", "--wait", "-2"], ["--wait"]),
    ],
)
def test_bad_input(
    built: Path,
    crops: Path,
    more: Path,
    words: list[str],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    for name, text in BAD_TABLES.items():
        (more.parent / f"{name}.csv").write_text(text)
    monkeypatch.chdir(more.parent)
    before = table_of(built, crops)
    error = refused("gallery", words[0], "--gallery", str(built), *words[1:])
    for message in messages:
        assert message in error
    assert table_of(built, crops) == before


@pytest.mark.parametrize("count", [1, 30])
def test_small_segments_are_joined_after_an_addition_of_many_images(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segments, "MAINTAINED_ROWS", 30)
    monkeypatch.setattr(segments, "MERGED_ROWS", (1000,))
    rng = np.random.default_rng(0)

    def write(rows: int) -> Path:
        paths = np.array([f"{rows}/{row}" for row in range(rows)])
        np.savez(tmp_path / "f.npz", features=rng.normal(size=(rows, 4)).astype(np.float32), paths=paths)
        return tmp_path / "f.npz"

    assert gallery("build", tmp_path / "F", "--features", write(700)) == 0
    for rows in (300, 100):
        Gallery.open(tmp_path / "F").add(
            rng.normal(size=(rows, 4)), pd.DataFrame({"path": [str(rows)] * rows})
        )
    assert gallery("add", tmp_path / "F", "--features", write(count), "--json", tmp_path / "facts.json") == 0
    assert json.loads((tmp_path / "facts.json").read_text())["segments"] == (4 if count == 1 else 1)
    assert f"{count} added" in capsys.readouterr().out
