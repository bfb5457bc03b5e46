"""Dual attention.

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983. Section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rga_reid.attention.cam import CAM
from rga_reid.attention.functional import check_map
from rga_reid.attention.pam import PAM
from rga_reid.attention.trace import Relations, Trace, run_layers


class DualAttention(nn.Module):
    """Position and channel attention side by side, summed.

        out = PAM(x) + CAM(x) − x

    Initially both γ are 0 and the module is the identity. With ``head``, the module is the published network's head:
    each branch attends on C // 4 channels between two 3×3 convolutions, and dropout and a 1×1 convolution map the sum
    back to C channels (state_dict keys of the published head, without its auxiliary outputs).

        out = conv8(conv51(PAM(conv5a(x))) + conv52(CAM(conv5c(x))))

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        ratio: divides the channels of PAM's queries and keys.
        head: use the head.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel, or fewer than 4 channels for the head; in ``forward`` and
            ``relations``, a tensor of another shape or not of floating point.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int] | None = None,
        *,
        ratio: int = 8,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.head = head
        if head and in_channels < 4:
            raise ValueError(f"head: expected at least 4 channels, got {in_channels}")
        inner = in_channels // 4 if head else in_channels
        self.sa = PAM(inner, ratio=ratio)
        self.sc = CAM(inner)
        if head:
            self.conv5a = _convolution(in_channels, inner)
            self.conv5c = _convolution(in_channels, inner)
            self.conv51 = _convolution(inner, inner)
            self.conv52 = _convolution(inner, inner)
            self.conv8 = nn.Sequential(nn.Dropout2d(0.1, False), nn.Conv2d(inner, in_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        check_map("DualAttention", x, self.in_channels)
        if not self.head:
            return self.sa(x) + self.sc(x) - x
        return self.conv8(self.conv51(self.sa(self.conv5a(x))) + self.conv52(self.sc(self.conv5c(x))))

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with matrices ``positions`` (B, N, N) and ``channels`` (B, C, C).

        With the head, ``channels`` has the C // 4 channels of the branches, and in training each run draws its
        own dropout.
        """
        check_map("DualAttention", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        if not self.head:
            p = self.sa._explicit(x, trace, "x", "_p")
            c = self.sc._explicit(x, trace, "x", "_c")
            return trace.step("out", "output map", "y_p + y_c − x", p + c - x)
        p = trace.step("x_p", "map for position attention", "conv5a(x)", run_layers(self.conv5a, x))
        p = run_layers(self.conv51, self.sa._explicit(p, trace, "x_p", "_p"))
        trace.step("z_p", "position branch", "conv51(y_p)", p)
        c = trace.step("x_c", "map for channel attention", "conv5c(x)", run_layers(self.conv5c, x))
        c = run_layers(self.conv52, self.sc._explicit(c, trace, "x_c", "_c"))
        trace.step("z_c", "channel branch", "conv52(y_c)", c)
        return trace.step("out", "output map", "conv8(z_p + z_c)", self.conv8(p + c))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
