"""Feature extraction by several processes, started by ``torchrun``: each embeds its part of the images.

The processes need a file system that all of them see. They meet twice, before the first image and after the
last; so nothing but the model's own speed depends on how many there are.
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

from rga_reid.errors import InputError, short_repr
from rga_reid.files import DiskError
from rga_reid.inference.feature_files import read_features, write_features
from rga_reid.process import defer_signals

MARKER = ".rga-reid-shards"  #: the empty file that tells a folder of shards from any other
BLOCK_ROWS = 8192  #: images in a file of a shard, and in a block of ``iter_blocks``

Batches = Iterator[tuple[np.ndarray, pd.DataFrame]]


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that work together, as one of them sees it.

    Args:
        rank: number of this process, from 0. Rank 0 writes the result.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    def share(self, table: pd.DataFrame, batch_size: int) -> pd.DataFrame:
        """This process's rows: whole batches of the table, so that every image meets the same others."""
        batches = -(-len(table) // batch_size)
        start, stop = (batches * rank // self.size * batch_size for rank in (self.rank, self.rank + 1))
        return table.iloc[start:stop]

    def gathered(
        self, folder: Path, table: pd.DataFrame, batch_size: int, embed: Callable[[pd.DataFrame], Batches]
    ) -> Batches:
        """Features of all images on rank 0, in the order of the table; nothing on the others.

        Args:
            folder: for the shards, while they are needed. It is made anew and removed; one that an
                interrupted run left, which a file in it tells, is replaced.
            table: of all images, the same in every process.
            batch_size: of ``embed``.
            embed: gives the features of some rows, batch by batch.

        Raises:
            InputError: what ``embed`` raised in any process is raised in all; the folder holds what is not
                ours, and is left as it is.
        """
        if self.size == 1:
            yield from embed(table)
            return
        error: str | None = None
        made = False
        try:
            if self.rank == 0:
                _make_anew(folder)
                made = True
        except InputError as problem:
            error = str(problem)
        except OSError as problem:
            error = str(DiskError.of(folder, problem))
        try:
            self._agree(error)
            try:
                for number, (features, rows) in enumerate(iter_blocks(embed(self.share(table, batch_size)))):
                    write_features(folder / f"{self.rank:05d}-{number:06d}.npz", features, rows)
            except (InputError, OSError) as problem:
                error = str(problem)
            self._agree(error)
            if self.rank == 0:
                for file in sorted(folder.glob("*.npz")):
                    yield read_features(file)
        finally:
            if made:
                with defer_signals():
                    shutil.rmtree(folder, ignore_errors=True)

    def _agree(self, error: str | None) -> None:
        """Wait for the others, and fail where one of them failed or was killed."""
        errors: list[str | None] = [None] * self.size
        try:
            distributed.all_gather_object(errors, error)
        except RuntimeError as problem:
            reason = str(problem).split("\n")[0]
            raise InputError(error or f"torchrun: another process has ended ({reason})") from None
        for message in errors:
            if message is not None:
                raise InputError(message)


def _make_anew(folder: Path) -> None:
    """An empty folder for shards, in place of one that an interrupted run left.

    Raises:
        InputError: something else is there.
        OSError: it cannot be made.
    """
    if folder.exists() or folder.is_symlink():
        if folder.is_symlink() or not (folder / MARKER).is_file():
            raise InputError(f"{folder}: needed for a while, but it exists already; rename or remove it")
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / MARKER).touch()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that ``torchrun`` started; alone if it did not.

    Raises:
        InputError: the variables of ``torchrun`` are set, but the others cannot be reached.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1 or distributed.is_initialized():
        yield ProcessGroup()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        # it carries no features, only who is ready; the slowest of many may be days behind
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"torchrun: cannot join the other processes ({error})") from None
    try:
        yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def _number(variable: str, least: int) -> int:
    """A variable that ``torchrun`` sets; without it, the least."""
    text = os.environ.get(variable, str(least))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise InputError(f"{variable}: expected a whole number of at least {least}, got {short_repr(text)}")
    return int(text)


def iter_blocks(batches: Iterable[tuple[np.ndarray, pd.DataFrame]]) -> Batches:
    """The same rows in fewer and larger batches, which are worth a write each."""
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
