"""ResNet with an attention slot after each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385. Layers, state_dict keys and
initial weights are torchvision's, so that its weights fit. They are built here because importing torchvision takes
longer than embedding an image. The last stage keeps its resolution (stride 1), as in Luo et al., Bag of Tricks,
CVPRW 2019 (arXiv 1903.07071).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rga_reid.errors import InputError, check_choice, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.weights import diff_state_dicts, read_tensors

Size = tuple[int, int]
AttentionFactory = Callable[[int, Size], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
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

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


#: depth -> block and number of blocks in each stage
ARCHITECTURES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
DEPTHS = tuple(ARCHITECTURES)
STAGES = (1, 2, 3, 4)
MIN_SIDE, MAX_SIDE = 32, 1024  #: height and width of an input in pixels


class ResNet(nn.Module):
    """``(n, 3, H, W) -> (n, C, H / 16, W / 16)``; C is 512 (depth 18, 34) or 2048 (depth 50, 101).

    Args:
        depth: 18, 34, 50 or 101.
        attention: class or callable ``(in_channels, size) -> Module``, built once for each chosen stage.
        stages: the stages, 1 to 4, that an attention module follows.
        last_stride: stride of stage 4; 2 gives ``(n, C, H / 32, W / 32)``.
        weights: None, ``"imagenet"`` (torchvision's ImageNet-1k V1 weights, downloaded on first use) or the
            path of a torchvision ResNet state_dict.
        size: input (H, W) in pixels, 32 to 1024 each; attention modules are built for the resulting map sizes.
        stem_pool: ``padded`` (torchvision) or ``ceil``, unpadded with the output size rounded up (fast-reid).

    Attributes:
        checkpointing: recompute the activations of each stage in the backward pass instead of storing them.

    Raises:
        InputError: unknown depth, stage or stride; weights that are unavailable or do not fit.
    """

    def __init__(
        self,
        depth: int = 50,
        attention: AttentionFactory | None = None,
        stages: Sequence[int] = STAGES,
        last_stride: int = 1,
        weights: str | os.PathLike[str] | None = None,
        size: Size = (256, 128),
        stem_pool: Literal["padded", "ceil"] = "padded",
    ) -> None:
        super().__init__()
        check_choice("depth", depth, DEPTHS)
        check_choice("stem_pool", stem_pool, ("padded", "ceil"))
        check_choice("last_stride", last_stride, (1, 2))
        if not set(stages) <= set(STAGES) or len(set(stages)) != len(stages):
            raise InputError(f"stages: expected distinct stages out of 1, 2, 3, 4, got {list(stages)}")
        if not all(isinstance(length, int) and MIN_SIDE <= length <= MAX_SIDE for length in size):
            raise InputError(
                f"size: expected at least {MIN_SIDE}x{MIN_SIDE} and at most {MAX_SIDE}x{MAX_SIDE} pixels, "
                f"got {short_repr(size[0])}x{short_repr(size[1])}"
            )
        block, counts = ARCHITECTURES[depth]
        self.depth, self.stages, self.last_stride = depth, tuple(stages), last_stride
        self.size: Size = (size[0], size[1])
        self.input_size = self.size  #: the size that attention currently takes
        self.channels = 512 * block.expansion
        self.checkpointing = False

        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], 1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], 2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], 2)
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

        self.attention1: nn.Module
        self.attention2: nn.Module
        self.attention3: nn.Module
        self.attention4: nn.Module
        widths = [self.channels // 8, self.channels // 4, self.channels // 2, self.channels]
        for stage, (width, map_size) in enumerate(zip(widths, self.map_sizes(size), strict=True), 1):
            used = attention if attention is not None and stage in stages else nn.Identity
            setattr(self, f"attention{stage}", used(width, map_size))

    def _load_pretrained(self, weights: str | os.PathLike[str]) -> None:
        """Load a ResNet of torchvision, by name or from a file, without its classifier."""
        state = _download(self.depth) if weights == "imagenet" else read_tensors(weights)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        own = self.state_dict()
        counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
        state = counters | state  # older files lack them
        wrong = diff_state_dicts(own, state)
        if wrong:
            raise InputError(
                f"weights {os.fspath(weights)}: not a torchvision resnet{self.depth} state_dict: {wrong}"
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

    def attention_stages(self) -> dict[int, nn.Module]:
        """Return the attention modules by the stage they follow."""
        modules = {stage: getattr(self, f"attention{stage}") for stage in STAGES}
        return {stage: module for stage, module in modules.items() if not isinstance(module, nn.Identity)}

    def set_input_size(self, size: Size) -> None:
        """Take inputs of ``size`` from now on, adapting attention modules that are tied to a map size."""
        self.input_size = (size[0], size[1])
        sizes = self.map_sizes(size)
        for stage, module in self.attention_stages().items():
            set_map_size: Any = getattr(module, "set_map_size", None)
            if set_map_size is not None:
                set_map_size(sizes[stage - 1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the last feature map of normalised float images ``(n, 3, H, W)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for layer, attention in (
            (self.layer1, self.attention1),
            (self.layer2, self.attention2),
            (self.layer3, self.attention3),
            (self.layer4, self.attention4),
        ):
            x = self._run_stage(layer, attention, x)
        return x

    def _run_stage(self, layer: nn.Module, attention: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return attention(layer(x))

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _frozen_buffers(layer, attention)

        return checkpoint(lambda x: attention(layer(x)), x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_buffers(*modules: nn.Module) -> Iterator[None]:
    """Restore buffers afterwards: recomputing a batch must not count twice in running statistics."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def _halve(size: Size) -> Size:
    """Return the map size after a padded layer of stride 2: halves, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    outputs = width * block.expansion
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    blocks = [block(inputs, width, stride, downsample)]
    blocks += [block(outputs, width, 1, None) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _download(depth: int) -> dict[str, Tensor]:
    """Return torchvision's ImageNet weights. Nothing is unpickled."""
    from torchvision.models import get_model_weights

    try:
        # without weights_only, torchvision would unpickle a file in its cache
        weights = get_model_weights(f"resnet{depth}").IMAGENET1K_V1
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise InputError(
            f"weights 'imagenet': cannot download them ({error}); offline, save torchvision's resnet{depth} "
            "weights elsewhere and give their path, or null for random weights"
        ) from None
    except Exception as error:  # torch raises many types on a damaged file
        raise InputError(
            f"weights 'imagenet': torch's cache holds a different file ({truncate(error)}); remove it to "
            "download the weights again"
        ) from None


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


__all__ = ["DEPTHS", "STAGES", "AttentionFactory", "ResNet", "Size", "count_parameters"]
