"""Test-time flip: the usual small gain for twice the work."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rga_reid.models.embedding import EmbeddingModel


class Mirrored:
    """Embeds an image as the normalised sum of its embedding and that of its mirror image."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.model, self.size, self.dimension = model, model.size, model.dimension

    def embed(
        self, images: Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> Tensor:
        """As ``EmbeddingModel.embed``, for uint8 tensors ``(n, 3, H, W)``."""
        straight = self.model.embed(images, batch_size=batch_size, device=device)
        mirrored = self.model.embed(images.flip(-1), batch_size=batch_size, device=device)
        return functional.normalize(straight + mirrored)
