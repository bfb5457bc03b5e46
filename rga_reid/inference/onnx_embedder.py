"""Embed images with any re-identification network in an ONNX file, through onnxruntime or OpenVINO."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rga_reid.devices import choose_device
from rga_reid.errors import InputError, short_repr
from rga_reid.inference.graphs import GraphInput, open_graph
from rga_reid.inputs import is_number, truncate
from rga_reid.models.checkpoints import ModelFingerprint
from rga_reid.models.embedding import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelOrder,
    EmbeddingModel,
    Images,
    iter_batches,
    join_features,
)

_log = logging.getLogger("rga_reid")

Pair = tuple[int, int]


class OnnxEmbedder:
    """A network in an ONNX file, with the interface of ``EmbeddingModel``.

    The graph has one image input, ``(n, 3, H, W)`` or ``(n, H, W, 3)``, and its first output is ``(n, d)`` or
    ``(n, d, 1, 1)``. An input of type uint8 gets pixels from 0 to 255; one of type float gets
    ``(pixels / 255 - mean) / std``. A graph for batches of b images gets batches of b, the last one padded.

    What the arguments leave open is read from the graph and from the file's metadata: ``size`` ``[H, W]``, ``mean``
    and ``std`` as JSON lists, ``layout`` ``NCHW`` or ``NHWC``, ``channel_order`` ``rgb`` or ``bgr``, and ``weights``,
    the hash of the weights in the fingerprint of the model that was exported.

    Args:
        path: file.
        device: ``cuda`` needs onnxruntime-gpu, without which the network runs on the CPU.
        size: (H, W) of the input in pixels.
        mean, std: normalisation of the R, G and B channels on the scale 0 to 1, for a float input; by default
            ImageNet's, which is logged.
        float_input: the input is known to be float, with the ImageNet normalisation unless the file or the arguments
            have another one.
        like: fingerprint of a model with the same preprocessing, for what neither the arguments nor the file give.
        engine: ``onnx`` (onnxruntime) or ``openvino``.

    Raises:
        InputError: the engine is not installed; the file is not an ONNX file, has several inputs, or an input or
            output of another type or shape; an unknown size; a size, mean or std that the graph contradicts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        float_input: bool = False,
        like: ModelFingerprint | None = None,
        engine: str = "onnx",
    ) -> None:
        self._file, self._device = Path(path), choose_device(device)
        self._graph = open_graph(self._file, self._device, engine)
        metadata = self._graph.metadata
        source = self._find_input()
        self._name, self._dtype = source.name, source.dtype
        self._batch, self._channels_last, fixed = self._read_shape(source.shape, metadata)
        self._bgr = metadata.get("channel_order", "rgb").lower() == "bgr"
        self.size: Pair = self._choose_size(size, fixed, metadata, like)
        self.mean, self.std = self._choose_normalisation(mean, std, float_input, metadata, like)
        blank = np.zeros((1, 3, *self.size), np.uint8)
        self.dimension = self._run(blank).shape[1]
        #: identity of the file and its preprocessing
        self.fingerprint = replace(
            ModelFingerprint.of(self, self._file), weights=metadata.get("weights") or None, engine=engine
        )
        #: the PyTorch model that ``load_embedder`` exported, and statistics of its training data; None for a file
        self.source: EmbeddingModel | None = None
        self.trained_on: dict[str, Any] | None = None

    def with_engine(self, engine: str) -> OnnxEmbedder:
        """Return the same network in another engine, ``onnx`` or ``openvino``.

        Raises:
            InputError: the engine is not installed, or cannot read the file.
        """
        other = copy.copy(self)
        other._graph = open_graph(self._file, self._device, engine)
        other.fingerprint = replace(self.fingerprint, engine=engine)
        return other

    def embed(
        self,
        images: Images,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        channel_order: ChannelOrder = "rgb",
    ) -> Tensor:
        """Embed images for retrieval.

        Args:
            images, channel_order: see ``EmbeddingModel.embed``.
            batch_size: images in one run, for a graph of any batch.
            device: not used: the device is chosen when the file is loaded.

        Returns:
            float32 ``(n, d)``, rows L2-normalised.

        Raises:
            InputError: see ``EmbeddingModel.embed``; the engine cannot run the graph.
        """
        batches = iter_batches(images, self.size, self._batch or batch_size, channel_order=channel_order)
        return join_features(
            (F.normalize(torch.from_numpy(self._run(batch.numpy()))) for batch in batches), self.dimension
        )

    def _run(self, images: np.ndarray) -> np.ndarray:
        """Return the float32 ``(n, d)`` output for uint8 RGB ``(n, 3, H, W)``."""
        count = len(images)
        if self._batch is not None:
            images = np.concatenate([images, images[-1:].repeat(self._batch - count, 0)])
        fed = self._prepare(images)
        try:
            found = self._graph.run(fed)
        except Exception as error:  # engines raise many types
            raise InputError(
                f"{self._file}: {self._graph.engine} cannot run it with an input of shape {fed.shape} "
                f"({truncate(error)})"
            ) from None
        shape: tuple[int, ...] = getattr(found, "shape", ())  # a list for an output that is a sequence
        if len(shape) < 2 or shape[0] != len(images) or math.prod(shape[1:]) != max(shape[1:]):
            raise InputError(
                f"{self._file}: output {self._graph.output}: expected one feature for each image, ({len(images)}, d), "
                f"found {shape}"
            )
        return np.asarray(found, np.float32).reshape(len(images), -1)[:count]

    def _prepare(self, images: np.ndarray) -> np.ndarray:
        """Return uint8 RGB images ``(n, 3, H, W)`` as the graph takes them."""
        if self._dtype != np.uint8:
            assert self.mean is not None
            assert self.std is not None
            mean, std = (
                np.array(values, np.float32).reshape(3, 1, 1) * 255 for values in (self.mean, self.std)
            )
            images = ((images.astype(np.float32) - mean) / std).astype(self._dtype)
        if self._bgr:
            images = images[:, ::-1]
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1) if self._channels_last else images)

    def _find_input(self) -> GraphInput:
        inputs = self._graph.inputs
        if len(inputs) != 1:
            names = truncate(", ".join(item.name for item in inputs)) or "none"
            raise InputError(
                f"{self._file}: expected one input, a batch of images, found {len(inputs)}: {names}"
            )
        if inputs[0].dtype is None:
            raise InputError(
                f"{self._file}: input {inputs[0].name}: expected uint8, float or float16, found {inputs[0].kind}"
            )
        return inputs[0]

    def _read_shape(
        self, shape: Sequence[Any], metadata: Mapping[str, str]
    ) -> tuple[int | None, bool, list[int | None]]:
        """Return the fixed batch, whether channels are last, and the fixed height and width."""
        known = [dimension if isinstance(dimension, int) else None for dimension in shape]
        layout = metadata.get("layout", "").upper()
        if len(known) == 4:
            last = layout == "NHWC" if layout else known[1] != 3 and known[3] == 3
            if known[3 if last else 1] in (3, None):
                return known[0], last, known[1:3] if last else known[2:4]
        raise InputError(
            f"{self._file}: input {self._name}: expected a batch of RGB images, (n, 3, H, W) or (n, H, W, 3), found "
            f"{short_repr(tuple(shape))}"
        )

    def _choose_size(
        self,
        given: Sequence[int] | None,
        fixed: Sequence[int | None],
        metadata: Mapping[str, str],
        like: ModelFingerprint | None,
    ) -> Pair:
        recorded = self._read_list(metadata, "size", 2, lambda value: type(value) is int and value > 0)
        size = next((value for value in (given, recorded) if value is not None), None)
        if size is None and None in fixed:
            size = None if like is None else like.size
        chosen = [one or other for one, other in zip(fixed, size or fixed, strict=True)]
        if chosen[0] is None or chosen[1] is None:
            raise InputError(
                f"{self._file}: takes images of any size, and its metadata name none; give the size that it was "
                "trained with (--input-size 256x128)"
            )
        if size is not None and list(size) != chosen:
            raise InputError(
                f"{self._file}: takes images of {chosen[0]} x {chosen[1]} pixels (height x width), but "
                f"{size[0]} x {size[1]} are asked for (--input-size, or the file's metadata)"
            )
        return chosen[0], chosen[1]

    def _choose_normalisation(
        self,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        float_input: bool,
        metadata: Mapping[str, str],
        like: ModelFingerprint | None,
    ) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        recorded = (
            self._read_list(metadata, "mean", 3, is_number),
            self._read_list(metadata, "std", 3, lambda value: is_number(value) and value > 0),
        )
        if self._dtype == np.uint8:
            if mean is not None or std is not None or float_input:
                raise InputError(
                    f"{self._file}: takes uint8 pixels, which it normalises itself; leave out --mean, --std and "
                    "--float-input"
                )
            return recorded
        if like is not None and like.mean is not None and recorded == (None, None):
            recorded = like.mean, like.std
        if mean is None and std is None and recorded == (None, None) and not float_input:
            _log.warning(
                "%s: its metadata have no normalisation; its float input gets ImageNet's (--mean %s --std %s)",
                *(self._file, " ".join(map(str, IMAGENET_MEAN)), " ".join(map(str, IMAGENET_STD))),
            )
        chosen = []
        for name, given, own, default in (
            ("mean", mean, recorded[0], IMAGENET_MEAN),
            ("std", std, recorded[1], IMAGENET_STD),
        ):
            values = next(value for value in (given, own, default) if value is not None)
            if len(values) != 3 or not all(
                is_number(value) and (name == "mean" or value > 0) for value in values
            ):
                kind = "numbers" if name == "mean" else "positive numbers"
                raise InputError(f"--{name}: expected three {kind} (R, G, B), got {short_repr(values)}")
            chosen.append(tuple(map(float, values)))
        return chosen[0], chosen[1]

    def _read_list(
        self, metadata: Mapping[str, str], key: str, length: int, valid: Callable[[Any], bool]
    ) -> tuple[Any, ...] | None:
        """Return a list of the metadata; None without it."""
        if key not in metadata:
            return None
        try:
            values = json.loads(metadata[key])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or len(values) != length or not all(map(valid, values)):
            raise InputError(
                f"{self._file}: metadata {key!r}: expected a list of {length} numbers, found "
                f"{short_repr(metadata[key])}"
            )
        return tuple(values)
