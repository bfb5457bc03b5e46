"""Weights by formula, and checkpoints compared bit by bit."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: entries of a checkpoint that contain numbers, not paths
NUMBERS = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")


def numbers_of(checkpoint: Path) -> dict[str, Any]:
    """Return the entries of a checkpoint that contain numbers."""
    content = torch.load(checkpoint, weights_only=True)
    return {key: content[key] for key in NUMBERS}


def assert_equal(one: Any, two: Any, where: str = "") -> None:
    """Fail where two nested values differ, naming the place."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_equal(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{where}/{number}")
    else:
        assert one == two, where


def weights_by_formula(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weights that recorded embeddings were computed with, by a formula from their key."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        z = 0.1 * z
    elif key.endswith("running_var"):
        z = 0.5 + 0.5 * np.abs(z)
    elif len(shape) >= 2:
        z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(np.asarray(z, np.float32))
