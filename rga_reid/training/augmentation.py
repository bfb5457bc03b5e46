"""Augmentation of batches on the device, with separate random parameters for each image.

torchvision.transforms.v2 draws one set of parameters per batch. Here crop, flip and erasing are drawn per image
and applied to the whole batch: resampling as a matrix product for each axis, erasing as a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid.errors import InputError

_MAX_CROP_SCALE = 100
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G and B in grey
_ATTEMPTS = 32  # draws of an erasing rectangle, far more than one needs to fit


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip, colours and erasing, by default as in the released RGA code.

    Args:
        crop_probability: probability of resizing to ``crop_scale`` times the size and cropping at a random
            position.
        crop_scale: 1.125 shifts by up to an eighth of the image.
        flip_probability: probability of a horizontal flip.
        erase_probability: probability of random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896), which
            sets a rectangle to 0 after normalisation, the mean colour.
        erase_area: range of the area of the rectangle, as a fraction of the image.
        erase_aspect: smallest height / width of the rectangle; the largest is its inverse.
        colour: c, for brightness, contrast and saturation: each is changed by a factor from 1 − c to 1 + c, in this
            order, as in torchvision's ``ColorJitter``. 0 leaves colours as they are.

    Raises:
        InputError: a value outside its range.
    """

    crop_probability: float = 0.5
    crop_scale: float = 1.125
    flip_probability: float = 0.5
    erase_probability: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: float = 0.3
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_probability", "flip_probability", "erase_probability", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augmentation {name}: expected 0 to 1, got {getattr(self, name)}")
        if not 1 <= self.crop_scale <= _MAX_CROP_SCALE:
            raise InputError(
                f"augmentation crop_scale: expected 1 to {_MAX_CROP_SCALE}, got {self.crop_scale}"
            )
        if not 0 < self.erase_area[0] <= self.erase_area[1] < 1:
            raise InputError(f"augmentation erase_area: expected 0 < low <= high < 1, got {self.erase_area}")
        if not 0 < self.erase_aspect <= 1:
            raise InputError(f"augmentation erase_aspect: expected 0 < aspect <= 1, got {self.erase_aspect}")

    def __call__(
        self,
        images: Tensor,
        size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        generator: torch.Generator,
    ) -> Tensor:
        """Return the augmented batch as normalised float ``(n, 3, H, W)``, on the same device.

        Args:
            images: uint8 ``(n, 3, h, w)``; downsampling uses antialiasing.
            size: (H, W) of the result.
            mean, std: RGB statistics on the scale 0 to 1.
            generator: CPU generator; the same state gives the same batch on every device.
        """
        n, (height, width) = len(images), size
        down, across = (
            table[rows].to(images.device)
            for table, rows in self._draw_resampling(images.shape[-2:], size, n, generator)
        )
        with torch.autocast(images.device.type, enabled=False):  # it would round to bfloat16
            x = images.permute(0, 2, 1, 3).float().flatten(2)  # (n, h, 3 w)
            x = (down @ x).view(n, -1, images.shape[-1]) @ across.transpose(1, 2)  # (n, 3 H, W)
        x = x.view(n, height, 3, width).transpose(1, 2)
        if self.colour:
            factors = 1 + self.colour * (2 * torch.rand(3, n, 1, 1, 1, generator=generator) - 1)
            x = change_colours(x, *factors.to(x.device))
        centre, scale = (255 * torch.tensor(values, device=x.device).view(3, 1, 1) for values in (mean, std))
        # in place: allocating memory takes longer than the arithmetic
        x.sub_(centre).div_(scale)
        return x.masked_fill_(self._draw_erased(n, height, width, generator).to(x.device), 0)

    def _draw_resampling(
        self, source: Sequence[int], size: Sequence[int], n: int, generator: torch.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """Draw crops and flips; return for each axis a resizing matrix and its rows for each image."""
        draw = torch.rand(4, n, generator=generator)
        cropped, flipped = (
            (draw[i] < p)[:, None] for i, p in ((0, self.crop_probability), (3, self.flip_probability))
        )
        found = []
        for length, wanted, place in zip(source, size, (draw[2], draw[1]), strict=True):
            enlarged = round(self.crop_scale * wanted)
            table = torch.cat([make_resize(length, wanted), make_resize(length, enlarged)])
            # rows of the enlarged image come second
            start = wanted + (place[:, None] * (enlarged - wanted + 1)).floor()
            found.append((table, (torch.arange(wanted) + torch.where(cropped, start, 0)).long()))
        (down, rows), (across, columns) = found
        return [(down, rows), (across, torch.where(flipped, columns.flip(1), columns))]

    def _draw_erased(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Draw the mask of erased pixels, bool ``(n, 1, H, W)``."""
        draw = torch.rand(4, n, _ATTEMPTS, generator=generator)
        chosen = torch.rand(n, generator=generator) < self.erase_probability
        low, high = self.erase_area
        area = (low + (high - low) * draw[0]) * (height * width)
        aspect = self.erase_aspect + (1 / self.erase_aspect - self.erase_aspect) * draw[1]
        tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        fits = (tall < height) & (wide < width)
        first = fits.int().argmax(1, keepdim=True)
        chosen &= fits.any(1)
        tall, wide, y, x = (value.gather(1, first) for value in (tall, wide, draw[2], draw[3]))
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        rows, columns = torch.arange(height), torch.arange(width)
        inside_rows = (rows >= top) & (rows < top + tall) & chosen[:, None]
        inside_columns = (columns >= left) & (columns < left + wide)
        return inside_rows[:, None, :, None] & inside_columns[:, None, None, :]


def change_colours(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Return images with other brightness, contrast and saturation, as by PIL and torchvision.

    Args:
        images: float ``(n, 3, H, W)`` from 0 to 255.
        brightness, contrast, saturation: factors ``(n, 1, 1, 1)``; 1 changes nothing.
    """
    grey = torch.tensor(_LUMA, device=images.device).view(3, 1, 1)
    x = (images * brightness).clamp_(0, 255)
    mean = (x * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = torch.lerp(mean, x, contrast).clamp_(0, 255)
    return torch.lerp((x * grey).sum(1, keepdim=True), x, saturation).clamp_(0, 255)


def make_resize(length: int, wanted: int) -> Tensor:
    """Return bilinear resizing of one axis, as in PIL and torch, as a matrix ``(wanted, length)``.

    Rows sum to 1. Downsampling widens the interpolation kernel to prevent aliasing.
    """
    step = length / wanted
    centre = (torch.arange(wanted) + 0.5) * step - 0.5
    distance = (centre[:, None] - torch.arange(length)).abs()
    # weights of pixels beyond the border are distributed over those inside
    return F.normalize((1 - distance / max(step, 1)).relu(), p=1, dim=1)


def step_generator(*numbers: int) -> torch.Generator:
    """Return a CPU generator that depends on the numbers only, such as seed, epoch, step and rank.

    Thus a resumed run draws the same as an uninterrupted one, without saving the state of a generator.
    """
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ (number & (2**64 - 1))) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & (2**63 - 1))
