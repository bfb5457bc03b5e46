"""Weights and images that follow from a name and a shape, so that fixtures need no files of weights.

The script that ran the other programs used this module; see tests/fixtures/convert/README.md for the rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def uniform(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return float64 values in [0, 1): SplitMix64 of each element's index, with the CRC-32 of the name as seed."""
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    z += np.uint64(zlib.crc32(name.encode()) << 32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)) * 2.0**-53).reshape(shape)


def fill(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return the values of a tensor of a state_dict."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(1, dtype=np.int64)
    values = uniform(name, shape)
    if kind == "p":  # exponent of generalised-mean pooling
        values = 2 + 2 * values
    elif kind == "running_var" or (kind == "weight" and len(shape) == 1):
        values = 0.5 + values
    elif len(shape) > 1:
        values = (2 * values - 1) * np.sqrt(3 / np.prod(shape[1:]))
    else:
        values = (2 * values - 1) / 2
    if "NL_" in name:  # non-local blocks, whose output grows with the cube of their input
        values /= 10
    return values.astype(np.float32)


def fill_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the state_dict of these names and shapes, as torch tensors."""
    import torch

    return {name: torch.from_numpy(fill(name, shape)) for name, shape in shapes.items()}


def draw_images(height: int, width: int) -> np.ndarray:
    """Return two uint8 images ``(2, 3, H, W)``: noise on patches of different colours."""
    patches = uniform("patches", (2, 3, 4, 2)).repeat(height // 4, 2).repeat(width // 2, 3)
    noise = uniform("noise", (2, 3, height, width))
    return (255 * (0.7 * patches + 0.3 * noise)).astype(np.uint8)
