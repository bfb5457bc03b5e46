"""A network of two convolutions, which exports in a second, as a checkpoint of a user's own backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rga_reid.models import build_model, save_model

SIZE = (32, 32)


class SmallNet(nn.Module):
    """A backbone with what is needed only."""

    channels = 12

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1)
        )

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return [(size[0] // 4, size[1] // 4)]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def draw_pixels(count: int, seed: int = 1) -> Tensor:
    """Return images of one colour each, with noise: their features are far apart."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 200, (count, 3, 1, 1), generator=generator)
    return (colours + torch.randint(0, 56, (count, 3, *SIZE), generator=generator)).to(torch.uint8)


def write_checkpoint(file: Path) -> Path:
    """Write a model whose batch norms have the statistics of such images, and whose normalisation is not ImageNet's."""
    torch.manual_seed(0)
    model = build_model(
        backbone=f"{__name__}.SmallNet", size=SIZE, weights=None, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    for seed in range(20):
        model(model.normalise(draw_pixels(16, seed)))
    model.trained_on = {"identities": 7}
    save_model(model.eval(), file)
    return file
