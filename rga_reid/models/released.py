"""Checkpoints of the RGA code that its authors released (Zhang et al., CVPR 2020).

Only names differ from ours: the attention modules are ``rga_att1`` to ``rga_att4``, the neck is ``feat_bn``,
the classifier ``cls``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.inputs import shortened
from rga_reid.models.checkpoints import model_with
from rga_reid.models.embedding import EmbeddingModel
from rga_reid.models.resnet import Size
from rga_reid.models.state_files import read_tensors

_OURS = {"backbone.rga_att": "backbone.attention", "feat_bn.": "neck.", "cls.": "classifier."}
_KINDS = {(True, True): "rga", (True, False): "rga_s", (False, True): "rga_c"}
_STRIDE = 4  # of the maps after stage 1


def read_official_rga(path: str | os.PathLike[str], *, size: Sequence[int] | None = None) -> EmbeddingModel:
    """Load a checkpoint of the released code: a ResNet-50 with RGA-S, RGA-C or RGA-SC after each stage.

    Which of the three it is, and how many positions its maps have, follows from keys and shapes.

    Args:
        path: a file of ``torch.save``: the state_dict, or a dictionary with it under the key ``state_dict``;
            keys with or without the prefix ``module.``; a classifier of any number of classes. Nothing is
            unpickled.
        size: (H, W) in pixels of the images it was trained on. The number of positions fits many sizes; by
            default the one with H = 2W is taken.

    Returns:
        The model in evaluation mode, without its classifier.

    Raises:
        InputError: no such file, not a checkpoint of the released code, or of another size.
    """
    return from_released(Path(path), read_tensors(path), size)


def from_released(file: Path, content: Mapping[str, Tensor], size: Sequence[int] | None) -> EmbeddingModel:
    """The model of what ``read_official_rga`` reads from a file."""
    state = {_renamed(key.removeprefix("module.")): value for key, value in content.items()}
    spatial, channel = (
        state.get(f"backbone.attention1.{name}.0.weight") for name in ("gg_spatial", "theta_channel")
    )
    if spatial is None and channel is None:
        raise InputError(
            f"{file}: expected a checkpoint of the released RGA code (keys like "
            "backbone.rga_att1.theta_spatial.0.weight), found "
            f"{shortened(', '.join(list(state)[:3])) or 'no tensor'}"
        )
    positions = _positions(spatial, channel)
    config = {
        "depth": 50,
        "attention": _KINDS[spatial is not None, channel is not None],
        "size": _input_size(file, positions, size),
    }
    return model_with(file, config, state)


def _renamed(key: str) -> str:
    for theirs, ours in _OURS.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def _positions(spatial: Tensor | None, channel: Tensor | None) -> int:
    """Positions of the maps after stage 1: gg takes two relations for each, θ of the channels one value."""
    if spatial is not None:
        return spatial.shape[1] // 2
    assert channel is not None
    return channel.shape[1]


def _input_size(file: Path, positions: int, size: Sequence[int] | None) -> Size:
    if size is None:
        width = math.isqrt(positions // 2)
        if 2 * width * width != positions:
            raise InputError(
                f"{file}: its maps have {positions} positions after stage 1, which no image twice as high as "
                "wide gives; say the size (height, width) it was trained on"
            )
        return 2 * width * _STRIDE, width * _STRIDE
    height, width = size
    given = math.ceil(height / _STRIDE) * math.ceil(width / _STRIDE)
    if given != positions:
        raise InputError(
            f"{file}: its maps have {positions} positions after stage 1, but images of {height}x{width} "
            f"give {given}; say the size (height, width) it was trained on"
        )
    return height, width
