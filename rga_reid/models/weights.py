"""Read files of tensors. Nothing is unpickled, so an untrusted file cannot run code."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate

CONFIG_KEY = "rga_reid_model"  #: key of ``model.config`` in a Lightning checkpoint and a safetensors header
DATA_KEY = "rga_reid_data"  #: key of ``model.trained_on``
PREFIX = "model."  #: prefix of the model's keys in a Lightning checkpoint
MAX_SHOWN = 10  #: keys listed in a message

# Training scripts store their best score as a NumPy scalar, which torch does not allow by default. Unpickling one
# runs no code. NumPy 1 and 2 use different module names.
_NUMPY_SCALARS: list[Any] = [
    (np.core.multiarray.scalar if np.__version__ < "2" else np._core.multiarray.scalar, name)  # type: ignore[attr-defined]
    for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]
_NUMPY_SCALARS += [np.dtype, *(type(np.dtype(code)) for code in ("?", "i4", "i8", "f2", "f4", "f8"))]


#: configuration, statistics of the training data, and state_dict of a model
Checkpoint = tuple[dict[str, Any], dict[str, Any] | None, dict[str, Tensor]]


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a Lightning ``.ckpt`` of ``rga-reid train`` or a ``.safetensors`` of ``save_model``.

    Raises:
        InputError: the file is missing, or of another program.
    """
    if file.suffix == ".safetensors":
        return _from_safetensors(file, *read_safetensors(file))
    return _from_lightning(file, read_torch(file))


def read_own_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read the model configuration and the state_dict of a checkpoint of this package; None for other weights.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = Path(path)
    if file.suffix == ".safetensors":
        state, metadata = read_safetensors(file)
        found = _from_safetensors(file, state, metadata) if CONFIG_KEY in metadata else None
    else:
        content = read_torch(file)
        found = _from_lightning(file, content) if CONFIG_KEY in content else None
    return None if found is None else (found[0], found[2])


def _from_lightning(file: Path, content: dict[str, Any]) -> Checkpoint:
    config, state = content.get(CONFIG_KEY), content.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(
            f"{file}: expected a checkpoint of rga-reid train (it has no {CONFIG_KEY}); rga-reid convert reads those "
            "of other programs"
        )
    if not _is_json(config):
        raise InputError(f"{file}: {CONFIG_KEY}: expected JSON values")
    trained_on = content.get(DATA_KEY)  # a user's DataModule may store anything here
    if not isinstance(trained_on, dict) or not _is_json(trained_on):
        trained_on = None
    state = check_state(file, state)
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return config, trained_on, own


def _is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _from_safetensors(file: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> Checkpoint:
    try:
        config = json.loads(metadata[CONFIG_KEY])
        trained_on = json.loads(metadata.get(DATA_KEY, "null"))
    except (KeyError, ValueError, RecursionError):
        config = trained_on = None
    if not isinstance(config, dict):
        raise InputError(
            f"{file}: expected a model of rga-reid (its header has no {CONFIG_KEY}); rga-reid convert reads those of "
            "other programs"
        )
    return config, trained_on, state


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state_dict from a ``.safetensors`` or a torch file, bare or under ``state_dict`` or ``model``.

    Raises:
        InputError: the file is missing or is not a state_dict.
    """
    file = Path(path)
    content = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_torch(file)
    return check_state(file, content.get("state_dict", content.get("model", content)))


def read_published_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state_dict as ``read_tensors`` does, without the prefix ``module.`` of DataParallel."""
    return {key.removeprefix("module."): value for key, value in read_tensors(path).items()}


def with_counters(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with the batch counters of ``own``, which older files lack."""
    return {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | dict(state)


def check_state(file: Path, state: Any) -> dict[str, Tensor]:
    """Return ``state`` if it is a state_dict of plain tensors that store all their elements.

    An expanded view of one number may claim any size; a model built to fit it would fill the memory.

    Raises:
        InputError: it is not; the message names the file and the first wrong key.
    """
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{file}: expected a state_dict of tensors")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{file}: expected a state_dict of tensors, {short_repr(key)} is {type(value).__name__}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise InputError(f"{file}: {short_repr(key)}: expected a plain tensor of real numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(
                f"{file}: {short_repr(key)}: a tensor of shape {tuple(value.shape)} stores fewer elements"
            )
    return state


def diff_state_dicts(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe the differences of two state_dicts in one line, with the first keys of each kind; or ``""``."""
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in sorted(expected.keys() & found.keys())
            if expected[key].shape != found[key].shape
        ],
    }
    return "; ".join(f"{len(keys)} keys {kind} ({list_keys(keys)})" for kind, keys in kinds.items() if keys)


def list_keys(keys: list[str]) -> str:
    """Return the first keys for a message."""
    shown = ", ".join(truncate(key, 80) for key in keys[:MAX_SHOWN])
    return f"{shown}, ..." if len(keys) > MAX_SHOWN else shown


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a ``.safetensors`` file.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    _require_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # torch also raises, on types it does not know
        raise InputError(f"{file}: not a safetensors file ({truncate(error)})") from None
    return check_state(file, state), metadata


def read_torch(file: Path) -> dict[str, Any]:
    """Read the dictionary in a file of ``torch.save`` that holds only tensors, numbers, text and containers.

    Raises:
        InputError: the file is missing, is not a checkpoint, or would have to be unpickled.
    """
    _require_file(file)
    with open(file, "rb") as opened:
        is_archive = opened.read(4) == b"PK\x03\x04"  # older files, which torch still reads, are not
    try:
        if is_archive:
            _check_archive(file)
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses what a damaged file may be
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except InputError:
        raise
    except pickle.UnpicklingError:
        raise InputError(
            f"{file}: not a checkpoint, or one that would have to be unpickled, which can run code: refused"
        ) from None
    except Exception as error:  # torch raises many types on a damaged file
        reason = f" ({truncate(error)})" if is_archive else ": expected a file of torch.save (.ckpt, .pth)"
        raise InputError(f"{file}: not a checkpoint{reason}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a checkpoint, got a {type(content).__name__}")
    return content


def _check_archive(file: Path) -> None:
    """Refuse TorchScript, and an archive that unpacks to more than its own size: ``torch.save`` never compresses."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise InputError(
            f"{file}: a TorchScript file, which torch.jit.load runs without this package; expected the checkpoint, or "
            "its export to .onnx or .safetensors"
        )
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or sum(member.file_size for member in members) > file.stat().st_size:
        raise InputError(f"{file}: not a checkpoint of torch.save: the archive is compressed")


def _require_file(file: Path) -> None:
    if file.is_dir():
        raise InputError(f"{file}: expected a checkpoint, found a folder")
    if not file.is_file():
        raise InputError(f"{file}: no such file (expected a checkpoint)")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: expected a checkpoint, found an empty file")
