"""The DataModule: training images decoded once into memory, P x K batches, held-out identities."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rga_reid.data import decode, read_table
from rga_reid.errors import InputError
from rga_reid.training.sampler import IdentitySampler


class DecodedImages(Dataset[tuple[Tensor, Tensor]]):
    """uint8 images ``(n, 3, H, W)`` in memory with a number for each; indexed by a list of rows at once."""

    def __init__(self, images: np.ndarray, numbers: np.ndarray) -> None:
        self.images, self.numbers = torch.from_numpy(images), torch.from_numpy(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.numbers[rows]


class ReIDData(pl.LightningDataModule):
    """Training data of a card, a CSV file or folders of identities.

    Args:
        root: folder of the data set, or a CSV file with the columns path, pid, camid, split.
        dataset: name of a card in ``datasets/``, or the path of one's own.
        size: (H, W) that images are decoded to; taken from the model.
        identities_per_batch: P, in one process.
        images_per_identity: K.
        visits: ``identity`` or ``image``, see ``IdentitySampler``.
        held_out: share of the *training* identities that is kept from training and ranked after each
            validation, to choose a checkpoint by. 0 trains on all of them and keeps the last epoch.
        seed: of the sampler and of the choice of held-out identities; taken from ``--seed``.

    Raises:
        InputError: a root that does not fit the card; fewer identities than one batch needs.
    """

    def __init__(
        self,
        root: str = "data/market1501",
        dataset: str = "market1501",
        size: tuple[int, int] = (256, 128),
        identities_per_batch: int = 16,
        images_per_identity: int = 4,
        visits: Literal["identity", "image"] = "identity",
        held_out: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= held_out < 1:
            raise InputError(f"held_out: expected a share of the training identities, 0 to 1, got {held_out}")
        table = read_table(root, dataset)
        train = table[table.split == "train"]
        if train.empty:
            raise InputError(f"{root}: no training images (split 'train') in this data set")
        pids = np.sort(train.pid.unique().astype(np.int64))
        kept_out = np.random.default_rng(seed).permutation(pids)[: round(held_out * len(pids))]
        outside = train.pid.isin(kept_out)
        self.train_table = train[~outside].reset_index(drop=True)
        self.held_out: pd.DataFrame = train[outside].reset_index(drop=True)
        self.size, self.seed = size, seed
        self.batch: dict[str, Any] = {
            "identities": identities_per_batch,
            "images": images_per_identity,
            "visits": visits,
            "seed": seed,
        }
        IdentitySampler(self.train_table.pid.to_numpy(), **self.batch)  # too few identities: say so now
        if held_out and self.held_out.groupby("pid").size().max() < 2:
            raise InputError("held_out: no held-out identity has two images to rank; give a larger share")

    @property
    def classes(self) -> int:
        """Number of training identities."""
        return int(self.train_table.pid.nunique())

    def setup(self, stage: str) -> None:
        """Decode the training images, once; labels are the pids numbered from 0 in rising order."""
        if stage != "fit" or hasattr(self, "train_images"):
            return
        _, labels = np.unique(self.train_table.pid.to_numpy(dtype=np.int64), return_inverse=True)
        self.train_images = DecodedImages(decode(self.train_table.path, self.size), labels)
        if len(self.held_out):
            images = decode(self.held_out.path, self.size)
            self.held_out_images = DecodedImages(images, np.arange(len(images)))

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world_size = _place(self.trainer)
        sampler = IdentitySampler(
            self.train_table.pid.to_numpy(), **self.batch, rank=rank, world_size=world_size
        )
        # images lie decoded in memory: a worker process would only copy them
        return DataLoader(self.train_images, batch_size=None, sampler=sampler, num_workers=0)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world_size = _place(self.trainer)
        rows = list(range(rank, len(self.held_out), world_size))
        batches = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        return DataLoader(self.held_out_images, batch_size=None, sampler=batches, num_workers=0)


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
