"""What the DataModule makes of a data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rga_reid.errors import InputError
from rga_reid.training import IdentitySampler, ReIDData
from rga_reid.training.datamodule import DecodedImages, ResumableLoader

BATCH: dict[str, Any] = {"identities_per_batch": 2, "images_per_identity": 2}


def process(rank: int, world_size: int) -> Any:
    """A trainer, as far as the data module looks at it."""
    return SimpleNamespace(global_rank=rank, world_size=world_size, limit_train_batches=1.0)


def test_runs_of_several_seeds_are_ranked_on_the_same_held_out_identities(tiny_market: Path) -> None:
    def held_out(**seeds: int) -> set[int]:
        return set(ReIDData(str(tiny_market), held_out=0.5, **BATCH, **seeds).held_out.pid)

    chosen = held_out(seed=0)
    assert chosen
    assert all(held_out(seed=seed) == chosen for seed in range(1, 6))
    assert any(held_out(held_out_seed=seed) != chosen for seed in range(1, 6))


def test_held_out_identities_that_nobody_can_find_are_refused(tiny_market: Path, tmp_path: Path) -> None:
    images = sorted((tiny_market / "bounding_box_train").iterdir())

    def table(cameras: str) -> str:
        rows = [
            f"{path},{path.name[:4]},{cameras and cameras[n % len(cameras)].strip('_')},train"  # _: unknown
            for n, path in enumerate(images)
        ]
        file = tmp_path / f"cameras{cameras}.csv"
        file.write_text("\n".join(["path,pid,camid,split", *rows]))
        return str(file)

    for cameras in ("", "12", "1_"):
        assert len(ReIDData(table(cameras), held_out=0.5, **BATCH).held_out) == 24
    with pytest.raises(InputError, match="no held-out identity has images of two cameras"):
        ReIDData(table("1"), held_out=0.5, **BATCH)


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 4), (3, 3), (0.5, 2), (99, 4)])
def test_the_place_in_an_epoch_counts_the_steps_that_the_trainer_takes(
    limit: int | float, steps: int
) -> None:
    pids = np.repeat(np.arange(8), 2)
    images = DecodedImages(np.zeros((16, 3, 2, 2), np.uint8), np.arange(16), pids)
    loader = ResumableLoader(images, IdentitySampler(pids, 2, 2), limit)
    batches, places = iter(loader), []
    for _ in range(steps):
        next(batches)
        places.append(loader.state_dict()["position"])
    assert places == [*range(1, steps), 0]  # the next epoch begins at its first batch


def test_processes_share_the_file_of_decoded_images(tiny_market: Path) -> None:
    data = ReIDData(str(tiny_market), cache="memory", **BATCH)
    assert data._where == "memory"
    data.trainer = process(1, 2)
    assert data._where == "file"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_validate_the_same_number_of_batches(tiny_market: Path, world_size: int) -> None:
    data = ReIDData(str(tiny_market), held_out=0.5, **BATCH)
    data.held_out = data.held_out.iloc[:23].reset_index(drop=True)
    data.held_out_images = DecodedImages(np.zeros((23, 3, 2, 2), np.uint8), np.arange(23), np.arange(23))
    seen = []
    for rank in range(world_size):
        data.trainer = process(rank, world_size)
        seen.append(torch.cat([rows for _, rows in data.val_dataloader()]).tolist())
    assert len({len(rows) for rows in seen}) == 1
    assert {row for rows in seen for row in rows} == set(range(23))


def test_no_loader_has_workers(tiny_market: Path) -> None:
    """They would copy what lies in memory, and might die."""
    data = ReIDData(str(tiny_market), held_out=0.5, **BATCH)
    data.trainer = process(0, 1)
    data.train_images = data.held_out_images = DecodedImages(
        np.zeros((24, 3, 2, 2), np.uint8), np.arange(24), np.arange(24)
    )
    loaders = [data.train_dataloader(), data.val_dataloader()]
    assert all(isinstance(loader, DataLoader) for loader in loaders)
    assert [loader.num_workers for loader in loaders] == [0, 0]


def test_a_run_that_was_interrupted_within_an_epoch_needs_as_many_processes(tiny_market: Path) -> None:
    data = ReIDData(str(tiny_market), **BATCH)
    data.trainer = process(0, 2)
    state = data.state_dict()
    assert state["processes"] == 2
    data.trainer = process(0, 4)
    data.load_state_dict(state)  # at the beginning of an epoch it may go on with any number
    with pytest.raises(InputError, match="interrupted within an epoch on 2 processes"):
        data.load_state_dict({**state, "position": 3})
