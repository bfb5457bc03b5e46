"""The DataModule: training images decoded once, P x K batches, held-out identities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rga_reid.data import cached_images, read_training, table_digest
from rga_reid.errors import InputError, check_int
from rga_reid.training.sampler import IdentitySampler


class DecodedImages(Dataset[tuple[Tensor, Tensor]]):
    """Some rows of uint8 images ``(n, 3, H, W)``, each with a number; indexed by a list of rows at once."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> None:
        self.images, self.rows, self.numbers = images, rows, torch.from_numpy(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images[self.rows[rows]]), self.numbers[rows]


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch, where the checkpoint that it is told of was saved."""

    def __init__(self, dataset: Dataset[Any], sampler: IdentitySampler, limit: int | float = 1.0) -> None:
        # images lie decoded in memory: a worker process would only copy them
        super().__init__(dataset, batch_size=None, sampler=sampler, num_workers=0)
        self.batches = sampler
        self.position = 0
        most = limit if isinstance(limit, int) else int(limit * len(sampler))  # as the trainer counts it
        self.steps = max(1, min(most, len(sampler)))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.position = self.batches.start
        for batch in super().__iter__():
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position % self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches.start = state["position"]


class ReIDData(pl.LightningDataModule):
    """Training data of cards, CSV files or folders of identities.

    Args:
        root: folder of the data set, or a CSV file with the columns path, pid, camid, split; or a list of
            them, which are trained on together, their identities kept apart.
        dataset: name of a card in ``datasets/``, or the path of one's own; a list for a list of roots, unless
            one serves all.
        size: (H, W) that images are decoded to, unless all are smaller; taken from the model.
        identities_per_batch: P, people in a batch of one process.
        images_per_identity: K, images of each of them.
        visits: ``identity`` or ``image``, see ``IdentitySampler``.
        held_out: share of the *training* identities that is kept from training and ranked after each
            validation, to choose a checkpoint by. 0 trains on all of them and keeps the last epoch.
        held_out_seed: of the choice of these identities: runs of several ``--seed`` are ranked on the same.
        cache: keep decoded images in ``memory``, or in a ``file`` in the folder of the (first) data set, for
            later runs too. ``memory`` falls back on the file where memory is short, and says so, and where
            several processes train.
        seed: of the sampler; taken from ``--seed``.

    Raises:
        InputError: a root that does not fit the card; fewer identities than one batch needs.
    """

    def __init__(
        self,
        root: list[str] | str = "data/market1501",
        dataset: list[str] | str = "market1501",
        size: tuple[int, int] = (256, 128),
        identities_per_batch: int = 16,
        images_per_identity: int = 4,
        visits: Literal["identity", "image"] = "identity",
        held_out: float = 0.0,
        held_out_seed: int = 0,
        cache: Literal["memory", "file"] = "memory",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= held_out < 1:
            raise InputError(
                f"held_out: expected a share of the training identities, from 0 to below 1, got {held_out}"
            )
        check_int("held_out_seed", held_out_seed, 0)
        roots, cards = ([item] if isinstance(item, str) else list(item) for item in (root, dataset))
        self.table = read_training(roots, cards)
        pids = np.sort(self.table.pid.unique().astype(np.int64))
        kept_out = np.random.default_rng(held_out_seed).permutation(pids)[: round(held_out * len(pids))]
        self._outside = self.table.pid.isin(kept_out).to_numpy()
        self.train_table = self.table[~self._outside].reset_index(drop=True)
        self.held_out: pd.DataFrame = self.table[self._outside].reset_index(drop=True)
        self.size, self.seed, self.cache = size, seed, cache
        self._resumed = {"position": 0}
        self._loader: ResumableLoader | None = None
        first = Path(roots[0]).absolute()
        self.beside = first if first.is_dir() else first.parent
        self.batch: dict[str, Any] = {
            "identities": identities_per_batch,
            "images": images_per_identity,
            "visits": visits,
            "seed": seed,
        }
        IdentitySampler(self.train_table.pid.to_numpy(), **self.batch)  # too few identities: say so now
        if held_out and not _can_be_ranked(self.held_out):
            raise InputError(
                "held_out: no held-out identity has images of two cameras (or two images, where no camera is "
                "known) to rank; give a larger share"
            )

    @property
    def classes(self) -> int:
        """Number of training identities."""
        return int(self.train_table.pid.nunique())

    @property
    def statistics(self) -> dict[str, int]:
        """What a model was trained on, for its checkpoint."""
        return {
            "images": len(self.train_table),
            "identities": self.classes,
            "cameras": int(self.train_table.camid.nunique()),
            "datasets": int(self.train_table.dataset.nunique()),
        }

    @cached_property
    def digest(self) -> str:
        """Tells the training images from others, see ``table_digest``."""
        return table_digest(self.train_table)

    def prepare_data(self) -> None:
        """Fill the file of decoded images in one process, before the others look for it."""
        if self._where == "file":
            self._decode()

    def setup(self, stage: str) -> None:
        """Decode the training images, once; labels are the pids numbered from 0 in rising order."""
        if stage != "fit" or hasattr(self, "train_images"):
            return
        images = self._decode()
        _, labels = np.unique(self.train_table.pid.to_numpy(dtype=np.int64), return_inverse=True)
        self.train_images = DecodedImages(images, np.flatnonzero(~self._outside), labels)
        if len(self.held_out):
            rows = np.flatnonzero(self._outside)
            self.held_out_images = DecodedImages(images, rows, np.arange(len(rows)))

    @property
    def _where(self) -> Literal["memory", "file"]:
        """Processes of one machine share the pages of one file; each would decode and hold its own images."""
        return "file" if _place(self.trainer)[1] > 1 else self.cache

    def _decode(self) -> np.ndarray:
        return cached_images(self.table.path.tolist(), self.size, where=self._where, beside=self.beside)

    def _sampler(self) -> IdentitySampler:
        rank, world_size = _place(self.trainer)
        return IdentitySampler(
            self.train_table.pid.to_numpy(), **self.batch, rank=rank, world_size=world_size
        )

    def paths_of(self, epoch: int, batch: int) -> list[str]:
        """Image files of a training batch of this process, by the numbers of epoch and batch, from 0."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        sampler.start = batch
        return self.train_table.path.iloc[next(iter(sampler))].tolist()

    def train_dataloader(self) -> ResumableLoader:
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        self._loader = ResumableLoader(self.train_images, self._sampler(), limit)
        self._loader.load_state_dict(self._resumed)
        self._resumed = {"position": 0}
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        place = self._resumed if self._loader is None else self._loader.state_dict()
        return {**place, "images": self.digest, "batch": self.batch, "processes": _place(self.trainer)[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        processes = _place(self.trainer)[1]
        if state["position"] and state.get("processes", processes) != processes:
            raise InputError(
                f"--resume: the run was interrupted within an epoch on {state['processes']} processes, and "
                f"can go on with as many only, not with {processes}"
            )
        # Lightning would tell the loader, but forgets it where the number of steps was asked for before
        self._resumed = {"position": state["position"]}

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.held_out.empty:  # fast_dev_run validates whatever the limits say
            return []
        rank, world_size = _place(self.trainer)
        # as many in each process, which must take the same number of passes: some come twice
        each = -(-len(self.held_out) // world_size)
        rows = [(rank + number * world_size) % len(self.held_out) for number in range(each)]
        batches = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        return DataLoader(self.held_out_images, batch_size=None, sampler=batches, num_workers=0)


def _can_be_ranked(table: pd.DataFrame) -> bool:
    """Whether an identity has two images that a query can find, not known to be of one camera."""
    people = table.groupby("pid").camid
    size, known, cameras = people.size(), people.count(), people.nunique()
    return bool(((cameras >= 2) | ((size >= 2) & (known < size))).any())


def _place(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
