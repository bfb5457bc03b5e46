"""``query`` from the command line, with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from rga_reid.commands import main
from rga_reid.commands import query as command
from rga_reid.evaluation import ReRanking
from rga_reid.gallery import Gallery
from rga_reid.inference import ModelFingerprint, extract_features
from tests.page_texts import element_texts

RED, DARK_RED, BLUE, GREEN = (250, 10, 10), (200, 20, 10), (10, 60, 250), (10, 250, 10)


def draw(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 16), colour).save(path)
    return path


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A query of person 1 by camera 1."""
    return draw(tmp_path / "0001_c1s1_000009_00.png", RED)


@pytest.fixture
def gallery(mean_colour: Any, tmp_path: Path, checkpoint: Path) -> Path:
    """Person 1 in red by cameras 1 and 2, person 2 in blue by camera 1, an unlabelled image in green."""
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


@pytest.fixture
def query(gallery: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run ``query`` and return its JSON."""

    def run(*words: object) -> list[dict[str, Any]]:
        file = tmp_path / "matches.json"
        assert main(["query", "--gallery", str(gallery), "--json", str(file), *map(str, words)]) == 0
        return json.loads(file.read_text(encoding="utf-8"))

    return run


def names(result: dict[str, Any]) -> list[str]:
    return [Path(match["path"]).stem for match in result["matches"]]


def test_json_csv_and_table(red: Path, tmp_path: Path, query: Any, capsys: Any) -> None:
    blue = draw(tmp_path / "someone.png", BLUE)
    results = query("--image", red, blue, "--top-k", 2, "--csv", tmp_path / "m.csv")
    assert [(result["query"], result["image"]) for result in results] == [(0, str(red)), (1, str(blue))]
    assert [names(result) for result in results] == [["0", "1"], ["2", "3"]]
    first, unlabelled = results[0]["matches"][0], results[1]["matches"][1]
    labels = {"id": 0, "pid": 1, "camera": 1, "camid": 1, "time": None, "track": None}
    assert first == {"rank": 1, "score": pytest.approx(1), "path": first["path"], **labels}
    assert (unlabelled["pid"], unlabelled["camid"]) == (None, None)
    matches = [
        {"query": one["query"], "image": one["image"], **match} for one in results for match in one["matches"]
    ]
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "m.csv").fillna(-1),
        pd.DataFrame(matches).fillna(-1),
        check_like=True,
        check_dtype=False,
    )
    printed = capsys.readouterr().out
    for text in (red.name, blue.name, "1.0000", "camera"):
        assert text in printed
    for text in ("unknown", "None", "time", "track"):
        assert text not in printed


def test_a_folder_and_json_lines(tmp_path: Path, gallery: Path, query: Callable[..., Any]) -> None:
    draw(tmp_path / "ask" / "b.png", BLUE)
    draw(tmp_path / "ask" / "a.png", GREEN)
    results = query("--image", tmp_path / "ask")
    assert [Path(result["image"]).name for result in results] == ["a.png", "b.png"]
    assert [names(result)[0] for result in results] == ["3", "2"]
    assert len(results[0]["matches"]) == 4  # all of the gallery
    file = tmp_path / "m.jsonl"
    words = ["query", "--gallery", str(gallery), "--image", str(tmp_path / "ask"), "--json", str(file)]
    assert main(words) == 0
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == results


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--exclude-camera 1", ["1", "3"]),
        ("--where pid==1 --exclude-camera 2", ["0"]),
        ("--threshold 0.9", ["0", "1"]),
        ("--calibration {calibration}", ["0", "1"]),
        ("--where camid==2 --threshold 0.999", []),
        ("--threshold -1", ["0", "1", "2", "3"]),
    ],
)
def test_filters_and_thresholds(
    red: Path, tmp_path: Path, query: Callable[..., Any], options: str, expected: list[str]
) -> None:
    file = tmp_path / "calibration.json"
    file.write_text('{"threshold": 0.9}')
    (result,) = query("--image", red, *options.format(calibration=file).split())
    assert names(result) == expected


@pytest.fixture
def events(mean_colour: Any, tmp_path: Path, checkpoint: Path) -> Path:
    """Nine crops by camera, time and track, from red to blue; the last is of no track."""
    colours = [(250 - 25 * row, 10, 10 + 25 * row) for row in range(9)]
    paths = [draw(tmp_path / "crops" / f"{row}.png", colour) for row, colour in enumerate(colours)]
    hours = pd.to_timedelta(range(9), unit="h")
    table = pd.DataFrame(
        {
            "path": list(map(str, paths)),
            "camera": ["cam10", "cam10", "cam10", "cam2", "cam2", "cam2", "cam2", "cam2", None],
            "track": pd.array([1, 1, 1, 1, 1, 7, 7, 7, None], dtype="Int64"),
            "time": (pd.Timestamp("2026-11-20T09:15:00", tz="Europe/Berlin") + hours).where(hours < hours[8]),
            "speed": [float(row) for row in range(9)],
            "zone": ["north"] * 9,
        }
    )
    model = mean_colour()
    features, table = extract_features(model, table)
    Gallery.build(features, table, model=ModelFingerprint.of(model, checkpoint)).save(tmp_path / "events")
    return tmp_path / "events"


def test_groups_by_track(red: Path, tmp_path: Path, events: Path, query: Any, capsys: Any) -> None:
    words = ["--gallery", events, "--image", red, "--csv", tmp_path / "m.csv", "--html", tmp_path / "m.html"]
    (result,) = query(*words, "--group-by", "track", "--per-group", 2, "--top-k", 3, "--columns", "speed")
    groups = result["groups"]
    assert [(group["rank"], group["camera"], group["track"]) for group in groups] == [
        (1, "cam10", 1),
        (2, "cam2", 1),
        (3, "cam2", 7),
    ]
    assert [names(group) for group in groups] == [["0", "1"], ["3", "4"], ["5", "6"]]
    assert names(result) == ["0", "1", "3", "4", "5", "6"]
    assert list(result["matches"][0])[-3:] == ["time", "track", "speed"]
    assert result["matches"][2]["time"] == "2026-11-20T11:15:00+00:00"
    written = pd.read_csv(tmp_path / "m.csv")
    assert written["time"].tolist() == [match["time"] for match in result["matches"]]
    assert written["rank"].tolist() == [1, 1, 2, 2, 3, 3]
    assert "zone" not in written
    printed = capsys.readouterr().out
    for text in ("cam10", "2026-11-20 08:15:00", "time (UTC)", "speed", "6.0"):
        assert text in printed
    assert "pid" not in printed
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 7  # the query, and two of each group
    assert page.count('<a href="#query1-match') == 6
    assert "grouped by track" in page
    query(*words, "--group-by", "track", "--lang", "zh")
    assert "图像按 轨迹 分组" in (tmp_path / "m.html").read_text(encoding="utf-8")
    for text in ("track 7", "2026-11-20 08:15:00 UTC", "speed: 0.0"):
        assert text in page


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        ({"threshold": 0.9}, "按图像对校准"),
        ({"threshold": 0.9, "wanted_false_match_rate": 0.001}, "误匹配率 0.001"),
        ({"threshold": 0.9, "kind": "open_set", "gallery_size": 1500}, "按 1,500 张图像的图库校准"),
        (
            {"threshold": 0.9, "kind": "open_set", "gallery_size": 9, "wanted_fpir": 0.01},
            "9 张图像的图库中陌生人被接受的比例（FPIR）0.01",
        ),
    ],
)
def test_the_page_says_what_the_threshold_was_calibrated_for(
    red: Path, tmp_path: Path, query: Any, calibration: dict[str, Any], text: str
) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(calibration))
    query("--image", red, "--calibration", file, "--html", tmp_path / "m.html", "--lang", "zh")
    note = element_texts((tmp_path / "m.html").read_text(encoding="utf-8"), "p")[0]
    assert "阈值为 0.9，" in note
    assert text in note
    assert "pair" not in note


def test_an_image_without_a_track_is_a_group(red: Path, events: Path, query: Any) -> None:
    words = ["--gallery", events, "--image", red, "--group-by", "track", "--exclude-camera", "cam10"]
    (result,) = query(*words)
    assert [names(group) for group in result["groups"]] == [["3", "4"], ["5", "6", "7"], ["8"]]


def test_nobody_reaches_the_threshold(
    red: Path, tmp_path: Path, events: Path, query: Any, capsys: Any
) -> None:
    blue = draw(tmp_path / "blue.png", BLUE)
    words = ["--gallery", events, "--image", red, blue, "--html", tmp_path / "m.html", "--top-k", 2]
    first, second = query(*words, "--threshold", 0.9, "--where", "speed < 3", "--csv", tmp_path / "m.csv")
    assert (names(first), first["nobody"]) == (["0", "1"], False)
    assert (second["matches"], second["nobody"]) == ([], True)
    assert 0 < second["best_score"] < 0.9 < first["best_score"]
    assert len(pd.read_csv(tmp_path / "m.csv")) == 2
    before, _, after = capsys.readouterr().out.partition("nobody")
    best = f"{second['best_score']:.4f}"
    assert best not in before
    assert best in after.partition("threshold -")[0]
    assert "1.png" in after.partition("threshold -")[2]  # shown below the line
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert page.count(">Nobody: no match reaches the threshold; the best score is 0.") == 1
    assert page.count('class="matches below"') == 1
    query(*words, "--threshold", 0.9, "--where", "speed > 99")
    assert capsys.readouterr().out.count("the filter leaves no image\n") == 2


def test_a_filter_by_time_that_leaves_nothing_names_the_times(
    red: Path, events: Path, query: Any, capsys: Any
) -> None:
    hint = "; times are in UTC; those of the gallery are 2026-11-20T08:15:00+00:00 to 2026-11-20T15:15:00+00:00\n"
    query("--gallery", events, "--image", red, "--where", "time >= '2026-11-20 16:00'")  # 15:00 in UTC
    assert f"no match: the filter leaves no image{hint}" in capsys.readouterr().out
    assert len(query("--gallery", events, "--image", red, "--where", "time > '2026-11-20T16:00+01:00'")) == 1
    assert "UTC;" not in capsys.readouterr().out
    query("--image", red, "--where", "time is not null")  # this gallery has no times
    assert "leaves no image\n" in capsys.readouterr().out


def test_several_images_of_one_person(
    mean_colour: Any, tmp_path: Path, gallery: Path, query: Any, capsys: Any
) -> None:
    files = [draw(tmp_path / f"0002_c{camera}s1_000009_00.png", c) for camera, c in ((1, RED), (2, BLUE))]
    (result,) = query("--image", *files, "--html", tmp_path / "m.html", "--multi", "--top-k", 3)
    assert (result["query"], result["image"]) == (0, str(files[0]))
    features, _ = extract_features(mean_colour(), files)
    expected = Gallery.open(gallery).search(features.mean(axis=0, keepdims=True), 3)
    assert [match["score"] for match in result["matches"]] == expected["score"].tolist()
    assert "1 query against" in (tmp_path / "m.html").read_text(encoding="utf-8")
    assert result["images"] == [str(file) for file in files]
    printed = capsys.readouterr().out
    assert "mean of 2 pictures" in printed
    assert [printed.count(file.name) for file in files] == [1, 1]
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "mean of 2 pictures" in page
    assert page.count("data:image/jpeg") == 5  # both pictures and three matches


def test_rerank(mean_colour: Any, red: Path, tmp_path: Path, gallery: Path, query: Any) -> None:
    words = ["--image", red, "--rerank", "--shortlist", 3, "--top-k", 2, "--html", tmp_path / "m.html"]
    words += ["--lang", "zh"]
    (result,) = query(*words)
    features, _ = extract_features(mean_colour(), [red])
    expected = Gallery.open(gallery).search(features, 2, rerank=ReRanking(), shortlist=3)
    assert [match["path"] for match in result["matches"]] == expected["path"].tolist()
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert ">匹配按重排序后的顺序排列。<" in page


def test_pages_and_tables_of_many_queries(
    red: Path, tmp_path: Path, query: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "people" / "2.png").unlink()
    query("--image", red, "--html", tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4  # the query and three of four matches
    for verdict in ("junk", "correct", "wrong", "unknown"):
        assert page.count(f'class="marked {verdict}"') == 1
    assert "1 query against the gallery “gallery”" in page
    monkeypatch.setattr(command, "MAX_PAGE_QUERIES", 2)
    monkeypatch.setattr(command, "MAX_PRINTED_QUERIES", 1)
    capsys.readouterr()
    query("--image", red, red, red, "--html", tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "first 2 of 3 queries" in page
    assert page.count("<section") == 2
    printed = capsys.readouterr().out
    assert printed.count(red.name) == 1
    assert "2 more queries" in printed


def test_file_names_cannot_control_the_terminal(tmp_path: Path, query: Any, capsys: Any) -> None:
    query("--image", draw(tmp_path / "\x1b[31m[bold]q.png", RED))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[31m[bold]q.png" in printed


def test_the_model_of_a_gallery_may_be_missing(
    mean_colour: Any, red: Path, tmp_path: Path, gallery: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    Gallery.build(*extract_features(mean_colour(), [red])).save(tmp_path / "bare")
    moved = checkpoint.rename(tmp_path / "moved.ckpt")
    for folder, message in ((tmp_path / "bare", "bare: built from features"), (gallery, "--checkpoint")):
        words = ["query", "--gallery", str(folder), "--image", str(red)]
        assert message in refused(*words)
        assert "none.ckpt" in refused(*words, "--checkpoint", "none.ckpt")
        assert main([*words, "--checkpoint", str(moved), "--same-features"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--image {tmp}/none.png", "none.png: no such image file"),
        ("--image {red} {tmp}", ": expected an image file, found a folder"),
        ("--image {tmp}/gallery", "no image found"),
        ("--image {red} --top-k 0", "--top-k"),
        ("--image {red} --threshold 2", "--threshold: expected a cosine from -1 to 1, got 2.0"),
        ("--image {red} --threshold nan", "--threshold"),
        ("--image {red} --threshold 0.5 --calibration {tmp}/c.json", "--threshold, --calibration"),
        ("--image {red} --calibration {tmp}/c.json", "c.json"),
        ("--image {red} --shortlist 20", "--shortlist: goes with --rerank"),
        ("--image {red} --rerank --shortlist 3", "--shortlist: expected at least --top-k, 10, got 3"),
        ("--image {red} --per-group 2", "--per-group: goes with --group-by"),
        ("--image {red} --group-by camera --per-group 0", "--per-group"),
        ("--image {red} --group-by cam", "--group-by: unknown column 'cam'"),
        ("--image {red} --columns pid,camra", "did you mean camera"),
        ("--image {red} --exclude-camera hall", "exclude_camera"),
        ("--image {red} --where camid=>3", "expected a column or a value, found '>'"),
        ("--image {red} --gallery milvus://host", "milvus://host: expected milvus://HOST:PORT/COLLECTION"),
        ("--image {red} --gallery {tmp}/none", "none: expected a gallery"),
        ("--image {red} --device abacus", "device 'abacus': not available"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    red: Path, tmp_path: Path, gallery: Path, checkpoint: Path, options: str, message: str, refused: Any
) -> None:
    checkpoint.unlink()
    (tmp_path / "c.json").write_text("[]")
    words = ["--gallery", str(gallery), *options.format(tmp=tmp_path, red=red).split()]
    assert message in refused("query", *words)


def test_an_unreadable_query_is_named(tmp_path: Path, gallery: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "q.png").write_bytes(b"no picture")
    words = ["--gallery", str(gallery), "--image", str(tmp_path / "q.png")]
    assert "q.png" in refused("query", *words, "--json", str(tmp_path / "m.json"))
    assert not (tmp_path / "m.json").exists()
