"""A checkpoint of another program on its way to a model of this package: every tensor is used, unused or refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rga_reid.errors import InputError
from rga_reid.inputs import read_yaml, truncate
from rga_reid.models.checkpoints import build_with_state
from rga_reid.models.embedding import EmbeddingModel, Pooling
from rga_reid.models.osnet import ARCHITECTURES as OSNETS
from rga_reid.models.osnet import rename_torchreid
from rga_reid.models.resnet import ARCHITECTURES, STAGES, BasicBlock
from rga_reid.models.weights import list_keys

State = dict[str, Tensor]

NORM = ("weight", "bias", "running_mean", "running_var")
_STEM = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
#: part of a key -> the network that has it, for networks that this package cannot represent
_UNSUPPORTED = {
    r"(^|\.)fc_fusion\.": "torchreid's resnet50mid",
    r"^conv5\.layers\.": "torchreid's PCB",
    r"\.se(_module)?\.": "a network with squeeze-and-excitation inside its blocks",
    r"(^|\.)(sie_embed|cv_embed)$": "a transformer with camera or view embeddings (SIE)",
    r"^b1\.0\.norm1\.": "TransReID with its jigsaw branch (JPM)",
    r"^usam_": "layumi's network with USAM",
    r"^classifier0\.": "layumi's PCB",
    r"^model\.(features|layers|stages|blocks)\.": "layumi's network on another backbone than ResNet",
    r"^image_encoder\.layer": "CLIP-ReID on the ResNet of CLIP",
    r"^backbone\.conv1\.0\.": "fast-reid's ResNeSt",
    r"^backbone\.(cls_token|blocks)": "fast-reid's transformer",
    r"^backbone\.stage[0-9]": "fast-reid's RepVGG",
    r"^backbone\.(features|s1)\.": "fast-reid's network on a MobileNet, ShuffleNet or RegNet",
    r"^ha1\.": "torchreid's HACNN",
    r"^fc_s\.": "torchreid's MLFN",
    r"^block1\.": "torchreid's MuDeep or Xception",
    r"^cell_0\.": "torchreid's NASNet",
    r"^features\.": "DenseNet, Inception, SqueezeNet or another network with features",
    r"^conv9\.": "torchreid's MobileNetV2",
    r"^stage2\.": "torchreid's ShuffleNet",
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


@dataclass(frozen=True)
class ConversionOptions:
    """Properties of a network that its file may not contain; None where the user gave none."""

    size: tuple[int, int] | None
    last_stride: int | None
    pooling: Pooling | None
    neck_feat: str | None


class Conversion:
    """A checkpoint on its way: tensors move from ``left`` to ``weights``, or to the unused ones.

    Args:
        file: for error messages.
        state: tensors by the names of the other program.
        options: properties that the user gave.
    """

    def __init__(self, file: Path, state: State, options: ConversionOptions) -> None:
        self.file, self.state, self.options = file, state, options
        self.left = dict(state)
        self.weights: State = {}  #: by the names of this package
        self.unused: list[str] = []
        self.source = ""
        self.channels = 0  #: channels of the pooled feature
        self.config: dict[str, Any] = {"attention": None, "size": options.size or (256, 128)}
        if options.last_stride is not None:
            self.config["last_stride"] = options.last_stride

    def refuse(self, what: str) -> InputError:
        """Return the error for a network that this package cannot represent."""
        return InputError(
            f"{self.file}: {what}, which cannot be converted; use the network as an ONNX file, or its features"
        )

    def refuse_unsupported(self) -> None:
        """Check for parts of networks that are known, but not supported."""
        for pattern, what in _UNSUPPORTED.items():
            found = next((key for key in self.state if re.search(pattern, key)), None)
            if found:
                raise self.refuse(f"{what} (key {truncate(found, 80)})")

    def take(self, key: str) -> Tensor:
        """Remove a tensor from those that are left."""
        if key not in self.left:
            raise InputError(f"{self.file}: {self.source}: missing {key}")
        return self.left.pop(key)

    def move(self, prefix: str, ours: str) -> None:
        """Use all tensors whose names begin with ``prefix``."""
        for key in [key for key in self.left if key.startswith(prefix)]:
            self.weights[ours + key.removeprefix(prefix)] = self.left.pop(key)

    def drop(self, *patterns: str) -> None:
        """Leave tensors unused whose names match a pattern as a whole."""
        for key in [key for key in self.left if any(re.fullmatch(pattern, key) for pattern in patterns)]:
            self.unused.append(key)
            del self.left[key]

    def move_resnet(self, prefix: str, *, last_stride: int) -> None:
        """Use a ResNet, and choose the backbone by its blocks."""
        counts = tuple(
            len({key.removeprefix(stage).split(".")[0] for key in self.left if key.startswith(stage)})
            for stage in (f"{prefix}layer{number}." for number in STAGES)
        )
        basic = f"{prefix}layer1.0.conv3.weight" not in self.left
        name = None
        for depth, (block, expected) in ARCHITECTURES.items():
            if counts == expected and basic == (block is BasicBlock):
                name = f"resnet{depth}"
        if name is None:
            known = sorted({expected for _, expected in ARCHITECTURES.values()})
            raise self.refuse(f"a ResNet with {counts} blocks in its stages, expected one of {known}")
        kernel = self.left.get(f"{prefix}layer1.0.conv2.weight")
        if not basic and kernel is not None and kernel.ndim == 4 and kernel.shape[0] != kernel.shape[1]:
            raise self.refuse("a ResNeXt")
        is_ibn = any(".bn1.IN." in key for key in self.left)
        for part in _STEM:
            self.move(prefix + part, f"backbone.{part}")
        self.channels = 512 if basic else 2048
        self.config["backbone"] = f"{name}_ibn_a" if is_ibn else name
        self.config.setdefault("last_stride", last_stride)

    def move_osnet(self, prefix: str) -> None:
        """Use an OSNet or OSNet-AIN, and choose the backbone by its width and norms."""
        state = {
            key.removeprefix(prefix): value for key, value in self.left.items() if key.startswith(prefix)
        }
        body = rename_torchreid(
            {key: value for key, value in state.items() if re.match(r"(conv|pool)\d\.", key)}
        )
        self.left = {
            key: value
            for key, value in self.left.items()
            if not re.match(r"(conv|pool)\d\.", key.removeprefix(prefix))
        }
        stem = state.get("conv1.conv.weight")
        kind = "ain_" if "conv2.0.IN.weight" in body and "conv2.0.conv3.bn.weight" not in body else ""
        kind = kind or ("ibn_" if "conv2.0.IN.weight" in body else "")
        channels = None if stem is None or stem.ndim != 4 else stem.shape[0]
        name = next(
            (
                name
                for name, (widths, _) in OSNETS.items()
                if name.startswith(f"osnet_{kind}x") and widths[0] == channels
            ),
            None,
        )
        if name is None:
            raise self.refuse(f"an OSNet with {channels} channels in its stem")
        self.weights |= {f"backbone.{key}": value for key, value in body.items()}
        self.channels = OSNETS[name][0][-1]
        self.config["backbone"] = name

    def move_reduction(self, linear: str, norm: str) -> None:
        """Use a linear layer and the batch norm after it. The norm's mean absorbs the bias of the layer."""
        weight = self.take(f"{linear}.weight").flatten(1)
        if weight.shape[1] != self.channels:
            raise InputError(
                f"{self.file}: {linear}.weight takes {weight.shape[1]} features, expected {self.channels}"
            )
        bias = self.left.pop(f"{linear}.bias", None)
        self.weights["embedding.weight"] = weight
        self.config["embedding_dim"] = self.channels = len(weight)
        self.move(f"{norm}.", "neck.")
        mean = self.weights.get("neck.running_mean")
        if bias is not None and mean is not None and mean.shape == bias.shape:
            self.weights["neck.running_mean"] = mean - bias

    def set_pooling(self, exponent: str | None = None) -> None:
        """Choose the pooling: GeM if the file has its exponent, else as given by the user, else the average."""
        if exponent is not None and exponent in self.left:
            if self.options.pooling == "avg":
                raise InputError(
                    f"{self.file}: --pooling: the file has an exponent of GeM ({exponent}), got avg"
                )
            self.config["pooling"] = "gem"
            self.weights["gem.p"] = self.take(exponent)
        elif self.options.pooling == "gem":
            self.config["pooling"] = "gem"
            self.weights["gem.p"] = torch.tensor([3.0])

    def read_beside(self, name: str) -> dict[str, Any]:
        """Return the settings in a YAML file of the same folder; empty without such a file."""
        path = self.file.with_name(name)
        found = read_yaml(path, what=f"{self.source}'s settings") if path.is_file() else None
        return found if isinstance(found, dict) else {}

    def build(self) -> ConvertedModel:
        """Return the model.

        Raises:
            InputError: tensors are left or missing, or do not fit.
        """
        if self.left:
            raise self.refuse(
                f"a network of {self.source} with {len(self.left)} unknown tensors ({list_keys(sorted(self.left))})"
            )
        if "neck.weight" not in self.weights:
            self.weights |= _identity_neck(self.channels)
        for key in list(self.weights):  # torch counts batches since 0.4.1
            if key.endswith(".running_mean"):
                self.weights.setdefault(
                    f"{key.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0)
                )
        model = build_with_state(self.file, self.config, self.weights)
        return ConvertedModel(model, self.source, tuple(sorted(self.unused)))


def _identity_neck(channels: int) -> State:
    """Return a neck that keeps the direction of features, which are compared by their cosine."""
    zeros, ones = torch.zeros(channels), torch.ones(channels)
    neck = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    return {f"neck.{name}": value.clone() for name, value in neck.items()}
