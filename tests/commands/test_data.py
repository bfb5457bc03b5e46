"""``data check`` as it is typed: what it prints, writes and returns."""

import json

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
def small(tmp_path):
    """A root of four images, and a card that expects just them."""
    root = tmp_path / "set [1]"  # brackets are markup to a careless printer
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(root / name)
    card = yaml.safe_load(find_resource("datasets", "market1501").read_text())
    for split, images in (("train", 1), ("query", 1), ("gallery", 2)):
        card["splits"][split].update(images=images, identities=1)
    card["splits"]["gallery"].update(junk=1, distractors=0)
    card["cameras"] = 2
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(card))
    return root


def check(root, *options):
    return main(["data", "check", str(root), "--dataset", str(root.parent / "small.yaml"), *options])


def refusal(capsys):
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.err.startswith("rga-reid: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def test_a_clean_set(small, capsys, tmp_path):
    assert check(small, "--json", str(tmp_path / "report.json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for words in (str(small), "Market-1501", "nothing wrong", "image size 8 x 4 (height x width): 4 images"):
        assert words in captured.out
    assert "queries with a match from another camera: 1 of 1" in captured.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clean"] is True
    assert report["splits"]["gallery"] == {"images": 2, "identities": 1, "junk": 1, "distractors": 0}


def test_fast_says_so(small, capsys):
    assert check(small, "--fast") == 0
    out = capsys.readouterr().out
    assert "images were not decoded" in out
    assert "image size" not in out


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "empty", "0 bytes"),
        (b"text", "unreadable", "not an image"),
        (None, "truncated", "truncated image"),
    ],
)
def test_a_bad_file(small, capsys, tmp_path, content, kind, words):
    if content is None:
        Image.effect_noise((64, 64), 80).convert("RGB").save(small / QUERY)
        content = (small / QUERY).read_bytes()[:-400]
    (small / QUERY).write_bytes(content)
    assert check(small, "--json", str(tmp_path / "report.json")) == 2
    captured = capsys.readouterr()
    assert f"{kind}: {small / QUERY}: " in captured.out
    assert captured.err.count("\n") == 1
    assert f"1 problem in this data set, the first: {small / QUERY}: " in captured.err
    assert words in captured.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["clean"] is False
    assert [(problem["kind"], problem["where"]) for problem in report["problems"]] == [
        (kind, str(small / QUERY))
    ]


def test_counts_that_differ(small, capsys):
    (small / NAMES[2]).unlink()
    assert check(small) == 2
    captured = capsys.readouterr()
    assert "1 (expected 2)" in captured.out
    # no match left, and in the gallery one image and one identity too few
    assert "3 problems in this data set" in captured.err


def test_many_problems_are_cut_short_on_screen_only(small, capsys, tmp_path):
    for number in range(30):
        (small / "query" / f"odd{number:02}.jpg").touch()
    assert check(small, "--json", str(tmp_path / "report.json")) == 2
    captured = capsys.readouterr()
    assert "odd19.jpg" in captured.out
    assert "odd20.jpg" not in captured.out
    assert "and 10 more problems" in captured.out
    assert len(json.loads((tmp_path / "report.json").read_text())["problems"]) == 30


def test_own_folders_and_csv(tmp_path, capsys):
    (tmp_path / "own" / "anna").mkdir(parents=True)
    Image.new("RGB", (4, 8)).save(tmp_path / "own" / "anna" / "a.jpg")
    assert main(["data", "check", str(tmp_path / "own"), "--dataset", "folders"]) == 0
    assert "unknown" in capsys.readouterr().out
    (tmp_path / "own.csv").write_text("path,pid,camid,split\nown/anna/a.jpg,1,,train\n")
    assert main(["data", "check", str(tmp_path / "own.csv")]) == 0


def test_wrong_words(tmp_path, capsys):
    root = tmp_path / "empty"
    root.mkdir()
    (tmp_path / "bad.csv").write_text("path,pid,camid,split\nnone.jpg,1,1,train\n")
    (tmp_path / "short.csv").write_text("path,pid\na,1\n")
    (tmp_path / "bad.yaml").write_text("name: bad\n")
    for words, expected in [
        ([str(tmp_path / "none")], "none: expected the folder of a data set"),
        ([str(root)], "expected the folder bounding_box_train/"),
        ([str(tmp_path / "bad.yaml")], "found a file"),
        ([str(tmp_path / "bad.csv")], "bad.csv, line 2: path: no such image file"),
        ([str(tmp_path / "short.csv")], "missing column camid, split"),
        ([str(tmp_path / "none.csv")], "none.csv: no such file"),
        ([str(root), "--dataset", "marketl501"], "did you mean market1501?"),
        ([str(root), "--dataset", str(tmp_path / "none.yaml")], "none.yaml: no such file"),
        ([str(root), "--dataset", str(tmp_path / "bad.yaml")], "title: this key is missing"),
        ([str(root), "--json", str(tmp_path / "no" / "report.json")], "its folder does not exist"),
        ([], "root"),
        ([str(root), "--slow"], "--slow"),
    ]:
        assert main(["data", "check", *words]) == 2, words
        assert expected in refusal(capsys), words


@pytest.mark.parametrize("words", [["data"], ["data", "chekc", "."]])
def test_wrong_actions(words, capsys):
    assert main(words) == 2
    assert "check" in refusal(capsys)


@pytest.mark.parametrize("words", [["data", "--help"], ["data", "check", "--help"]])
def test_help(words, capsys):
    assert main(words) == 0
    assert "check" in capsys.readouterr().out
