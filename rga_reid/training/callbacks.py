"""The exponential moving average of the weights (EMA): what is validated and saved for testing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rga_reid.errors import InputError, check_int
from rga_reid.files import atomic_file, make_folder, write_text
from rga_reid.process import defer_signals

if TYPE_CHECKING:
    from rga_reid.training.datamodule import ReIDData

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class EMA(WeightAveraging):
    """w̄ ← decay · w̄ + (1 − decay) · w after every so many steps, of weights and buffers; counters are copied.

    Lightning's ``EMAWeightAveraging`` averages one tensor after the other and makes new ones on the way; here
    torch's own function goes over all of them in place, for a quarter of the time.

    Args:
        decay: 0 to 1; an average every n steps with decay dⁿ forgets as fast as one every step with d.
        update_every_n_steps: n, for an nth of the time.

    Raises:
        InputError: a decay outside 0 to 1, a number of steps below 1.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay <= 1:
            raise InputError(f"EMA decay: expected 0 to 1, got {decay}")
        super().__init__(multi_avg_fn=_average(decay))
        self.update_every_n_steps = check_int("EMA update_every_n_steps", update_every_n_steps)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the step that was taken is one of every so many."""
        return step_idx is not None and step_idx % self.update_every_n_steps == 0


def _average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    of_numbers = get_ema_multi_avg_fn(decay)

    def update(averages: Tensors, values: Tensors, updates: Any) -> None:
        if averages[0].is_floating_point():
            of_numbers(averages, values, updates)
        else:  # an average of counters would be cut off at each update, and never count
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return update


_EARLIER = ".earlier-"  # before the name of a version of the logs that may come back
#: In the folder of a run that has not begun, seen by all its processes. It holds the configuration, so that a
#: disk without room is found at once, before loggers write in threads of theirs.
_MARK = ".beginning"


class DeferredOverwrite(Callback):
    """Replaces what an earlier run left when the first step is due, and not before.

    Until then images are decoded and options meet the data, and anything may turn out to be wrong. A run
    that does not begin leaves its folder as it found it.

    Args:
        folder: of the run.
        logs: folders of logs, each with versions ``version_N``.
        replaced: files of an earlier run that go, and with them all versions of its logs; None for a run that
            goes on with them.
        config: a file, and its text, that tell how the run was made.
    """

    def __init__(
        self,
        folder: Path,
        logs: Sequence[Path],
        *,
        replaced: Sequence[Path] | None,
        config: tuple[Path, str] | None,
    ) -> None:
        self.folder, self.logs, self.replaced, self.config = folder, logs, replaced, config

    @property
    def begun(self) -> bool:
        """Whether the first step was due, in whichever process."""
        return not (self.folder / _MARK).exists()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around the run, in the process that writes.

        Raises:
            DiskError: the folder cannot be made, or has no room.
        """
        places = [*self.logs, self.folder, *self.folder.parents]
        made = [place for place in places if not place.exists()]
        make_folder(self.folder)
        self._tidy()
        write_text(self.folder / _MARK, "" if self.config is None else self.config[1])
        kept = {version for log in self.logs for version in log.glob("version_*")}
        try:
            if self.replaced is not None:
                for version in kept:  # loggers count on from the versions that are there
                    os.replace(version, _earlier(version))
            yield
        finally:
            if not self.begun:
                with defer_signals():
                    self._put_back(kept, made)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        mark = self.folder / _MARK
        if self.config is None:
            mark.unlink()
        else:
            os.replace(mark, self.config[0])
        for file in self.replaced or ():
            file.unlink(missing_ok=True)
        for log in self.logs:
            for version in log.glob(f"{_EARLIER}version_*"):
                _remove(version)

    def _tidy(self) -> None:
        """Put right what a run left that was killed: before it began, or while it removed the earlier one."""
        for log in self.logs:
            for earlier in log.glob(f"{_EARLIER}version_*"):
                version = earlier.with_name(earlier.name.removeprefix(_EARLIER))
                if self.begun:
                    _remove(earlier)
                    continue
                if os.path.lexists(version):
                    _remove(version)
                os.replace(earlier, version)

    def _put_back(self, kept: set[Path], made: Sequence[Path]) -> None:
        for log in self.logs:
            for version in set(log.glob("version_*")) - (kept if self.replaced is None else set()):
                _remove(version)
        for version in kept:
            if os.path.lexists(_earlier(version)):
                os.replace(_earlier(version), version)
        (self.folder / _MARK).unlink()
        for place in made:
            with suppress(OSError):  # it was not made, or holds something now
                place.rmdir()


def _earlier(version: Path) -> Path:
    return version.with_name(_EARLIER + version.name)


def _remove(version: Path) -> None:
    if version.is_dir() and not version.is_symlink():
        shutil.rmtree(version)
    else:
        version.unlink()


BATCHES = "not_finite*.pt"  #: in the run's folder; where another process wrote it with -rank1 and so on


class NotFiniteError(InputError):
    """A loss, weights or features hold NaN or infinity; the message names the file of the batch."""


def find_non_finite(
    what: str,
    trainer: pl.Trainer,
    batch: tuple[Tensor, Tensor],
    number: int,
    losses: Mapping[str, Tensor] | None = None,
) -> NotFiniteError:
    """Save a batch, and say so in an error that is to be raised.

    The file, which ``torch.load(..., weights_only=True)`` reads, holds ``images`` (uint8, (n, 3, h, w)),
    ``labels`` (n,), ``paths`` (of the images, where the data tell them), ``epoch`` and ``batch`` (both from
    0), ``step`` (of the optimizer) and the ``losses``, as far as they are known.

    Args:
        what: is not finite, in words.
        trainer: of the run.
        batch: the last one that was trained on.
        number: of the batch in its epoch, from 0.
        losses: of the batch.
    """
    epoch, rank = trainer.current_epoch, trainer.global_rank
    data: ReIDData | Any = getattr(trainer, "datamodule", None)
    content = {
        "images": batch[0].cpu(),
        "labels": batch[1].cpu(),
        "paths": data.paths_of(epoch, number) if hasattr(data, "paths_of") else None,
        "epoch": epoch,
        "batch": number,
        "step": trainer.global_step,
        "losses": {name: float(value.detach()) for name, value in (losses or {}).items()},
    }
    process = f"-rank{rank}" if rank else ""
    file = Path(trainer.default_root_dir) / BATCHES.replace("*", process)
    with atomic_file(file) as temporary:
        torch.save(content, temporary)
    return NotFiniteError(
        f"training: {what} in epoch {epoch + 1}, batch {number + 1}, which is saved in {file}; try a smaller "
        "learning rate, --trainer.gradient_clip_val, or --trainer.precision 32"
    )


def check_all_finite(tensors: Any) -> bool:
    """Whether no number of some tensors is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
