"""Convolutional block attention module (CBAM).

Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018,
https://arxiv.org/abs/1807.06521. Equations 1 to 3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid.attention.functional import check_map, reduce_channels
from rga_reid.attention.trace import Relations, Trace, run_layers


class CBAM(nn.Module):
    """Scale channels by statistics of the whole map, then positions by statistics of their surroundings.

        M_c = sigmoid(MLP(mean of x over positions) + MLP(max of x over positions)),  x' = M_c · x     (2)
        M_s = sigmoid(conv₇ₓ₇([max of x' over channels, mean of x' over channels])),  out = M_s · x'   (3)

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        ratio: C // ratio features inside the MLP.
        kernel_size: side of the spatial convolution, odd.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel, or an even ``kernel_size``; in ``forward`` and ``relations``,
            a tensor of another shape or not of floating point.
    """

    def __init__(
        self, in_channels: int, size: Sequence[int] | None = None, *, ratio: int = 16, kernel_size: int = 7
    ) -> None:
        super().__init__()
        inner = reduce_channels(in_channels, ratio)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number of at least 1, got {kernel_size}")
        self.in_channels = in_channels
        mlp = [nn.Flatten(), nn.Linear(in_channels, inner), nn.ReLU(), nn.Linear(inner, in_channels)]
        conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        norm = nn.BatchNorm2d(1, momentum=0.01)
        self.ChannelGate = nn.ModuleDict({"mlp": nn.Sequential(*mlp)})
        self.SpatialGate = nn.ModuleDict({"spatial": nn.Sequential(OrderedDict(conv=conv, bn=norm))})

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels, then the positions."""
        check_map("CBAM", x, self.in_channels)
        mlp, spatial = self.ChannelGate["mlp"], self.SpatialGate["spatial"]
        x = x * torch.sigmoid(mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values))[:, :, None, None]
        surroundings = torch.stack([x.max(1).values, x.mean(1)], dim=1)  # (B, 2, H, W)
        return x * torch.sigmoid(spatial(surroundings))

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form: no matrices, weights ``channel`` (B, C, 1, 1) and ``spatial`` (B, 1, H, W)."""
        check_map("CBAM", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        mean = trace.step(
            "μ", "mean of each channel", "mean of x over positions", F.adaptive_avg_pool2d(x, 1)
        )
        top = trace.step("m", "peak of each channel", "max of x over positions", F.adaptive_max_pool2d(x, 1))
        mlp = self.ChannelGate["mlp"]
        a = (mlp(mean) + mlp(top)).sigmoid().view_as(mean)
        a = trace.weight("channel", "M_c", "attention of each channel", "sigmoid(MLP(μ) + MLP(m))", a)
        x = trace.step("x'", "map with weighted channels", "M_c · x", a * x)
        d = torch.cat([x.max(dim=1, keepdim=True).values, x.mean(dim=1, keepdim=True)], dim=1)
        d = trace.step("d", "each position's peak and mean", "[max, mean of x' over channels]", d)
        a = run_layers(self.SpatialGate["spatial"], d).sigmoid()
        a = trace.weight("spatial", "M_s", "attention of each position", "sigmoid(conv(d))", a)
        return trace.step("out", "output map", "M_s · x'", a * x)
