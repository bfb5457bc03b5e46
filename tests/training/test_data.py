"""Data module: validation identities, places in an epoch, processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.training import IdentitySampler, ReIDData
from rga_reid.training.datamodule import DecodedImages, ResumableLoader

BATCH: dict[str, Any] = {"identities_per_batch": 2, "images_per_identity": 2}


def process(rank: int, world_size: int) -> Any:
    """Stand in for the trainer of a process."""
    return SimpleNamespace(global_rank=rank, world_size=world_size, limit_train_batches=1.0)


def test_seeds_share_validation_identities(tiny_market: Path) -> None:
    def val_pids(**seeds: int) -> set[int]:
        return set(ReIDData(str(tiny_market), val_fraction=0.5, **BATCH, **seeds).val_table.pid)

    first = val_pids(seed=0)
    assert len(first) == 4
    assert all(val_pids(seed=seed) == first for seed in (1, 2))
    assert any(val_pids(val_seed=seed) != first for seed in (1, 2, 3))


def write_table(file: Path, images: list[Path], cameras: list[str]) -> str:
    rows = [f"{path},{path.name[:4]},{camera},train" for path, camera in zip(images, cameras, strict=True)]
    file.write_text("\n".join(["path,pid,camid,split", *rows]))
    return str(file)


def test_validation_that_cannot_find_anything(tiny_market: Path, tmp_path: Path) -> None:
    images = sorted((tiny_market / "bounding_box_train").iterdir())
    for cameras in ([""], ["1", "2"], ["1", ""]):
        table = write_table(tmp_path / "table.csv", images, [cameras[n % len(cameras)] for n in range(48)])
        assert len(ReIDData(table, val_fraction=0.5, **BATCH).val_table) == 24
    table = write_table(tmp_path / "table.csv", images, ["7"] * 48)
    with pytest.raises(InputError, match=r"data\.val_fraction: none of the 4 "):
        ReIDData(table, val_fraction=0.5, **BATCH)
    # one identity has two cameras, but is not held out
    table = write_table(tmp_path / "table.csv", images, [str(1 + (n == 0)) for n in range(48)])
    with pytest.raises(InputError, match=r"data\.val_fraction: none of the 2 "):
        for seed in range(9):
            ReIDData(table, val_fraction=0.25, val_seed=seed, **BATCH)


def test_frames_of_different_tracks(tiny_market: Path, tmp_path: Path) -> None:
    images = sorted((tiny_market / "bounding_box_train").iterdir())
    lines = ["path,pid,camid,split,track"]
    for number, path in enumerate(images):
        # two tracks in each of two cameras: four of each person
        track = f"{path.name[:4]}-{number // 2 % 2}"
        lines.append(f"{path},{path.name[:4]},{1 + number % 2},train,{track}")
    table = tmp_path / "tracks.csv"
    table.write_text("\n".join(lines))
    data = ReIDData(str(table), identities_per_batch=2, images_per_identity=4)
    for epoch in range(3):
        paths = data.batch_paths(epoch, 0)
        rows = data.train_table.set_index("path").loc[paths]
        assert len(rows[["pid", "camid", "track"]].drop_duplicates()) == 8


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 4), (3, 3), (0.5, 2), (99, 4)])
def test_position_in_epoch(limit: int | float, steps: int) -> None:
    pids = np.repeat(np.arange(8), 2)
    images = DecodedImages(np.zeros((16, 3, 2, 2), np.uint8), np.arange(16), pids)
    loader = ResumableLoader(images, IdentitySampler(pids, 2, 2), limit)
    batches, positions = iter(loader), []
    for _ in range(steps):
        next(batches)
        positions.append(loader.state_dict()["position"])
    assert positions == [*range(1, steps), 0]  # the next epoch starts at its first batch


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_validate_the_same_number_of_batches(tiny_market: Path, world_size: int) -> None:
    data = ReIDData(str(tiny_market), val_fraction=0.5, **BATCH)
    data.val_table = data.val_table.iloc[:23].reset_index(drop=True)
    data.val_images = DecodedImages(np.zeros((23, 3, 2, 2), np.uint8), np.arange(23), np.arange(23))
    seen = []
    for rank in range(world_size):
        data.trainer = process(rank, world_size)
        loader = data.val_dataloader()
        assert loader.num_workers == 0  # type: ignore[union-attr]
        seen.append(torch.cat([rows for _, rows in loader]).tolist())
    assert len({len(rows) for rows in seen}) == 1
    assert {row for rows in seen for row in rows} == set(range(23))


def test_resume_within_an_epoch_needs_as_many_processes(tiny_market: Path) -> None:
    data = ReIDData(str(tiny_market), **BATCH)
    data.trainer = process(0, 2)
    state = data.state_dict()
    assert state["processes"] == 2
    data.trainer = process(0, 4)
    data.load_state_dict(state)  # at the start of an epoch, any number is possible
    with pytest.raises(InputError, match=r"--resume: .* 2 processes"):
        data.load_state_dict({**state, "position": 3})
