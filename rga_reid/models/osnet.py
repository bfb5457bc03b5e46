"""OSNet and OSNet-AIN with an attention slot after each stage.

Zhou, Yang, Cavallaro, Xiang: Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019, arXiv 1905.00953;
Learning Generalisable Omni-Scale Representations for Person Re-Identification, TPAMI 2021, arXiv 1910.06827.

A block has four streams of 1 to 4 lightweight 3x3 convolutions, which see 3 to 9 pixels, and adds them up weighted by
one gate that they share. The state_dict keys are those of torchreid's OSNet-AIN; ``rename_torchreid`` gives them to
its OSNet. The published networks end with pooling, a linear layer, batch norm and ReLU: build the model with
``embedding_dim=512`` and ``neck="bn_relu"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from rga_reid.errors import InputError
from rga_reid.models.backbone import AttentionFactory, Backbone, Size
from rga_reid.models.weights import diff_state_dicts, with_counters

#: width -> channels of the stem and of the three stages
_CHANNELS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
#: place of the instance norm in the two blocks of each stage: inside the residual, after the sum, or nowhere
_Norms = tuple[tuple[str, str], ...]
_PLAIN: _Norms = (("", ""), ("", ""), ("", ""))
_IBN: _Norms = (("after", "after"), ("", ""), ("", ""))
_AIN: _Norms = (
    ("inside", "inside"),
    ("", "inside"),
    ("inside", ""),
)  # found by the search of the second paper

#: name -> channels and instance norms
ARCHITECTURES: dict[str, tuple[tuple[int, ...], _Norms]] = {
    **{f"osnet_{width}": (channels, _PLAIN) for width, channels in _CHANNELS.items()},
    "osnet_ibn_x1_0": (_CHANNELS["x1_0"], _IBN),
    **{f"osnet_ain_{width}": (channels, _AIN) for width, channels in _CHANNELS.items()},
}
STREAMS, REDUCTION, GATE_REDUCTION = 4, 4, 16


class ConvNorm(nn.Module):
    """Convolution, batch norm (or instance norm) and ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, instance: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn: nn.Module = nn.InstanceNorm2d(outputs, affine=True) if instance else nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class LinearConv(nn.Module):
    """1x1 convolution and batch norm, or the convolution alone."""

    def __init__(self, inputs: int, outputs: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


class LightConv(nn.Module):
    """Lite 3x3 layer: a pointwise, then a depthwise convolution, batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class Stream(nn.Module):
    """``depth`` lite layers, which see 2 * depth + 1 pixels."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(LightConv(channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class AggregationGate(nn.Module):
    """Multiply each channel by a weight in (0, 1) that depends on the mean of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // GATE_REDUCTION, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // GATE_REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class OSBlock(nn.Module):
    """Omni-scale residual block.

    Args:
        inputs, outputs: channels.
        norm: ``inside`` for an instance norm before the shortcut is added, ``after`` for one of the sum, or "".
    """

    def __init__(self, inputs: int, outputs: int, norm: str = "") -> None:
        super().__init__()
        width = outputs // REDUCTION
        self.norm = norm
        self.conv1 = ConvNorm(inputs, width)
        self.conv2 = nn.ModuleList(Stream(width, depth) for depth in range(1, STREAMS + 1))
        self.gate = AggregationGate(width)
        self.conv3 = LinearConv(width, outputs, norm=norm != "inside")
        self.downsample = LinearConv(inputs, outputs) if inputs != outputs else None
        self.IN: nn.Module = nn.InstanceNorm2d(outputs, affine=True) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        first, *others = (self.gate(stream(x)) for stream in self.conv2)
        x = self.conv3(sum(others, first))
        x = self.IN(x) + shortcut if self.norm == "inside" else self.IN(x + shortcut)
        return self.relu(x)


class OSNet(Backbone):
    """``(n, 3, H, W) -> (n, C, H / 16, W / 16)``; C is 512 for a width of 1, 128 for 0.25.

    Args:
        name: one of ``ARCHITECTURES``.
        attention: class or callable ``(in_channels, size) -> Module``, built once for each chosen stage.
        stages: the stages, 1 to 3, that an attention module follows; None for all.
        size: input (H, W) in pixels.

    Raises:
        InputError: an unknown stage, or a size out of range.
    """

    def __init__(
        self,
        name: str,
        attention: AttentionFactory | None = None,
        stages: Sequence[int] | None = None,
        size: Size = (256, 128),
    ) -> None:
        super().__init__(name, size)
        channels, norms = ARCHITECTURES[name]
        self.channels = channels[-1]
        self.conv1 = ConvNorm(3, channels[0], 7, stride=2, instance=norms is not _PLAIN)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.conv2 = _stage(channels[0], channels[1], norms[0])
        self.pool2 = _transition(channels[1])
        self.conv3 = _stage(channels[1], channels[2], norms[1])
        self.pool3 = _transition(channels[2])
        self.conv4 = _stage(channels[2], channels[3], norms[2])
        self.conv5 = ConvNorm(channels[3], channels[3])
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.attention1: nn.Module
        self.attention2: nn.Module
        self.attention3: nn.Module
        self.add_attention(attention, stages, list(zip(channels[1:], self.map_sizes(self.size), strict=True)))

    @property
    def title(self) -> str:
        """Name for people to read."""
        return (
            self.name.replace("osnet_", "OSNet ")
            .replace("ain_", "AIN ")
            .replace("ibn_", "IBN ")
            .replace("_", ".")
        )

    def map_sizes(self, size: Size) -> list[Size]:
        """Return the (H, W) of the three stages' outputs for an input of ``size`` pixels."""
        height, width = ((side + 3) // 4 for side in size)  # two padded layers round up
        return [(height >> halved, width >> halved) for halved in range(3)]

    def parts(self) -> list[tuple[str, list[str]]]:
        """Return the name of each part and its submodules, for costs."""
        return [
            ("stem", ["conv1"]),
            ("stage 1", ["conv2"]),
            ("stage 2", ["pool2", "conv3"]),
            ("stage 3", ["pool3", "conv4"]),
            ("head", ["conv5"]),
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map of normalised float images ``(n, 3, H, W)``."""
        x = self.maxpool(self.conv1(images))
        for layers, attention in (
            ((self.conv2,), self.attention1),
            ((self.pool2, self.conv3), self.attention2),
            ((self.pool3, self.conv4), self.attention3),
        ):
            modules = (*layers, attention)
            x = self.run_stage(partial(_run, modules), modules, x)
        return self.conv5(x)

    def load_published(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load torchreid's weights of this network, without its classifier and last linear layer.

        Args:
            state: state_dict of torchreid.
            source: name of the weights in error messages.

        Raises:
            InputError: a missing or unexpected key, or another shape.
        """
        state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
        own, state = self.state_dict(), rename_torchreid(state)
        wrong = diff_state_dicts(own, state := with_counters(own, state))
        if wrong:
            raise InputError(f"weights {source}: do not fit the backbone {self.name}: {wrong}")
        self.load_state_dict(state)


def rename_torchreid(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return torchreid's state_dict of an OSNet or OSNet-AIN with the keys of ``OSNet``."""
    return {_rename(key): value for key, value in state.items()}


def _rename(key: str) -> str:
    key = re.sub(r"^conv([23])\.2\.([01])\.", r"pool\1.\2.", key)
    key = re.sub(r"\.conv2a\.", ".conv2.0.layers.0.", key)
    return re.sub(r"\.conv2([bcd])\.", lambda found: f".conv2.{'abcd'.index(found[1])}.layers.", key)


def _run(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _stage(inputs: int, outputs: int, norms: tuple[str, str]) -> nn.Sequential:
    return nn.Sequential(OSBlock(inputs, outputs, norms[0]), OSBlock(outputs, outputs, norms[1]))


def _transition(channels: int) -> nn.Sequential:
    """Return the layer between two stages, which halves the map."""
    return nn.Sequential(ConvNorm(channels, channels), nn.AvgPool2d(2, 2))
