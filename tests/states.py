"""Compare checkpoints bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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
