"""Reading and writing models. Nothing is unpickled: a file from a stranger cannot run code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.files import atomic_file
from rga_reid.models.build import build_model, resolve_attention
from rga_reid.models.embedding import EmbeddingModel

CONFIG_KEY = "rga_reid_model"  #: where a Lightning checkpoint and a safetensors header keep ``model.config``
PREFIX = "model."  #: of the model's keys in a Lightning checkpoint


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> EmbeddingModel:
    """Load a trained model for inference, in evaluation mode, without its classifier.

    Args:
        path: a Lightning ``.ckpt`` of ``rga-reid train``, or a ``.safetensors`` of ``save_model``.
        device: where the model is put.

    Raises:
        InputError: no such file, not a checkpoint, a pickle, or a checkpoint of another program.
    """
    file = Path(path)
    config, state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_lightning(file)
    resolve_attention(config.get("attention"), trusted=False)
    try:
        model = build_model(**config)
        own = model.state_dict()
        unknown = sorted(key for key in state if key not in own and not key.startswith("classifier."))
        missing = sorted(key for key in own if key not in state)
        if unknown or missing:
            raise InputError(
                f"{len(missing)} keys missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
            )
        model.load_state_dict({key: state[key] for key in own})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{file}: the weights do not fit the model they name ({error})") from None
    return model.to(device).eval()


def save_model(model: EmbeddingModel, path: str | os.PathLike[str]) -> None:
    """Write weights (without the classifier) and configuration as ``.safetensors``, atomically."""
    if model.config is None:
        raise InputError("save_model: this model has no config; make it with build_model")
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("classifier.")}
    with atomic_file(path) as temporary:
        save_file(state, temporary, metadata={CONFIG_KEY: json.dumps(model.config)})


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex: tells whether a gallery was made with this checkpoint."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A bare state_dict from a ``.safetensors`` or a torch file, without unpickling anything else.

    Raises:
        InputError: no such file, not a state_dict.
    """
    file = Path(path)
    content = _read_safetensors(file)[1] if file.suffix == ".safetensors" else _torch_load(file)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file}: expected a state_dict of tensors")
    return state


def _read_lightning(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = _torch_load(file)
    config, state = content.get(CONFIG_KEY), content.get("state_dict")
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise InputError(f"{file}: expected a checkpoint of rga-reid train (it has no {CONFIG_KEY})")
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return config, own


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    _require_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(metadata.get(CONFIG_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: not a safetensors file ({error})") from None
    return config, state


def _torch_load(file: Path) -> dict[str, Any]:
    _require_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{file}: not a checkpoint, or one that would have to be unpickled, which can run code: refused"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not a checkpoint ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a checkpoint, got a {type(content).__name__}")
    return content


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"{file}: no such file (expected a checkpoint)")
