"""Lightning callbacks: EMA, resolution schedule, replacing an earlier run, NaN guard, checkpoints."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rga_reid.errors import InputError, check_int, short_repr
from rga_reid.files import atomic_file, make_folder, sync, write_text
from rga_reid.inputs import truncate
from rga_reid.models.resnet import MAX_SIDE, MIN_SIDE, Size
from rga_reid.process import defer_signals

if TYPE_CHECKING:
    from rga_reid.training.datamodule import ReIDData

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]

LAST, BEST, CONFIG = "last.ckpt", "best.ckpt", "config.yaml"
TEST = "test.json"  # metrics of the checkpoint, written by `train --test.root`
CSV, TENSORBOARD = "csv", "tensorboard"
NON_FINITE = "not_finite*.pt"  # * is -rank1 and so on for processes other than the first
_PENDING = ".pending"  # exists until the first training step


class EMA(WeightAveraging):
    """Exponential moving average of weights and buffers: w̄ ← decay · w̄ + (1 − decay) · w.

    Integer buffers are copied. Updates all tensors in place with torch's multi-tensor function, which takes a
    quarter of the time of Lightning's ``EMAWeightAveraging``.

    Args:
        decay: from 0 to 1.
        update_every_n_steps: update only after every n-th step; decayⁿ forgets as fast as decay at every step.

    Raises:
        InputError: ``decay`` outside 0 to 1, or ``update_every_n_steps`` below 1.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay <= 1:
            raise InputError(f"EMA decay: expected 0 to 1, got {decay}")
        super().__init__(multi_avg_fn=_average(decay))
        self.update_every_n_steps = check_int("EMA update_every_n_steps", update_every_n_steps)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update after this step."""
        return step_idx is not None and step_idx % self.update_every_n_steps == 0


def _average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    average_floats = get_ema_multi_avg_fn(decay)

    def update(averages: Tensors, values: Tensors, updates: Any) -> None:
        if averages[0].is_floating_point():
            average_floats(averages, values, updates)
        else:  # the average of a counter would be truncated at every update and never grow
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return update


class ResolutionSchedule(Callback):
    """Train on images of another size from given epochs on; validation always uses the size of the model.

    Args:
        rows: (epoch, H, W), epochs counted from 0. The last row has the model's size.
        size: (H, W) of the model, also used before the first row.

    Raises:
        InputError: a negative epoch, sides out of range, or a schedule that does not end with ``size``.
    """

    def __init__(self, rows: Iterable[Sequence[int]], size: Size) -> None:
        height, width = size
        self.sizes: dict[int, Size] = {0: (height, width)}
        for epoch, *sides in rows:
            if epoch < 0 or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
                raise InputError(
                    f"resolution_schedule: expected epochs from 0, and sides of {MIN_SIDE} to {MAX_SIDE} "
                    f"pixels, got {short_repr((epoch, *sides))}"
                )
            self.sizes[epoch] = (sides[0], sides[1])
        if self.sizes[max(self.sizes)] != (height, width):
            raise InputError(f"resolution_schedule: must end with the model's size {height}x{width}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        epochs, first = pl_module.count_epochs(), max(self.sizes)
        if epochs <= first and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            height, width = self.sizes[first]
            print(
                f"note: images of {height}x{width} begin with epoch {first + 1}, but this training ends after "
                f"{epochs:.4g}: adapt model.resolution_schedule, which counts epochs from 0",
                file=sys.stderr,
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # not at the start of an epoch: a resumed epoch has none, and validation may interrupt it
        pl_module.set_input_size(self.sizes[max(e for e in self.sizes if e <= trainer.current_epoch)])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._restore(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._restore(pl_module)  # the training may end during smaller images

    def _restore(self, pl_module: Any) -> None:
        pl_module.set_input_size(self.sizes[max(self.sizes)])


class DeferredOverwrite(Callback):
    """Remove the earlier run in a folder at the first training step of the new run, not before.

    Until then, options, data or memory may turn out to be wrong. If the run does not reach its first step, its
    own log folders are removed and the earlier run stays.

    Args:
        folder: folder of the run.
        overwrite: remove checkpoints, logs and test results of an earlier run.
        config: YAML text for ``config.yaml``.
    """

    def __init__(self, folder: Path, *, overwrite: bool, config: str | None) -> None:
        self.folder, self.config = folder, config
        names = (LAST, BEST, TEST, NON_FINITE)
        self.earlier_files = [file for name in names for file in folder.glob(name)] if overwrite else []
        self.earlier_logs = self._logs()
        self.overwrite = overwrite

    @property
    def started(self) -> bool:
        """True once the first training step was reached, in any process."""
        return not (self.folder / _PENDING).exists()

    @contextmanager
    def restore_on_failure(self) -> Iterator[None]:
        """Remove the logs of this run after the block if it was not started; use in the first process only.

        Raises:
            DiskError: the folder cannot be created, or the disk is full.
        """
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        make_folder(self.folder)
        write_text(self.folder / _PENDING, self.config or "")  # finds a full disk before the loggers do
        try:
            yield
        finally:
            if not self.started:
                with defer_signals():
                    for log in self._logs() - self.earlier_logs:
                        _remove(log)
                    (self.folder / _PENDING).unlink()
                    for path in (self.folder / CSV, self.folder / TENSORBOARD, *missing):
                        with suppress(OSError):  # missing, or not empty
                            path.rmdir()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.config is None:
            (self.folder / _PENDING).unlink()
        else:
            os.replace(self.folder / _PENDING, self.folder / CONFIG)
        if self.overwrite:
            for path in (*self.earlier_files, *self.earlier_logs):
                _remove(path)

    def _logs(self) -> set[Path]:
        return {path for name in (CSV, TENSORBOARD) for path in (self.folder / name).glob("version_*")}


class LogOptions(Callback):
    """Give the options of the run to the loggers of the user.

    Args:
        loggers: loggers that the user has added.
        config: YAML text with the options of the run.
    """

    def __init__(self, loggers: Sequence[Logger], config: str | None) -> None:
        self.loggers, self.config = loggers, config

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.config is not None:
            for logger in set(self.loggers) & set(trainer.loggers):  # none in a fast_dev_run
                with explain_logger_error(logger):
                    logger.log_hyperparams(yaml.safe_load(self.config))


@contextmanager
def explain_logger_error(logger: Logger) -> Iterator[None]:
    """Turn any error of a logger, such as a missing account or server, into an ``InputError`` that names it."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {truncate(error)}"
        raise InputError(f"trainer.logger {type(logger).__name__}: {what}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class NonFiniteError(InputError):
    """Loss, weights or features are NaN or infinite; the message names the file with the batch."""


class NaNGuard(Callback):
    """Stop on a loss, weights or features of validation images that are NaN or infinite, and save the batch.

    The file ``not_finite.pt`` in the folder of the run has ``images`` (uint8, (n, 3, h, w)), ``labels`` (n,),
    ``paths`` of the images if known, ``epoch`` and ``batch`` (both from 0), ``step`` of the optimizer and
    ``losses``. ``torch.load(..., weights_only=True)`` reads it. No checkpoint with such weights is written.
    """

    def __init__(self) -> None:
        self.last: tuple[Any, int] | None = None  # last training batch and its number in the epoch
        self.finite = True  # features of validation images so far

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.last = batch, batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        losses = pl_module.step_losses  # not the loss given, which is scaled
        if torch.isfinite(losses["loss"]):
            return
        what, terms = f"the loss is {losses['loss'].item()}", pl_module.losses.terms
        entries = [
            term.label for name, term in terms.items() if term.label and not all_finite([losses[name]])
        ]
        raise self._save(trainer, f"{what}, from {entries[0]}," if entries else what, losses)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.finite = True

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.finite = self.finite and all_finite([outputs])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.last is None:
            return
        if not trainer.strategy.reduce_boolean_decision(self.finite):  # all processes stop together
            raise self._save(trainer, "features of validation images are not finite")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # a step may break the weights though its loss is finite: keep the previous checkpoint
        if self.last is not None and not all_finite(pl_module.parameters()):
            raise self._save(trainer, "weights are not finite after a step")

    def _save(
        self, trainer: pl.Trainer, what: str, losses: Mapping[str, Tensor] | None = None
    ) -> NonFiniteError:
        """Save the last training batch and return the error to raise."""
        assert self.last is not None
        (images, labels), number = self.last
        epoch, rank = trainer.current_epoch, trainer.global_rank
        data: ReIDData | Any = getattr(trainer, "datamodule", None)
        content = {
            "images": images.cpu(),
            "labels": labels.cpu(),
            "paths": data.batch_paths(epoch, number) if hasattr(data, "batch_paths") else None,
            "epoch": epoch,
            "batch": number,
            "step": trainer.global_step,
            "losses": {name: float(value.detach()) for name, value in (losses or {}).items()},
        }
        file = Path(trainer.default_root_dir) / NON_FINITE.replace("*", f"-rank{rank}" if rank else "")
        with atomic_file(file) as temporary:
            torch.save(content, temporary)
        return NonFiniteError(
            f"training: {what} in epoch {epoch + 1}, batch {number + 1}, which is saved in {file}; try a "
            "smaller learning rate, --trainer.gradient_clip_val, or --trainer.precision 32"
        )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether tensors have neither NaN nor infinite values."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class FolderCheckpoint(ModelCheckpoint):
    """Keep one checkpoint in the folder of the run, and its best score even if the folder is moved.

    Args:
        file: path of the checkpoint.
        at_epoch_end: save after each epoch rather than after each validation.
        options: options of ``ModelCheckpoint``.
    """

    def __init__(self, file: Path, *, at_epoch_end: bool, **options: Any) -> None:
        super().__init__(
            dirpath=file.parent,
            filename=file.stem,
            enable_version_counter=False,
            save_on_train_epoch_end=at_epoch_end,
            **options,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, which Lightning would drop if the folder has been moved."""
        score, file = state_dict["best_model_score"], os.path.join(str(self.dirpath), f"{self.filename}.ckpt")
        if score is not None and os.path.isfile(file):  # a score without its weights does not count
            paths = {"dirpath": self.dirpath, "best_model_path": file, "kth_best_model_path": file}
            scores = {"best_model_score": score, "kth_value": score, "best_k_models": {file: score}}
            super().load_state_dict(paths | scores)


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically: a killed run leaves the old file or the new one, complete."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        make_folder(Path(path).parent)
        with atomic_file(path) as temporary:
            with open(temporary, "wb") as file:  # given a path, torch writes its name into the checkpoint
                torch.save(checkpoint, file)
            sync(temporary)


class StepCheckpoint(Callback):
    """Save a checkpoint every ``every`` optimizer steps, except at the end of an epoch."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        stepped = done % trainer.accumulate_grad_batches == 0  # no accumulated gradients would be lost
        if stepped and trainer.global_step % self.every == 0 and done < trainer.num_training_batches:
            trainer.save_checkpoint(self.file)
