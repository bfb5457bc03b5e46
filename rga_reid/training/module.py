"""The LightningModule: model, losses, optimizer and schedule. Nothing else in the package trains."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rga_reid.errors import InputError, short_repr
from rga_reid.evaluation import LabelledFeatures, evaluate_features
from rga_reid.inputs import truncate
from rga_reid.models import build_model
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from rga_reid.models.embedding import uint8_batch
from rga_reid.models.resnet import MAX_SIDE, MIN_SIDE, STAGES
from rga_reid.training.augmentation import Augmentation, step_generator
from rga_reid.training.callbacks import check_all_finite, find_non_finite
from rga_reid.training.losses import ReIDLoss
from rga_reid.training.schedules import Schedule, WarmupStep

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


def adam(parameters: Iterable[Any]) -> Optimizer:
    """Adam with the released RGA code's settings: rate 8e-4, coupled weight decay 5e-4."""
    return torch.optim.Adam(parameters, lr=8e-4, weight_decay=5e-4)


class ReIDModule(pl.LightningModule):
    """Trains an ``EmbeddingModel`` on batches ``(uint8 images, labels)``.

    Args:
        classes: training identities; taken from the data set.
        depth: of the ResNet: 18, 34, 50 or 101.
        attention: after the stages: rga, rga_s, rga_c, pam, cam, dual, nonlocal, criss_cross, se, cbam; a
            class path with options; null for none.
        stages: those that it follows, of 1 to 4.
        last_stride: of the last stage, 1 or 2: 1 makes its map twice as high and wide.
        weights: of the ResNet: imagenet (torchvision's, downloaded once), a file, or null for random ones.
        size: height and width of the images, in pixels.
        stripes: embed this many horizontal parts too; 0 for none. See ``build_model`` for all of these.
        loss: label smoothing and triplet margin.
        augmentation: drawn per image, on the device.
        optimizer: class path and options; Adam as in the released RGA code by default.
        schedule: of the learning rate.
        input_sizes: rows (epoch, H, W): train on images of this size from this epoch on, the last row at
            ``size``; smaller ones first save time. Validation is always at ``size``.
        checkpointing: compute the activations of a stage again in the backward pass: the same gradients, less
            memory, more time.
        compile: let torch.compile make kernels for the model; the first steps take minutes.
        channels_last: keep weights as (n, H, W, C) in memory, which images follow: faster convolutions.
        seed: of the augmentation; taken from ``--seed``.

    Raises:
        InputError: sizes that do not end in the model's; an optimizer that cannot be made.
    """

    def __init__(
        self,
        classes: int = 0,
        depth: int = 50,
        attention: str | dict[str, Any] | None = "rga",
        stages: Sequence[int] = STAGES,
        last_stride: int = 1,
        weights: str | None = "imagenet",
        size: tuple[int, int] = (256, 128),
        stripes: int = 0,
        loss: ReIDLoss | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        optimizer: OptimizerFactory = adam,
        schedule: Schedule = WarmupStep(),  # noqa: B008 (frozen)
        input_sizes: Sequence[tuple[int, int, int]] = (),
        checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Gradients through many sigmoids fall below 1e-38, where a CPU is several times slower. Threads take
        # this setting over from the one that starts them, so it stands before the first parallel work.
        torch.set_flush_denormal(True)
        height, width = size
        for epoch, *sides in input_sizes:
            if epoch < 0 or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
                raise InputError(
                    f"input_sizes: expected epochs from 0, and sides of {MIN_SIDE} to {MAX_SIDE} pixels, got "
                    f"{short_repr((epoch, *sides))}"
                )
        self.input_sizes = {0: (height, width), **{epoch: (h, w) for epoch, h, w in input_sizes}}
        if self.input_sizes[max(self.input_sizes)] != (height, width):
            raise InputError(f"input_sizes: the last one must be the model's size {height}x{width}")
        self.model = build_model(
            classes=classes,
            depth=depth,
            attention=attention,
            stages=stages,
            last_stride=last_stride,
            weights=weights,
            size=size,
            stripes=stripes,
        )
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model.backbone.checkpointing = checkpointing
        if compile:
            self.model.compile()
        self.loss = loss or ReIDLoss()
        self.augmentation, self.seed = augmentation, seed
        self.optimizer, self.schedule = optimizer, schedule
        self._validation: list[tuple[Tensor, Tensor]] = []
        self._last: tuple[tuple[Tensor, Tensor], int] | None = None  # batch and its number
        self._make_optimizer()  # a wrong option is told before anything is trained

    def _make_optimizer(self) -> Optimizer:
        try:
            return self.optimizer([p for p in self.model.parameters() if p.requires_grad])
        except Exception as error:  # one of the recipe's choice may fail in any way
            raise InputError(f"optimizer: {truncate(error)}") from None

    def configure_optimizers(self) -> Any:
        optimizer, trainer = self._make_optimizer(), self.trainer
        steps = self._steps_per_epoch()
        if not math.isfinite(trainer.estimated_stepping_batches):
            raise InputError("trainer: the schedule needs the run's length: give max_epochs or max_steps")
        epochs = self._epochs()
        if _unscales(optimizer) and _scaler(trainer) is not None and trainer.gradient_clip_val:
            raise InputError(
                "optimizer: a fused one cannot clip gradients in float16; give fused: false, precision "
                "bf16-mixed or no gradient_clip_val"
            )

        def factor(step: int) -> float:
            return self.schedule.factor(step / steps, epochs)

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def _steps_per_epoch(self) -> int:
        try:
            self.trainer.fit_loop.setup_data()  # which tells the number of batches; done once
        except InputError:
            raise
        except ValueError as error:  # Lightning's, about options that do not go with that number
            raise InputError(f"trainer: {truncate(error)}") from None
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)

    def _epochs(self) -> float:
        """The length of the training, however it is given; it may end within an epoch."""
        return self.trainer.estimated_stepping_batches / self._steps_per_epoch()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; for fused optimizers too, unless they are scaled.

        Lightning refuses that in every mixed precision, since a fused optimizer takes the scale out of the
        gradients in its own step, after clipping; but only float16 has a scale.
        """
        plugin = self.trainer.precision_plugin
        if _unscales(optimizer) and _scaler(self.trainer) is None:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, kind)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _set_input_size(self, size: tuple[int, int]) -> None:
        self.input_size = (size[0], size[1])
        self.model.backbone.set_input_size(self.input_size)

    def on_fit_start(self) -> None:
        epochs, first = self._epochs(), max(self.input_sizes)
        tried = getattr(self.trainer, "fast_dev_run", False)  # of one step: it goes nowhere
        if epochs <= first and self.trainer.is_global_zero and not tried:
            height, width = self.model.size
            print(
                f"note: this training has {epochs:.4g} epochs, but images of {height}x{width} begin "
                f"with epoch {first}, counted from 0: give model.input_sizes that go with its length",
                file=sys.stderr,
            )

    def on_fit_end(self) -> None:
        self._set_input_size(self.model.size)  # the model is whole, whenever the training ends

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        # here, not at an epoch's start: a resumed epoch has none, and validation may come in its middle
        self._set_input_size(self.input_sizes[max(e for e in self.input_sizes if e <= self.current_epoch)])
        # not the optimizer's step: batches whose gradients are accumulated differ too
        generator = step_generator(self.seed, self.current_epoch, batch_index, self.global_rank)
        model = self.model
        x = self.augmentation(images, self.input_size, model.mean, model.std, generator)
        # what a model draws itself (dropout) hangs on the step alone, too
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        losses = self.loss(model(x), labels)
        self._last = batch, batch_index
        if not torch.isfinite(losses["loss"]):
            raise find_non_finite(f"the loss is {losses['loss'].item()}", self.trainer, *self._last, losses)
        self.log_dict(losses, prog_bar=True, batch_size=len(images))
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        self._set_input_size(self.model.size)
        self._validation = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, rows = batch
        features = self.model(self.model.normalise(uint8_batch(images, self.model.size, images.device)))
        self._validation.append((features.float().cpu(), rows.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Rank the held-out identities: each (identity, camera) asks once, against all the others."""
        table = self.trainer.datamodule.held_out  # type: ignore[attr-defined]
        features = torch.cat([features for features, _ in self._validation])
        rows = torch.cat([rows for _, rows in self._validation])
        self._validation = []
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, (features, rows))
            features, rows = (torch.cat([share[i] for share in shares]) for i in (0, 1))
        if self.trainer.sanity_checking:
            return
        if self._last is not None and not check_all_finite([features]):
            raise find_non_finite("features of held-out images are not finite", self.trainer, *self._last)
        seen, first = np.unique(rows.numpy(), return_index=True)  # fewer than all, if validation was limited
        table, ranked = table.iloc[seen], features.numpy()[first]
        asks = (~table.duplicated(["pid", "camid"])).to_numpy()
        query = LabelledFeatures.from_table(ranked[asks], table[asks], name="query")
        result = evaluate_features(query, LabelledFeatures.from_table(ranked, table, name="gallery"))
        self.log_dict(
            {"val_mAP": result.mAP, "val_rank1": result.rank(1)}, prog_bar=True, sync_dist=False, batch_size=1
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # a finite loss may have led to a step that broke the weights: the checkpoint before is the better one
        if self._last is not None and not check_all_finite(self.parameters()):
            raise find_non_finite("weights are not finite after a step", self.trainer, *self._last)
        checkpoint[CONFIG_KEY] = self.model.config
        data = getattr(self.trainer, "datamodule", None)
        checkpoint[DATA_KEY] = getattr(data, "statistics", None)  # one's own data may tell nothing


def _scaler(trainer: pl.Trainer) -> Any:
    """What scales the loss, in float16; None elsewhere."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _unscales(optimizer: Optimizer) -> bool:
    """Whether its step divides gradients by the scale itself, as fused ones do; Lightning looks there."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
