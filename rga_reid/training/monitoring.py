"""Metrics of each epoch, and lines about the progress where there is no terminal for a bar."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from rga_reid.runtime import waited_seconds

RATE = "images_per_second"  #: logged metric: training images of all processes, without the time of validation
BUSY = 0.1  #: share of the time from which other programs are mentioned
EPOCH = "_epoch"  #: suffix of metrics that are logged once per epoch


class EpochMetrics(Callback):
    """Log once per epoch the mean of each loss, the learning rate, and the images per second.

    The names are those of the losses with the suffix ``_epoch``, ``lr_epoch`` (of the last step) and
    ``images_per_second``.
    """

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.sum: Tensor | None = None  # of the losses over the steps
        self.steps = self.images = 0
        self.learning_rate, self.seconds = 0.0, 0.0
        self.since: float | None = None  # when the clock was started; None while it is stopped

    def state_dict(self) -> dict[str, Any]:
        return {"sum": None if self.sum is None else self.sum.tolist(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sums of an interrupted epoch; the speed is that of its remaining steps."""
        saved = state_dict["sum"]
        self.sum, self.steps = None if saved is None else torch.tensor(saved), state_dict["steps"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.since is None:  # not at the start of an epoch: a resumed epoch has none
            self.since = time.monotonic()
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        losses = torch.stack([value.detach() for value in pl_module.step_losses.values()])
        self.sum = losses if self.sum is None else self.sum.to(losses) + losses
        self.steps, self.images = self.steps + 1, self.images + len(batch[0])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self.since is not None:
            self.seconds, self.since = self.seconds + time.monotonic() - self.since, None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop_clock()
        if self.sum is not None:
            means = (self.sum / self.steps).unbind()
            metrics = {
                f"{name}{EPOCH}": mean for name, mean in zip(pl_module.step_losses, means, strict=True)
            }
            metrics[f"lr{EPOCH}"] = torch.tensor(self.learning_rate)
            metrics[RATE] = torch.tensor(self.images * trainer.world_size / max(self.seconds, 1e-9))
            pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1, batch_size=1)
        self._clear()


class ProgressLines(Callback):
    """Print a line after each epoch, and now and then within a long one, in place of a progress bar.

    On a CPU, a first line names the number of threads. The other lines say if other programs kept the processor busy,
    which makes a training slower.

    If standard output fails, the training stops after this epoch's checkpoint, and ``error`` is set.

    Args:
        every: seconds between two lines within an epoch.
        bar: a progress bar shows the epochs; only the first line is printed.
    """

    def __init__(self, every: float = 60.0, *, bar: bool = False) -> None:
        self.every, self.bar = every, bar
        self.error: OSError | None = None
        self.start = self.printed = 0.0
        self.first: int | None = None  # step of the optimizer at ``start``
        self.images = 0
        self.waited: float | None = None  # for a processor, at ``start``
        self.validated = False  # in this epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.strategy.root_device.type == "cpu":
            self._say(trainer, _describe_cpu(trainer))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.first is None:  # not at the start of an epoch: a resumed epoch has none
            self.start = self.printed = time.monotonic()
            self.first, self.images = trainer.global_step, 0
            self.waited = waited_seconds()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        now, batches = time.monotonic(), trainer.num_training_batches
        if now - self.printed >= self.every and batch_idx + 1 < batches:
            self.printed = now
            values = {name: float(value.detach()) for name, value in pl_module.step_losses.items()}
            rate = self.images / max(now - self.start, 1e-9)
            # the comma keeps this apart from the line of a complete epoch
            self._print(trainer, f", step {batch_idx + 1}/{int(batches)}", values, rate)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {  # Lightning keeps those of the last validation
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self.validated or not name.startswith("val_")
        }
        self.validated = False
        values = {
            name: metrics.get(name + EPOCH, value)
            for name, value in metrics.items()
            if not name.startswith("lr") and not name.endswith(EPOCH) and name != RATE
        }
        self._print(trainer, "", values, metrics.get(RATE, 0.0))
        self.first = None
        if self.error is not None:
            trainer.should_stop = True

    def _print(self, trainer: pl.Trainer, step: str, values: dict[str, float], rate: float) -> None:
        """Print one line of an epoch."""
        if self.bar:
            return
        epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""  # none with max_steps
        words = [f"epoch {trainer.current_epoch + 1}{epochs}{step}"]
        words += [f"{name} {value:.4f}" for name, value in values.items()]
        words.append(f"{rate:.3g} images/s" if rate < 100 else f"{rate:.0f} images/s")
        if (left := self._seconds_left(trainer)) is not None:
            words.append(f"{format_seconds(left)} left")
        if (busy := self._busy_share()) >= BUSY:
            words.append(f"(other programs kept the processor busy {100 * busy:.0f} % of the time)")
        self._say(trainer, "  ".join(words))

    def _say(self, trainer: pl.Trainer, line: str) -> None:
        """Print a line in the first process."""
        if not trainer.is_global_zero or self.error is not None:
            return
        try:
            print(line, flush=True)
        except OSError as error:
            if trainer.world_size > 1:  # the other processes would wait for this one
                raise
            self.error = error

    def _busy_share(self) -> float:
        """Return the share of the time of this epoch in which the process waited for a processor."""
        now = waited_seconds()
        if now is None or self.waited is None:
            return 0.0
        return (now - self.waited) / max(time.monotonic() - self.start, 1e-9)

    def _seconds_left(self, trainer: pl.Trainer) -> float | None:
        """Return the time of the remaining steps if they take as long as those of this epoch."""
        steps = trainer.global_step - (self.first or 0)
        left = trainer.estimated_stepping_batches - trainer.global_step
        if self.first is None or not steps or not 0 < left < float("inf"):
            return None
        return left * (time.monotonic() - self.start) / steps


def _describe_cpu(trainer: pl.Trainer) -> str:
    """Return a line with the processes, threads and precision of a training on a CPU."""
    threads, processes = torch.get_num_threads(), trainer.world_size
    words = f"{threads} thread{'s' * (threads > 1)}"
    if processes > 1:
        words = f"{processes} processes with {words} each"
    return f"training on the CPU: {words}, precision {trainer.precision}"


def format_seconds(seconds: float) -> str:
    """Return a duration in words, such as ``40 s``, ``12 min`` or ``3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
