"""Criss-cross attention (CCNet).

Huang, Wang, Huang, Huang, Wei, Liu: CCNet: Criss-Cross Attention for Semantic Segmentation, ICCV 2019,
https://arxiv.org/abs/1811.11721. Section 3.2, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rga_reid.attention.functional import check_map, check_positive, gather, reduce_channels
from rga_reid.attention.trace import Relations, Trace

MAX_DENSE = (
    128  # positions; up to this number, N×N weights, most of them 0, are faster than many small products
)
MAX_RECURRENCE = 16  #: two passes already relate all positions


class CrissCross(nn.Module):
    """Each position adds a weighted sum over its row and column; two passes reach every position.

        A[u, ·] = softmax(Q[:, u] · K[:, j]) over the H + W − 1 positions j in the row or column of u     (1)
        out[u]  = γ · Σⱼ A[u, j] V[:, j] + x[u]                                                           (2)

    The same module is applied ``recurrence`` times. γ starts at 0, so that the module is initially the identity.

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        ratio: Q and K have C // ratio channels.
        recurrence: number of passes (2 in the paper).

    Shape: (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: ``ratio`` leaves no channel, or ``recurrence`` is not 1 to 16; in ``forward`` and
            ``relations``, a tensor of another shape or not of floating point.
    """

    def __init__(
        self, in_channels: int, size: Sequence[int] | None = None, *, ratio: int = 8, recurrence: int = 2
    ) -> None:
        super().__init__()
        inner = reduce_channels(in_channels, ratio)
        check_positive(recurrence=recurrence)
        if recurrence > MAX_RECURRENCE:
            raise ValueError(f"recurrence: expected at most {MAX_RECURRENCE}, got {recurrence}")
        self.in_channels = in_channels
        self.recurrence = recurrence
        self.query_conv = nn.Conv2d(in_channels, inner, 1)
        self.key_conv = nn.Conv2d(in_channels, inner, 1)
        self.value_conv = nn.Conv2d(in_channels, in_channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add to each position its weighted sum over its row and column, in each pass."""
        check_map("CrissCross", x, self.in_channels)
        gather_crossing = _gather_dense if x.shape[2] * x.shape[3] <= MAX_DENSE else _gather_lines
        for _ in range(self.recurrence):
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
            x = x + self.gamma * gather_crossing(query, key, value)
        return x

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with one matrix ``pass_1``, ``pass_2``, ... (B, N, N) per pass.

        Entry [b, i, j] is the weight of position j for i: 0 unless they share a row or a column.
        """
        check_map("CrissCross", x, self.in_channels)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        height, width = x.shape[2:]
        row = torch.arange(height, device=x.device).repeat_interleave(width)
        column = torch.arange(width, device=x.device).repeat(height)
        apart = (row[:, None] != row) & (column[:, None] != column)
        for r in range(1, self.recurrence + 1):
            before = f"x_{r - 1}" if r > 1 else "x"
            q = self.query_conv(x).flatten(2)
            k = self.key_conv(x).flatten(2)
            v = self.value_conv(x).flatten(2)
            trace.step(f"Q_{r}", "query: what each position looks for", f"query_conv({before})", q)
            trace.step(f"K_{r}", "key: what each position is matched by", f"key_conv({before})", k)
            trace.step(f"V_{r}", "value: what each position contributes", f"value_conv({before})", v)
            energy = torch.einsum("bei,bej->bij", q, k)
            trace.step(f"E_{r}", "similarity", f"Q_{r}ᵀ K_{r}", energy)
            a = trace.matrix(
                f"pass_{r}",
                f"A_{r}",
                "what i takes from each j in its row and column",
                f"softmax of E_{r}[i, j] over the j on the cross",
                energy.masked_fill(apart, float("-inf")).softmax(dim=2),
            )
            o = torch.einsum("bcj,bij->bci", v, a)
            trace.step(f"O_{r}", "what each position gathers", f"V_{r} A_{r}ᵀ", o)
            x = self.gamma * o.reshape(x.shape) + x
            trace.step(f"x_{r}", f"map after pass {r}", f"γ · O_{r} + {before}", x)
        return x


def _gather_dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Sum over rows and columns, (B, ·, H, W) -> (B, C, H, W), by N×N weights."""
    height, width = value.shape[2:]
    position = torch.arange(height * width, device=value.device)
    apart = (position[:, None] // width != position // width) & (
        position[:, None] % width != position % width
    )
    similarity = query.flatten(2).mT @ key.flatten(2)
    weights = similarity.masked_fill(apart, torch.finfo(similarity.dtype).min).softmax(dim=2)
    return gather([weights], value.flatten(2)).unflatten(2, (height, width))


def _gather_lines(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same sum by the weights of all rows and all columns."""
    rows = [t.transpose(1, 2) for t in (query, key, value)]  # (B, H, ·, W)
    columns = [t.permute(0, 3, 1, 2) for t in (query, key, value)]  # (B, W, ·, H)
    if value.stride(1) == 1:
        columns = [t.mT.contiguous().mT for t in columns]  # keep channels contiguous in memory

    in_row = rows[0].mT @ rows[1]  # (B, H, W, W)
    in_column = columns[0].mT @ columns[1]  # (B, W, H, H)
    # The position itself is in both its row and its column: exp(lowest) = 0 excludes it from the column.
    own = torch.eye(value.shape[2], dtype=torch.bool, device=value.device)
    in_column = in_column.masked_fill(own, torch.finfo(in_column.dtype).min)
    weights = torch.cat([in_column.transpose(1, 2), in_row], dim=3).softmax(dim=3)  # (B, H, W, H + W)
    of_column, of_row = weights.split([value.shape[2], value.shape[3]], dim=3)
    from_row = gather([of_row], rows[2]).transpose(1, 2)
    return from_row + gather([of_column.transpose(1, 2)], columns[2]).permute(0, 2, 3, 1)
