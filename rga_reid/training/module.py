"""LightningModule: model, losses, optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rga_reid._deprecated import accept_flat_arguments, rename_option_arguments
from rga_reid.errors import InputError
from rga_reid.evaluation import LabelledFeatures, evaluate_features
from rga_reid.inputs import truncate
from rga_reid.models import EmbeddingModel, build_model
from rga_reid.models.checkpoints import CONFIG_KEY, DATA_KEY
from rga_reid.models.embedding import uint8_batch
from rga_reid.models.resnet import Size
from rga_reid.training.augmentation import Augmentation, step_generator
from rga_reid.training.callbacks import ResolutionSchedule
from rga_reid.training.losses import LossEntry, ReIDLoss, ReIDLosses
from rga_reid.training.schedules import Schedule, WarmupStep

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


def adam(parameters: Iterable[Any]) -> Optimizer:
    """Make the optimizer of the released RGA code: Adam, learning rate 8e-4, coupled weight decay 5e-4."""
    return torch.optim.Adam(parameters, lr=8e-4, weight_decay=5e-4)


class ReIDModule(pl.LightningModule):
    """Train an ``EmbeddingModel`` on batches ``(uint8 images, labels)``.

    Args:
        model: model in training mode. Its classifier is removed if no loss is computed on logits.
        losses: losses, whose own parameters are trained and saved, too; by default ``ReIDLoss()``.
        augmentation: augmentation, drawn per image on the device.
        optimizer: function from parameters to an optimizer; by default Adam as in the released RGA code.
        schedule: schedule of the learning rate.
        callbacks: Lightning callbacks that belong to this model, such as a ``ResolutionSchedule``.
        seed: random seed of augmentation and dropout.

    Raises:
        InputError: an optimizer that cannot be made; a loss on logits for a model without classifier.
    """

    @accept_flat_arguments("build_reid_module")
    def __init__(
        self,
        model: EmbeddingModel,
        losses: ReIDLosses | None = None,
        *,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        optimizer: OptimizerFactory = adam,
        schedule: Schedule = WarmupStep(),  # noqa: B008 (frozen)
        callbacks: Sequence[pl.Callback] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.losses = ReIDLoss() if losses is None else losses
        _use_what_losses_need(self.model, self.losses)
        self.augmentation, self.seed = augmentation, seed
        self.optimizer, self.schedule = optimizer, schedule
        self.callbacks = list(callbacks)
        self.input_size = model.size
        #: losses of the last training step, see ``ReIDLosses.forward``
        self.step_losses: dict[str, Tensor] = {}
        self._validation: list[tuple[Tensor, Tensor]] = []
        self._make_optimizer()  # raises for wrong options before training

    def configure_callbacks(self) -> list[pl.Callback]:
        return self.callbacks

    def _make_optimizer(self) -> Optimizer:
        try:
            return self.optimizer([p for p in self.parameters() if p.requires_grad])
        except Exception as error:  # any class may be given
            raise InputError(f"optimizer: {truncate(error)}") from None

    def configure_optimizers(self) -> Any:
        optimizer, trainer = self._make_optimizer(), self.trainer
        steps = self._steps_per_epoch()
        if not math.isfinite(trainer.estimated_stepping_batches):
            raise InputError("trainer: the schedule needs the length of the run: set max_epochs or max_steps")
        epochs = self.count_epochs()
        if _unscales(optimizer) and _scaler(trainer) is not None and trainer.gradient_clip_val:
            raise InputError(
                "optimizer: a fused optimizer cannot clip gradients in float16; use fused: false, precision "
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
            self.trainer.fit_loop.setup_data()  # sets the number of batches; done once
        except InputError:
            raise
        except ValueError as error:  # Lightning's, about options that do not fit the number of batches
            raise InputError(f"trainer: {truncate(error)}") from None
        return -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)

    def count_epochs(self) -> float:
        """Return the length of the training in epochs, which may end within an epoch."""
        return self.trainer.estimated_stepping_batches / self._steps_per_epoch()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, also for fused optimizers if gradients are not scaled.

        Lightning refuses fused optimizers in every mixed precision, because they unscale gradients in their
        step, after clipping. But only float16 scales gradients.
        """
        plugin = self.trainer.precision_plugin
        if _unscales(optimizer) and _scaler(self.trainer) is None:
            kind = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, kind)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def set_input_size(self, size: Size) -> None:
        """Set the height and width of the images in training steps."""
        self.input_size = (size[0], size[1])
        self.model.backbone.set_input_size(self.input_size)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        images, labels = batch
        # not from the optimizer's step, which is the same for accumulated batches
        generator = step_generator(self.seed, self.current_epoch, batch_index, self.global_rank)
        model = self.model
        x = self.augmentation(images, self.input_size, model.mean, model.std, generator)
        with _fork_rng(int(torch.randint(2**62, (), generator=generator)), x.device):  # dropout
            losses = self.step_losses = self.losses(model(x), labels)
        self.log_dict(losses, prog_bar=True, batch_size=len(images))
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        self._validation = []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the features of the images, float32 ``(n, d)`` on the CPU."""
        images, rows = batch
        features = self.model(self.model.normalise(uint8_batch(images, self.model.size, images.device)))
        features = features.float().cpu()
        self._validation.append((features, rows.cpu()))
        return features

    def on_validation_epoch_end(self) -> None:
        """Rank the validation images, with one query for each camera of each identity."""
        table = self.trainer.datamodule.val_table  # type: ignore[attr-defined]
        features = torch.cat([features for features, _ in self._validation])
        rows = torch.cat([rows for _, rows in self._validation])
        self._validation = []
        if self.trainer.world_size > 1:
            shares: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, (features, rows))
            features, rows = (torch.cat([share[i] for share in shares]) for i in (0, 1))
        if self.trainer.sanity_checking:
            return
        seen, first = np.unique(rows.numpy(), return_index=True)  # not all, with limit_val_batches
        table, ranked = table.iloc[seen], features.numpy()[first]
        is_query = (~table.duplicated(["pid", "camid"])).to_numpy()
        query = LabelledFeatures.from_table(ranked[is_query], table[is_query], name="query")
        result = evaluate_features(query, LabelledFeatures.from_table(ranked, table, name="gallery"))
        self.log_dict(
            {"val_mAP": result.mAP, "val_rank1": result.rank(1)}, prog_bar=True, sync_dist=False, batch_size=1
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self.model.config
        data = getattr(self.trainer, "datamodule", None)
        checkpoint[DATA_KEY] = getattr(data, "statistics", None)  # not in a user's data module


@rename_option_arguments("model")
def build_reid_module(
    classes: int = 0,
    backbone: str | dict[str, Any] = "resnet50",
    attention: str | dict[str, Any] | None = "rga",
    stages: Sequence[int] | None = None,
    last_stride: int | None = None,
    weights: str | None = "imagenet",
    size: tuple[int, int] = (256, 128),
    stripes: int = 0,
    loss: ReIDLoss | None = None,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
    optimizer: OptimizerFactory = adam,
    schedule: Schedule = WarmupStep(),  # noqa: B008 (frozen)
    resolution_schedule: Sequence[tuple[int, int, int]] = (),
    checkpointing: bool = False,
    compile: bool = False,
    channels_last: bool = True,
    seed: int = 0,
    losses: list[dict] | None = None,
    frozen_stages: int = 0,
    pooling: Literal["avg", "gem"] = "avg",
    embedding_dim: int | None = None,
    neck: Literal["bn", "bn_relu"] = "bn",
) -> ReIDModule:
    """Build a ``ReIDModule`` from the plain values of a recipe.

    Args:
        classes: number of training identities; taken from the data set.
        backbone: resnet18, resnet34, resnet50 or resnet101, each also with _ibn_a; osnet_x1_0, osnet_ain_x1_0 and
            other widths; timm/NAME or torchvision/NAME for a network of these libraries; a class path with
            options for your own. See docs/extending.md.
        attention: attention module after the stages: rga, rga_s, rga_c, pam, cam, dual, nonlocal,
            criss_cross, se, cbam; a class path with options; null for none.
        stages: stages followed by an attention module, numbered from 1; null for all.
        last_stride: stride of the last stage, 1 or 2; 1 doubles the height and width of its map. null for 1
            where the backbone allows it.
        weights: initial weights: imagenet (of torchvision or timm, downloaded once); a file of such weights; a
            checkpoint of this program, whose classifier is left out; null for random ones.
        size: height and width of the images, in pixels.
        stripes: number of horizontal stripes that are embedded in addition to the whole image.
        loss: cross-entropy and triplet loss, used if ``losses`` is null.
        augmentation: augmentation, drawn per image on the device.
        optimizer: class path and options; by default Adam as in the released RGA code.
        schedule: schedule of the learning rate.
        resolution_schedule: rows (epoch, H, W): train on images of this size from this epoch on. The last row
            has the model's ``size``; smaller images first save time. Validation always uses ``size``.
        checkpointing: recompute activations in the backward pass: same gradients, less memory, more time.
        compile: compile the model with torch.compile; the first steps take minutes.
        channels_last: keep weights and activations in channels-last memory format, which is faster.
        seed: random seed of augmentation and dropout; taken from ``--seed``.
        losses: list of losses in place of ``loss``, each with class_path, init_args, weight, on (pre_neck,
            post_neck or logits) and miner; see docs/extending.md.
        frozen_stages: number of first stages that, with what is before them, keep their initial weights and
            statistics. Attention modules after them are trained. Saves time and memory in training from
            pretrained weights.
        pooling: pooling of the last map: avg, or gem for the generalised mean with a trained exponent.
        embedding_dim: size of the embedding, reduced by a linear layer before the neck; null for the channels of
            the backbone.
        neck: bn, or bn_relu for a batch norm with bias and ReLU, as in OSNet.

    Raises:
        InputError: a ``resolution_schedule`` that does not end with ``size``; more ``frozen_stages`` than the
            backbone has; a model, loss or optimizer that cannot be made.
    """
    height, width = size
    callbacks = [ResolutionSchedule(resolution_schedule, (height, width))] if resolution_schedule else []
    entries = None
    if losses is not None:
        entries = [LossEntry.read(f"model.losses[{row}]", entry) for row, entry in enumerate(losses)]
    has_classifier = entries is None or any(entry.on == "logits" for entry in entries)
    model = build_model(
        classes=classes if has_classifier else 0,
        backbone=backbone,
        attention=attention,
        stages=stages,
        last_stride=last_stride,
        weights=weights,
        size=size,
        stripes=stripes,
        pooling=pooling,
        embedding_dim=embedding_dim,
        neck=neck,
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    model.backbone.checkpointing = checkpointing
    if frozen_stages:
        model.backbone.freeze_stages(frozen_stages)
    if compile:
        model.compile()
    if entries is not None:
        terms = [entry.build(classes=classes, dimension=model.dimension) for entry in entries]
    return ReIDModule(
        model,
        loss if entries is None else ReIDLosses(terms),
        augmentation=augmentation,
        optimizer=optimizer,
        schedule=schedule,
        callbacks=callbacks,
        seed=seed,
    )


def _use_what_losses_need(model: EmbeddingModel, losses: ReIDLosses) -> None:
    """Remove the classifier if no loss is computed on logits, and freeze a neck that gets no gradient.

    Distributed training fails for parameters without gradient.

    Raises:
        InputError: a loss is computed on logits, but the model has no classifier.
    """
    if "logits" not in losses.fields:
        model.classifier = None
    elif model.classifier is None:
        raise InputError("losses: a loss on logits needs a model with a classifier; build it with classes")
    if losses.fields == {"pre_neck"}:
        model.neck.requires_grad_(False)


@contextmanager
def _fork_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random generators of CPU and device inside the block, and restore them after it."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


def _scaler(trainer: pl.Trainer) -> Any:
    """Return the loss scaler of float16; None for other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _unscales(optimizer: Optimizer) -> bool:
    """Return whether the optimizer's step unscales gradients itself, as fused ones do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
