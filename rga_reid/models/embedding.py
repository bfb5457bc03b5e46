"""Backbone, average pool, BNNeck: images in, embeddings out.

The head of the released RGA code and of Luo et al. (Bag of Tricks, arXiv 1903.07071, section 3.6):
metric losses see the pooled feature, the classifier sees it after a BatchNorm whose bias stays 0. Beside the
mean of the whole map there may be the means of horizontal stripes, each with a classifier of its own (PCB:
Sun et al., ECCV 2018, arXiv 1711.09349, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rga_reid.data import read_image
from rga_reid.data.images import to_pixels
from rga_reid.devices import choose_device
from rga_reid.errors import InputError, check_int, short_repr
from rga_reid.inputs import is_number
from rga_reid.models.resnet import ResNet, Size

MAX_STRIPES = 64  #: of a map with as many rows, a sixteenth or a 32nd of the image's
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainingOutput(NamedTuple):
    """What a model in training returns."""

    features: Tensor  #: (n, d), pooled, before the neck
    embedded: Tensor  #: (n, d), after the neck: what retrieval compares
    #: (n, classes), of ``embedded``, for cross-entropy; with stripes (n, 1 + stripes, classes)
    logits: Tensor


class PartClassifier(nn.Module):
    """A linear classifier for each part of an embedding: ``(n, parts * channels) -> (n, parts, classes)``."""

    def __init__(self, channels: int, classes: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, parts, channels))

    def forward(self, embedded: Tensor) -> Tensor:
        """Logits of each part."""
        parts = embedded.unflatten(1, self.weight.shape[1:])
        return torch.einsum("npc,kpc->npk", parts, self.weight)


class EmbeddingModel(nn.Module):
    """A re-identification model that holds its own preprocessing.

    Args:
        backbone: ``(n, 3, H, W) -> (n, C, h, w)`` with the attributes ``channels`` and ``size``.
        classes: number of training identities; 0 leaves the classifier out (inference only).
        stripes: horizontal stripes of the last map that are pooled beside the whole; d = C (1 + stripes).
        mean, std: of the RGB channels, on the scale 0 to 1, that the backbone expects taken out.
        config: how to build this model again (see ``build_model``); stored in checkpoints.

    Raises:
        InputError: ``mean`` or ``std`` is not three finite numbers, a ``std`` is not above 0, or ``stripes``
            is no number from 0 to 64.
    """

    def __init__(
        self,
        backbone: ResNet,
        classes: int = 0,
        *,
        stripes: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(map(is_number, values)):
                raise InputError(
                    f"{name}: expected three numbers, of red, green and blue, got {short_repr(values)}"
                )
        if not all(value > 0 for value in std):
            raise InputError(f"std: expected numbers above 0, got {short_repr(std)}")
        self.backbone = backbone
        if type(stripes) is not int or not 0 <= stripes <= MAX_STRIPES:
            raise InputError(f"stripes: expected 0 or more, at most {MAX_STRIPES}, got {short_repr(stripes)}")
        if stripes > 1 and stripes > (rows := backbone.map_sizes(backbone.size)[-1][0]):
            raise InputError(f"stripes: expected at most {rows}, the rows of the last map, got {stripes}")
        self.stripes = stripes
        self.dimension = backbone.channels * (1 + stripes)
        self.neck = nn.BatchNorm1d(self.dimension)
        self.neck.bias.requires_grad_(False)
        self.classifier: nn.Linear | PartClassifier | None = None
        if classes:
            if stripes:
                self.classifier = PartClassifier(backbone.channels, classes, 1 + stripes)
            else:
                self.classifier = nn.Linear(backbone.channels, classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)
        self.size: Size = (backbone.size[0], backbone.size[1])
        self.mean, self.std = tuple(mean), tuple(std)
        self.config = config
        #: counts of the training data, where a checkpoint tells
        self.trained_on: dict[str, Any] | None = None

    def forward(self, images: Tensor) -> Any:
        """Normalised float images ``(n, 3, H, W)``.

        Returns:
            In training ``TrainingOutput``; in evaluation the feature after the neck ``(n, d)``, not
            L2-normalised.

        Raises:
            RuntimeError: in training, of a model without a classifier.
        """
        features = self._pool(self.backbone(images))
        embedded = self.neck(features)
        if not self.training:
            return embedded
        if self.classifier is None:
            raise RuntimeError("this model was built without a classifier: it is for inference only")
        return TrainingOutput(features, embedded, self.classifier(embedded))

    def _pool(self, x: Tensor) -> Tensor:
        """The last map ``(n, C, h, w)`` to ``(n, d)``: the whole first, then the stripes from the top."""
        whole = x.mean((2, 3))
        if not self.stripes:
            return whole
        stripes = F.adaptive_avg_pool2d(x, (self.stripes, 1)).squeeze(3)  # (n, C, stripes)
        return torch.cat([whole, stripes.transpose(1, 2).flatten(1)], 1)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``(n, 3, H, W)`` of the model's size to the float images that ``forward`` takes."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255
        return (images.float() - mean) / std

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """Embed images for retrieval.

        Args:
            images: uint8 ``(n, 3, H, W)`` of any size, or a list of PIL images or of paths.
            batch_size: images in one forward pass.
            device: where to run; the model moves there and stays. By default where it is.

        Returns:
            float32 ``(n, d)`` on the CPU, rows L2-normalised; no gradient leads back from it.

        Raises:
            InputError: a file that is not an image; a tensor of another type or shape; a batch size below 1;
                a device that is not there.
        """
        check_int("batch_size", batch_size)
        if device is not None:
            self.to(choose_device(device))
        where = next(self.parameters()).device
        rows = [torch.empty(0, self.dimension)]
        with eval_mode(self), torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = uint8_batch(images[start : start + batch_size], self.size, where)
                rows.append(F.normalize(self(self.normalise(batch)).float()).cpu())
        return torch.cat(rows)  # out here, as autograd would refuse a tensor of inference mode


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each of its parts back into its own: some may be frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


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
    return torch.from_numpy(to_pixels(picture, size).copy())


class FlipTTA:
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
