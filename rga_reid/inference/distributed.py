"""Feature extraction by several processes of ``torchrun``, each of which embeds a shard of the images.

The processes need a common file system. They synchronise twice, before the first image and after the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import distributed

from rga_reid.data.columns import CAMERA, rename_camid
from rga_reid.errors import InputError
from rga_reid.files import DiskError
from rga_reid.inference.feature_files import read_features, write_features
from rga_reid.process import defer_signals

MARKER = ".rga-reid-shards"  #: empty file that marks a folder of shards
BLOCK_ROWS = 8192  #: rows in a file of a shard, and in a block of ``iter_blocks``

Batches = Iterator[tuple[np.ndarray, pd.DataFrame]]


@dataclass(frozen=True)
class ProcessGroup:
    """The cooperating processes, from the view of one of them.

    Args:
        rank: number of this process, from 0. Rank 0 writes the result.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def shard(self, table: pd.DataFrame, batch_size: int) -> pd.DataFrame:
        """Return this process's rows: whole batches of the table, so that batches do not depend on ``size``."""
        batches = -(-len(table) // batch_size)
        start, stop = (batches * rank // self.size * batch_size for rank in (self.rank, self.rank + 1))
        return table.iloc[start:stop]

    def gather(
        self, folder: Path, table: pd.DataFrame, batch_size: int, embed: Callable[[pd.DataFrame], Batches]
    ) -> Batches:
        """Yield features of all images on rank 0, in the order of the table; nothing on other ranks.

        Args:
            folder: temporary folder for the shards; one that an interrupted run left is replaced.
            table: all images, the same in every process.
            batch_size: batch size of ``embed``.
            embed: yields the features of some rows, batch by batch.

        Raises:
            InputError: in all processes what ``embed`` raised in any; ``folder`` exists and is not a folder of
                shards.
        """
        if self.size == 1:
            yield from embed(table)
            return
        error: str | None = None
        created = False
        try:
            if self.rank == 0:
                create_shards_folder(folder)
                created = True
        except InputError as problem:
            error = str(problem)
        except OSError as problem:
            error = str(DiskError.of(folder, problem))
        try:
            self._agree(error)
            try:
                for number, (features, rows) in enumerate(iter_blocks(embed(self.shard(table, batch_size)))):
                    write_features(folder / f"{self.rank:05d}-{number:06d}.npz", features, rows)
            except (InputError, OSError) as problem:
                error = str(problem)
            self._agree(error)
            if self.rank == 0:
                for file in sorted(folder.glob("*.npz")):
                    features, rows = read_features(file)
                    yield features, rename_camid(rows) if CAMERA in table.columns else rows
        finally:
            if created:
                with defer_signals():
                    shutil.rmtree(folder, ignore_errors=True)

    def _agree(self, error: str | None) -> None:
        """Wait for the other processes, and fail if one of them failed or was killed."""
        errors: list[str | None] = [None] * self.size
        try:
            distributed.all_gather_object(errors, error)
        except RuntimeError as problem:
            reason = str(problem).split("\n")[0]
            raise InputError(error or f"torchrun: another process has ended ({reason})") from None
        for message in errors:
            if message is not None:
                raise InputError(message)


def create_shards_folder(folder: Path) -> None:
    """Create an empty folder for shards, replacing one that an interrupted run left.

    Raises:
        InputError: the path exists and is not a folder of shards.
        OSError: the folder cannot be created.
    """
    if folder.exists() or folder.is_symlink():
        if folder.is_symlink() or not (folder / MARKER).is_file():
            raise InputError(f"{folder}: needed for temporary files, but it exists; rename or remove it")
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARKER).touch()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; yield a group of one without ``torchrun``.

    Raises:
        InputError: the variables of ``torchrun`` are set, but the other processes cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or distributed.is_initialized():
        yield ProcessGroup()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        # the slowest of many processes may be days behind
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"torchrun: cannot join the other processes ({error})") from None
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def iter_blocks(batches: Iterable[tuple[np.ndarray, pd.DataFrame]]) -> Batches:
    """Yield the same rows in fewer, larger batches."""
    features: list[np.ndarray] = []
    tables: list[pd.DataFrame] = []

    def block() -> tuple[np.ndarray, pd.DataFrame]:
        joined = np.concatenate(features), pd.concat(tables, ignore_index=True)
        features.clear()
        tables.clear()
        return joined

    for batch, rows in batches:
        features.append(batch)
        tables.append(rows)
        if sum(map(len, tables)) >= BLOCK_ROWS:
            yield block()
    if features:
        yield block()
