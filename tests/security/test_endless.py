"""Files without end, and what is no file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.fuzz.harness import run
from tests.security.hostile import refusal


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
