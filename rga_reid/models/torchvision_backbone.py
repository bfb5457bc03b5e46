"""Backbones of torchvision whose network is a sequence called ``features``, such as MobileNetV2."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from rga_reid.errors import InputError, did_you_mean, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.backbone import Size
from rga_reid.models.network import NetworkBackbone, no_stride_1_error
from rga_reid.models.resnet import download_torchvision


class TorchvisionBackbone(NetworkBackbone):
    """The ``features`` of a torchvision network.

    A stage ends where the next layer halves the resolution; the first has a quarter of the input's resolution.

    Args:
        name: name of torchvision, such as ``mobilenet_v2``.
        size: input (H, W) in pixels.
        last_stride: 1 removes the stride of the last stage; 2 as published; None for 1 if possible.
        pretrained: download torchvision's weights of this name.
        options: other arguments of the network.

    Raises:
        InputError: an unknown name or option, a network without ``features``, weights that are unavailable, or
            a last stride or size that the network does not support.
    """

    net: Any

    def __init__(
        self,
        name: str,
        size: Size,
        last_stride: int | None = None,
        pretrained: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"torchvision/{name}", _create(name, options or {}), (), size, last_stride)
        self._is_nhwc = hasattr(self.net, "permute")  # Swin, whose stages have the channels last
        self.stage_names = self._find_stages()
        if last_stride != 2 and len(self.stage_names) > 1:
            self._remove_last_stride()
        self.last_stride = 1 if self._has_stride_1() else 2
        if last_stride == 1 != self.last_stride:
            raise no_stride_1_error(self.name)
        self.channels = self.trace(self.size)[-1][1]
        if pretrained:
            self.load_published(download_torchvision(name), "imagenet")

    def stage_map(self, stage: int, output: Tensor) -> Tensor:
        """Return the output of a stage as a map ``(n, C, h, w)``."""
        return output.permute(0, 3, 1, 2) if self._is_nhwc else output

    def stage_output(self, stage: int, maps: Tensor) -> Tensor:
        """Return a map ``(n, C, h, w)`` in the format of a stage's output."""
        return maps.permute(0, 2, 3, 1) if self._is_nhwc else maps

    def adapt_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state_dict with the keys of ``net``, without its classifier."""
        names = tuple(f"{name}." for name, _ in self.net.named_children())
        return {key: value for key, value in state.items() if key.startswith(names)}

    def _find_stages(self) -> tuple[str, ...]:
        """Return the names of the last layers before the resolution halves, and of the last layer."""
        names = [name for name, _ in self.net.features.named_children()]
        self.stage_names = tuple(f"features.{name}" for name in names)
        heights = [shape[2] for shape in self.trace(self.size)[:-1]]
        ends = [n for n, height in enumerate(heights) if n + 1 == len(heights) or heights[n + 1] < height]
        first = -(-self.size[0] // 4)
        self._traced.clear()
        return tuple(f"features.{names[n]}" for n in ends if heights[n] <= first)

    def _has_stride_1(self) -> bool:
        maps = self.trace(self.size)[:-1]
        return len(maps) > 1 and maps[-1][2:] == maps[-2][2:]

    def _remove_last_stride(self) -> None:
        """Set the strides of the last stage to 1, unless a layer would then shrink or enlarge the map."""
        layers = dict(self.net.features.named_children())
        names = list(layers)
        before, last = (names.index(name.removeprefix("features.")) for name in self.stage_names[-2:])
        strided = [
            module
            for name in names[before + 1 : last + 1]
            for module in layers[name].modules()
            if getattr(module, "stride", 1) in (2, (2, 2))
        ]
        kept = [module.stride for module in strided]
        for module in strided:
            module.stride = (1, 1)
        self._traced.clear()
        try:
            if self._has_stride_1():
                return
        except InputError:  # shapes that do not fit each other
            pass
        for module, stride in zip(strided, kept, strict=True):
            module.stride = stride
        self._traced.clear()


def _create(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the layers of a network before its pooling."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InputError(
            f"backbone: torchvision has no model {short_repr(name)}{did_you_mean(name, known, 3)}"
        )
    if wrong := {"weights", "weights_backbone"} & set(options):
        raise InputError(f"backbone torchvision/{name}: the option {min(wrong)} cannot be set")
    try:
        net = torchvision.models.get_model(name, weights=None, **options)
    except Exception as error:  # a wrong option
        raise InputError(f"backbone torchvision/{name}: {truncate(error)}") from None
    if not isinstance(getattr(net, "features", None), nn.Sequential):
        raise InputError(
            f"backbone torchvision/{name}: expected a network with a sequence called features; try timm/{name}"
        )
    layers = OrderedDict([("features", net.features)])
    if hasattr(net, "permute"):  # Swin
        layers |= {"norm": net.norm, "permute": net.permute}
    elif isinstance(net, torchvision.models.DenseNet):
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)
