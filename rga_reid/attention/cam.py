"""Channel attention (CAM).

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983. Section 3.3, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rga_reid.attention.functional import attend, check_map, check_positive
from rga_reid.attention.trace import Relations, Trace


class CAM(nn.Module):
    """Each channel adds a weighted sum over all channels.

        E       = X Xᵀ
        A[i, j] = softmaxⱼ(maxₖ E[i, k] − E[i, j]) = softmaxⱼ(−E[i, j])     (3)
        out     = γ · A X + x                                               (4)

    The sign, as in the published code, favours the channels that are *least* alike. γ starts at 0, so that
    the module is initially the identity. It has no other parameter.

    Args:
        in_channels: channels C.
        size: ignored; any map size works.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``in_channels`` below 1; in ``forward`` and ``relations``, a tensor of another shape
            or not of floating point.
    """

    def __init__(self, in_channels: int, size: Sequence[int] | None = None) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        self.in_channels = in_channels
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add to each channel its weighted sum over all channels."""
        check_map("CAM", x, self.in_channels)
        channels = x.flatten(2).mT  # (B, N, C): the nodes are channels
        y = attend(channels, -channels, channels, drop_negligible=True)
        return x + self.gamma * y.mT.unflatten(2, x.shape[2:])

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with matrix ``channels`` (B, C, C): [b, i, j] is the weight of j for i."""
        check_map("CAM", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace, source: str = "x", sub: str = "") -> Tensor:
        """Record all steps; ``source`` is the symbol of x, ``sub`` a subscript of all symbols."""
        X, E, A, Y = (symbol + sub for symbol in "XEAY")
        flat = trace.step(X, "channels as vectors over positions", f"{source} as (C, N)", x.flatten(2))
        energy = torch.einsum("bip,bjp->bij", flat, flat)
        trace.step(E, "similarity of channels", f"{X} {X}ᵀ", energy)
        a = (energy.amax(dim=2, keepdim=True) - energy).softmax(dim=2)
        formula = f"softmax_j(max_k {E}[i, k] − {E}[i, j])"
        a = trace.matrix("channels", A, "what channel i takes from each j", formula, a)
        o = trace.step(Y, "what each channel gathers", f"{A} {X}", torch.einsum("bij,bjp->bip", a, flat))
        y = self.gamma * o.reshape(x.shape) + x
        return trace.step(f"y{sub}", "map after channel attention", f"γ{sub} · {Y} + {source}", y)
