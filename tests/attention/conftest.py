"""Modules with random parameters, and the published numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).parents[1] / "fixtures" / "attention"


@pytest.fixture(scope="session")
def published() -> dict[str, dict[str, Tensor]]:
    """case -> key -> tensor; see fixtures/attention/README.md."""
    numbers = np.load(FIXTURES / "published.npz")["numbers"]
    index = json.loads((FIXTURES / "published.json").read_text())
    return {
        case: {
            key: torch.from_numpy(numbers[offset : offset + int(np.prod(shape))].reshape(shape))
            for key, (offset, shape) in entries.items()
        }
        for case, entries in index.items()
    }


@pytest.fixture(scope="session")
def randomised() -> Callable[..., nn.Module]:
    """Set every parameter and statistic to a random value, because a new module is often the identity."""

    def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point():
                continue
            value = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                value = 0.5 + value.abs()
            elif tensor.dim() > 1:
                value = value * (2 / tensor[0].numel()) ** 0.5
            elif name.endswith(("weight", "gamma")):
                value = 1 + 0.3 * value
            else:
                value = 0.3 * value
            tensor.data.copy_(value)
        return module

    return randomise
