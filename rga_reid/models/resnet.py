"""ResNet with an attention slot after each stage.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385; torchvision's body.
The last stage keeps its resolution (stride 1), as Luo et al., Bag of Tricks, CVPRW 2019 (arXiv 1903.07071).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rga_reid.errors import InputError, check_choice, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.weights import diff_state_dicts, read_tensors

Size = tuple[int, int]
AttentionFactory = Callable[[int, Size], nn.Module]

DEPTHS = (18, 34, 50, 101)
STAGES = (1, 2, 3, 4)
SMALLEST, LARGEST = 32, 1024  #: pixels that an input may be high or wide


class ResNet(nn.Module):
    """``(n, 3, H, W) -> (n, C, H / 16, W / 16)``; C is 512 (depth 18, 34) or 2048 (depth 50, 101).

    Args:
        depth: 18, 34, 50 or 101.
        attention: class or callable ``(in_channels, size) -> Module``, built once for each chosen stage.
        stages: the stages, 1 to 4, that an attention module follows.
        last_stride: stride of stage 4; 2 gives ``(n, C, H / 32, W / 32)``.
        weights: None, ``"imagenet"`` (torchvision's ImageNet-1k V1 weights, downloaded on first use) or the
            path of a torchvision ResNet state_dict.
        size: input (H, W) in pixels, 32 to 1024 each; attention modules are built for the map sizes that
            follow from it.
        stem_pool: ``padded`` (torchvision) or ``ceil``, without padding and its output size rounded up
            (fast-reid): the same weights, another sampling of the first map.

    Attributes:
        checkpointing: compute each stage again in the backward pass instead of keeping its activations.

    Raises:
        InputError: unknown depth, stage or stride; weights that cannot be had or do not fit.
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
        self.attention1: nn.Module
        self.attention2: nn.Module
        self.attention3: nn.Module
        self.attention4: nn.Module
        check_choice("depth", depth, DEPTHS)
        check_choice("stem_pool", stem_pool, ("padded", "ceil"))
        check_choice("last_stride", last_stride, (1, 2))
        if not set(stages) <= set(STAGES) or len(set(stages)) != len(stages):
            raise InputError(f"stages: expected distinct stages out of 1, 2, 3, 4, got {list(stages)}")
        if not all(isinstance(length, int) and SMALLEST <= length <= LARGEST for length in size):
            raise InputError(
                f"size: expected at least {SMALLEST}x{SMALLEST} and at most {LARGEST}x{LARGEST} pixels, "
                f"got {short_repr(size[0])}x{short_repr(size[1])}"
            )
        body = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        if weights is not None:
            body.load_state_dict(_pretrained_state(depth, weights))
        self.depth, self.stages, self.last_stride = depth, tuple(stages), last_stride
        self.size: Size = (size[0], size[1])
        self.input_size = self.size  #: that attention is set to now
        self.channels: int = body.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        if stem_pool == "ceil":
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.checkpointing = False
        self.layer1, self.layer2 = body.layer1, body.layer2
        self.layer3, self.layer4 = body.layer3, body.layer4
        if last_stride == 1:
            _keep_resolution(self.layer4)
        widths = [self.channels // 8, self.channels // 4, self.channels // 2, self.channels]
        for stage, (width, map_size) in enumerate(zip(widths, self.map_sizes(size), strict=True), 1):
            module = attention(width, map_size) if attention is not None and stage in stages else None
            setattr(self, f"attention{stage}", module or nn.Identity())

    def map_sizes(self, size: Size) -> list[Size]:
        """The (H, W) of the four stages' outputs for an input of ``size`` pixels."""
        size = _halved(size)
        size = (size[0] // 2, size[1] // 2) if self.maxpool.padding == 0 else _halved(size)
        sizes = [size]
        for stride in (2, 2, self.last_stride):
            size = _halved(size) if stride == 2 else size
            sizes.append(size)
        return sizes

    def attention_stages(self) -> dict[int, nn.Module]:
        """The modules of attention, by the stage they follow."""
        modules = {stage: getattr(self, f"attention{stage}") for stage in STAGES}
        return {stage: module for stage, module in modules.items() if not isinstance(module, nn.Identity)}

    def set_input_size(self, size: Size) -> None:
        """Take inputs of ``size`` from now on: attention that is tied to a map size is told the new one."""
        self.input_size = (size[0], size[1])
        sizes = self.map_sizes(size)
        for stage, module in self.attention_stages().items():
            set_map_size: Any = getattr(module, "set_map_size", None)
            if set_map_size is not None:
                set_map_size(sizes[stage - 1])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float images ``(n, 3, H, W)`` to the last feature map."""
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
            return nullcontext(), _unchanged_buffers(layer, attention)

        return checkpoint(lambda x: attention(layer(x)), x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _unchanged_buffers(*modules: nn.Module) -> Iterator[None]:
    """A second pass over the same batch must not count twice in the running statistics of batch norm."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def _halved(size: Size) -> Size:
    """What a layer of 3x3 (or 7x7) with stride 2 and padding 1 (or 3) makes of a map: halves, rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _keep_resolution(stage: nn.Module) -> None:
    """Set every stride of a stage to 1: of the convolution that strides, and of its shortcut."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)


def _pretrained_state(depth: int, weights: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State_dict of torchvision's ResNet, by name or from a file; nothing is unpickled."""
    if weights == "imagenet":
        enum = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1
        try:
            # by default what lies in the cache would be unpickled
            return enum.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:
            raise InputError(
                f"weights 'imagenet': cannot download them ({error}); offline, save torchvision's "
                f"resnet{depth} weights elsewhere and give their path, or null to start from random ones"
            ) from None
        except Exception as error:  # torch raises nearly anything on a damaged file
            raise InputError(
                f"weights 'imagenet': torch's cache holds another file than these ({truncate(error)}); "
                "remove it, and it will be downloaded again"
            ) from None
    state = read_tensors(weights)
    expected = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    wrong = diff_state_dicts(expected, state)
    if wrong:
        raise InputError(f"weights {os.fspath(weights)}: not a torchvision resnet{depth} state_dict: {wrong}")
    return state


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


__all__ = ["DEPTHS", "STAGES", "AttentionFactory", "ResNet", "Size", "count_parameters"]
