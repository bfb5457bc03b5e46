"""What ``check_data`` counts, against counts by hand; what it finds wrong, fault by fault."""

import dataclasses
import json

import pytest
from PIL import Image

from rga_reid.data import check_data, load_card
from rga_reid.data.check import Counts
from rga_reid.errors import InputError

SMALL = {
    "bounding_box_train": ["0002_c1s1_000001_00", "0002_c2s1_000001_00", "0007_c3s1_000001_00"],
    "query": ["0001_c1s1_000001_00", "0003_c2s1_000001_00"],
    "bounding_box_test": [
        "-1_c1s1_000001_00",
        "0000_c1s1_000001_00",
        "0000_c2s1_000001_00",
        "0001_c1s1_000002_00",
        "0001_c3s1_000003_00",
        "0003_c2s1_000004_00",
    ],
}
EXPECTED = {
    "train": {"images": 3, "identities": 2},
    "query": {"images": 2, "identities": 2},
    "gallery": {"images": 6, "identities": 2, "junk": 1, "distractors": 2},
}


@pytest.fixture
def small(tmp_path):
    for folder, names in SMALL.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (4, 8)).save(tmp_path / "set" / folder / f"{name}.jpg")
    return tmp_path / "set"


@pytest.fixture
def card():
    market = load_card("market1501")
    splits = {name: dataclasses.replace(split, **EXPECTED[name]) for name, split in market.splits.items()}
    return dataclasses.replace(market, splits=splits, cameras=3)


def test_a_clean_set(small, card):
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


def test_the_real_card_misses_its_images(small):
    details = [problem.detail for problem in check_data(small).problems]
    assert "train: 3 images, expected 12,936" in details
    assert "gallery: 2 distractors, expected 2,798" in details
    assert "3 cameras, expected 6" in details
    assert len(details) == 9


def test_json(small, card):
    value = check_data(small, card).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert value["clean"] is value["decoded"] is True
    assert value["splits"]["gallery"] == {"images": 6, "identities": 2, "junk": 1, "distractors": 2}
    assert value["cameras"][0] == {"split": "train", "camid": 1, "images": 1, "identities": 1}
    assert value["sizes"] == [{"height": 8, "width": 4, "images": 11}]


def jpeg_of(path):
    return path / "query" / "0001_c1s1_000001_00.jpg"


def cut(path):
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:-300])


FAULTS = {
    "empty": lambda path: path.write_bytes(b""),
    "unreadable": lambda path: path.write_text("not an image"),
    "truncated": cut,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_file_is_named(small, card, fault, threads):
    FAULTS[fault](jpeg_of(small))
    (problem,) = check_data(small, card, threads=threads).problems
    assert (problem.kind, problem.where) == (fault, str(jpeg_of(small)))
    assert not problem.detail.startswith(str(small))


def test_fast_decodes_nothing_but_finds_empty_files(small, card):
    FAULTS["unreadable"](jpeg_of(small))
    report = check_data(small, card, fast=True)
    assert (report.problems, report.sizes, report.decoded) == ([], {}, False)
    FAULTS["empty"](jpeg_of(small))
    assert [problem.kind for problem in check_data(small, card, fast=True).problems] == ["empty"]


@pytest.mark.parametrize("fast", [False, True])
def test_a_link_that_leads_nowhere(tmp_path, fast):
    for person in ("1", "2"):
        (tmp_path / "train" / person).mkdir(parents=True)
        Image.new("RGB", (4, 8)).save(tmp_path / "train" / person / "a.jpg")
    (tmp_path / "train" / "1" / "b.jpg").symlink_to("nowhere.jpg")
    (problem,) = check_data(tmp_path, "folders", fast=fast).problems
    assert (problem.kind, problem.where) == ("missing", str(tmp_path / "train" / "1" / "b.jpg"))


def test_an_odd_name_and_the_missing_image(small, card):
    jpeg_of(small).rename(jpeg_of(small).with_name("odd.jpg"))
    problems = check_data(small, card).problems
    assert [(problem.kind, problem.detail) for problem in problems] == [
        ("name", "the name does not fit the card's pattern"),
        ("match", "no query has a gallery image of the same identity from another camera"),
        ("count", "query: 1 images, expected 2"),
        ("count", "query: 1 identities, expected 2"),
    ]
    assert problems[0].where.endswith("odd.jpg")


def test_csv_without_cameras(small, tmp_path):
    file = tmp_path / "own.csv"
    name = "set/query/0001_c1s1_000001_00.jpg"
    file.write_text(f"path,pid,camid,split\n{name},1,,query\n{name},1,,gallery\n")
    report = check_data(file)
    assert report.counts == {"query": Counts(1, 1, 0, 0), "gallery": Counts(1, 1, 0, 0)}
    assert [problem.kind for problem in report.problems] == ["match"]  # the identical file is no match
    assert report.to_json()["cameras"][0]["camid"] is None
    with file.open("a") as lines:
        lines.write("set/query/0003_c2s1_000001_00.jpg,1,,gallery\n")
    report = check_data(file)
    assert (report.problems, report.matched_queries, report.sizes) == ([], 1, {(8, 4): 2})


@pytest.mark.parametrize(
    ("query", "gallery", "matched"),
    [
        ("1,1", ["1,1"], 0),  # of one camera: the evaluation leaves it out
        ("1,1", ["1,"], 1),
        ("1,", ["1,1"], 1),
        ("1,1", ["1,1", "1,2"], 1),
    ],
)
def test_cameras_of_some_images_only(small, tmp_path, query, gallery, matched):
    files = [f"set/bounding_box_test/{name}.jpg" for name in SMALL["bounding_box_test"]]
    rows = [f"set/query/0001_c1s1_000001_00.jpg,{query},query"]
    rows += [f"{file},{labels},gallery" for file, labels in zip(files, gallery, strict=False)]
    rows.append(f"{files[-1]},2,,gallery")  # somebody else, in no known camera
    (tmp_path / "own.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    report = check_data(tmp_path / "own.csv")
    assert (report.matched_queries, [problem.kind for problem in report.problems]) == (
        matched,
        [] if matched else ["match"],
    )


def test_queries_alone_need_no_match(small, tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("path,pid,camid,split\nset/query/0001_c1s1_000001_00.jpg,1,1,query\n")
    assert check_data(file).problems == []


def test_csv_with_nothing_but_bad_rows(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("path,pid,camid,split\nnone.jpg,1,1,train\nnone.jpg,x,1,train\n")
    report = check_data(file)
    assert report.counts == {}
    assert [problem.kind for problem in report.problems] == ["missing", "line"]


def test_csv_against_a_card(small, tmp_path, card):
    file = tmp_path / "own.csv"
    file.write_text("path,pid,camid,split\nset/query/0001_c1s1_000001_00.jpg,1,1,train\n")
    assert check_data(file).problems == []
    assert "train: 1 images, expected 3" in [problem.detail for problem in check_data(file, card).problems]


def test_nothing_to_count(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        check_data(tmp_path / "none")
    with pytest.raises(InputError, match="nothing: it is empty"):
        check_data(tmp_path)
