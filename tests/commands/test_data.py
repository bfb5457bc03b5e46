"""``data check`` on the command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from rga_reid.commands import main
from rga_reid.resources import find_resource

NAMES = [
    "bounding_box_train/0002_c1s1_000001_00.jpg",
    "query/0001_c1s1_000001_00.jpg",
    "bounding_box_test/0001_c2s1_000001_00.jpg",
    "bounding_box_test/-1_c2s1_000001_00.jpg",
]
QUERY = NAMES[1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Make a root of four images, and a card that expects just them."""
    root = tmp_path / "set [1]"  # rich reads brackets as markup
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (60 * number, 0, 0)).save(root / name)
    card = yaml.safe_load(find_resource("datasets", "market1501").read_text())
    for split, images in (("train", 1), ("query", 1), ("gallery", 2)):
        card["splits"][split].update(images=images, identities=1)
    card["splits"]["gallery"].update(junk=1, distractors=0)
    card["cameras"] = 2
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(card))
    return root


def check(root: Path, *options: str) -> int:
    return main(["data", "check", str(root), "--dataset", str(root.parent / "small.yaml"), *options])


def test_a_clean_set(small: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert check(small, "--json", str(tmp_path / "report.json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for words in (str(small), "Market-1501", "nothing wrong", "image size 8 x 4 (height x width): 4 images"):
        assert words in captured.out
    assert "queries with a match from another camera: 1 of 1" in captured.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clean"] is True
    assert check(small, "--fast") == 0
    out = capsys.readouterr().out
    assert "not decoded" in out
    assert "image size" not in out


def test_problems_are_printed_and_written(small: Path, capsys: Any, tmp_path: Path) -> None:
    (small / QUERY).write_bytes(b"text")
    (small / NAMES[2]).unlink()
    for number in range(30):
        (small / "query" / f"odd{number:02}.jpg").touch()
    assert check(small, "--json", str(tmp_path / "report.json")) == 2
    captured = capsys.readouterr()
    assert "1 (expected 2)" in captured.out
    assert "odd19.jpg" in captured.out
    assert "odd20.jpg" not in captured.out
    assert "and 14 more problems" in captured.out
    assert captured.err.count("\n") == 1
    assert f"34 problems in this data set, the first: {small / 'query' / 'odd00.jpg'}" in captured.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clean"] is False
    kinds = [problem["kind"] for problem in report["problems"]]
    # no match is left, and the gallery has one image and one identity too few
    assert kinds == ["name"] * 30 + ["unreadable", "match", "count", "count"]


def test_own_folders_without_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(["query/1/a.jpg", "gallery/1/b.jpg", "gallery/2/c.jpg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (60 * number, 0, 0)).save(tmp_path / name)
    for name in ("x.heic", "y.avi", "z"):
        (tmp_path / "gallery" / "1" / name).touch()
    words = ["data", "check", str(tmp_path), "--dataset", "folders"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "cameras are unknown): 1 of 1" in out
    assert "another camera" not in out
    assert "skipped 3 files (.avi, .heic, no suffix)" in out
    shutil.copy(tmp_path / "query/1/a.jpg", tmp_path / "gallery/2/d.jpg")
    assert main(words) == 2
    out = capsys.readouterr().out
    assert "duplicate: " in out
    assert "nothing wrong" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("data check none", "none: "),
        ("data check short.csv", "camid, split"),
        ("data check . --dataset marketl501", "did you mean market1501?"),
        ("data check . --dataset bad.yaml", "title"),
        ("data check . --json no/report.json", "report.json"),
        ("data check", "root"),
        ("data check . --slow", "--slow"),
        ("data", "check"),
        ("data chekc .", "check"),
    ],
)
def test_bad_input(
    tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.csv").write_text("path,pid\na,1\n")
    Path("bad.yaml").write_text("name: bad\n")
    assert expected in refused(*words.split())


def test_one_rule_for_names_in_every_command(
    tmp_path: Path, checkpoint: Path, refused: Callable[..., str], capsys: Any
) -> None:
    people = tmp_path / "people"
    for number, name in enumerate(["129/0001_c1_frame.jpg", "129/0129_c2_x.jpg", "20261128_c1_083015.jpg"]):
        (people / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8), (60 * number, 9, 0)).save(people / name)
    words = ["--checkpoint", str(checkpoint), "--images", str(people), "--device", "cpu"]
    outputs = [tmp_path / "g", tmp_path / "f.npz"]
    commands = [["gallery", "build", "--gallery", str(outputs[0])], ["features", "--out", str(outputs[1])]]
    for command in commands:
        message = refused(*command, *words)
        for text in ("129/0001_c1_frame.jpg", "person 129", "person 1;"):
            assert text in message
    assert not any(output.exists() for output in outputs)
    (people / "129" / "0001_c1_frame.jpg").rename(people / "129" / "frame.jpg")
    for command in commands:
        assert main([*command, *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "images: 3, persons: 1, cameras: 2, images without a person: 1"
        assert lines[1].endswith("129/0129_c2_x.jpg: person 129, camera 2")
        assert lines[3].endswith("20261128_c1_083015.jpg: person unknown, camera 1")
