"""Load whatever embeds images: a checkpoint, an ONNX file, or a class of the user."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid import models
from rga_reid.errors import InputError, check_choice, short_repr
from rga_reid.inference.engines import ENGINES, convert_embedder
from rga_reid.inference.onnx_embedder import OnnxEmbedder
from rga_reid.inputs import is_class_path, truncate
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.models.embedding import ChannelOrder, Images, iter_batches, join_features
from rga_reid.runtime import import_class


class Embedder(Protocol):
    """An ``EmbeddingModel``, a ``ColourHistogram`` or any class with the same interface."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input images in pixels."""

    @property
    def dimension(self) -> int:
        """Length d of a feature."""

    def embed(
        self, images: Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> Tensor:
        """Embed uint8 ``(n, 3, H, W)`` as float32 ``(n, d)`` on the CPU, rows L2-normalised."""


class LoadedEmbedder(Embedder, Protocol):
    """An embedder with a fingerprint, as ``load_embedder`` returns it."""

    @property
    def fingerprint(self) -> ModelFingerprint:
        """Identity of the model and its preprocessing, which a gallery remembers."""

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Embed images, see ``EmbeddingModel.embed``."""


class CustomEmbedder:
    """An embedder class of the user: takes any images, checks and normalises what the class returns.

    Args:
        embedder: object with ``embed``, ``dimension`` and ``size``, see ``Embedder``. Its features may be an array or a
            tensor of any length.
        class_path: its class, in messages and in the fingerprint.

    Raises:
        InputError: the object has no ``embed``, or no ``dimension`` or ``size`` of positive integers.
    """

    def __init__(self, embedder: Any, class_path: str) -> None:
        size, dimension = getattr(embedder, "size", None), getattr(embedder, "dimension", None)
        if not callable(getattr(embedder, "embed", None)):
            raise InputError(f"{class_path}: not an embedder: expected a method embed")
        if type(dimension) is not int or dimension < 1:
            raise InputError(
                f"{class_path}: dimension: expected a positive integer, got {short_repr(dimension)}"
            )
        if not (
            isinstance(size, Sequence) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        ):
            raise InputError(f"{class_path}: size: expected (H, W) in pixels, got {short_repr(size)}")
        self._embedder, self._class_path = embedder, class_path
        self.dimension, self.size = dimension, (size[0], size[1])
        #: by the name of the class only: other weights in it are not noticed
        self.fingerprint = ModelFingerprint(
            checkpoint=class_path, sha256=hashlib.sha256(class_path.encode()).hexdigest(), size=self.size
        )

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Embed images, see ``EmbeddingModel.embed``.

        Raises:
            InputError: see ``EmbeddingModel.embed``; the class returns an array of another shape.
        """

        def embed(batch: Tensor) -> Tensor:
            features = torch.as_tensor(self._embedder.embed(batch, batch_size=batch_size, device=device))
            if features.shape != (len(batch), self.dimension):
                raise InputError(
                    f"{self._class_path}: embed: expected features of shape {(len(batch), self.dimension)}, got "
                    f"{tuple(features.shape)}"
                )
            return F.normalize(features.detach().float().cpu())

        batches = iter_batches(images, self.size, batch_size, channel_order=channel_order)
        return join_features(map(embed, batches), self.dimension)


def load_embedder(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    float_input: bool = False,
    like: ModelFingerprint | None = None,
    engine: str | None = None,
) -> LoadedEmbedder:
    """Load a model that embeds images.

    Args:
        path: a checkpoint, see ``load_model``; an ``.onnx`` file, see ``OnnxEmbedder``; or the class path of an
            ``Embedder`` of your own, such as ``my_module.MyEmbedder``, which is created without arguments.
        device: device of the model.
        size, mean, std, float_input, like: see ``OnnxEmbedder``; for ONNX files.
        engine: ``torch``, ``onnx`` (onnxruntime) or ``openvino``. The default is ``torch`` for a checkpoint, which is
            exported to a temporary file for the others, and ``onnx`` for an ``.onnx`` file, which PyTorch cannot run.

    Returns:
        An object with ``embed(images)``, ``dimension``, ``size`` and ``fingerprint``.

    Raises:
        InputError: see ``load_model``, ``OnnxEmbedder`` and ``CustomEmbedder``; a class that cannot be imported or
            created; preprocessing for a model that includes its own; an engine that is not installed or cannot run
            the model.

    Examples:
        >>> embedder = load_embedder("osnet_x1_0.onnx", size=(256, 128))  # doctest: +SKIP
        >>> embedder.embed(["a.jpg", "b.jpg"]).shape  # doctest: +SKIP
        torch.Size([2, 512])
    """
    name = os.fspath(path)
    if engine is not None:
        check_choice("--engine", engine, ENGINES)
    if name.endswith(".onnx"):
        if engine == "torch":
            raise InputError(f"--engine torch: {name} is run by onnx or openvino")
        return OnnxEmbedder(
            name,
            device,
            size=size,
            mean=mean,
            std=std,
            float_input=float_input,
            like=like,
            engine=engine or "onnx",
        )
    given = {"--input-size": size, "--mean": mean, "--std": std, "--float-input": float_input or None}
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option}: goes with an .onnx file; {name} has its own preprocessing")
    engine = engine or "torch"
    if name.endswith(".xml"):
        raise InputError(
            f"{name}: OpenVINO files run without this package; expected the checkpoint or an .onnx file, which "
            "--engine openvino runs"
        )
    if is_class_path(name):
        if engine != "torch":
            raise InputError(f"--engine {engine}: {name} is a class, which runs in PyTorch only")
        return _create(name)
    model = models.load_model(name, device if engine == "torch" else "cpu")
    model.fingerprint = ModelFingerprint.of(model, name)
    return model if engine == "torch" else convert_embedder(model, engine, device=device)[engine]


def _create(class_path: str) -> CustomEmbedder:
    found = import_class(class_path, f"{class_path}: no such file; as a class")
    try:
        embedder = found()
    except TypeError as error:
        raise InputError(f"{class_path}: cannot be created without arguments ({truncate(error)})") from None
    return CustomEmbedder(embedder, class_path)
