"""ResNet with an attention slot after each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385. Layers, state_dict keys and
initial weights are torchvision's, so that its weights fit. They are built here because importing torchvision takes
longer than embedding an image. The last stage keeps its resolution (stride 1), as in Luo et al., Bag of Tricks,
CVPRW 2019 (arXiv 1903.07071).

Variants that other re-identification programs train: instance-batch normalisation (IBN-a, Pan et al., ECCV 2018,
arXiv 1807.09441), and non-local blocks inside stages 2 and 3 (AGW, Ye et al., TPAMI 2021, arXiv 2001.04193).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rga_reid.attention import NonLocal
from rga_reid.errors import InputError, check_choice
from rga_reid.inputs import truncate
from rga_reid.models.backbone import (
    MAX_SIDE,
    MIN_SIDE,
    AttentionFactory,
    Backbone,
    Size,
    count_parameters,
)
from rga_reid.models.weights import diff_state_dicts, read_published_state, with_counters


class IBN(nn.Module):
    """Instance norm of the first half of the channels, batch norm of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        instance, batch = x.tensor_split((self.IN.num_features,), 1)
        return torch.cat([self.IN(instance), self.BN(batch)], 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, downsample: nn.Module | None, ibn: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1: nn.Module = IBN(width) if ibn else nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, and a shortcut."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, downsample: nn.Module | None, ibn: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1: nn.Module = IBN(width) if ibn else nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.non_local: NonLocal | None = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        x = self.relu(x)
        return x if self.non_local is None else self.non_local(x)


#: depth -> block and number of blocks in each stage
ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
DEPTHS = tuple(ARCHITECTURES)
STAGES = (1, 2, 3, 4)
#: depth -> number of last blocks of each stage that a non-local block follows
NON_LOCAL = {50: (0, 2, 3, 0), 101: (0, 2, 9, 0)}


class ResNet(Backbone):
    """``(n, 3, H, W) -> (n, C, H / 16, W / 16)``; C is 512 (depth 18, 34) or 2048 (depth 50, 101).

    Args:
        depth: 18, 34, 50 or 101.
        attention: class or callable ``(in_channels, size) -> Module``, built once for each chosen stage.
        stages: the stages, 1 to 4, that an attention module follows; None for all.
        last_stride: stride of stage 4; 2 gives ``(n, C, H / 32, W / 32)``.
        weights: None, ``"imagenet"`` (torchvision's ImageNet-1k V1 weights, downloaded on first use) or the
            path of a torchvision ResNet state_dict.
        size: input (H, W) in pixels, 32 to 1024 each; attention modules are built for the resulting map sizes.
        stem_pool: ``padded`` (torchvision); ``ceil``, unpadded with the output size rounded up (fast-reid); or
            ``half``, of 2x2 pixels (TransReID).
        stem_relu: False for no ReLU after the first convolution (strong-baseline).
        ibn: IBN-a in stages 1 to 3.
        non_local: non-local blocks of one channel inside stages 2 and 3, as AGW and fast-reid build them; depth 50
            or 101.

    Attributes:
        checkpointing: recompute the activations of each stage in the backward pass instead of storing them.

    Raises:
        InputError: unknown depth, stage or stride; weights that are unavailable or do not fit.
    """

    def __init__(
        self,
        depth: int = 50,
        attention: AttentionFactory | None = None,
        stages: Sequence[int] | None = STAGES,
        last_stride: int = 1,
        weights: str | os.PathLike[str] | None = None,
        size: Size = (256, 128),
        stem_pool: Literal["padded", "ceil", "half"] = "padded",
        *,
        stem_relu: bool = True,
        ibn: bool = False,
        non_local: bool = False,
    ) -> None:
        check_choice("depth", depth, DEPTHS)
        check_choice("stem_pool", stem_pool, ("padded", "ceil", "half"))
        check_choice("last_stride", last_stride, (1, 2))
        if non_local and depth not in NON_LOCAL:
            raise InputError(f"non_local: expected false for depth {depth}; only for depth 50 or 101")
        super().__init__(f"resnet{depth}{'_ibn_a' if ibn else ''}", size, last_stride)
        block, counts = ARCHITECTURES[depth]
        self.depth, self.ibn = depth, ibn
        self.channels = 512 * block.expansion

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True) if stem_relu else nn.Identity()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], 1, ibn)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], 2, ibn)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], 2, ibn)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], last_stride)
        nn.Linear(self.channels, 1000)  # torchvision's classifier draws too: equal seeds give its weights
        for module in self.modules():
            # on meta tensors, which hold no values, normal_ would import torch's compiler
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            self._load_pretrained(weights)
        if stem_pool == "ceil":
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        elif stem_pool == "half":
            self.maxpool = nn.MaxPool2d(2, 2)
        if non_local:
            self._add_non_local(NON_LOCAL[depth])

        self.attention1: nn.Module
        self.attention2: nn.Module
        self.attention3: nn.Module
        self.attention4: nn.Module
        widths = [self.channels // 8, self.channels // 4, self.channels // 2, self.channels]
        self.add_attention(attention, stages, list(zip(widths, self.map_sizes(self.size), strict=True)))

    @property
    def title(self) -> str:
        """Name for people to read."""
        return f"ResNet-{self.depth}{'-IBN-a' if self.ibn else ''}"

    def _add_non_local(self, counts: Sequence[int]) -> None:
        """Add a non-local block after each of the last ``counts`` blocks of each stage."""
        for layer, count in zip((self.layer1, self.layer2, self.layer3, self.layer4), counts, strict=True):
            blocks: list[Any] = list(layer)[len(layer) - count :]
            for block in blocks:
                block.non_local = NonLocal(block.conv3.out_channels, inter_channels=1, mode="dot_product")

    def _load_pretrained(self, weights: str | os.PathLike[str]) -> None:
        """Load a ResNet of torchvision, by name or from a file, without its classifier."""
        is_name = weights == "imagenet"
        if is_name and self.ibn:
            raise InputError(
                f"weights 'imagenet': torchvision has none of {self.name}; give the path of IBN-Net's file, or null"
            )
        state = download_torchvision(self.name) if is_name else read_published_state(weights)
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
        own = self.state_dict()
        wrong = diff_state_dicts(own, state := with_counters(own, state))
        if wrong:
            raise InputError(
                f"weights {os.fspath(weights)}: not a torchvision {self.name} state_dict: {wrong}"
            )
        self.load_state_dict(state)

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the four stages' outputs for an input of ``size`` pixels."""
        size = _halve(size)
        size = (size[0] // 2, size[1] // 2) if self.maxpool.padding == 0 else _halve(size)
        sizes = [size]
        for stride in (2, 2, self.last_stride):
            size = _halve(size) if stride == 2 else size
            sizes.append(size)
        return sizes

    def parts(self) -> list[tuple[str, list[str]]]:
        """Return the name of each part and its submodules, for costs."""
        parts = [("stem", ["conv1", "bn1"])]
        for stage in STAGES:
            parts.append((f"stage {stage}", [f"layer{stage}"]))
        return parts

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map of normalised float images ``(n, 3, H, W)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer, attention in (
            (self.layer1, self.attention1),
            (self.layer2, self.attention2),
            (self.layer3, self.attention3),
            (self.layer4, self.attention4),
        ):
            x = self.run_stage(partial(_attend, layer, attention), (layer, attention), x)
        return x


def _attend(layer: nn.Module, attention: nn.Module, x: Tensor) -> Tensor:
    return attention(layer(x))


def _halve(size: Size) -> Size:
    """Return the map size after a padded layer of stride 2: halves, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    width: int,
    count: int,
    stride: int,
    ibn: bool = False,
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    blocks = [block(inputs, width, stride, downsample, ibn)]
    blocks += [block(outputs, width, 1, None, ibn) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def download_torchvision(name: str) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights of a network: ``IMAGENET1K_V1`` where it has several. Nothing is unpickled.

    Args:
        name: name of torchvision.

    Raises:
        InputError: they cannot be downloaded, or the cached file is damaged.
    """
    from torchvision.models import get_model_weights

    try:
        # without weights_only, torchvision would unpickle a file in its cache
        known = get_model_weights(name)
        weights = getattr(known, "IMAGENET1K_V1", None) or known.DEFAULT
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise InputError(
            f"weights 'imagenet': cannot download them ({error}); offline, save torchvision's {name} "
            "weights elsewhere and give their path, or null for random weights"
        ) from None
    except Exception as error:  # torch raises many types on a damaged file
        raise InputError(
            f"weights 'imagenet': torch's cache holds a different file ({truncate(error)}); remove it to "
            "download the weights again"
        ) from None


__all__ = [
    "DEPTHS",
    "MAX_SIDE",
    "MIN_SIDE",
    "STAGES",
    "AttentionFactory",
    "ResNet",
    "Size",
    "count_parameters",
]
