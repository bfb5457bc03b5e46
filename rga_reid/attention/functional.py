"""Input checks and attention products that several modules share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SHAPES = {1: "(B, {}, L)", 2: "(B, {}, H, W)", 3: "(B, {}, T, H, W)"}


def check_map(name: str, x: Tensor, channels: int, *, dim: int = 2) -> None:
    """Raise ValueError unless ``x`` is a floating-point batch of maps with ``channels`` channels and ``dim`` axes."""
    if x.dim() != dim + 2 or x.shape[1] != channels:
        raise ValueError(f"{name}: expected {_SHAPES[dim].format(channels)}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def check_positive(**values: int) -> None:
    """Raise ValueError unless all values are integers of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


def check_map_size(size: Sequence[int]) -> tuple[int, int]:
    """Return ``size`` as (H, W), both at least 1."""
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(f"size: expected (height, width), got {size!r}")
    height, width = size
    check_positive(height=height, width=width)
    return int(height), int(width)


def reduce_channels(channels: int, ratio: int, name: str = "ratio") -> int:
    """Return channels // ratio.

    Raises:
        ValueError: the result is below 1.
    """
    check_positive(**{"in_channels": channels, name: ratio})
    if ratio > channels:
        raise ValueError(f"{name}: expected at most in_channels = {channels}, got {ratio} (no channel left)")
    return channels // ratio


MAX_QUERIES = 512  # up to this number, the weights of all queries are computed at once
BLOCK_QUERIES = 256  # beyond it, the weights of this many queries at a time stay in the cache
_NEGLIGIBLE = 60  # exp(-60) is 1e-26, far below the rounding of float64


def iter_blocks(queries: Tensor, dim: int) -> Sequence[Tensor]:
    """Split many queries along ``dim`` into blocks."""
    return [queries] if queries.shape[dim] <= MAX_QUERIES else queries.split(BLOCK_QUERIES, dim)


def gather(weights: Iterable[Tensor], values: Tensor) -> Tensor:
    """Return out[:, i] = Σⱼ weights[i, j] values[:, j], for ``weights`` in blocks of rows i.

    The result has the memory layout of ``values``, which saves later copies.

    Shape: blocks (..., n, M), values (..., C, M) -> (..., C, sum of n).
    """
    if values.stride(-2) == 1:
        rows = [block @ values.mT for block in weights]
        return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=-2)).mT
    columns = [values @ block.mT for block in weights]
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, drop_negligible: bool = False) -> Tensor:
    """Return out[:, i] = Σⱼ softmaxⱼ(query[:, i] · key[:, j]) value[:, j], without scaling.

    On a CPU, queries are processed in blocks, because torch's fused kernel there materialises all weights if values
    and keys differ in length. Inference thus holds the (B, N, M) weights of at most 512 queries; training keeps all
    of them for the gradient. Other devices use a fused kernel, which refuses rows that are not contiguous; torch would
    then materialise the weights there, too.

    Args:
        query, key, value: (B, E, N), (B, E, M) and (B, C, M).
        drop_negligible: for products that span hundreds, where many weights would be subnormal numbers: on a CPU,
            leave out weights below exp(-60) of the largest, which change no rounded sum.

    Returns:
        (B, C, N).
    """
    if not query.is_cpu:
        q, k, v = (t.mT.contiguous().unsqueeze(1) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).mT
    logits = (block.mT @ key for block in iter_blocks(query, dim=2))
    kept = map(_drop_negligible, logits) if drop_negligible else logits
    return gather((block.softmax(dim=2) for block in kept), value)


def _drop_negligible(logits: Tensor) -> Tensor:
    """Change logits, in place, so that no weight is subnormal: such products are 50 times as slow on Intel."""
    least = logits.detach().amax(dim=-1, keepdim=True) - _NEGLIGIBLE
    # the gradient of a dropped weight must be 0, too; torch.jit.trace checks its graph without gradients
    if logits.requires_grad or torch.jit.is_tracing():
        return logits.masked_fill_(logits < least, float("-inf"))
    return logits.clamp_(min=least)
