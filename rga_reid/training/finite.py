"""A training whose numbers are no numbers any more stops, and keeps the batch that it stopped at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.files import atomic_file

if TYPE_CHECKING:
    from rga_reid.training.data import ReIDData

BATCHES = "not_finite*.pt"  #: in the run's folder; where another process wrote it with -rank1 and so on


class NotFiniteError(InputError):
    """A loss, weights or features hold NaN or infinity; the message names the file of the batch."""


def not_finite(
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


def all_finite(tensors: Any) -> bool:
    """Whether no number of some tensors is NaN or infinite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
