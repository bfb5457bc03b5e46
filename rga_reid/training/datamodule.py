"""Lightning DataModule: decoded training images, P x K batches, validation identities."""

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

from rga_reid._deprecated import rename_option_arguments, renamed_method
from rga_reid.data import cached_images, load_card, read_training, table_digest
from rga_reid.data.readers import choose_held_out, is_csv
from rga_reid.errors import InputError, check_int
from rga_reid.training.sampler import IdentitySampler

_VAL_BATCH = 256


class DecodedImages(Dataset[tuple[Tensor, Tensor]]):
    """Rows of uint8 images ``(n, 3, H, W)``, each with a number; indexed by a list of rows."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> None:
        self.images, self.rows, self.numbers = images, rows, torch.from_numpy(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.images[self.rows[rows]]), self.numbers[rows]


class ResumableLoader(DataLoader[Any]):
    """Data loader that can continue in the middle of an epoch."""

    def __init__(self, dataset: Dataset[Any], sampler: IdentitySampler, limit: int | float = 1.0) -> None:
        # no workers: they would only copy decoded images
        super().__init__(dataset, batch_size=None, sampler=sampler, num_workers=0)
        self.batches = sampler
        self.position = 0
        most = limit if isinstance(limit, int) else int(limit * len(sampler))  # as Lightning counts
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
    """Training data from data set cards, CSV files or folders of identities.

    Args:
        root: folder of the data set, or a CSV file with the columns path, pid, camid, split; or a list of
            them, which are joined, with separate identities.
        dataset: name of a card in ``datasets/``, or path of a card; a list for a list of roots, unless all
            have the same card.
        size: (H, W) that larger images are decoded to; taken from the model.
        identities_per_batch: P, identities in the batch of one process.
        images_per_identity: K, images of each identity. If the data set has tracks, random frames of K of its
            tracks, see ``IdentitySampler``.
        epoch: ``identities`` shows each identity once per epoch, ``images`` all images; see
            ``IdentitySampler``.
        val_fraction: fraction of the *training* identities that is held out for validation, to choose the
            best checkpoint. 0 trains on all identities and keeps the last epoch.
        val_seed: random seed for the choice of these identities, so that runs with different ``--seed`` are
            validated on the same ones.
        cache: keep decoded images in ``memory``, or in a ``file`` in the folder of the (first) data set, which
            later runs use again. A file is also used if memory is short or several processes train.
        seed: random seed of the sampler; taken from ``--seed``.

    Raises:
        InputError: the root does not fit the card; fewer identities than one batch needs; the validation
            identities cannot be ranked.
    """

    @rename_option_arguments("data")
    def __init__(
        self,
        root: list[str] | str = "data/market1501",
        dataset: list[str] | str = "market1501",
        size: tuple[int, int] = (256, 128),
        identities_per_batch: int = 16,
        images_per_identity: int = 4,
        epoch: Literal["identities", "images"] = "identities",
        val_fraction: float = 0.0,
        val_seed: int = 0,
        cache: Literal["memory", "file"] = "memory",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise InputError(f"data.val_fraction: expected from 0 to below 1, got {val_fraction}")
        check_int("data.val_seed", val_seed, 0)
        roots, cards = ([item] if isinstance(item, str) else list(item) for item in (root, dataset))
        self.table = read_training(roots, cards)
        sets = [
            load_card(card)
            for place, card in zip(roots, cards * len(roots), strict=False)
            if not is_csv(place)
        ]
        self._terms = sorted({f"{card.title}: {card.terms}" for card in sets if card.terms})
        self._held_out = {"val_fraction": val_fraction, "val_seed": val_seed} if val_fraction else {}
        self._in_val = choose_held_out(self.table, val_fraction, val_seed).to_numpy()
        self.train_table = self.table[~self._in_val].reset_index(drop=True)
        self.val_table: pd.DataFrame = self.table[self._in_val].reset_index(drop=True)
        self.size, self.seed, self.cache = size, seed, cache
        self._resumed = {"position": 0}
        self._loader: ResumableLoader | None = None
        first = Path(roots[0]).absolute()
        self.cache_folder = first if first.is_dir() else first.parent
        self.batch: dict[str, Any] = {
            "identities": identities_per_batch,
            "images": images_per_identity,
            "epoch": epoch,
            "seed": seed,
        }
        self._tracks = _number_tracks(self.train_table)
        # raises if identities are too few
        IdentitySampler(self.train_table.pid.to_numpy(), **self.batch, tracks=self._tracks)
        if val_fraction and not _can_be_ranked(self.val_table):
            raise InputError(
                f"data.val_fraction: none of the {self.val_table.pid.nunique()} validation identities has "
                "images from two cameras, or two images of unknown camera; use more of them, or 0"
            )

    @property
    def classes(self) -> int:
        """Number of training identities."""
        return int(self.train_table.pid.nunique())

    @property
    def statistics(self) -> dict[str, Any]:
        """Counts and terms of use of training data, and what was held out, which checkpoints keep."""
        counts = {
            "images": len(self.train_table),
            "identities": self.classes,
            "cameras": int(self.train_table.camid.nunique()),
            "datasets": int(self.train_table.dataset.nunique()),
        }
        return counts | self._held_out | ({"terms": " ".join(self._terms)} if self._terms else {})

    @cached_property
    def digest(self) -> str:
        """Digest of the training images, see ``table_digest``."""
        return table_digest(self.train_table)

    def prepare_data(self) -> None:
        """Write the file of decoded images in one process, before the others read it."""
        if self._cache_place == "file":
            self._decode()

    def setup(self, stage: str) -> None:
        """Decode the training images once; labels number the pids from 0 in ascending order."""
        if stage != "fit" or hasattr(self, "train_images"):
            return
        images = self._decode()
        _, labels = np.unique(self.train_table.pid.to_numpy(dtype=np.int64), return_inverse=True)
        self.train_images = DecodedImages(images, np.flatnonzero(~self._in_val), labels)
        if len(self.val_table):
            rows = np.flatnonzero(self._in_val)
            self.val_images = DecodedImages(images, rows, np.arange(len(rows)))

    @property
    def _cache_place(self) -> Literal["memory", "file"]:
        """Place of decoded images: several processes share a file rather than decode each."""
        return "file" if _rank_and_world_size(self.trainer)[1] > 1 else self.cache

    def _decode(self) -> np.ndarray:
        paths = self.table.path.tolist()
        return cached_images(paths, self.size, where=self._cache_place, beside=self.cache_folder)

    def _make_sampler(self) -> IdentitySampler:
        rank, world_size = _rank_and_world_size(self.trainer)
        return IdentitySampler(
            self.train_table.pid.to_numpy(),
            **self.batch,
            tracks=self._tracks,
            rank=rank,
            world_size=world_size,
        )

    def batch_paths(self, epoch: int, batch: int) -> list[str]:
        """Return the image files of a training batch of this process; epoch and batch count from 0."""
        sampler = self._make_sampler()
        sampler.set_epoch(epoch)
        sampler.start = batch
        return self.train_table.path.iloc[next(iter(sampler))].tolist()

    paths_of = renamed_method("ReIDData.paths_of", "batch_paths")

    def train_dataloader(self) -> ResumableLoader:
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        self._loader = ResumableLoader(self.train_images, self._make_sampler(), limit)
        self._loader.load_state_dict(self._resumed)
        self._resumed = {"position": 0}
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        position = self._resumed if self._loader is None else self._loader.state_dict()
        processes = _rank_and_world_size(self.trainer)[1]
        return {**position, "images": self.digest, "batch": self.batch, "processes": processes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        processes = _rank_and_world_size(self.trainer)[1]
        if state["position"] and state.get("processes", processes) != processes:
            raise InputError(
                f"--resume: the run was interrupted within an epoch on {state['processes']} processes and "
                f"cannot continue on {processes}"
            )
        # Lightning would restore the loader, but not if the number of steps was needed before
        self._resumed = {"position": state["position"]}

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.val_table.empty:  # fast_dev_run validates whatever the limits are
            return []
        rank, world_size = _rank_and_world_size(self.trainer)
        # the same number on each process, as collective calls need; some images are repeated
        count = -(-len(self.val_table) // world_size)
        rows = [(rank + number * world_size) % len(self.val_table) for number in range(count)]
        batches = [rows[start : start + _VAL_BATCH] for start in range(0, len(rows), _VAL_BATCH)]
        return DataLoader(self.val_images, batch_size=None, sampler=batches, num_workers=0)


def _can_be_ranked(table: pd.DataFrame) -> bool:
    """Return whether an identity has two images that are not known to be from the same camera."""
    people = table.groupby("pid").camid
    size, known, cameras = people.size(), people.count(), people.nunique()
    return bool(((cameras >= 2) | ((size >= 2) & (known < size))).any())


def _number_tracks(table: pd.DataFrame) -> np.ndarray | None:
    """Return the number of each image's track, −1 without one; None if no track is known.

    As in galleries, a track is identified by its camera and its label together.
    """
    if "track" not in table or table.track.isna().all():
        return None
    known = table.track.notna() & (table.camid.notna() | table.camid.isna().all())
    numbers = table.groupby(["dataset", "camid", "track"], dropna=False).ngroup()
    return numbers.where(known, -1).to_numpy(np.int64)


def _rank_and_world_size(trainer: pl.Trainer | None) -> tuple[int, int]:
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
