"""One training run in one folder: checkpoints, logs and the configuration that made them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from rga_reid.errors import InputError
from rga_reid.files import atomic_file, require_new
from rga_reid.training.data import ReIDData
from rga_reid.training.module import ReIDModule

LAST, BEST, CONFIG = "last.ckpt", "best.ckpt", "config.yaml"


def check_output(out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Path:
    """The run's folder, refused before any work if it would overwrite a run or has none to resume.

    Raises:
        InputError: the folder is not empty and neither option was given, or there is nothing to resume.
    """
    folder = Path(out)
    if resume and not (folder / LAST).is_file():
        raise InputError(f"--resume: {folder / LAST} does not exist; there is no run to go on with")
    require_new(folder, overwrite=overwrite or resume, hint="--overwrite or --resume")
    return folder


def fit(
    module: ReIDModule,
    data: ReIDData,
    out: str | os.PathLike[str],
    *,
    trainer: dict[str, Any] | None = None,
    config: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Path:
    """Train, and keep the last epoch (and the best one on the held-out identities, if there are any).

    Args:
        module, data: what to train, and on what.
        out: folder for ``last.ckpt``, ``best.ckpt``, ``config.yaml``, ``csv/`` and ``tensorboard/``.
        trainer: options of ``pytorch_lightning.Trainer``.
        config: YAML text to keep beside the checkpoints.
        overwrite: train into a folder that is not empty; checkpoints of an earlier run are removed first.
        resume: go on from ``last.ckpt``.

    Returns:
        The checkpoint to test: ``best.ckpt`` if identities were held out, else ``last.ckpt``.

    Raises:
        InputError: as ``check_output``; options that the trainer refuses.
    """
    folder = check_output(out, overwrite=overwrite, resume=resume)
    options = dict(trainer or {})
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (LAST, BEST):
            (folder / name).unlink(missing_ok=True)
    if config is not None:
        with atomic_file(folder / CONFIG) as temporary:
            temporary.write_text(config, encoding="utf-8")
    callbacks: list[Callback] = [
        *(options.pop("callbacks", None) or []),
        LearningRateMonitor("step"),
        _checkpoint(folder, LAST),
    ]
    if len(data.held_out):
        callbacks.append(_checkpoint(folder, BEST, monitor="val_mAP", mode="max"))
    else:
        options["limit_val_batches"] = 0
    if not sys.stderr.isatty():
        options["enable_progress_bar"] = False
        callbacks.append(EpochLines())
    with warnings.catch_warnings():
        # images lie decoded in memory, workers would only copy them; the folder is checked above
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch
        runner = pl.Trainer(
            **{"use_distributed_sampler": False, "num_sanity_val_steps": 0, **options},
            default_root_dir=folder,
            callbacks=callbacks,
            logger=[CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")],
        )
        try:
            runner.fit(
                module, datamodule=data, ckpt_path=str(folder / LAST) if resume else None, weights_only=True
            )
        except SystemExit:  # how Lightning leaves after Ctrl-C
            raise KeyboardInterrupt from None
    return folder / (BEST if len(data.held_out) else LAST)


class EpochLines(Callback):
    """One line an epoch, where a progress bar would fill a log file."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("lr")}
            values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {values}", flush=True)


def _checkpoint(folder: Path, name: str, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder,
        filename=Path(name).stem,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
        **options,
    )
