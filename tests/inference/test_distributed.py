"""Several processes give the same result as one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.inference.distributed import (
    BLOCK_ROWS,
    MARKER,
    ProcessGroup,
    create_shards_folder,
    iter_blocks,
)
from rga_reid.inference.feature_files import read_features
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from rga_reid.commands import main
sys.exit(main(json.loads(sys.argv[1])))
"""
#: a process of rank 1 that dies after it has embedded its shard
DYING = """
import json, os, sys
from rga_reid.inference import distributed
def write_and_die(*arguments):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    write_features(*arguments)
write_features, distributed.write_features = distributed.write_features, write_and_die
from rga_reid.commands import main
sys.exit(main(json.loads(sys.argv[1])))
"""


def run_processes(words: list[str], size: int = 2, program: str = PROGRAM) -> list[tuple[int, str, str]]:
    """Run a command in processes with the variables of torchrun; return exit code, output and errors."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(words)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        answers = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:  # one may wait for another for ever
            process.kill()
    return [(process.returncode, *answer) for process, answer in zip(processes, answers, strict=True)]


@pytest.mark.parametrize(("rows", "batch", "size"), [(0, 4, 2), (1, 4, 3), (10, 4, 2), (103, 7, 4)])
def test_shards_are_whole_batches_and_cover_the_table(rows: int, batch: int, size: int) -> None:
    table = pd.DataFrame({"path": [str(row) for row in range(rows)]})
    shards = [ProcessGroup(rank, size).shard(table, batch) for rank in range(size)]
    pd.testing.assert_frame_equal(pd.concat(shards), table)
    assert all(shard.index[0] % batch == 0 for shard in shards if len(shard))
    if rows > batch * size:
        assert min(map(len, shards)) > 0


def test_blocks_hold_the_same_rows() -> None:
    sizes = [BLOCK_ROWS - 1, 3, 1]
    batches = [(np.full((size, 1), size), pd.DataFrame({"path": [str(size)] * size})) for size in sizes]
    blocks = list(iter_blocks(batches))
    assert [len(features) for features, _ in blocks] == [BLOCK_ROWS + 2, 1]
    assert np.array_equal(np.concatenate([f for f, _ in blocks]), np.concatenate([f for f, _ in batches]))
    assert [row for _, rows in blocks for row in rows["path"]] == [
        row for _, rows in batches for row in rows["path"]
    ]


def words_of(command: str, checkpoint: Path, images: Path, *output: object) -> list[str]:
    options = ["--batch-size", "4", "--device", "cpu", *map(str, output)]
    return [*command.split(), "--checkpoint", str(checkpoint), "--images", str(images), *options]


@pytest.mark.slow
def test_features_of_two_processes(tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = ("features", tiny_checkpoint, tiny_market / "bounding_box_test", "--out")
    first, second = run_processes(words_of(*given, tmp_path / "two.npz"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "14 images" in first[1]
    assert second[1] == ""
    assert main(words_of(*given, tmp_path / "one.npz")) == 0
    (one, labels), (two, found) = (read_features(tmp_path / f"{name}.npz") for name in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=1e-6)
    pd.testing.assert_frame_equal(found, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]


@pytest.mark.slow
def test_a_gallery_of_two_processes(tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    images = tiny_market / "bounding_box_test"
    given = ("gallery build", tiny_checkpoint, images, "--gallery")
    first, second = run_processes(words_of(*given, tmp_path / "two"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == ""
    assert main(words_of(*given, tmp_path / "one")) == 0
    one, two = Gallery.open(tmp_path / "one"), Gallery.open(tmp_path / "two")
    pd.testing.assert_frame_equal(two.table, one.table)
    assert two.model == one.model
    queries = np.random.default_rng(0).normal(size=(3, one.dimension))
    pd.testing.assert_frame_equal(two.search(queries, 14), one.search(queries, 14), atol=1e-5)
    # an error in one process is reported by all, and no file is left
    broken = shutil.copytree(images, tmp_path / "broken")
    (broken / "9.jpg").write_bytes(b"no picture")  # in the shard of the last process
    answers = run_processes(
        words_of("gallery build", tiny_checkpoint, broken, "--gallery", tmp_path / "three")
    )
    assert [answer[0] for answer in answers] == [2, 2]
    assert all("9.jpg" in answer[2] for answer in answers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "one", "two"]


@pytest.mark.slow
def test_the_death_of_a_process_is_reported_by_the_others(
    tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    images, out = tiny_market / "bounding_box_test", tmp_path / "f.npz"
    first, second = run_processes(words_of("features", tiny_checkpoint, images, "--out", out), program=DYING)
    assert second[0] == -9
    assert first[0] == 2, first[2]
    lines = [line for line in first[2].splitlines() if line.startswith("rga-reid: ")]
    assert len(lines) == 1
    assert "torchrun" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_shards_are_replaced(tmp_path: Path) -> None:
    shards = tmp_path / "one.npz.shards"
    shards.mkdir()
    (shards / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"one\.npz\.shards"):
        create_shards_folder(shards)
    assert [path.name for path in shards.iterdir()] == ["notes.txt"]
    (shards / MARKER).touch()  # as an interrupted run leaves it
    create_shards_folder(shards)
    assert [path.name for path in shards.iterdir()] == [MARKER]
    link = tmp_path / "link"
    link.symlink_to(shards)
    with pytest.raises(InputError, match="link"):
        create_shards_folder(link)
