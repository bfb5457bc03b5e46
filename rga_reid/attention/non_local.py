"""Non-local block.

Wang, Girshick, Gupta, He: Non-local Neural Networks, CVPR 2018, https://arxiv.org/abs/1711.07971. Equation
numbers are the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rga_reid.attention.functional import attend, check_map, check_positive, gather, iter_blocks
from rga_reid.attention.trace import Relations, Trace, run_layers

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {1: (nn.MaxPool1d, (2,)), 2: (nn.MaxPool2d, (2, 2)), 3: (nn.MaxPool3d, (1, 2, 2))}


class NonLocal(nn.Module):
    """Each position adds a weighted sum over all positions.

        y[:, i] = Σⱼ f(xᵢ, xⱼ) g(xⱼ) / C(x)                                    (1)
        out     = W(y) + x                                                     (6)

    with f / C(x) by ``mode``, N the number of positions j:

        gaussian            softmaxⱼ(xᵢ · xⱼ)                                  (2)
        embedded_gaussian   softmaxⱼ(θ(xᵢ) · φ(xⱼ))                            (3)
        dot_product         θ(xᵢ) · φ(xⱼ) / N                                  (4)
        concatenation       ReLU(w · [θ(xᵢ), φ(xⱼ)]) / N                       (5)

    dot_product is associative, θᵀ(φ gᵀ), and w · [θ(xᵢ), φ(xⱼ)] is aᵢ + bⱼ: neither needs its N×N matrix.
    W starts at 0, so that the block is initially the identity.

    Args:
        in_channels: channels C.
        size: ignored; any map size works.
        inter_channels: channels of θ, φ and g; C // 2 (at least 1) unless given.
        mode: one of ``MODES``.
        dim: 1, 2 or 3 axes of positions.
        sub_sample: max-pool φ and g by 2 (not in time): fewer positions j.
        bn_layer: batch norm in W.

    Shape: (B, C, L), (B, C, H, W) or (B, C, T, H, W) -> the same.

    Raises:
        ValueError: an unknown ``mode`` or ``dim``, or channels below 1; in ``forward`` and ``relations``,
            a tensor of another shape or not of floating point.
    """

    def __init__(
        self,
        in_channels: int,
        size: Sequence[int] | None = None,
        *,
        inter_channels: int | None = None,
        mode: str = "embedded_gaussian",
        dim: int = 2,
        sub_sample: bool = False,
        bn_layer: bool = True,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if dim not in _CONV:
            raise ValueError(f"dim: expected 1, 2 or 3, got {dim!r}")
        inner = max(1, in_channels // 2) if inter_channels is None else inter_channels
        check_positive(in_channels=in_channels, inter_channels=inner)
        self.in_channels = in_channels
        self.mode = mode
        self.dim = dim
        self.sub_sample = sub_sample
        conv, (pool, self.pooled) = _CONV[dim], _POOL[dim]

        self.g: nn.Module = conv(in_channels, inner, 1)
        self.W: nn.Module = conv(inner, in_channels, 1)
        last: nn.Module = self.W
        if bn_layer:
            last = _NORM[dim](in_channels)
            self.W = nn.Sequential(self.W, last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.theta: nn.Module = nn.Identity()
        self.phi: nn.Module = nn.Identity()
        if mode != "gaussian":
            self.theta = conv(in_channels, inner, 1)
            self.phi = conv(in_channels, inner, 1)
        if mode == "concatenation":
            self.concat_project = nn.Sequential(nn.Conv2d(2 * inner, 1, 1, bias=False), nn.ReLU())
        if sub_sample:
            self.g = nn.Sequential(self.g, pool(self.pooled))
            self.phi = pool(self.pooled) if mode == "gaussian" else nn.Sequential(self.phi, pool(self.pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Add to each position its weighted sum over all positions."""
        self._check(x)
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        if self.mode == "dot_product":
            y = _associative(theta, phi, g)
        elif self.mode == "concatenation":
            y = self._concatenation(theta, phi, g)
        else:
            y = attend(theta, phi, g, drop_negligible=self.mode == "gaussian")
        return x + self.W(y.unflatten(2, x.shape[2:]))

    def _concatenation(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """Return y[:, i] = Σⱼ ReLU(aᵢ + bⱼ) g[:, j] / N, with a = w₁ · θ and b = w₂ · φ."""
        weight: Any = self.concat_project[0].weight
        w1, w2 = weight.view(2, 1, -1)
        a = (w1 @ theta).mT  # (B, N, 1)
        b = w2 @ phi  # (B, 1, M)
        return gather((torch.relu(block + b) for block in iter_blocks(a, dim=1)), g / g.shape[2])

    def relations(self, x: Tensor) -> Relations:
        """Return the explicit form with matrix ``positions`` (B, N, M): [b, i, j] is the weight of j for i.

        M is the number of positions after pooling.
        """
        self._check(x)
        return Relations.of(self._explicit, x)

    def _explicit(self, x: Tensor, trace: Trace) -> Tensor:
        of_x = "x" if self.mode == "gaussian" else "{}(x)"
        pooled = "pool(x)" if self.mode == "gaussian" and self.sub_sample else of_x
        theta, phi = self.theta(x).flatten(2), self.phi(x).flatten(2)
        trace.step("θ", "each position as it looks at others", of_x.format("θ"), theta)
        trace.step("φ", "each position as it is looked at", pooled.format("φ"), phi)
        g = trace.step("g", "value: what each position contributes", "g(x)", self.g(x).flatten(2))
        if self.mode == "concatenation":
            formula = "ReLU(w · [θ[:, i], φ[:, j]]) / N"
            grid = (-1, -1, theta.shape[2], phi.shape[2])
            pairs = torch.cat([theta.unsqueeze(3).expand(grid), phi.unsqueeze(2).expand(grid)], dim=1)
            f = self.concat_project(pairs).squeeze(1) / phi.shape[2]
        else:
            f = torch.einsum("bei,bej->bij", theta, phi)
            f = f / phi.shape[2] if self.mode == "dot_product" else f.softmax(dim=2)
            dot = "θ[:, i] · φ[:, j]"
            formula = f"{dot} / N" if self.mode == "dot_product" else f"softmax_j({dot})"
        f = trace.matrix("positions", "f", "what i takes from each j", formula, f)
        y = trace.step("y", "what each position gathers", "g fᵀ", torch.einsum("bcj,bij->bci", g, f))
        z = run_layers(self.W, y.reshape(x.shape[0], -1, *x.shape[2:]))
        trace.step("z", "the same in C channels", "W(y)", z)
        return trace.step("out", "output map", "z + x", z + x)

    def _check(self, x: Tensor) -> None:
        check_map("NonLocal", x, self.in_channels, dim=self.dim)
        if self.sub_sample and any(side < pool for side, pool in zip(x.shape[2:], self.pooled, strict=True)):
            least = "×".join(map(str, self.pooled))
            got = "×".join(str(side) for side in x.shape[2:])
            raise ValueError(f"NonLocal: expected maps of at least {least} with sub_sample, got {got}")


def _associative(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """Return (g φᵀ) θ / M, in the order that multiplies less; θ (B, E, N), φ and g (B, E, M)."""
    (_, e, n), m = theta.shape, phi.shape[2]
    if e * (n + m) > 2 * n * m:
        return gather([theta.mT @ phi / m], g)
    phi, g = phi / m**0.5, g / m**0.5  # before the sum over M positions, which may overflow float16
    return gather([theta.mT], g @ phi.mT if g.stride(1) != 1 else (phi @ g.mT).mT)
