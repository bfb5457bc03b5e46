"""Files without end, and what is no file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rga_reid.inputs import read_yaml
from tests.fuzz.harness import run
from tests.fuzz.material import RECIPE
from tests.security.hostile import refusal, reseal


def test_files_that_are_mostly_holes(
    tmp_path: Path, tiny_market: Path, tiny_checkpoint: Path, saved: Path
) -> None:
    """64 GiB that take no room on the disk: refused from their size or their first line."""
    np.save(tmp_path / "f.npy", np.eye(3))
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    lists = yaml.safe_dump(
        {
            "name": "l", "title": "L", "layout": "lists",
            "splits": {"train": {"sources": [{"folder": "query", "list": "holes.txt"}]}},
        }
    )  # fmt: skip
    (tmp_path / "lists.yaml").write_text(lists)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "query").symlink_to(tiny_market / "query")
    verify = ["verify", "p.png", "p.png", "--checkpoint", str(tiny_checkpoint)]
    for name, beginning, words in (
        ("own.csv", b"path,pid,camid,split\n", ["data", "check", "own.csv"]),
        ("f.csv", b"pid,camid,path\n", ["evaluate", "--query", "f.npy", "--gallery", "f.npy"]),
        ("c.json", b'{"threshold": 0.5}', [*verify, "--calibration", "c.json"]),
        ("r.yaml", b"model: {depth: 18}\n", ["train", "--config", "r.yaml"]),
        ("card.yaml", b"name: a\n", ["data", "check", str(tiny_market), "--dataset", "card.yaml"]),
        ("p.yaml", b"title: a\n", ["ablate", "--config", "p.yaml", "--out", "out"]),
        ("set/holes.txt", b"a.jpg 1\n", ["data", "check", "set", "--dataset", "lists.yaml"]),
        ("m.json", b'{"mAP": 0.5}', ["report", "m.json"]),
        ("G/manifest.json", b'{"format": "rga-reid gallery"}', ["gallery", "info", "--gallery", "G"]),
    ):
        (tmp_path / name).write_bytes(beginning)
        os.truncate(tmp_path / name, 64 << 30)
        assert Path(name).name in refusal(run(words, tmp_path))


def test_tables_without_end(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("path,pid,camid,split\n" + "none.jpg,x,1,train\n" * 150_000)
    assert "more than 100,000 problems" in refusal(run(["data", "check", "own.csv"], tmp_path))
    np.save(tmp_path / "f.npy", np.eye(3))
    (tmp_path / "f.csv").write_text("pid\n" + "1\n" * 1_000_000)
    assert "expected 3 rows" in refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))


@pytest.mark.parametrize(
    ("limit", "words", "told"),
    [
        (
            "data.survey.MAX_ROWS",
            ["data", "check", "own.csv"],
            "4.jpg: expected at most 3 images in a data set",
        ),
        (
            "retrieval.feature_files.MAX_LABELS",
            ["evaluate", "--query", "f.npy", "--gallery", "f.npy"],
            "f.csv: expected at most 3 rows, one for each feature, found 4 features",
        ),
        ("experiments.collecting.MAX_ROWS", ["report", "run"], "metrics.csv: expected at most 3 rows"),
    ],
)
def test_tables_of_more_rows_than_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, words: list[str], told: str
) -> None:
    """Every reader of rows in CSV: one row less is taken."""
    (tmp_path / "run" / "csv" / "version_0").mkdir(parents=True)
    (tmp_path / "run" / "test.json").write_text('{"mAP": 0.5}')

    def write(rows: int) -> None:
        numbers = range(1, rows + 1)
        for number in numbers:
            Image.new("RGB", (4, 8)).save(tmp_path / f"{number}.jpg")
        lines = [f"{number}.jpg,{number % 2},{number},train\n" for number in numbers]
        (tmp_path / "own.csv").write_text("path,pid,camid,split\n" + "".join(lines))
        np.save(tmp_path / "f.npy", np.eye(rows))
        (tmp_path / "f.csv").write_text("pid,camid\n" + "".join(f"1,{number}\n" for number in numbers))
        log = "".join(f"{number},{number},0.5\n" for number in numbers)
        (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").write_text(f"epoch,step,loss\n{log}")

    monkeypatch.setattr(f"rga_reid.{limit}", 3)
    write(4)
    assert told in refusal(run(words, tmp_path))
    write(3)
    assert run(words, tmp_path).code == 0


def test_features_of_more_rows_than_a_table_may_have(tmp_path: Path) -> None:
    """A thousand million of them take no room on the disk; a table of as many would take all memory."""
    with open(tmp_path / "f.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (1_000_000_000, 1)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4_000_000_000)
    (tmp_path / "f.csv").write_text("pid\n" + "1234567\n" * 4_000_000)
    told = refusal(run(["evaluate", "--query", "f.npy", "--gallery", "f.npy"], tmp_path))
    assert "f.csv: expected at most 20,000,000 rows, one for each feature, found 1,000,000,000" in told


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_what_is_no_file_is_not_waited_for(
    tmp_path: Path, tiny_market: Path, tiny_checkpoint: Path, name: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    (tmp_path / "a.yaml").write_text(f"base: {name}.yaml\n")
    for suffix in ("csv", "npz", "npy", "yaml"):
        (tmp_path / f"x.{suffix}").symlink_to(tmp_path / name)
    verify = ["verify", "p.png", "p.png", "--checkpoint", str(tiny_checkpoint)]
    for words in (
        ["data", "check", "x.csv"],
        ["data", "check", str(tiny_market), "--dataset", "x.yaml"],
        ["evaluate", "--query", "x.npz", "--gallery", "x.npz"],
        ["evaluate", "--query", "x.npy", "--gallery", "x.npy"],
        ["train", "--config", "x.yaml"],
        ["ablate", "--config", "x.yaml", "--out", "o"],
        [*verify, "--calibration", name],
        ["verify", name, "p.png", "--checkpoint", str(tiny_checkpoint)],
        ["verify", "p.png", "p.png", "--checkpoint", name],
        ["convert", name, "o.safetensors"],
    ):
        refusal(run(words, tmp_path))


@pytest.mark.parametrize("suffix", ["webp", "png", "jpg", "gif", "tif", "bmp", "ppm"])
def test_pictures_with_holes(tmp_path: Path, tiny_checkpoint: Path, suffix: str) -> None:
    """Some decoders read the whole file before anything else."""
    file = tmp_path / f"p.{suffix}"
    Image.new("RGB", (4, 8)).save(file)
    os.truncate(file, 64 << 30)
    words = ["verify", file.name, file.name, "--checkpoint", str(tiny_checkpoint)]
    assert f"{file.name}: image file of 68,719,476,736 bytes" in refusal(run(words, tmp_path))


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_files_of_a_gallery_that_are_none_are_not_waited_for(saved: Path, name: str) -> None:
    os.mkfifo(saved.parent / "pipe")
    (log,) = saved.glob("removals-*.jsonl")
    log.unlink()
    log.symlink_to(saved.parent / name)
    reseal(saved, lambda manifest: manifest["removals"].update(bytes=0))
    for words in (["info"], ["verify"], ["remove", "--pid", "1"]):
        told = refusal(run(["gallery", words[0], "--gallery", str(saved), *words[1:]], saved.parent))
        assert f"{log.name}: damaged: expected a file" in told


def test_a_pipe_among_the_images(tmp_path: Path, tiny_market: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    people = tmp_path / "people" / "train"
    for pid in ("0", "1"):
        (people / pid).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 8)).save(people / pid / f"{number}.jpg")
    os.mkfifo(people / "0" / "2.jpg")
    words = ["train", "--config", "r.yaml", "--data.root", "people", "--data.dataset", "folders"]
    assert "2.jpg: expected an image file, found not a regular file" in refusal(run(words, tmp_path))


def test_folders_in_folders_without_end(tmp_path: Path, tiny_checkpoint: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    try:
        words = ["features", "--images", "d", "--out", "o.npz", "--checkpoint", str(tiny_checkpoint)]
        assert "d: " in refusal(run(words, tmp_path))
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil recurses


def test_numbers_of_yaml_without_measure(tmp_path: Path) -> None:
    """In base 60, they take the square of their digits in time, and to find them takes much memory."""
    (tmp_path / "r.yaml").write_text("seed: " + ":".join(["1"] * 400_000))
    outcome = run(["train", "--config", "r.yaml"], tmp_path)
    assert "a number of 799,999 characters" in refusal(outcome)
    assert outcome.mebibytes < 32


@pytest.mark.parametrize("text", ["2026:" * 400 + "names", "-" * 2000, "1e5" * 1000 + "!", "f" * 2000])
def test_long_texts_of_yaml_are_no_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "long.yaml").write_text(f"text: {text}")
    assert read_yaml(tmp_path / "long.yaml", what="recipe") == {"text": text}
