"""Backbone, pooling and BNNeck: images in, embeddings out.

The head is that of the released RGA code and of Luo et al. (Bag of Tricks, arXiv 1903.07071, section 3.6): metric
losses see the pooled feature, the classifier sees it after a BatchNorm whose bias stays 0. Horizontal stripes of the
last map can be pooled in addition to the whole, each with its own classifier (PCB: Sun et al., ECCV 2018,
arXiv 1711.09349, section 3.1). A linear layer can reduce the pooled feature before the neck, as in fast-reid; with
a ReLU after the neck, that is the head of OSNet (Zhou et al., ICCV 2019, arXiv 1905.00953, table 1).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rga_reid._deprecated import rename_arguments, renamed_property
from rga_reid.data.images import normalise_image, read_image, to_pixels
from rga_reid.devices import choose_device
from rga_reid.errors import InputError, check_choice, check_int, short_repr
from rga_reid.inputs import is_number
from rga_reid.models.backbone import Backbone, Size, eval_mode

MAX_STRIPES = 64  #: the last map has a sixteenth or a 32nd of the image's rows
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PathLike = str | os.PathLike[str]
#: one image: a path, the content of a file, a PIL image or a uint8 array (H, W, 3)
ImageInput = PathLike | bytes | Image.Image | np.ndarray
#: one image or several; a tensor is always a batch, uint8 (n, 3, H, W)
Images = Tensor | ImageInput | Sequence[ImageInput]
ChannelOrder = Literal["rgb", "bgr"]
Pooling = Literal["avg", "gem"]
Neck = Literal["bn", "bn_relu"]


class TrainingOutput(NamedTuple):
    """Output of a model in training mode."""

    pre_neck: Tensor  #: features (n, d) before the neck: pooled, and reduced if the model does that
    post_neck: Tensor  #: features (n, d) after the neck, which retrieval compares
    #: (n, classes) for cross-entropy, computed from ``post_neck``; with stripes (n, 1 + stripes, classes); None for
    #: a model without classifier
    logits: Tensor | None


# names of version 1
TrainingOutput.__new__ = rename_arguments(features="pre_neck", embedded="post_neck")(TrainingOutput.__new__)  # type: ignore[method-assign]
TrainingOutput.features = renamed_property("TrainingOutput.features", "pre_neck")  # type: ignore[attr-defined]
TrainingOutput.embedded = renamed_property("TrainingOutput.embedded", "post_neck")  # type: ignore[attr-defined]


class PartClassifier(nn.Module):
    """A linear classifier for each part of an embedding: ``(n, parts * channels) -> (n, parts, classes)``."""

    def __init__(self, channels: int, classes: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, parts, channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the logits of each part."""
        parts = embeddings.unflatten(1, self.weight.shape[1:])
        return torch.einsum("npc,kpc->npk", parts, self.weight)


class GeM(nn.Module):
    """Generalised-mean pooling, with one trained exponent p.

        f = (mean over positions of max(x, eps)^p)^(1/p)                     (3)

    p = 1 is average pooling, and p → ∞ is max pooling. Radenović, Tolias, Chum: Fine-tuning CNN Image Retrieval with
    No Human Annotation, TPAMI 2019, arXiv 1711.02512, section 3.2.

    Args:
        p: initial exponent.
        eps: activations are at least this, so that their logarithm and gradient exist.

    Shape: ``(n, C, h, w) -> (n, C, rows, 1)``.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), float(p)))
        self.eps = eps

    def forward(self, x: Tensor, rows: int = 1) -> Tensor:
        """Pool each of ``rows`` horizontal stripes."""
        wide = torch.promote_types(x.dtype, torch.float32)  # 41^3 is too large for float16
        p = self.p.to(wide)
        powers = x.to(wide).clamp(min=self.eps).pow(p)
        means = powers.mean((2, 3), keepdim=True) if rows == 1 else F.adaptive_avg_pool2d(powers, (rows, 1))
        return means.pow(1 / p).to(x.dtype)


class EmbeddingModel(nn.Module):
    """A re-identification model that includes its preprocessing.

    Args:
        backbone: ``(n, 3, H, W) -> (n, C, h, w)``, see ``Backbone``.
        classes: number of training identities; 0 omits the classifier.
        stripes: horizontal stripes of the last map to pool in addition to the whole map; d = C (1 + stripes).
        pooling: ``avg`` or ``gem``, see ``GeM``.
        embedding_dim: d, the outputs of a linear layer between pooling and neck; None for no such layer. Not with
            stripes.
        neck: ``bn``, or ``bn_relu`` for a batch norm with a trained bias that a ReLU follows.
        mean, std: normalisation of the RGB channels, on the scale 0 to 1.
        config: settings that rebuild this model (see ``build_model``); stored in checkpoints.

    Raises:
        InputError: ``mean`` or ``std`` is not three finite numbers, ``std`` is not positive, ``stripes`` is
            not an integer from 0 to 64, or another option has an unknown value.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int = 0,
        *,
        stripes: int = 0,
        pooling: Pooling = "avg",
        embedding_dim: int | None = None,
        neck: Neck = "bn",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(map(is_number, values)):
                raise InputError(f"{name}: expected three numbers (R, G, B), got {short_repr(values)}")
        if not all(value > 0 for value in std):
            raise InputError(f"std: expected positive numbers, got {short_repr(std)}")
        if type(stripes) is not int or not 0 <= stripes <= MAX_STRIPES:
            raise InputError(
                f"stripes: expected an integer from 0 to {MAX_STRIPES}, got {short_repr(stripes)}"
            )
        if stripes > 1 and stripes > (rows := backbone.map_sizes(backbone.size)[-1][0]):
            raise InputError(f"stripes: expected at most {rows}, the rows of the last map, got {stripes}")
        check_choice("pooling", pooling, ("avg", "gem"))
        check_choice("neck", neck, ("bn", "bn_relu"))
        if embedding_dim is not None:
            check_int("embedding_dim", embedding_dim)
            if stripes:
                raise InputError(f"embedding_dim: expected null with stripes, got {embedding_dim}")
        self.backbone = backbone
        self.stripes = stripes
        self.gem = GeM() if pooling == "gem" else None
        self.dimension = backbone.channels * (1 + stripes) if embedding_dim is None else embedding_dim
        self.embedding: nn.Linear | None = None
        if embedding_dim is not None:
            self.embedding = nn.Linear(backbone.channels, embedding_dim, bias=False)
            nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        self.neck = nn.BatchNorm1d(self.dimension)
        self.neck.bias.requires_grad_(neck == "bn_relu")
        self.relu = nn.ReLU() if neck == "bn_relu" else None
        self.classifier: nn.Linear | PartClassifier | None = None
        if classes:
            if stripes:
                self.classifier = PartClassifier(backbone.channels, classes, 1 + stripes)
            else:
                self.classifier = nn.Linear(self.dimension, classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)
        self.size: Size = (backbone.size[0], backbone.size[1])
        self.mean, self.std = tuple(mean), tuple(std)
        self.config = config
        #: statistics of the training data, if the checkpoint has them
        self.trained_on: dict[str, Any] | None = None
        #: ``ModelFingerprint`` of the file that ``load_embedder`` read; None for other models
        self.fingerprint: Any = None

    def forward(self, images: Tensor) -> Any:
        """Embed normalised float images ``(n, 3, H, W)``.

        Returns:
            In training a ``TrainingOutput``; in evaluation the features after the neck ``(n, d)``, not
            L2-normalised.
        """
        pre_neck = self._pool(self.backbone(images))
        if self.embedding is not None:
            pre_neck = self.embedding(pre_neck)
        post_neck = self.neck(pre_neck)
        if self.relu is not None:
            post_neck = self.relu(post_neck)
        if not self.training:
            return post_neck
        logits = None if self.classifier is None else self.classifier(post_neck)
        return TrainingOutput(pre_neck, post_neck, logits)

    def optimize(self, *, dtype: torch.dtype = torch.float32, compile: bool = False) -> EmbeddingModel:
        """Return a copy that embeds faster and cannot be trained or saved.

        Batch norms are folded into the convolutions before them, where torch.fx can trace the network, and so are those
        of RGA. Weights are in channels-last memory format. In float32 embeddings differ by rounding only.

        Args:
            dtype: type of weights and maps. ``torch.bfloat16`` is faster on GPUs, on processors with AMX, and on AMD's
                processors with AVX-512 BF16; cosines then differ in the third digit.
            compile: compile the copy by torch.compile on its first use, which takes from seconds to minutes.

        Raises:
            InputError: ``dtype`` is not a floating-point type.
        """
        if not dtype.is_floating_point:
            raise InputError(f"dtype: expected a floating-point type, got {dtype}")
        from rga_reid.models.optimize import optimize_module  # imports torch.fx

        model = copy.deepcopy(self).eval()
        optimize_module(model)
        model.requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.config = None
        if compile:
            model.compile()
        return model

    def _pool(self, x: Tensor) -> Tensor:
        """Pool the last map ``(n, C, h, w)`` to ``(n, d)``: the whole map, then the stripes from the top."""
        whole = x.mean((2, 3)) if self.gem is None else self.gem(x).flatten(1)
        if not self.stripes:
            return whole
        rows = F.adaptive_avg_pool2d(x, (self.stripes, 1)) if self.gem is None else self.gem(x, self.stripes)
        stripes = rows.squeeze(3)  # (n, C, stripes)
        return torch.cat([whole, stripes.transpose(1, 2).flatten(1)], 1)

    def normalise(self, images: Tensor) -> Tensor:
        """Return the float images that ``forward`` takes, given uint8 ``(n, 3, H, W)`` of the model's size."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1) * 255
        return (images.float() - mean) / std

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Embed images for retrieval.

        The same picture gives the same embedding as a path, as the content of its file and as a PIL image: EXIF
        rotation, 16-bit values and transparency are handled as in ``rga_reid.data.read_image``.

        Args:
            images: one image or a list of images, each a path, the content of an image file (``bytes``), a
                PIL image or a uint8 array ``(H, W, 3)``, of any size; or a uint8 tensor ``(n, 3, H, W)``.
            batch_size: images in one forward pass.
            device: device to run on; the model moves there and stays. By default its current device.
            channel_order: order of the channels in arrays and tensors; ``bgr`` for images read by OpenCV.

        Returns:
            float32 ``(n, d)`` on the CPU, rows L2-normalised, without gradient.

        Raises:
            InputError: an unreadable image; an array or tensor of another type or shape; a batch size below 1;
                an unavailable device.
        """
        if device is not None:
            self.to(choose_device(device))
        first = next(self.parameters())
        current, dtype = first.device, first.dtype
        rows = [torch.empty(0, self.dimension)]
        with eval_mode(self), torch.inference_mode():
            for batch in iter_batches(images, self.size, batch_size, current, channel_order):
                rows.append(F.normalize(self(self.normalise(batch).to(dtype)).float()).cpu())
        return torch.cat(rows)  # outside inference mode: autograd refuses its tensors


def iter_batches(
    images: Images,
    size: tuple[int, int],
    batch_size: int,
    device: str | torch.device = "cpu",
    channel_order: ChannelOrder = "rgb",
) -> Iterator[Tensor]:
    """Yield images in uint8 batches ``(n, 3, H, W)`` of at most ``batch_size``.

    Args:
        images, channel_order: as for ``EmbeddingModel.embed``.
        size: (H, W) of the result; images of another size are resized bilinearly with antialiasing.
        batch_size: images per batch.
        device: device of the result.

    Raises:
        InputError: see ``EmbeddingModel.embed``.
    """
    check_int("batch_size", batch_size)
    check_choice("channel_order", channel_order, ("rgb", "bgr"))
    if isinstance(images, np.ndarray) and images.ndim == 4:
        images = list(images)
    elif isinstance(images, str | os.PathLike | bytes | Image.Image | np.ndarray):
        images = [images]
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield uint8_batch(batch, size, device, channel_order=channel_order, first=start)


def uint8_batch(
    images: Tensor | Sequence[ImageInput],
    size: tuple[int, int],
    device: str | torch.device = "cpu",
    *,
    channel_order: ChannelOrder = "rgb",
    first: int = 0,
) -> Tensor:
    """Return images as one batch, resized bilinearly with antialiasing where they have another size.

    Args:
        images, channel_order: as for ``EmbeddingModel.embed``, but not a single image.
        size: (H, W) of the result.
        device: device of the result; tensors are resized there.
        first: number of the first image in error messages.

    Returns:
        uint8 ``(n, 3, H, W)``.

    Raises:
        InputError: see ``EmbeddingModel.embed``.
    """
    if not isinstance(images, Tensor):
        names = (f"images[{row}]" for row in range(first, first + len(images)))
        pixels = [
            _read_pixels(image, size, channel_order, name) for image, name in zip(images, names, strict=True)
        ]
        return torch.from_numpy(np.stack(pixels)).to(device)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise InputError(
            f"images: expected a uint8 tensor (n, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    images = images.to(device)
    if tuple(images.shape[2:]) != tuple(size):
        resized = F.interpolate(images.float(), tuple(size), mode="bilinear", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    return images.flip(1) if channel_order == "bgr" else images


def _read_pixels(image: ImageInput, size: Size, channel_order: ChannelOrder, name: str) -> np.ndarray:
    """Return one image as uint8 ``(3, H, W)`` of ``size``."""
    if isinstance(image, str | os.PathLike):
        return to_pixels(read_image(image), size)
    if isinstance(image, bytes | Image.Image):
        return to_pixels(normalise_image(image, name), size)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"{name}: expected a path, bytes, a PIL image or a uint8 array (H, W, 3), got "
            f"{type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"{name}: expected a uint8 array (H, W, 3), got {image.dtype} {image.shape}")
    if channel_order == "bgr":
        image = image[:, :, ::-1]
    return to_pixels(Image.fromarray(np.ascontiguousarray(image)), size)


def join_features(batches: Iterable[Tensor], dimension: int) -> Tensor:
    """Return the features of all batches, ``(n, dimension)``; without batches ``(0, dimension)``."""
    return torch.cat([torch.empty(0, dimension), *batches])


class FlipTTA:
    """Embed an image as the normalised sum of its embedding and that of its mirror image.

    Args:
        model: embeds both; an ``EmbeddingModel`` or another embedder with its interface.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.size, self.dimension = model, model.size, model.dimension

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Embed images.

        Args:
            images, batch_size, device, channel_order: as for ``EmbeddingModel.embed``.

        Returns:
            float32, ``(n, dimension)``, rows of length 1.
        """

        def embed(batch: Tensor) -> Tensor:
            straight = self.model.embed(batch, batch_size=batch_size, device=device)
            mirrored = self.model.embed(batch.flip(-1), batch_size=batch_size, device=device)
            return F.normalize(straight + mirrored)

        batches = iter_batches(images, self.size, batch_size, channel_order=channel_order)
        return join_features(map(embed, batches), self.dimension)
