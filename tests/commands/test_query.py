"""``query`` from the command line, with a tiny model."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import rga_reid.models
from rga_reid.commands import main
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint, extract_features

RED, DARK_RED, BLUE, GREEN = (250, 10, 10), (200, 20, 10), (10, 60, 250), (10, 250, 10)


def draw(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 16), colour).save(path)
    return path


@pytest.fixture
def gallery(mean_colour: Any, tmp_path: Path, checkpoint: Path) -> Path:
    """Person 1 in red by cameras 1 and 2, person 2 in blue by camera 1, somebody in green."""
    people = [(1, 1, RED), (1, 2, DARK_RED), (2, 1, BLUE), (None, None, GREEN)]
    paths = [draw(tmp_path / "people" / f"{row}.png", colour) for row, (_, _, colour) in enumerate(people)]
    table = pd.DataFrame(
        {
            "path": list(map(str, paths)),
            "pid": pd.array([pid for pid, _, _ in people], dtype="Int64"),
            "camid": pd.array([camid for _, camid, _ in people], dtype="Int64"),
        }
    )
    model = mean_colour()
    features, table = extract_features(model, table)
    Gallery.build(features, table, model=ModelFingerprint.of(model, checkpoint)).save(tmp_path / "gallery")
    return tmp_path / "gallery"


def query(gallery: Path, *words: object) -> int:
    return main(["query", "--gallery", str(gallery), "--device", "cpu", *map(str, words)])


def ranked(result: dict) -> list[str]:
    return [Path(match["path"]).stem for match in result["matches"]]


def test_table_json_and_csv(tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture) -> None:
    red = draw(tmp_path / "0001_c1s1_000009_00.png", RED)
    blue = draw(tmp_path / "someone.png", BLUE)
    files = ["--json", tmp_path / "m.json", "--csv", tmp_path / "m.csv"]
    assert query(gallery, "--image", red, blue, "--top-k", 2, *files) == 0
    results = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert [(result["query"], result["image"]) for result in results] == [(0, str(red)), (1, str(blue))]
    assert [ranked(result) for result in results] == [["0", "1"], ["2", "3"]]
    first, unlabelled = results[0]["matches"][0], results[1]["matches"][1]
    assert first == {"rank": 1, "score": pytest.approx(1), "path": first["path"], "pid": 1, "camid": 1}
    assert (unlabelled["pid"], unlabelled["camid"]) == (None, None)
    with open(tmp_path / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["query"], row["image"], row["rank"], row["pid"]) for row in rows] == [
        ("0", str(red), "1", "1"),
        ("0", str(red), "2", "1"),
        ("1", str(blue), "1", "2"),
        ("1", str(blue), "2", ""),
    ]
    assert [float(row["score"]) for row in rows[:2]] == [match["score"] for match in results[0]["matches"]]
    printed = capsys.readouterr().out
    for text in (red.name, blue.name, "1.0000", "unknown"):
        assert text in printed


def test_a_folder_of_queries(tmp_path: Path, gallery: Path) -> None:
    draw(tmp_path / "ask" / "b.png", BLUE)
    draw(tmp_path / "ask" / "a.png", GREEN)
    assert query(gallery, "--image", tmp_path / "ask", "--json", tmp_path / "m.json") == 0
    results = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert [Path(result["image"]).name for result in results] == ["a.png", "b.png"]
    assert [ranked(result)[0] for result in results] == ["3", "2"]
    assert len(results[0]["matches"]) == 4  # all there is


def test_exclude_camera(tmp_path: Path, gallery: Path) -> None:
    red = draw(tmp_path / "q.png", RED)
    assert query(gallery, "--image", red, "--exclude-camera", 1, "--json", tmp_path / "m.json") == 0
    assert ranked(json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))[0]) == ["1", "3"]


def test_where_and_threshold(tmp_path: Path, gallery: Path) -> None:
    red = draw(tmp_path / "q.png", RED)

    def found(*words: object) -> list[str]:
        assert query(gallery, "--image", red, *words, "--json", tmp_path / "m.json") == 0
        return ranked(json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))[0])

    assert found("--where", "camid == 2 or pid is None") == ["1", "3"]
    assert found("--where", "pid == 1", "--exclude-camera", 2) == ["0"]
    assert found("--threshold", 0.9) == ["0", "1"]
    assert found("--where", "camid == 2 or pid is None", "--threshold", 0.999) == []
    assert found("--threshold", -1) == found()


def test_several_images_of_one_person(
    mean_colour: Any, tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture
) -> None:
    """Red and blue are nearest to both; one alone is nearest to its own."""
    files = [draw(tmp_path / f"0002_c{camera}s1_000009_00.png", c) for camera, c in ((1, RED), (2, BLUE))]
    words = ["--image", *files, "--json", tmp_path / "m.json", "--html", tmp_path / "m.html"]
    assert query(gallery, *words, "--multi", "--top-k", 3) == 0
    (result,) = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert result.keys() == {"query", "image", "matches"}
    assert result["image"] == str(files[0])
    model = mean_colour()
    features, _ = extract_features(model, files)
    expected = Gallery.open(gallery).search(features.mean(axis=0, keepdims=True), 3)
    assert [match["score"] for match in result["matches"]] == expected["score"].tolist()
    assert "1 query against" in (tmp_path / "m.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("0002_c") == 1


def test_page(tmp_path: Path, gallery: Path) -> None:
    red = draw(tmp_path / "0001_c1s1_000009_00.png", RED)
    (tmp_path / "people" / "2.png").unlink()
    assert query(gallery, "--image", red, "--html", tmp_path / "m.html") == 0
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4  # the query and three of four matches
    for verdict in ("junk", "correct", "wrong", "unknown"):
        assert page.count(f'class="marked {verdict}"') == 1
    assert "1 query against the gallery “gallery”" in page


def test_a_page_of_many_queries_says_what_it_leaves_out(
    tmp_path: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from rga_reid.commands import query as command

    monkeypatch.setattr(command, "MAX_PAGE_QUERIES", 2)
    monkeypatch.setattr(command, "MAX_PRINTED_QUERIES", 1)
    red = draw(tmp_path / "q.png", RED)
    assert query(gallery, "--image", red, red, red, "--html", tmp_path / "m.html") == 0
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "The first 2 of 3 queries against" in page
    assert page.count("<section") == 2
    printed = capsys.readouterr().out
    assert printed.count("q.png") == 1
    assert "and 2 more queries" in printed


def test_file_names_cannot_steer_the_terminal(
    tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture
) -> None:
    name = draw(tmp_path / "\x1b[31m[bold]q.png", RED)
    assert query(gallery, "--image", name) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[31m[bold]q.png" in printed


def test_a_gallery_from_features_needs_a_checkpoint(
    mean_colour: Any, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    red = draw(tmp_path / "q.png", RED)
    features, table = extract_features(mean_colour(), [red])
    Gallery.build(features, table).save(tmp_path / "bare")
    assert query(tmp_path / "bare", "--image", red) == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert query(tmp_path / "bare", "--image", red, "--checkpoint", checkpoint) == 0


def test_another_model_is_refused(
    tmp_path: Path, gallery: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    red = draw(tmp_path / "q.png", RED)
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"other weights")
    assert query(gallery, "--image", red, "--checkpoint", other) == 2
    assert "the gallery was built with another model" in capsys.readouterr().err
    checkpoint.unlink()
    assert query(gallery, "--image", red) == 2
    assert "if it has moved, give --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "{tmp}/none.png"], "none.png: no such image file"),
        (["--image", "{red}", "{tmp}"], ": expected an image file, found a folder"),
        (["--image", "{tmp}/gallery"], "no image found"),
        (["--image", "{red}", "--top-k", "0"], "--top-k: expected a whole number of at least 1"),
        (["--image", "{red}", "--threshold", "2"], "--threshold: expected a cosine from -1 to 1, got 2.0"),
        (["--image", "{red}", "--shortlist", "20"], "--shortlist: goes with --rerank"),
        (
            ["--image", "{red}", "--rerank", "--shortlist", "3"],
            "--shortlist: expected at least --top-k, 10, got 3",
        ),
        (["--image", "{red}", "--threshold", "nan"], "--threshold: expected "),
        (["--image", "{red}", "--where", "camid = 3"], "where: cannot read 'camid = 3'"),
        (
            ["--image", "{red}", "--gallery", "milvus://host"],
            "milvus://host: expected milvus://HOST:PORT/COLLECTION",
        ),
        (["--image", "{red}", "--json", "{tmp}/no/m.json"], "--json .*its folder does not exist"),
        (["--image", "{red}", "--csv", "{tmp}/no/m.csv"], "--csv .*its folder does not exist"),
        (["--image", "{red}", "--html", "{tmp}"], "--html .*is a folder, expected a file"),
        (["--image", "{red}", "--gallery", "{tmp}/none"], "none: expected a gallery"),
        (["--image", "{red}", "--device", "abacus"], "device 'abacus': not available"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    tmp_path: Path,
    gallery: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(rga_reid.models, "load_model", refuse)
    red = draw(tmp_path / "q.png", RED)
    assert query(gallery, *(word.format(tmp=tmp_path, red=red) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_an_unreadable_query_is_named(tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "q.png").write_bytes(b"no picture")
    assert query(gallery, "--image", tmp_path / "q.png", "--json", tmp_path / "m.json") == 2
    assert "q.png" in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()


def test_json_lines(tmp_path: Path, gallery: Path) -> None:
    words = ["--image", draw(tmp_path / "a.png", RED), draw(tmp_path / "b.png", BLUE)]
    assert query(gallery, *words, "--json", tmp_path / "m.json") == 0
    assert query(gallery, *words, "--json", tmp_path / "m.jsonl") == 0
    lines = (tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(
        (tmp_path / "m.json").read_text(encoding="utf-8")
    )


def test_threshold_from_a_calibration(tmp_path: Path, gallery: Path, capsys: pytest.CaptureFixture) -> None:
    red, file = draw(tmp_path / "q.png", RED), tmp_path / "c.json"
    file.write_text('{"threshold": 0.9}')
    assert query(gallery, "--image", red, "--calibration", file, "--json", tmp_path / "m.json") == 0
    assert ranked(json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))[0]) == ["0", "1"]
    assert query(gallery, "--image", red, "--calibration", file, "--threshold", 0.5) == 2
    assert "expected one of them, found both" in capsys.readouterr().err
    file.write_text("[]")
    assert query(gallery, "--image", red, "--calibration", file) == 2
    assert "c.json: expected the JSON of rga-reid calibrate" in capsys.readouterr().err


def test_rerank_gives_what_the_search_gives(mean_colour: Any, tmp_path: Path, gallery: Path) -> None:
    red = draw(tmp_path / "q.png", RED)
    words = ["--image", red, "--rerank", "--shortlist", 3, "--top-k", 2]
    assert query(gallery, *words, "--json", tmp_path / "m.json", "--html", tmp_path / "m.html") == 0
    features, _ = extract_features(mean_colour(), [red])
    expected = Gallery.open(gallery).search(features, 2, rerank=ReRanking(), shortlist=3)
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))[0]["matches"]
    assert [match["path"] for match in found] == expected["path"].tolist()
    assert "re-ranked order" in (tmp_path / "m.html").read_text(encoding="utf-8")
