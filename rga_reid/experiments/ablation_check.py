"""Try the model of a variant before anything is trained, so that a plan does not fail after hours."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rga_reid.devices import choose_device
from rga_reid.errors import InputError
from rga_reid.inputs import truncate
from rga_reid.models import load_model, save_model
from rga_reid.runtime import find_place
from rga_reid.training import ReIDModule


def check_model(module: ReIDModule, device: str | None = None) -> None:
    """Run one training step forward and backward on two random images; save the model, and load it again.

    Args:
        module: model and losses, built from a recipe. Its gradients and statistics change.
        device: device of the step; by default a GPU if there is one.

    Raises:
        InputError: a step of this failed, or an attention module changes the shape of its map. The message names it
            and has the error that a module raised, with its place in the user's code.
    """
    model, chosen = module.model, choose_device(device)
    step = "forward"
    try:
        module.to(chosen).train()
        for stage, attention in model.backbone.attention_stages().items():
            attention.register_forward_hook(partial(_check_shape, stage))
        images = torch.randint(256, (2, 3, *model.size), dtype=torch.uint8, device=chosen)
        labels = torch.arange(2, device=chosen)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer to log to
            loss = module.training_step((images, labels), 0)
        step = "backward"
        loss.backward()
        step = "save and load"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.safetensors"
            save_model(model, file)
            load_model(file)
    except Exception as error:  # a class of the user may raise anything
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{step}: {truncate(reason)}{find_place(error)}") from None


def _check_shape(stage: int, module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
    """Check in a forward hook that a module keeps the shape of its map."""
    expected, found = tuple(given[0].shape), getattr(output, "shape", None)
    if found != given[0].shape:
        got = type(output).__name__ if found is None else tuple(found)
        raise InputError(
            f"attention {type(module).__name__} after stage {stage}: expected an output of the input's shape "
            f"{expected}, got {got}"
        )
