"""Convert checkpoints of other programs: the released RGA code, torchvision, torchreid and fast-reid.

The program is recognised by the keys. Tensors that the model here does not need are listed; a checkpoint that needs
parts which this package does not have is refused.
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
from rga_reid.models.resnet import ARCHITECTURES, STAGES, BasicBlock, Size
from rga_reid.models.weights import list_keys, read_tensors

State = dict[str, Tensor]

_STEM = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_PREPROCESSING = {"pixel_mean": "mean", "pixel_std": "std"}  # fast-reid, on the scale 0 to 255
_UNSUPPORTED = {  # fast-reid: part of a key and its meaning
    "heads.pool_layer.p": "generalised-mean pooling",
    ".NL_": "non-local blocks inside the stages",
    ".IN.": "instance-batch normalisation (IBN)",
    ".se.": "squeeze-and-excitation inside the blocks",
}


@dataclass(frozen=True)
class ConvertedModel:
    """A checkpoint of another program, converted.

    Args:
        model: in evaluation mode, without a classifier.
        source: program that wrote the file.
        unused: keys of the file that the model does not need, sorted.
    """

    model: EmbeddingModel
    source: str
    unused: tuple[str, ...]


def read_published(
    path: str | os.PathLike[str], *, size: Sequence[int] | None = None, last_stride: int | None = None
) -> ConvertedModel:
    """Read a checkpoint of the released RGA code, torchvision, torchreid or fast-reid. Nothing is unpickled.

    Args:
        path: a ``.safetensors`` or torch file: a state_dict, bare or under ``state_dict`` or ``model``; keys
            with or without the prefix ``module.``.
        size: (H, W) in pixels of the images it was trained on; 256×128 by default, but see
            ``read_official_rga``.
        last_stride: stride of stage 4, which the weights do not determine; by default 1 for fast-reid, 2 for
            torchvision and torchreid.

    Raises:
        InputError: not a checkpoint of these programs, or one with unsupported parts, or with NaN or infinite
            weights.
    """
    file = Path(path)
    state = {key.removeprefix("module."): value for key, value in read_tensors(file).items()}
    if any(key.startswith("backbone.rga_att") for key in state):
        unused = tuple(sorted(key for key in state if key.startswith("cls.")))
        return ConvertedModel(convert_official_rga(file, state, size), "the released RGA code", unused)
    source, config, names = _recognise(file, state)
    config |= {"attention": None, "size": tuple(size or (256, 128))}
    if last_stride is not None:
        config["last_stride"] = last_stride
    weights = {ours: state[theirs] for ours, theirs in names.items()}
    if "neck.weight" not in weights:
        weights |= _identity_neck(512 if config["backbone"] in ("resnet18", "resnet34") else 2048)
    unused = tuple(sorted(state.keys() - set(names.values()) - _PREPROCESSING.keys()))
    return ConvertedModel(build_with_state(file, config, weights), source, unused)


def _recognise(file: Path, state: State) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return the program, the model config, and the file's name of each of our tensors."""
    if any(key.startswith("backbone.layer4.") for key in state):
        for part, meaning in _UNSUPPORTED.items():
            found = [key for key in state if part in key]
            if found:
                raise InputError(
                    f"{file}: a fast-reid model with {meaning} ({found[0]}), which is not supported"
                )
        neck = [key for key in state if key.startswith("heads.bottleneck.")]
        if any(state[key].ndim > 1 for key in neck):
            raise InputError(f"{file}: a fast-reid model with a reduced embedding, which is not supported")
        names = {key: key for key in state if key.startswith("backbone.")}
        names |= {f"neck.{key.rpartition('.')[2]}": key for key in neck}
        config = {"backbone": _backbone(file, state, "backbone."), "last_stride": 1, "stem_pool": "ceil"}
        for key, name in _PREPROCESSING.items():
            if key in state:
                config[name] = [float(value) / 255 for value in state[key].ravel()]
        return "fast-reid", config, names
    if "layer4.0.conv1.weight" in state:
        if any(key.startswith("fc.0.") for key in state):
            raise InputError(f"{file}: a torchreid model with a layer after pooling (fc.0), not supported")
        names = {f"backbone.{key}": key for key in state if key.startswith(_STEM)}
        source = "torchreid" if "classifier.weight" in state else "torchvision"
        return source, {"backbone": _backbone(file, state, ""), "last_stride": 2}, names
    raise InputError(
        f"{file}: expected a checkpoint of the released RGA code, or a ResNet of torchvision, torchreid or "
        f"fast-reid, found {len(state)} tensors: {list_keys(sorted(state)) or 'none'}"
    )


def _backbone(file: Path, state: State, prefix: str) -> str:
    counts = tuple(
        len({key.removeprefix(stage).split(".")[0] for key in state if key.startswith(stage)})
        for stage in (f"{prefix}layer{number}." for number in STAGES)
    )
    basic = f"{prefix}layer1.0.conv3.weight" not in state
    for depth, (block, expected) in ARCHITECTURES.items():
        if counts == expected and basic == (block is BasicBlock):
            return f"resnet{depth}"
    known = sorted({expected for _, expected in ARCHITECTURES.values()})
    raise InputError(f"{file}: a ResNet with {counts} blocks in its stages, expected one of {known}")


def _identity_neck(channels: int) -> State:
    """Return a neck that keeps the direction of features, which are compared by their cosine."""
    zeros, ones = torch.zeros(channels), torch.ones(channels)
    neck = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    return {f"neck.{name}": value.clone() for name, value in neck.items()} | {
        "neck.num_batches_tracked": torch.tensor(0)
    }


_RENAMED = {"backbone.rga_att": "backbone.attention", "feat_bn.": "neck.", "cls.": "classifier."}
_KINDS = {(True, True): "rga", (True, False): "rga_s", (False, True): "rga_c"}
_STRIDE = 4  # pixels per position after stage 1


def read_official_rga(path: str | os.PathLike[str], *, size: Sequence[int] | None = None) -> EmbeddingModel:
    """Load a checkpoint of the released code: a ResNet-50 with RGA-S, RGA-C or RGA-SC after each stage.

    The kind of RGA and the number of positions of its maps follow from keys and shapes.

    Args:
        path: a file of ``torch.save``: the state_dict, or a dictionary with the key ``state_dict``; keys with or
            without the prefix ``module.``; a classifier of any number of classes. Nothing is unpickled.
        size: (H, W) in pixels of the images it was trained on. The number of positions fits many sizes; the
            default is the one with H = 2W.

    Returns:
        The model in evaluation mode, without its classifier.

    Raises:
        InputError: no such file, not a checkpoint of the released code, or of another size.
    """
    return convert_official_rga(Path(path), read_tensors(path), size)


def convert_official_rga(
    file: Path, content: Mapping[str, Tensor], size: Sequence[int] | None
) -> EmbeddingModel:
    """Return the model of the state_dict that ``read_official_rga`` reads."""
    state = {_rename(key.removeprefix("module.")): value for key, value in content.items()}
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
        "backbone": "resnet50",
        "attention": _KINDS[spatial is not None, channel is not None],
        "size": _input_size(file, positions, size),
    }
    return build_with_state(file, config, state)


def _rename(key: str) -> str:
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def _positions(spatial: Tensor | None, channel: Tensor | None) -> int:
    """Return the positions of the maps after stage 1: gg takes two values for each, θ of the channels one."""
    if spatial is not None:
        return spatial.shape[1] // 2
    assert channel is not None
    return channel.shape[1]


def _input_size(file: Path, positions: int, size: Sequence[int] | None) -> Size:
    if size is None:
        width = math.isqrt(positions // 2)
        if 2 * width * width != positions:
            raise InputError(
                f"{file}: its maps have {positions} positions after stage 1, which fits no image twice as high "
                "as wide; give the size (height, width) it was trained on"
            )
        return 2 * width * _STRIDE, width * _STRIDE
    height, width = size
    given = math.ceil(height / _STRIDE) * math.ceil(width / _STRIDE)
    if given != positions:
        raise InputError(
            f"{file}: its maps have {positions} positions after stage 1, but images of {height}x{width} "
            f"have {given}; give the size (height, width) it was trained on"
        )
    return height, width
