"""Test-time flip: the usual small gain for twice the work."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid.models.embedding import EmbeddingModel


class Mirrored:
    """Embeds an image as the normalised sum of its embedding and that of its mirror image.

    Args:
        model: what embeds both.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        self.model, self.size, self.dimension = model, model.size, model.dimension

    def embed(
        self, images: Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> Tensor:
        """Embed images, twice.

        Args:
            images: uint8 tensor ``(n, 3, H, W)``.
            batch_size, device: see ``EmbeddingModel.embed``.

        Returns:
            float32 ``(n, d)`` on the CPU, rows L2-normalised.

        Raises:
            InputError: a tensor of another type or shape.
        """
        straight = self.model.embed(images, batch_size=batch_size, device=device)
        mirrored = self.model.embed(images.flip(-1), batch_size=batch_size, device=device)
        return F.normalize(straight + mirrored)
