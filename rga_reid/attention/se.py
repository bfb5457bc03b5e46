"""Squeeze-and-excitation (SE).

Hu, Shen, Sun: Squeeze-and-Excitation Networks, CVPR 2018, https://arxiv.org/abs/1709.01507. Equations 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rga_reid.attention.functional import check_map, reduce_channels
from rga_reid.attention.trace import Relations, Trace


class SE(nn.Module):
    """Scale each channel by a weight computed from the means of all channels.

        z   = mean of x over positions           (2)
        s   = sigmoid(W₂ ReLU(W₁ z))             (3)
        out = s · x                              (4)

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        ratio: C // ratio hidden features.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel; in ``forward`` and ``relations``, a tensor of another
            shape or not of floating point.
    """

    def __init__(self, in_channels: int, size: Sequence[int] | None = None, *, ratio: int = 16) -> None:
        super().__init__()
        inner = reduce_channels(in_channels, ratio)
        self.in_channels = in_channels
        self.fc1 = nn.Conv2d(in_channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels."""
        check_map("SE", x, self.in_channels)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form: no matrices, weights ``channel`` (B, C, 1, 1)."""
        check_map("SE", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        z = trace.step(
            "z", "squeezed map", "mean of x over positions", x.flatten(2).mean(2)[:, :, None, None]
        )
        h = trace.step("h", "features of the squeezed map", "ReLU(W₁ z)", self.fc1(z).clamp(min=0))
        s = trace.weight("channel", "s", "attention of each channel", "sigmoid(W₂ h)", self.fc2(h).sigmoid())
        return trace.step("out", "output map", "s · x", s * x)
