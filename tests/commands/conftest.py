"""A tiny model for commands that embed images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rga_reid.models


class MeanColour:
    """Embed images as the mean of each channel.

    Args:
        fail_after: number of images after which it is interrupted.
    """

    size = (16, 8)
    dimension = 3
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self, fail_after: int = 1000) -> None:
        self.left = fail_after

    def embed(self, images: torch.Tensor, *, batch_size: int = 64, device: object = None) -> torch.Tensor:
        self.left -= len(images)
        if self.left < 0:
            raise KeyboardInterrupt
        return torch.nn.functional.normalize(images.double().mean((2, 3)).float())


@pytest.fixture
def mean_colour() -> Any:
    """Class of the tiny model."""
    return MeanColour


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that commands load as the tiny model."""
    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": MeanColour())
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    return file
