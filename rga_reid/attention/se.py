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
    """Channels are weighed by what the whole map holds of each.

        z   = mean of x over positions           (2)
        s   = sigmoid(W₂ ReLU(W₁ z))             (3)
        out = s · x                              (4)

    Args:
        in_channels: channels C.
        size: accepted and ignored; any map will do.
        ratio: C // ratio features in between.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel; in ``forward`` and ``relations``, a tensor of another shape,
            or one that is not of floating-point numbers.
    """

    def __init__(self, in_channels: int, size: Sequence[int] | None = None, *, ratio: int = 16) -> None:
        super().__init__()
        inner = reduce_channels(in_channels, ratio)
        self.in_channels = in_channels
        self.fc1 = nn.Conv2d(in_channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        check_map("SE", x, self.in_channels)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))

    def relations(self, x: Tensor) -> Relations:
        """The explicit form: no relations between nodes, only the weights ``channel`` (B, C, 1, 1)."""
        check_map("SE", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        z = trace.step(
            "z", "squeezed map", "mean of x over positions", x.flatten(2).mean(2)[:, :, None, None]
        )
        h = trace.step("h", "features of the squeezed map", "ReLU(W₁ z)", self.fc1(z).clamp(min=0))
        s = trace.weight("channel", "s", "attention of each channel", "sigmoid(W₂ h)", self.fc2(h).sigmoid())
        return trace.step("out", "output map", "s · x", s * x)
