"""One training run in one folder: checkpoints, logs and configuration."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from rga_reid._deprecated import rename_options
from rga_reid.errors import InputError, check_int
from rga_reid.files import DiskError, disk_error, require_new
from rga_reid.inputs import truncate
from rga_reid.models.weights import CONFIG_KEY, diff_state_dicts, read_torch
from rga_reid.runtime import keep_freed_memory
from rga_reid.training.callbacks import (
    BEST,
    CSV,
    LAST,
    TENSORBOARD,
    AtomicCheckpoints,
    DeferredOverwrite,
    FolderCheckpoint,
    LogOptions,
    NaNGuard,
    StepCheckpoint,
    explain_logger_error,
)
from rga_reid.training.datamodule import ReIDData
from rga_reid.training.module import ReIDModule
from rga_reid.training.monitoring import EpochMetrics, ProgressLines


def check_output(out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Path:
    """Return the folder of the run after checking that it can be used.

    Raises:
        InputError: the folder is not empty and neither option is given, there is no checkpoint to resume
            from, the folder is not writable, or its log folder is a link.
    """
    folder = Path(out)
    if not is_first_process():  # the first process has checked, and may write already
        return folder
    if resume and not (folder / LAST).is_file():
        raise InputError(f"--resume: {folder / LAST} does not exist; there is no run to continue")
    require_new(folder, overwrite=overwrite or resume, hint="--overwrite or --resume")
    for log in (CSV, TENSORBOARD):
        if (folder / log).is_symlink() and not resume:  # files outside the folder would be removed
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
    """Train a model and keep the last epoch, and the best one on the validation identities if there are any.

    Args:
        module, data: model and data set.
        out: folder for ``last.ckpt``, ``best.ckpt``, ``config.yaml``, ``csv/`` and ``tensorboard/``.
        trainer: options of ``pytorch_lightning.Trainer``; ``precision`` may be ``auto``, see
            ``resolve_precision``. A ``logger`` is added to the CSV and TensorBoard logs; False for no logs.
        config: YAML text to keep beside the checkpoints and to give to the loggers.
        overwrite: allow a folder that is not empty; checkpoints, logs and ``test.json`` of an earlier run are
            removed at the first training step.
        resume: continue from ``last.ckpt``, to the same weights as without an interruption.
        save_every: save ``last.ckpt`` every so many steps as well as after each epoch.

    Returns:
        The checkpoint to test: ``best.ckpt`` if validation identities were ranked, else ``last.ckpt``.

    Raises:
        InputError: as ``check_output``; invalid options; the disk is full; loss, weights or features are NaN
            or infinite (``NonFiniteError``).
    """
    folder = check_output(out, overwrite=overwrite, resume=resume)
    options = dict(trainer or {})
    if save_every is not None:
        check_int("save_every", save_every)
    callbacks: list[Callback] = _as_list(options.pop("callbacks", None))
    if resume:
        _check_same_run(module, data, folder / LAST, callbacks)
    deferred = DeferredOverwrite(folder, overwrite=not resume, config=config)
    bar = sys.stderr.isatty()
    lines = ProgressLines(bar=bar)
    loggers = _as_list(options.get("logger")) if options.get("logger") is not True else []
    callbacks += [deferred, LogOptions(loggers, config), NaNGuard(), EpochMetrics(), lines]
    if not bar:
        options["enable_progress_bar"] = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # images are decoded in memory
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # checked above
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen stages are
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # epochs log means
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch
        runner = _build_trainer(
            folder, options, callbacks, validates=len(data.val_table) > 0, save_every=save_every
        )
        on_cpu = runner.strategy.root_device.type == "cpu"
        with (
            _explain_errors(folder),
            deferred.restore_on_failure() if is_first_process() else nullcontext(),
            keep_freed_memory() if on_cpu else nullcontext(),
        ):
            if runner.strategy.launcher is None:  # several processes start them on their own
                for logger in set(loggers) & set(runner.loggers):  # none in a fast_dev_run
                    with explain_logger_error(logger):
                        _ = logger.experiment  # starts it
            runner.fit(
                module,
                datamodule=data,
                ckpt_path=str(folder / LAST) if resume else None,
                weights_only=True,
            )
            if not (resume or deferred.started):
                raise InputError("trainer: no training step was run: check max_steps and max_time")
    if lines.error is not None:
        raise lines.error
    best = folder / BEST  # missing if no validation was due
    return best if len(data.val_table) and best.is_file() else folder / LAST


def is_first_process() -> bool:
    """Return whether this process is the one that writes; known from the environment before training."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def _explain_errors(folder: Path) -> Iterator[None]:
    """Turn errors of Lightning and of loggers into our own."""
    try:
        yield
    except SystemExit as leave:  # Lightning leaves this way after Ctrl-C and SIGTERM
        stop = leave.__context__
        raise (stop if isinstance(stop, KeyboardInterrupt) else leave) from None
    except (MisconfigurationException, ModuleNotFoundError) as error:  # options that fail only in use
        raise InputError(f"trainer: {truncate(error)}") from None
    except OSError as error:  # loggers write on their own
        reason = disk_error(error)
        if reason is None:
            raise
        raise DiskError(folder, reason) from error


def _build_trainer(
    folder: Path,
    options: dict[str, Any],
    callbacks: list[Callback],
    *,
    validates: bool,
    save_every: int | None,
) -> pl.Trainer:
    _check_options(options)
    options["use_distributed_sampler"] = False  # our sampler handles processes itself
    options["num_sanity_val_steps"] = options.get("num_sanity_val_steps") or 0
    options["precision"] = resolve_precision(options.get("precision"), options.get("accelerator", "auto"))
    options["plugins"] = [*_as_list(options.get("plugins")), AtomicCheckpoints()]
    added = options.pop("logger", None)
    loggers: list[Logger] = []
    if added is not False:
        loggers = [CSVLogger(folder, name=CSV), TensorBoardLogger(folder, name=TENSORBOARD)]
        loggers += [] if added is True else _as_list(added)
        callbacks = [*callbacks, LearningRateMonitor("step")]
    if validates:  # before the last checkpoint, so that this one holds the best score so far
        best = FolderCheckpoint(folder / BEST, at_epoch_end=False, monitor="val_mAP", mode="max")
        callbacks.append(best)
    else:
        options["limit_val_batches"] = 0
    callbacks.append(FolderCheckpoint(folder / LAST, at_epoch_end=True))
    if save_every is not None:
        callbacks.append(StepCheckpoint(folder / LAST, save_every))
    try:
        return pl.Trainer(**options, default_root_dir=folder, callbacks=callbacks, logger=loggers)
    except Exception as error:  # Lightning raises many types for options that do not fit together
        raise InputError(f"trainer: {truncate(error)}") from None


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that Lightning accepts but that fail later, during the run."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if options.get(name) == 0:
            raise InputError(f"trainer.{name}: expected more than 0, got 0")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (every := options.get(name)) is not None:
            check_int(f"trainer.{name}", every)
    if options.get("overfit_batches"):  # it would replace the identity sampler
        raise InputError("trainer.overfit_batches: not supported; use limit_train_batches")
    # Lightning starts any number of CPU processes; allow two everywhere, to try multi-process training
    most = max(2, os.cpu_count() or 1, torch.cuda.device_count())
    devices = str(options.get("devices"))
    if devices.isdecimal() and int(devices) > most:
        raise InputError(f"trainer.devices: expected at most {most} on this machine, got {devices}")


def _check_same_run(
    module: ReIDModule, data: ReIDData, checkpoint: Path, callbacks: Sequence[Callback]
) -> None:
    """Refuse to resume a run with another model, data set or batch, and name the difference."""
    content = read_torch(checkpoint)
    saved, own = content.get("current_model_state", content.get("state_dict", {})), module.state_dict()
    key = "model.classifier.weight"
    before, now = (state[key].shape[0] if key in state else 0 for state in (saved, own))
    if before and now and before != now:  # one may have no classifier
        raise InputError(
            f"--resume: {checkpoint} was trained on {before} identities, this data set has {now} "
            "to train on; resume with the same data set and the same --data.val_fraction"
        )
    state = content.get(type(data).__qualname__, {})  # Lightning saves the state of a data module by its name
    if state.get("images", data.digest) != data.digest:
        raise InputError(
            f"--resume: {checkpoint} was trained on other images; resume with the same data set, "
            "--data.val_fraction and --data.val_seed"
        )
    batch = rename_options(state.get("batch", data.batch), "data", warn=False)
    changed = [name for name, value in data.batch.items() if batch.get(name) != value]
    if changed:
        was, is_now = (
            ", ".join(f"{name} {one.get(name)}" for name in changed) for one in (batch, data.batch)
        )
        raise InputError(f"--resume: {checkpoint} was trained with other batches: {was}, now {is_now}")
    averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
    if averaged != ("current_model_state" in content):
        how = "without" if averaged else "with"
        raise InputError(f"--resume: {checkpoint} was trained {how} a moving average; resume {how} it, too")
    wrong = diff_state_dicts(own, saved)
    if wrong:
        raise InputError(f"--resume: {checkpoint} holds another model: {wrong}")
    config, wanted = (
        rename_options(content.get(CONFIG_KEY) or {}, "model", warn=False),
        module.model.config or {},
    )
    for name in config.keys() | wanted.keys():
        if config.get(name) != wanted.get(name):
            raise InputError(
                f"--resume: {checkpoint} holds another model: {name} was {config.get(name)}, now {wanted.get(name)}"
            )
    groups = [group for state in content.get("optimizer_states", []) for group in state["param_groups"]]
    before, now = (
        sum(len(group["params"]) for group in groups),
        sum(one.requires_grad for one in module.parameters()),
    )
    if groups and before != now:
        raise InputError(
            f"--resume: {checkpoint} has {before} trained parameters, this model {now}; resume with the same "
            "model.frozen_stages"
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] if value else []


_TRUE_PRECISIONS = (
    "16-true",
    "bf16-true",
    "64-true",
    "64",
    "transformer-engine",
    "transformer-engine-float16",
)

#: what ``trainer.precision`` accepts: Lightning's values, and ``auto``
Precision = get_type_hints(pl.Trainer.__init__)["precision"] | Literal["auto"]


def resolve_precision(precision: Any, accelerator: Any = "auto") -> Any:
    """Replace the precision ``auto`` by ``bf16-mixed`` or ``32-true``; return others as they are.

    Args:
        precision, accelerator: options of ``pytorch_lightning.Trainer``.

    Raises:
        InputError: a precision for which weights would not be float32.
    """
    if str(precision) in _TRUE_PRECISIONS:
        raise InputError(
            f"trainer.precision: expected 32-true, 16-mixed, bf16-mixed or auto, got {precision}: weights "
            "and images are float32"
        )
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if has_fast_bfloat16("cuda" if on_gpu else "cpu") else "32-true"


def has_fast_bfloat16(device: Literal["cpu", "cuda"]) -> bool:
    """Return whether products are faster in bfloat16: with AVX-512 BF16, AMX, Arm BF16, or CUDA from Ampere on.

    Intel's processors with AVX-512 FP16 multiply bfloat16 fast in AMX only, which virtual machines often lack: there,
    products and convolutions in bfloat16 took twice as long as in float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # in newer versions of torch
    if capabilities:
        has = {name for name, value in capabilities.items() if value is True}
        return bool(has & {"amx_bf16", "bf16"}) or ("avx512_bf16" in has and "avx512_fp16" not in has)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
