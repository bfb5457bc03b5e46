"""Published checkpoints of other programs as models of this package.

Told apart by their keys: the released RGA code, torchvision's, torchreid's and fast-reid's ResNets. What a
file holds and a model here does not need is listed; what it needs and this package has not is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.inputs import truncate
from rga_reid.models.checkpoints import build_with_state
from rga_reid.models.embedding import EmbeddingModel
from rga_reid.models.resnet import STAGES, Size
from rga_reid.models.weights import SHOWN, read_tensors

State = dict[str, Tensor]

_BLOCKS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 50, (3, 4, 23, 3): 101}  # blocks per stage; 34 has those of 50
_STEM = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_PREPROCESSING = {"pixel_mean": "mean", "pixel_std": "std"}  # of fast-reid, on the scale 0 to 255
_MISSING_PARTS = {  # of fast-reid: what a key holds, and what it stands for
    "heads.pool_layer.p": "generalised-mean pooling",
    ".NL_": "non-local blocks inside the stages",
    ".IN.": "instance-batch normalisation (IBN)",
    ".se.": "squeeze-and-excitation inside the blocks",
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint, read.

    Args:
        model: in evaluation mode, without a classifier.
        source: the program that wrote the file.
        unused: keys of the file that the model does not need, sorted.
    """

    model: EmbeddingModel
    source: str
    unused: tuple[str, ...]


def read_published(
    path: str | os.PathLike[str], *, size: Sequence[int] | None = None, last_stride: int | None = None
) -> Published:
    """Read a checkpoint of the released RGA code, torchvision, torchreid or fast-reid. Nothing is unpickled.

    Args:
        path: a ``.safetensors`` or torch file: a state_dict, bare or under ``state_dict`` or ``model``; keys
            with or without the prefix ``module.``.
        size: (H, W) in pixels of the images it was trained on; 256×128 by default, but see
            ``read_official_rga``.
        last_stride: stride of stage 4, which no file tells; by default 1 for fast-reid, 2 for torchvision and
            torchreid, as these build it.

    Raises:
        InputError: not a checkpoint of these, or one with parts that this package does not have.
    """
    file = Path(path)
    state = {key.removeprefix("module."): value for key, value in read_tensors(file).items()}
    if any(key.startswith("backbone.rga_att") for key in state):
        unused = tuple(sorted(key for key in state if key.startswith("cls.")))
        return Published(convert_official_rga(file, state, size), "the released RGA code", unused)
    source, config, own = _read(file, state)
    config |= {"attention": None, "size": tuple(size or (256, 128))}
    if last_stride is not None:
        config["last_stride"] = last_stride
    used = {key for key, _ in own.values()} | _PREPROCESSING.keys()
    weights = {name: value for name, (_, value) in own.items()}
    if "neck.weight" not in weights:
        weights |= _neutral_neck(512 if config["depth"] < 50 else 2048)
    return Published(build_with_state(file, config, weights), source, tuple(sorted(state.keys() - used)))


def _read(file: Path, state: State) -> tuple[str, dict[str, Any], dict[str, tuple[str, Tensor]]]:
    """Program, model config, and our name -> (theirs, tensor)."""
    if any(key.startswith("backbone.layer4.") for key in state):
        for part, name in _MISSING_PARTS.items():
            found = [key for key in state if part in key]
            if found:
                raise InputError(
                    f"{file}: a fast-reid model with {name} ({found[0]}), which is not supported"
                )
        neck = {key: value for key, value in state.items() if key.startswith("heads.bottleneck.")}
        if any(value.ndim > 1 for value in neck.values()):
            raise InputError(f"{file}: a fast-reid model with a reduced embedding, which is not supported")
        own = {key: (key, value) for key, value in state.items() if key.startswith("backbone.")}
        own |= {f"neck.{key.rpartition('.')[2]}": (key, value) for key, value in neck.items()}
        config = {"depth": _depth(file, state, "backbone."), "last_stride": 1, "stem_pool": "ceil"}
        for key, name in _PREPROCESSING.items():
            if key in state:
                config[name] = [float(value) / 255 for value in state[key].ravel()]
        return "fast-reid", config, own
    if "layer4.0.conv1.weight" in state:
        if any(key.startswith("fc.0.") for key in state):
            raise InputError(f"{file}: a torchreid model with a layer after pooling (fc.0), not supported")
        own = {f"backbone.{key}": (key, value) for key, value in state.items() if key.startswith(_STEM)}
        source = "torchreid" if "classifier.weight" in state else "torchvision"
        return source, {"depth": _depth(file, state, ""), "last_stride": 2}, own
    raise InputError(
        f"{file}: expected a checkpoint of the released RGA code, or a ResNet of torchvision, torchreid or "
        f"fast-reid, found {len(state)} tensors: {_named(state) or 'none'}"
    )


def _named(state: State) -> str:
    return ", ".join(truncate(key, 80) for key in sorted(state)[:SHOWN])


def _depth(file: Path, state: State, prefix: str) -> int:
    blocks = tuple(
        len({key.removeprefix(stage).split(".")[0] for key in state if key.startswith(stage)})
        for stage in (f"{prefix}layer{number}." for number in STAGES)
    )
    if blocks not in _BLOCKS:
        raise InputError(
            f"{file}: a ResNet with {blocks} blocks in its stages, expected one of {list(_BLOCKS)}"
        )
    depth = _BLOCKS[blocks]
    return 34 if depth == 50 and f"{prefix}layer1.0.conv3.weight" not in state else depth


def _neutral_neck(channels: int) -> State:
    """A neck that changes no direction, for a model that has none: features are compared by their cosine."""
    zeros, ones = torch.zeros(channels), torch.ones(channels)
    neck = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    return {f"neck.{name}": value.clone() for name, value in neck.items()} | {
        "neck.num_batches_tracked": torch.tensor(0)
    }


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
    return convert_official_rga(Path(path), read_tensors(path), size)


def convert_official_rga(
    file: Path, content: Mapping[str, Tensor], size: Sequence[int] | None
) -> EmbeddingModel:
    """The model of what ``read_official_rga`` reads from a file."""
    state = {_renamed(key.removeprefix("module.")): value for key, value in content.items()}
    spatial, channel = (
        state.get(f"backbone.attention1.{name}.0.weight") for name in ("gg_spatial", "theta_channel")
    )
    if spatial is None and channel is None:
        raise InputError(
            f"{file}: expected a checkpoint of the released RGA code (keys like "
            "backbone.rga_att1.theta_spatial.0.weight), found "
            f"{truncate(', '.join(list(state)[:3])) or 'no tensor'}"
        )
    positions = _positions(spatial, channel)
    config = {
        "depth": 50,
        "attention": _KINDS[spatial is not None, channel is not None],
        "size": _input_size(file, positions, size),
    }
    return build_with_state(file, config, state)


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
