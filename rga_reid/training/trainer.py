"""One training run in one folder: checkpoints, logs and the configuration that made them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rga_reid.errors import InputError, check_int
from rga_reid.files import DiskError, atomic_file, disk_error, make_folder, require_new, sync
from rga_reid.inputs import truncate
from rga_reid.models.weights import diff_state_dicts, read_torch
from rga_reid.runtime import keep_freed_memory
from rga_reid.training.callbacks import BATCHES, DeferredOverwrite
from rga_reid.training.datamodule import ReIDData
from rga_reid.training.module import ReIDModule

LAST, BEST, CONFIG = "last.ckpt", "best.ckpt", "config.yaml"
TEST = "test.json"  # metrics of a test of the checkpoint, where there was one
CSV, TENSORBOARD = "csv", "tensorboard"


def check_output(out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Path:
    """The run's folder, refused before any work if it would overwrite a run or has none to resume.

    Raises:
        InputError: the folder is not empty and neither option was given, there is nothing to resume, nothing
            can be written there, or a link lies in place of the logs.
    """
    folder = Path(out)
    if not is_first_process():  # the first one looked, and may have begun to write since
        return folder
    if resume and not (folder / LAST).is_file():
        raise InputError(f"--resume: {folder / LAST} does not exist; there is no run to go on with")
    require_new(folder, overwrite=overwrite or resume, hint="--overwrite or --resume")
    for log in (CSV, TENSORBOARD):
        if (folder / log).is_symlink() and not resume:  # what is behind it may be anybody's
            raise InputError(f"{folder / log}: is a link; expected a folder, whose logs would be replaced")
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
    save_every: int | None = None,
) -> Path:
    """Train, and keep the last epoch (and the best one on the held-out identities, if there are any).

    Args:
        module, data: what to train, and on what.
        out: folder for ``last.ckpt``, ``best.ckpt``, ``config.yaml``, ``csv/`` and ``tensorboard/``.
        trainer: options of ``pytorch_lightning.Trainer``; ``precision`` may be ``auto``, see
            ``resolve_precision``.
        config: YAML text to keep beside the checkpoints.
        overwrite: train into a folder that is not empty; checkpoints, logs and ``test.json`` of an earlier
            run are removed when the first step is due.
        resume: go on from ``last.ckpt``, to the same weights as without an interruption.
        save_every: write ``last.ckpt`` every so many steps too, not only after each epoch.

    Returns:
        The checkpoint to test: ``best.ckpt`` if held-out identities were ranked, else ``last.ckpt``.

    Raises:
        InputError: as ``check_output``; options that the trainer refuses; the disk is full; a loss, weights
            or features that are not finite (``NotFiniteError``).
    """
    folder = check_output(out, overwrite=overwrite, resume=resume)
    options = dict(trainer or {})
    if save_every is not None:
        check_int("save_every", save_every)
    callbacks: list[Callback] = _listed(options.pop("callbacks", None))
    if resume:
        _check_same_run(module, data, folder / LAST, callbacks)
    beginning = _beginning(folder, config, resume)
    callbacks.append(beginning)
    lines = EpochLines()
    if not sys.stderr.isatty():
        options["enable_progress_bar"] = False
        callbacks.append(lines)
    with warnings.catch_warnings():
        # images lie decoded in memory, workers would only copy them; the folder is checked above
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch
        runner = _trainer(folder, options, callbacks, ranked=len(data.held_out) > 0, save_every=save_every)
        on_cpu = runner.strategy.root_device.type == "cpu"
        try:
            with (
                beginning.awaited() if is_first_process() else nullcontext(),
                keep_freed_memory() if on_cpu else nullcontext(),
            ):
                runner.fit(
                    module,
                    datamodule=data,
                    ckpt_path=str(folder / LAST) if resume else None,
                    weights_only=True,
                )
                if not (resume or beginning.begun):
                    raise InputError("trainer: nothing was trained: its options leave no step, or no time")
        except SystemExit as leave:  # how Lightning leaves after Ctrl-C, and after SIGTERM where nobody asked
            stop = leave.__context__
            raise (stop if isinstance(stop, KeyboardInterrupt) else leave) from None
        except MisconfigurationException as error:  # options that fail only together with the data
            raise InputError(f"trainer: {truncate(error)}") from None
        except OSError as error:  # the logs are written by others
            reason = disk_error(error)
            if reason is None:
                raise
            raise DiskError(folder, reason) from error
    if lines.problem is not None:
        raise lines.problem
    best = folder / BEST  # not there if nothing was validated
    return best if len(data.held_out) and best.is_file() else folder / LAST


def is_first_process() -> bool:
    """Whether this process is the one that writes; told by the environment, before any trainer is there."""
    return not getattr(rank_zero_only, "rank", 0)


def _trainer(
    folder: Path, options: dict[str, Any], callbacks: list[Callback], *, ranked: bool, save_every: int | None
) -> pl.Trainer:
    """The trainer of a run: options and callbacks of the user, and what every run has."""
    _check_options(options)
    options["use_distributed_sampler"] = False  # the sampler knows its process
    options["num_sanity_val_steps"] = options.get("num_sanity_val_steps") or 0
    options["precision"] = resolve_precision(options.get("precision"), options.get("accelerator", "auto"))
    options["plugins"] = [*_listed(options.get("plugins")), AtomicCheckpoints()]
    callbacks = [*callbacks, LearningRateMonitor("step")]
    if ranked:  # before the last one, which then holds the best score so far
        best = FolderCheckpoint(folder / BEST, at_epoch_end=False, monitor="val_mAP", mode="max")
        callbacks.append(best)
    else:
        options["limit_val_batches"] = 0
    callbacks.append(FolderCheckpoint(folder / LAST, at_epoch_end=True))
    if save_every is not None:
        callbacks.append(StepCheckpoint(folder / LAST, save_every))
    logger = [CSVLogger(folder, name=CSV), TensorBoardLogger(folder, name=TENSORBOARD)]
    try:
        return pl.Trainer(**options, default_root_dir=folder, callbacks=callbacks, logger=logger)
    except Exception as error:  # Lightning raises nearly anything about options that do not go together
        raise InputError(f"trainer: {truncate(error)}") from None


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what Lightning takes, and then fails at when the run has begun, or the machine with it."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if options.get(name) == 0:
            raise InputError(f"trainer.{name}: expected more than 0, or there is nothing to train")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (every := options.get(name)) is not None:
            check_int(f"trainer.{name}", every)
    if options.get("overfit_batches"):  # it puts a sampler of its own in place of the one of identities
        raise InputError("trainer.overfit_batches: cannot be used here; see limit_train_batches")
    # on a CPU any number of processes is started, whatever the memory; two can be tried anywhere
    most = max(2, os.cpu_count() or 1, torch.cuda.device_count())
    devices = str(options.get("devices"))
    if devices.isdecimal() and int(devices) > most:
        raise InputError(f"trainer.devices: expected at most {most} on this machine, got {devices}")


class FolderCheckpoint(ModelCheckpoint):
    """Keeps one file in the run's folder, and its best score wherever that folder is moved to.

    Args:
        file: to be written.
        at_epoch_end: at the end of each epoch, or of each validation.
        options: of ``ModelCheckpoint``.
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
        """Take the best score over, which Lightning forgets where the folder has another name than before."""
        here = os.fspath(self.dirpath or "")

        def moved(path: str) -> str:
            return os.path.join(here, os.path.basename(path)) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = moved(state.get(name, ""))
        models = state.get("best_k_models", {})
        state["best_k_models"] = {moved(path): score for path, score in models.items()}
        if os.path.isfile(state["best_model_path"]):  # what has a score must be there
            super().load_state_dict(state)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints so that a run that is killed leaves the old one or the new one, whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        make_folder(Path(path).parent)
        with atomic_file(path) as temporary:
            with open(temporary, "wb") as file:  # torch would put the draft's name into the checkpoint
                torch.save(checkpoint, file)
            sync(temporary)


class StepCheckpoint(Callback):
    """Saves the state every so many optimizer steps; the end of an epoch has a checkpoint of its own."""

    def __init__(self, file: Path, every: int) -> None:
        self.file, self.every = file, every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        stepped = done % trainer.accumulate_grad_batches == 0  # no gradients wait for the rest of their step
        if stepped and trainer.global_step % self.every == 0 and done < trainer.num_training_batches:
            trainer.save_checkpoint(self.file)


class EpochLines(Callback):
    """One line an epoch, where a progress bar would fill a log file.

    If standard output does not take it, ``problem`` says why, and the training ends with this epoch: after
    its checkpoint, which Lightning writes last.
    """

    def __init__(self) -> None:
        self.problem: OSError | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("lr")}
            values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            # one of so many steps has no number of epochs
            epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
            try:
                print(f"epoch {trainer.current_epoch + 1}{epochs}  {values}", flush=True)
            except OSError as error:
                if trainer.world_size > 1:  # the others would wait for one that leaves
                    raise
                self.problem, trainer.should_stop = error, True


def _beginning(folder: Path, config: str | None, resume: bool) -> DeferredOverwrite:
    earlier = (folder / LAST, folder / BEST, folder / TEST, *folder.glob(BATCHES))
    return DeferredOverwrite(
        folder,
        [folder / CSV, folder / TENSORBOARD],
        replaced=None if resume else earlier,
        config=None if config is None else (folder / CONFIG, config),
    )


def _check_same_run(
    module: ReIDModule, data: ReIDData, checkpoint: Path, callbacks: Sequence[Callback]
) -> None:
    """Refuse to resume another run, and say in what it differs."""
    content = read_torch(checkpoint)
    found, own = content.get("current_model_state", content.get("state_dict", {})), module.state_dict()
    key = "model.classifier.weight"
    classes = [state[key].shape[0] if key in state else 0 for state in (found, own)]
    if classes[0] != classes[1]:
        raise InputError(
            f"--resume: {checkpoint} was trained on {classes[0]} identities, this data set has {classes[1]} "
            "to train on; resume with the same data set and the same --data.held_out"
        )
    state = content.get(type(data).__qualname__, {})  # where Lightning keeps that of a data module
    if state.get("images", data.digest) != data.digest:
        raise InputError(
            f"--resume: {checkpoint} was trained on other images than these; resume with the same data set, "
            "--data.held_out and --data.held_out_seed"
        )
    before = state.get("batch", data.batch)
    changed = [name for name in data.batch if before[name] != data.batch[name]]
    if changed:
        was, now = (", ".join(f"{name} {batch[name]}" for name in changed) for batch in (before, data.batch))
        raise InputError(f"--resume: {checkpoint} was trained in other batches: {was}, now {now}")
    averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
    if averaged != ("current_model_state" in content):
        how = "without" if averaged else "with"
        raise InputError(f"--resume: {checkpoint} was trained {how} a moving average; resume {how} one, too")
    wrong = diff_state_dicts(own, found)
    if wrong:
        raise InputError(f"--resume: {checkpoint} holds another model: {wrong}")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


_WHOLE = ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16")

#: what ``trainer.precision`` takes: Lightning's own values, and ``auto``
Precision = get_type_hints(pl.Trainer.__init__)["precision"] | Literal["auto"]


def resolve_precision(precision: Any, accelerator: Any = "auto") -> Any:
    """Lightning's name for a precision: ``auto`` becomes ``bf16-mixed`` or ``32-true``, others stay.

    Args:
        precision, accelerator: options of ``pytorch_lightning.Trainer``.

    Raises:
        InputError: a precision of the weights themselves other than float32.
    """
    if str(precision) in _WHOLE:
        raise InputError(
            f"trainer.precision: expected 32-true, 16-mixed, bf16-mixed or auto, got {precision}: weights "
            "and images are float32"
        )
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if has_fast_bfloat16("cuda" if on_gpu else "cpu") else "32-true"


def has_fast_bfloat16(device: Literal["cpu", "cuda"]) -> bool:
    """Whether the device has instructions for it: AVX-512 BF16, AMX or Arm's BF16; on CUDA from Ampere on."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    named: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    if named:
        return any(named.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
