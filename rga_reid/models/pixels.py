"""What ``embed`` takes, brought to one form: a batch of uint8 pixels of the model's size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rga_reid.data import read_image
from rga_reid.data.images import pixels_of
from rga_reid.errors import InputError

Images = Tensor | Sequence[Image.Image | str | Path]


def uint8_batch(images: Images, size: tuple[int, int], device: str | torch.device = "cpu") -> Tensor:
    """Pixels of a batch, resized bilinearly with antialiasing where they have another size.

    Args:
        images: uint8 ``(n, 3, h, w)``, or a list of PIL images or of paths, each of any size.
        size: (H, W) wanted.
        device: where the result lies; tensors are resized there.

    Returns:
        uint8 ``(n, 3, H, W)``.

    Raises:
        InputError: a file that is not an image; a tensor of another type or shape.
    """
    if not isinstance(images, Tensor):
        return torch.stack([_read(image, size) for image in images]).to(device)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"images: expected a uint8 tensor (n, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    images = images.to(device)
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = F.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _read(image: Image.Image | str | Path, size: tuple[int, int]) -> Tensor:
    picture = image.convert("RGB") if isinstance(image, Image.Image) else read_image(image)
    return torch.from_numpy(pixels_of(picture, size).copy())
