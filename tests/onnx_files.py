"""ONNX files of a linear network, written node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SIZE = (4, 2)
DIMENSION = 5
WEIGHTS = np.random.default_rng(5).normal(size=(3 * SIZE[0] * SIZE[1], DIMENSION)).astype(np.float32)
TYPES = {"uint8": TensorProto.UINT8, "float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def write_onnx(
    path: Path,
    kind: str = "float",
    *,
    batch: int | str = "batch",
    size: Sequence[int | str] = SIZE,
    channels: int = 3,
    channels_last: bool = False,
    output: Sequence[int] = (-1, DIMENSION),
    extra_input: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a network that multiplies the channels, rows and columns of an image, flattened, by ``WEIGHTS``.

    Args:
        path: file to write.
        kind: type of the input.
        batch, size, channels: shape of the input; texts where any number is accepted.
        channels_last: the input is ``(n, H, W, 3)``.
        output: shape of the output.
        extra_input: add a second input, which is not used.
        metadata: key-value pairs of the file.
    """
    shape = [batch, *size, channels] if channels_last else [batch, channels, *size]
    nodes = [helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)]
    nodes += [
        helper.make_node(
            "Transpose", ["float"], ["chw"], perm=[0, 3, 1, 2] if channels_last else [0, 1, 2, 3]
        )
    ]
    nodes += [helper.make_node("Flatten", ["chw"], ["flat"])]
    nodes += [helper.make_node("MatMul", ["flat", "weights"], ["product"])]
    nodes += [helper.make_node("Reshape", ["product", "shape"], ["features"])]
    inputs = [helper.make_tensor_value_info("images", TYPES[kind], shape)]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("camera", TensorProto.INT64, [1]))
    constants = {"weights": WEIGHTS, "shape": np.array(output, np.int64)}
    graph = helper.make_graph(
        nodes,
        "network",
        inputs,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    save(model, path)
    return path


def expected_features(
    images: np.ndarray, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> np.ndarray:
    """Return what the network of ``write_onnx`` gives for uint8 ``(n, 3, H, W)``, normalised to length 1.

    Without ``mean``, it gets pixels from 0 to 255.
    """
    pixels = images.astype(np.float64)
    if mean is not None and std is not None:
        pixels = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    features = pixels.reshape(len(images), -1) @ WEIGHTS.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)
