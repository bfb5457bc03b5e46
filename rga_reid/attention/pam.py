"""Position attention (PAM).

Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019,
https://arxiv.org/abs/1809.02983. Section 3.2, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rga_reid.attention.functional import attend, check_map, reduce_channels
from rga_reid.attention.trace import Relations, Trace


class PAM(nn.Module):
    """Each position adds a weighted sum over all positions; the weights are similarities.

        A[i, j] = softmaxⱼ(Q[:, i] · K[:, j])            (1)
        out     = γ · V Aᵀ + x                           (2)

    γ starts at 0, so that the module is initially the identity.

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        ratio: Q and K have C // ratio channels.

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel; in ``forward`` and ``relations``, a tensor of another
            shape or not of floating point.
    """

    def __init__(self, in_channels: int, size: Sequence[int] | None = None, *, ratio: int = 8) -> None:
        super().__init__()
        inner = reduce_channels(in_channels, ratio)
        self.in_channels = in_channels
        self.query_conv = nn.Conv2d(in_channels, inner, 1)
        self.key_conv = nn.Conv2d(in_channels, inner, 1)
        self.value_conv = nn.Conv2d(in_channels, in_channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add to each position its weighted sum over all positions."""
        check_map("PAM", x, self.in_channels)
        query, key, value = (conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv))
        return x + self.gamma * attend(query, key, value).unflatten(2, x.shape[2:])

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with matrix ``positions`` (B, N, N): [b, i, j] is the weight of j for i."""
        check_map("PAM", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace, source: str = "x", sub: str = "") -> Tensor:
        """Record all steps; ``source`` is the symbol of x, ``sub`` a subscript of all symbols."""
        Q, K, V, E, A, Y = (symbol + sub for symbol in "QKVEAY")
        q = trace.step(
            Q, "query: what each position looks for", f"query_conv({source})", self.query_conv(x).flatten(2)
        )
        k = trace.step(
            K, "key: what each position is matched by", f"key_conv({source})", self.key_conv(x).flatten(2)
        )
        v = trace.step(
            V, "value: what each position contributes", f"value_conv({source})", self.value_conv(x).flatten(2)
        )
        energy = trace.step(E, "similarity of positions", f"{Q}ᵀ {K}", torch.einsum("bei,bej->bij", q, k))
        a = energy.softmax(dim=2)
        a = trace.matrix("positions", A, "what position i takes from each j", f"softmax_j({E}[i, j])", a)
        o = trace.step(Y, "what each position gathers", f"{V} {A}ᵀ", torch.einsum("bcj,bij->bci", v, a))
        y = self.gamma * o.reshape(x.shape) + x
        return trace.step(f"y{sub}", "map after position attention", f"γ{sub} · {Y} + {source}", y)
