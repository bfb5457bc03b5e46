"""A baseline without learning: one colour histogram per horizontal stripe of the image.

The 166 colours are those of Smith and Chang (VisualSEEk, ACM Multimedia 1996): 18 hues × 3 saturations ×
3 values, and 4 greys, which have no hue. Pixels near the sides, mostly background, count less, as in
Comaniciu, Ramesh and Meer (CVPR 2000). Features are square roots of frequencies, so that the cosine of two
images is the mean Bhattacharyya coefficient of their stripes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.models.embedding import ChannelOrder, Images, iter_batches, join_features

STRIPES = 8
HUES, SATURATIONS, VALUES, GREYS = 18, 3, 3, 4
CHROMATIC = HUES * SATURATIONS * VALUES
COLOURS = CHROMATIC + GREYS
LEVELS = 256
GREY_BELOW = 5  #: a pixel is grey where its saturation is below 1 / GREY_BELOW


class ColourHistogram:
    """Embed images as colour histograms, with the interface of ``EmbeddingModel``.

    Args:
        size: (H, W) of the resized images; at least one row per stripe.

    Raises:
        InputError: ``size`` has fewer rows than stripes.
    """

    def __init__(self, size: tuple[int, int] = (128, 64)) -> None:
        if size[0] < STRIPES or size[1] < 1:
            raise InputError(f"size: expected at least {STRIPES} rows and 1 column, got {tuple(size)}")
        self.size = size
        self.dimension = STRIPES * COLOURS

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Return the histograms of images.

        Args:
            images, channel_order: as for ``EmbeddingModel.embed``.
            batch_size: images processed at a time.
            device: not used; pixels are counted on the CPU.

        Returns:
            float32 ``(n, dimension)``, rows L2-normalised.

        Raises:
            InputError: see ``EmbeddingModel.embed``.
        """
        batches = iter_batches(images, self.size, batch_size, channel_order=channel_order)
        return join_features(map(self._histograms, batches), self.dimension)

    def _histograms(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        stripes = torch.arange(height) * STRIPES // height
        histogram = torch.arange(n)[:, None] * STRIPES + stripes  # (n, H): number of each row's histogram
        bins = histogram[:, :, None] * COLOURS + colour_indices(images)
        side = (torch.arange(width, dtype=torch.float64) + 0.5) / width * 2 - 1  # -1 to 1
        weights = (1 - side**2).square().expand(n, height, width)
        counts = torch.bincount(bins.flatten(), weights.flatten(), minlength=n * STRIPES * COLOURS)
        return F.normalize(counts.view(n, self.dimension).sqrt()).float()


def colour_indices(images: Tensor) -> Tensor:
    """Return the index of each pixel's colour: uint8 ``(n, 3, H, W)`` to int32 ``(n, H, W)``.

    All arithmetic is in integers, so that rounding never decides about a pixel on the edge of two bins. Hue
    bins are centred: the first holds red on both sides of 0°.
    """
    red, green, blue = images.int().unbind(1)
    value, lowest = images.int().amax(1), images.int().amin(1)
    chroma = value - lowest
    grey = GREY_BELOW * chroma < value
    grey |= value == 0

    divisor = chroma.clamp_min(1)
    sextant = torch.where(value == red, 0, torch.where(value == green, 2, 4))  # in sixths of the circle
    offset = torch.where(value == red, green - blue, torch.where(value == green, blue - red, red - green))
    steps = HUES // 6
    hue = (steps * sextant + (2 * steps * offset + divisor).div(2 * divisor, rounding_mode="floor")) % HUES
    # saturations from 1 / GREY_BELOW to 1, in equal parts
    above = SATURATIONS * (GREY_BELOW * chroma - value)
    saturation = (above // ((GREY_BELOW - 1) * value.clamp_min(1))).clamp(0, SATURATIONS - 1)
    chromatic = (hue * SATURATIONS + saturation) * VALUES + value * VALUES // LEVELS
    return torch.where(grey, CHROMATIC + value * GREYS // LEVELS, chromatic)
