"""Files that promise more than they hold, have no end, or are not files: refused in one line, in little memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from rga_reid.models.checkpoints import CONFIG_KEY
from tests.security.hostile import Run, put, refusal, reseal

SPARSE = 64 << 30  #: bytes of a file that takes no room on the disk


class Bed(NamedTuple):
    """A folder with a picture ``p.png`` and features ``f.npy`` of three images, a gallery and a data set."""

    folder: Path
    gallery: Path
    market: Path
    checkpoint: Path


@pytest.fixture
def bed(tmp_path: Path, saved: Path, tiny_market: Path, tiny_checkpoint: Path) -> Bed:
    Image.new("RGB", (4, 8)).save(tmp_path / "p.png")
    np.save(tmp_path / "f.npy", np.eye(3))
    (tmp_path / "f.csv").write_text("pid\n1\n2\n3\n")
    return Bed(tmp_path, saved, tiny_market, tiny_checkpoint)


def header(shape: str, dtype: str = "<f4", size: int = 192) -> bytes:
    """Return an .npy file whose header promises a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(size)


HUGE = "(9223372036854775807, 9223372036854775807)"
EVALUATE = ["evaluate", "--query", "x.npz", "--gallery", "x.npz"]
INFO = ["gallery", "info", "--gallery", "G"]
VERIFY = ["verify", "p.png", "p.png", "--checkpoint"]


def huge_npz(bed: Bed) -> None:
    with zipfile.ZipFile(bed.folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", header(HUGE))


def long_npz(bed: Bed) -> None:
    """A quarter of a gibibyte of zeros in a quarter of a megabyte."""
    rows = 1 << 26
    with (
        zipfile.ZipFile(bed.folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("features.npy", "w") as member,
    ):
        member.write(header(f"({rows}, 1)", size=0))
        for _ in range(rows >> 18):
            member.write(bytes(1 << 20))


def endless_texts(bed: Bed) -> None:
    """An array of many texts without characters has no bytes at all."""
    with zipfile.ZipFile(bed.folder / "x.npz", "w") as archive:
        archive.writestr("features.npy", (bed.folder / "f.npy").read_bytes())
        archive.writestr("paths.npy", header("(100000000000000,)", "<U0", 0))


def huge_npy(bed: Bed) -> None:
    (bed.folder / "f.npy").write_bytes(header("(1000000000000, 8)"))


def sparse_npy(bed: Bed) -> None:
    """Features that are there, of more images than a table may have."""
    (bed.folder / "f.npy").write_bytes(header("(1000000000, 1)", size=0))
    os.truncate(bed.folder / "f.npy", (bed.folder / "f.npy").stat().st_size + 4_000_000_000)


def huge_vectors(bed: Bed) -> None:
    put(bed.gallery, "vectors.npy", header(HUGE))


def long_table(bed: Bed) -> None:
    (file,) = bed.gallery.rglob("table.parquet")
    pd.concat([pd.read_parquet(file)] * 2_000).to_parquet(file)
    put(bed.gallery, file.name, file.read_bytes())


def packed_checkpoint(bed: Bed) -> None:
    state = {"state_dict": {"a": torch.zeros(1 << 26)}, CONFIG_KEY: {"depth": 18}}
    torch.save(state, bed.folder / "large.ckpt")
    with (
        zipfile.ZipFile(bed.folder / "large.ckpt") as old,
        zipfile.ZipFile(bed.folder / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (bed.folder / "large.ckpt").unlink()


def expanded_checkpoint(bed: Bed) -> None:
    weights = torch.zeros(1).expand(1 << 30, 1 << 10)
    torch.save({"state_dict": {"model.a": weights}, CONFIG_KEY: {"depth": 18}}, bed.folder / "x.ckpt")


def huge_network(bed: Bed) -> None:
    content = bed.checkpoint.read_bytes()
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    head["__metadata__"][CONFIG_KEY] = json.dumps({"depth": 18, "attention": "rga", "size": [4096, 4096]})
    text = json.dumps(head).encode()
    changed = len(text).to_bytes(8, "little") + text + content[8 + length :]
    (bed.folder / "x.safetensors").write_bytes(changed)


NPY = ["evaluate", "--query", "f.npy", "--gallery", "f.npy"]


@pytest.mark.parametrize(
    ("bomb", "words", "named"),
    [
        (huge_npz, EVALUATE, "x.npz"),
        (long_npz, EVALUATE, "x.npz"),
        (endless_texts, EVALUATE, "paths"),
        (huge_npy, NPY, "f.npy"),
        (sparse_npy, NPY, "f.csv"),
        (huge_vectors, INFO, "vectors.npy"),
        (long_table, INFO, "table.parquet"),
        (packed_checkpoint, [*VERIFY, "x.ckpt"], "x.ckpt"),
        (expanded_checkpoint, [*VERIFY, "x.ckpt"], "x.ckpt"),
        (huge_network, [*VERIFY, "x.safetensors"], "x.safetensors"),
    ],
)
def test_files_that_promise_more_than_they_hold(
    bed: Bed, bomb: Callable[[Bed], None], words: list[str], named: str, run: Run
) -> None:
    bomb(bed)
    assert named in refusal(run(words, bed.folder))


CARD = {
    "name": "l",
    "title": "L",
    "layout": "lists",
    "splits": {"train": {"sources": [{"folder": "query", "list": "x.txt"}]}},
}


@pytest.mark.parametrize("kind", ["sparse", "pipe", "/dev/zero"])
def test_files_without_end(bed: Bed, kind: str, run: Run) -> None:
    """Every kind of file that a command opens, by one command each."""
    os.mkfifo(bed.folder / "pipe")
    (bed.folder / "lists.yaml").write_text(yaml.safe_dump(CARD))
    (bed.folder / "set").mkdir()
    (bed.folder / "set" / "query").symlink_to(bed.market / "query")
    verify = [*VERIFY, str(bed.checkpoint)]
    for name, beginning, words in (
        ("x.csv", b"path,pid,camid,split\n", ["data", "check", "x.csv"]),
        ("f.csv", b"pid,camid,path\n", NPY),
        ("x.json", b'{"threshold": 0.5}', [*verify, "--calibration", "x.json"]),
        ("r.yaml", b"model: {depth: 18}\n", ["train", "--config", "r.yaml"]),
        ("card.yaml", b"name: a\n", ["data", "check", str(bed.market), "--dataset", "card.yaml"]),
        ("set/x.txt", b"a.jpg 1\n", ["data", "check", "set", "--dataset", "lists.yaml"]),
        ("x.npz", b"PK", EVALUATE),
        ("x.png", b"\x89PNG", ["verify", "x.png", "p.png", "--checkpoint", str(bed.checkpoint)]),
        ("m.json", b'{"mAP": 0.5}', ["report", "m.json"]),
        ("G/manifest.json", b'{"format": "rga-reid gallery"}', INFO),
        *((("x.ckpt", b"PK", [*VERIFY, "x.ckpt"]),) if kind != "sparse" else ()),
    ):
        path = bed.folder / name
        path.unlink(missing_ok=True)
        if kind == "sparse":
            path.write_bytes(beginning)
            os.truncate(path, SPARSE)
        else:
            path.symlink_to(bed.folder / kind)
        assert path.name in refusal(run(words, bed.folder)), name


def test_a_pipe_among_the_files_of_a_gallery(bed: Bed, run: Run) -> None:
    os.mkfifo(bed.folder / "pipe")
    (log,) = bed.gallery.glob("removals-*.jsonl")
    log.unlink()
    log.symlink_to(bed.folder / "pipe")
    reseal(bed.gallery, lambda manifest: manifest["removals"].update(bytes=0))
    assert log.name in refusal(run(INFO, bed.folder))


def test_folders_in_folders_without_end(tmp_path: Path, tiny_checkpoint: Path, run: Run) -> None:
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
