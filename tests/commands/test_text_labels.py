"""Commands with people and cameras that have names, from each source of images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rga_reid import Gallery
from rga_reid.commands import main
from rga_reid.inference.feature_files import read_features
from tests.evaluation.conftest import draw_people
from tests.onnx_files import DIMENSION, write_onnx
from tests.training.conftest import small_network, small_run

__all__ = ["small_network", "small_run"]  # fixtures

PEOPLE = {"007": (40, 220, 40), "Anna": (220, 40, 40), "Zoë <b>": (40, 40, 220), "Ünal": (200, 200, 30)}
CAMERAS = ("cam11", "cam3")
PATTERN = r"(?P<camera>cam\d+)/(?P<time>\d{8}T\d{6})_trk(?P<track>\d+)"


@pytest.fixture
def onnx(tmp_path: Path) -> str:
    return str(write_onnx(tmp_path / "m.onnx", "uint8"))


@pytest.fixture
def crops(tmp_path: Path) -> list[tuple[str, str, str]]:
    """Paths of pictures named by camera, time and track, each with its person and its camera."""
    rng, rows = np.random.default_rng(0), []
    for track, (person, colour) in enumerate(PEOPLE.items()):
        for camera in CAMERAS:
            for number in range(3):
                path = f"crops/{camera}/20261120T1{track}000{number}_trk{track:06}.png"
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (64, 32, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / path)
                rows.append((path, person, camera))
    return rows


def write_set(file: Path, rows: list[tuple[str, str, str]], split: str | None = None) -> Path:
    """Write a data set: the first picture of each person and camera is a query."""
    with open(file, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["path", "pid", "camid", "split"])
        for number, row in enumerate(rows):
            writer.writerow([*row, split or ("gallery" if number % 3 else "query")])
    return file


def by_number(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Replace names by their numbers in the order of the names."""
    people, cameras = sorted(PEOPLE), sorted(CAMERAS)
    return [(path, str(people.index(pid)), str(cameras.index(camera))) for path, pid, camera in rows]


@pytest.fixture
def named(tmp_path: Path, crops: list[tuple[str, str, str]]) -> Path:
    return write_set(tmp_path / "named.csv", crops)


@pytest.fixture
def numbered(tmp_path: Path, crops: list[tuple[str, str, str]]) -> Path:
    return write_set(tmp_path / "numbered.csv", by_number(crops))


def run(*words: object) -> None:
    assert main(list(map(str, words))) == 0


# Sources of features --------------------------------------------------------------------------------------


def write_events(file: Path, rows: list[tuple[str, str, str]]) -> Path:
    table = pd.DataFrame(rows, columns=["path", "pid", "camera"])
    table["time"] = [f"2026-11-20 10:{minute:02}" for minute in range(len(rows))]
    table["speed"] = np.arange(len(rows)) / 2
    (table.to_parquet if file.suffix == ".parquet" else table.to_csv)(file, index=False)
    return file


@pytest.mark.parametrize("source", ["csv", "parquet", "pattern", "data"])
def test_columns_go_from_features_into_galleries(
    tmp_path: Path, crops: list[tuple[str, str, str]], named: Path, onnx: str, source: str
) -> None:
    if source == "data":
        words: list[object] = ["--data.root", named]
    elif source == "pattern":
        words = ["--images", tmp_path / "crops", "--pattern", PATTERN, "--timezone", "Europe/Berlin"]
    else:
        (tmp_path / "tables").mkdir()
        events = write_events(tmp_path / "tables" / f"e.{source}", crops)
        words = ["--table", events, "--images-root", tmp_path, "--timezone", "Asia/Tokyo"]
    run("features", "--checkpoint", onnx, *words, "--out", tmp_path / "f.npz")
    features, table = read_features(tmp_path / "f.npz")
    labels = {str(tmp_path / path): (pid, camera) for path, pid, camera in crops}
    assert len(features) == len(labels) == 24
    assert [labels[path][1] for path in table["path"]] == table["camid"].tolist()
    if source != "pattern":
        assert [labels[path][0] for path in table["path"]] == table["pid"].tolist()
    if source == "pattern":
        named_tracks = table["path"].str.extract(r"trk(\d+)")[0].astype(int)
        assert table["track"].tolist() == named_tracks.tolist()
        assert str(table["time"].min()) == "2026-11-20 09:00:00+00:00"
    elif source != "data":
        assert str(table["time"].min()) == "2026-11-20 01:00:00+00:00"
        assert sorted(table["speed"]) == [number / 2 for number in range(24)]
    run("gallery", "build", "--gallery", tmp_path / "G", "--features", tmp_path / "f.npz")
    kept = Gallery.open(tmp_path / "G").table
    for column in table.columns:
        pd.testing.assert_series_equal(kept[column], table[column], check_dtype=False)
    asked = ["--features", tmp_path / "f.npz", "--top-k", "1", "--json", tmp_path / "m.json"]
    run("query", "--gallery", tmp_path / "G", *asked, "--where", "camera = 'cam3'")
    found = [one["matches"][0] for one in json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))]
    assert {match["camid"] for match in found} == {"cam3"}
    for number in np.flatnonzero(kept["camera"] == "cam3"):
        row = kept.iloc[number]
        assert found[number]["path"] == row["path"]
        assert found[number]["pid"] == (None if source == "pattern" else row["pid"])
        assert found[number]["time"] == (None if pd.isna(row["time"]) else row["time"].isoformat())
    run("query", "--gallery", tmp_path / "G", *asked, "--exclude-camera", "cam3")
    found = [one["matches"][0] for one in json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))]
    assert {match["camid"] for match in found} == {"cam11"}


def test_a_table_with_missing_and_damaged_images(
    tmp_path: Path, crops: list[tuple[str, str, str]], onnx: str, refused: Callable[..., str], capsys: Any
) -> None:
    events = write_events(tmp_path / "e.csv", [*crops, ("crops/none.png", "", "cam1"), ("bad.png", "x", "")])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    words = ["--checkpoint", onnx, "--table", str(events), "--out", str(tmp_path / "f.npz")]
    assert "e.csv, line 2" in refused("features", *words)
    words += ["--timezone", "UTC"]
    assert "none.png" in refused("features", *words)
    run("features", *words, "--skip-unreadable")
    listed = capsys.readouterr().err
    assert "none.png" in listed
    assert "bad.png" in listed
    assert len(read_features(tmp_path / "f.npz")[0]) == 24


# Evaluation and thresholds --------------------------------------------------------------------------------


@pytest.fixture
def sides(tmp_path: Path, named: Path, numbered: Path, onnx: str) -> Callable[[str], list[object]]:
    """Write query and gallery features of one of the data sets, and return the options that name them."""

    def write(name: str) -> list[object]:
        words: list[object] = []
        for side in ("query", "gallery"):
            file = tmp_path / f"{name}_{side}.npz"
            run("features", "--checkpoint", onnx, "--data.root", tmp_path / f"{name}.csv", "--data.split", side,
                "--out", file)  # fmt: skip
            words += [f"--{side}", file]
        return words

    return write


def test_metrics_are_those_of_numbers(tmp_path: Path, sides: Callable[[str], list[object]]) -> None:
    results: dict[str, list[Any]] = {}
    for name in ("named", "numbered"):
        words = sides(name)
        files = [tmp_path / f"{name}_{number}.json" for number in range(3)]
        run("evaluate", *words, "--json", files[0], "--per-query", tmp_path / f"{name}.parquet")
        run("calibrate", *words, "--false-match-rate", 0.1, "--json", files[1])
        run("calibrate", *words, "--open-set", "--fpir", 0.2, "--json", files[2])
        results[name] = [json.loads(file.read_text()) for file in files]
    assert results["named"] == results["numbered"]
    assert results["named"][0]["rank-1"] > 0
    table = pd.read_parquet(tmp_path / "named.parquet")
    assert set(table["pid"]) == set(PEOPLE)
    assert set(table["camid"]) == set(CAMERAS)


@pytest.mark.parametrize("options", [["--query-expansion"], ["--protocol", "multi_query"]])
def test_metrics_with_junk(tmp_path: Path, options: list[str]) -> None:
    case = draw_people(2, 20, 80, junk=True)
    results = []
    for prefix in ("", "Ann"):
        words: list[object] = []
        for side in ("query", "gallery"):
            pids = [str(pid) if pid < 0 else f"{prefix}{pid}" for pid in case[f"{side}_pids"]]
            arrays = {"features": case[f"{side}_features"], "camids": case[f"{side}_camids"]}
            np.savez(tmp_path / f"{side}.npz", **arrays, pids=pids if prefix else case[f"{side}_pids"])
            words += [f"--{side}", tmp_path / f"{side}.npz"]
        run("evaluate", *words, *options, "--json", tmp_path / "e.json")
        results.append((tmp_path / "e.json").read_text())
    assert results[0] == results[1]


def test_testing_by_names(tmp_path: Path, named: Path, numbered: Path, onnx: str) -> None:
    for file in (named, numbered):
        run("test", "--checkpoint", onnx, "--data.root", file, "--json", file.with_suffix(".json"))
    assert named.with_suffix(".json").read_text() == numbered.with_suffix(".json").read_text()


def test_the_query_side_alone_has_only_numbers(tmp_path: Path, sides: Callable[[str], list[object]]) -> None:
    _, query, _, gallery = sides("named")
    features, table = read_features(query)  # type: ignore[arg-type]
    own = (table["pid"] == "007").to_numpy(bool)
    np.savez(
        tmp_path / "own.npz", features=features[own], pids=[7, 7], camids=table["camid"][own].to_numpy("U")
    )
    run("evaluate", "--query", tmp_path / "own.npz", "--gallery", gallery, "--json", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["valid_queries"] == 2


def test_thresholds_are_named_where_they_are_used(
    tmp_path: Path,
    sides: Callable[[str], list[object]],
    crops: list[tuple[str, str, str]],
    onnx: str,
    capsys: Any,
) -> None:
    words = sides("named")
    pairs, small, large = (tmp_path / f"{name}.json" for name in ("pairs", "small", "large"))
    run("calibrate", *words, "--false-match-rate", 0.1, "--json", pairs)
    run("calibrate", *words, "--open-set", "--fpir", 0.2, "--gallery-size", 3, "--json", small)
    run("calibrate", *words, "--open-set", "--fpir", 0.9, "--gallery-size", 20, "--json", large)
    run("gallery", "build", "--gallery", tmp_path / "G", "--features", words[3])
    images = [tmp_path / crops[number][0] for number in (0, 1)]
    for file, kind, warned in (
        (pairs, "per pair", "pairs"),
        (small, "open set", "16"),
        (large, "open set", None),
    ):
        capsys.readouterr()
        run("query", "--gallery", tmp_path / "G", "--features", words[1], "--calibration", file)
        out, err = capsys.readouterr()
        assert kind in out
        assert (warned is None and err == "") or str(warned) in err
        run("verify", *images, "--checkpoint", onnx, "--calibration", file)
        assert kind in capsys.readouterr().out
    nobody = tmp_path / "nobody.json"
    nobody.write_text(json.dumps({"threshold": 1.1, "kind": "open_set", "gallery_size": 16}))
    run("query", "--gallery", tmp_path / "G", "--features", words[1], "--calibration", nobody)
    assert "nobody" in capsys.readouterr().out


def test_a_det_curve_of_searches_without_errors(tmp_path: Path, sides: Callable[[str], list[object]]) -> None:
    eye = np.eye(6, dtype=np.float32)
    for side, camera in (("query", "a"), ("gallery", "b")):
        np.savez(tmp_path / f"{side}.npz", features=eye, pids=list("uvwxyz"), camids=[camera] * 6)
    words = [word for side in ("query", "gallery") for word in (f"--{side}", tmp_path / f"{side}.npz")]
    run("calibrate", *words, "--open-set", "--fpir", 0.2, "--plot", tmp_path / "det.svg")
    assert b"<svg" in (tmp_path / "det.svg").read_bytes()[:1000]


# Pages, checks and training -------------------------------------------------------------------------------


def test_pages_show_the_names(
    tmp_path: Path, sides: Callable[[str], list[object]], named: Path, onnx: str
) -> None:
    words = sides("named")
    run("gallery", "build", "--gallery", tmp_path / "G", "--features", words[3])
    run("query", "--gallery", tmp_path / "G", "--features", words[1], "--html", tmp_path / "query.html")
    run("test", "--checkpoint", onnx, "--data.root", named, "--html", tmp_path / "test.html")
    for page in ("query.html", "test.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert "Zoë <b>" not in text
        for label in ("person Anna", "person 007", "person Zoë &lt;b&gt;", "camera cam11"):
            assert label in text, (page, label)


def test_data_check(tmp_path: Path, named: Path, capsys: Any) -> None:
    run("data", "check", named)
    out = capsys.readouterr().out
    assert "8 of 8" in out
    assert "cam11" in out
    rows = pd.read_csv(named, dtype=str)
    rows["pid"] = [str(number // 6) for number in range(24)]
    rows.loc[4, "pid"] = "O"  # a letter among numbers
    rows.to_csv(tmp_path / "odd.csv", index=False)
    run("data", "check", tmp_path / "odd.csv", "--fast")
    assert "'O'" in capsys.readouterr().out


def test_images_of_unknown_people(tmp_path: Path, crops: list[tuple[str, str, str]], onnx: str) -> None:
    unknown = write_set(
        tmp_path / "unknown.csv", [(path, "", camera) for path, _, camera in crops], "gallery"
    )
    run("gallery", "build", "--gallery", tmp_path / "G", "--checkpoint", onnx, "--data.root", unknown)
    table = Gallery.open(tmp_path / "G").table
    assert table["pid"].isna().all()
    assert set(table["camera"]) == set(CAMERAS)
    run("data", "check", unknown)


@pytest.mark.slow
def test_training_by_names_is_training_by_numbers(
    tmp_path: Path, crops: list[tuple[str, str, str]], small_run: Callable[..., list[str]]
) -> None:
    weights = []
    for name, rows in (("named", crops), ("numbered", by_number(crops))):
        file = write_set(tmp_path / f"{name}_train.csv", rows, "train")
        run(*small_run("--data.root", str(file), name=name))
        weights.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


# Networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "words"),
    [({"extra_input": True}, "one input"), ({"output": (5, 1)}, "output features")],
)
def test_networks_that_no_command_can_use(
    tmp_path: Path,
    named: Path,
    crops: list[tuple[str, str, str]],
    refused: Callable[..., str],
    file: Any,
    words: str,
) -> None:
    network = write_onnx(tmp_path / "odd.onnx", **file)
    Gallery.build(np.eye(DIMENSION), pd.DataFrame({"path": list("abcde")})).save(tmp_path / "G")
    image, folder = str(tmp_path / crops[0][0]), str(tmp_path / "crops")
    for command in (
        ["features", "--images", folder, "--out", str(tmp_path / "f.npz")],
        ["gallery", "build", "--gallery", str(tmp_path / "new"), "--images", folder],
        ["query", "--gallery", str(tmp_path / "G"), "--image", image, "--same-features"],
        ["verify", image, image],
        ["test", "--data.root", str(named)],
    ):
        error = refused(*command, "--checkpoint", str(network))
        assert "odd.onnx" in error
        assert words in error
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "f.npz").exists()


def test_a_network_of_a_fixed_batch(tmp_path: Path, named: Path, onnx: str) -> None:
    fixed = write_onnx(tmp_path / "fixed.onnx", "uint8", batch=5, output=(5, DIMENSION))
    for name, network in (("any", onnx), ("fixed", fixed)):
        run("features", "--checkpoint", network, "--data.root", named, "--out", tmp_path / f"{name}.npz")
    features = [read_features(tmp_path / f"{name}.npz")[0] for name in ("any", "fixed")]
    np.testing.assert_allclose(*features, rtol=0, atol=1e-6)
    run("test", "--checkpoint", fixed, "--data.root", named)


def test_a_network_that_does_not_say_how_it_is_normalised(
    tmp_path: Path, named: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, words = write_onnx(tmp_path / "plain.onnx"), ["--data.root", named, "--out", tmp_path / "f.npz"]
    run("features", "--checkpoint", network, *words)
    assert "--mean" in caplog.text
    caplog.clear()
    run("features", "--checkpoint", network, *words, "--overwrite", "--mean", 0, 0, 0, "--std", 1, 1, 1)
    assert caplog.text == ""
