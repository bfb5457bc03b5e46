"""What ``check_data`` counts, against counts by hand, and what it finds wrong, fault by fault."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rga_reid.data import Card, check_data, find_duplicates, load_card, read_table
from rga_reid.data.check import Counts

NAMES = "train/0002_c1 train/0002_c2 train/0007_c3 query/0001_c1 query/0003_c2 test/-1_c1 test/0000_c1"
NAMES += " test/0000_c2 test/0001_c1 test/0001_c3 test/0003_c2"
FILES = [
    f"{name}s1_000001_00.jpg".replace("train/", "bounding_box_train/").replace("test/", "bounding_box_test/")
    for name in NAMES.split()
]
EXPECTED = {
    "train": {"images": 3, "identities": 2},
    "query": {"images": 2, "identities": 2},
    "gallery": {"images": 6, "identities": 2, "junk": 1, "distractors": 2},
}
QUERY = "query/0001_c1s1_000001_00.jpg"
MATCH = "bounding_box_test/0001_c3s1_000001_00.jpg"


def draw(path: Path) -> None:
    """Draw an image that no other one equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).save(path)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name in FILES:
        draw(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.fixture
def card() -> Card:
    market = load_card("market1501")
    splits = {name: dataclasses.replace(split, **EXPECTED[name]) for name, split in market.splits.items()}
    return dataclasses.replace(market, splits=splits, cameras=3)


def write_csv(root: Path, *lines: str) -> Path:
    file = root.parent / "own.csv"
    file.write_text("\n".join(["path,pid,camid,split", *lines]) + "\n")
    return file


def test_a_clean_set(small: Path, card: Card) -> None:
    report = check_data(small, card)
    assert report.problems == []
    assert report.counts == {
        "train": Counts(3, 2, 0, 0),
        "query": Counts(2, 2, 0, 0),
        "gallery": Counts(6, 2, 1, 2),
    }
    assert report.expected == EXPECTED
    assert report.sizes == {(8, 4): 11}
    assert report.matched_queries == 1  # 0003 is seen by its query's camera only
    assert report.cameras.to_numpy().tolist() == [
        ["train", 1, 1, 1],
        ["train", 2, 1, 1],
        ["train", 3, 1, 1],
        ["query", 1, 1, 1],
        ["query", 2, 1, 1],
        ["gallery", 1, 3, 1],
        ["gallery", 2, 2, 1],
        ["gallery", 3, 1, 1],
    ]
    value = report.to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["clean"] is value["decoded"] is True
    assert value["splits"]["gallery"] == EXPECTED["gallery"]
    assert value["cameras"][0] == {"split": "train", "camid": 1, "images": 1, "identities": 1}
    assert value["sizes"] == [{"height": 8, "width": 4, "images": 11}]
    details = [problem.detail for problem in check_data(small).problems]  # of Market-1501 itself
    assert {"train: 3 images, expected 12,936", "3 cameras, expected 6"} < set(details)


def cut(path: Path) -> None:
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:-300])


FAULTS = {
    "empty": lambda path: path.write_bytes(b""),
    "unreadable": lambda path: path.write_text("not an image"),
    "truncated": cut,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_named(small: Path, card: Card, fault: str) -> None:
    FAULTS[fault](small / QUERY)
    (problem,) = check_data(small, card, threads=3).problems
    assert (problem.kind, problem.where) == (fault, str(small / QUERY))
    assert not problem.detail.startswith(str(small))
    report = check_data(small, card, fast=True)  # decodes nothing, but finds empty files
    assert [problem.kind for problem in report.problems] == (["empty"] if fault == "empty" else [])
    assert (report.sizes, report.decoded) == ({}, False)


@pytest.mark.parametrize("fast", [False, True])
def test_a_broken_link_and_skipped_files(tmp_path: Path, fast: bool) -> None:
    for person in ("1", "2"):
        draw(tmp_path / "train" / person / "a.jpg")
    (tmp_path / "train" / "1" / "b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train" / "1" / "c.heic").touch()
    report = check_data(tmp_path, "folders", fast=fast)
    (problem,) = report.problems
    assert (problem.kind, problem.where) == ("missing", str(tmp_path / "train" / "1" / "b.jpg"))
    assert report.notes == report.to_json()["notes"] == ["skipped 1 file (.heic)"]


def test_an_odd_name_and_the_missing_image(small: Path, card: Card) -> None:
    (small / QUERY).rename((small / QUERY).with_name("odd.jpg"))
    problems = check_data(small, card).problems
    assert [problem.kind for problem in problems] == ["name", "match", "count", "count"]
    assert problems[0].where.endswith("odd.jpg")
    assert [p.detail for p in problems[2:]] == [
        "query: 1 images, expected 2",
        "query: 1 identities, expected 2",
    ]


@pytest.mark.parametrize(
    ("query", "gallery", "matched"),
    [
        ("1,1", ["1,1"], 0),  # the same camera: evaluation leaves it out
        ("1,1", ["1,"], 1),
        ("1,", ["1,1"], 1),
        ("1,1", ["1,1", "1,2"], 1),
        ("1,", ["2,"], 0),
    ],
)
def test_cameras_of_some_images_only(small: Path, query: str, gallery: list[str], matched: int) -> None:
    files = [f"set/{file}" for file in FILES if "test" in file]
    lines = [f"set/{QUERY},{query},query"]
    lines += [f"{file},{labels},gallery" for file, labels in zip(files, gallery, strict=False)]
    lines.append(f"{files[-1]},2,,gallery")  # another person, without a camera
    report = check_data(write_csv(small, *lines))
    kinds = [problem.kind for problem in report.problems]
    assert (report.matched_queries, kinds) == (matched, [] if matched else ["match"])


def test_own_data_by_csv(small: Path, card: Card) -> None:
    query = f"set/{QUERY},1,,query"
    assert check_data(write_csv(small, query)).problems == []  # queries alone need no match
    report = check_data(write_csv(small, query, f"set/{QUERY},1,,gallery"))
    assert report.counts == {"query": Counts(1, 1, 0, 0), "gallery": Counts(1, 1, 0, 0)}
    assert [problem.kind for problem in report.problems] == ["match"]  # never ranked for itself
    assert len(report.notes) == 1
    assert report.to_json()["cameras"][0]["camid"] is None
    report = check_data(write_csv(small, "none.jpg,1,1,train", "none.jpg,1,1,x"))
    assert (report.counts, [problem.kind for problem in report.problems]) == ({}, ["missing", "line"])


@pytest.mark.parametrize("how", ["copy", "link", "hard link", "spelling"])
def test_a_query_that_is_in_the_gallery_too(small: Path, how: str) -> None:
    query, other = small / QUERY, small / "copy.jpg"
    make = {"copy": shutil.copy, "link": lambda a, b: b.symlink_to(a), "hard link": os.link}
    if how in make:
        make[how](query, other)
    name = "set/../set/" + QUERY if how == "spelling" else "set/copy.jpg"
    file = write_csv(small, f"set/{QUERY},1,,query", f"{name},1,,gallery", f"set/{MATCH},1,,gallery")
    (problem,) = check_data(file).problems
    assert (problem.kind, problem.where) == ("duplicate", str(small.parent / "set" / QUERY))
    assert "query, gallery, person 1" in problem.detail
    assert check_data(file, fast=True).problems == []
    file = write_csv(small, f"set/{QUERY},1,1,query", f"{name},1,1,gallery", f"set/{MATCH},1,2,gallery")
    report = check_data(file)  # of the same camera, it is never ranked
    assert (report.problems, len(report.notes)) == ([], 1)


def test_identical_files_in_train_or_of_two_persons(small: Path) -> None:
    lines = [f"set/{QUERY},1,1,query", f"set/{MATCH},1,3,gallery", "set/a.jpg,1,1,gallery"]
    draw(small / "a.jpg")
    shutil.copy(small / "a.jpg", small / "b.jpg")
    for line, words in (
        (f"set/{QUERY},1,1,train", "twice: in train, query, person 1"),
        ("set/b.jpg,2,1,gallery", "b.jpg: in gallery, persons 1, 2"),
        ("set/b.jpg,1,1,gallery", None),  # the same person twice
        ("set/b.jpg,-1,1,gallery", None),  # junk
    ):
        problems = [p.detail for p in check_data(write_csv(small, *lines, line)).problems]
        assert len(problems) == (words is not None)
        if words is not None:
            assert problems[0].endswith(words)


def test_duplicates_as_a_table(small: Path) -> None:
    shutil.copy(small / MATCH, small / "bounding_box_train" / "0001_c3s1_000009_00.jpg")
    (small / QUERY).write_bytes(b"")  # empty files are not duplicates
    (small / "query" / "0003_c2s1_000001_00.jpg").write_bytes(b"")
    (group,) = find_duplicates(read_table(small))
    assert group.split.tolist() == ["train", "gallery"]
