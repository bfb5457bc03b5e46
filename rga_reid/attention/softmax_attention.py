"""Softmax attention, in the form that suits the shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 512  # queries; up to here the weights of all are made at once
BLOCK = 256  # queries at a time beyond: their weights stay in the cache


def blocks_of(queries: Tensor, dim: int) -> Sequence[Tensor]:
    """Queries lie along ``dim``: all in one block if they are few, otherwise blocks of ``BLOCK``."""
    return [queries] if queries.shape[dim] <= WHOLE else queries.split(BLOCK, dim)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """out[:, i] = Σⱼ softmaxⱼ(query[:, i] · key[:, j]) value[:, j], without scaling.

    On a CPU many queries are taken in blocks, because the fused kernel there wants values as long as keys and
    otherwise makes all weights. So inference never holds the (B, N, M) weights of more than 512 queries;
    training keeps them all, once, for the gradient. Elsewhere the fused kernel decides.

    Shape: query (B, E, N), key (B, E, M), value (B, C, M) -> (B, C, N).
    """
    if not query.is_cpu:
        q, k, v = (t.mT.unsqueeze(1) for t in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).mT
    blocks = blocks_of(query, dim=2)
    weights = (torch.bmm(block.mT, key).softmax(dim=2) for block in blocks)
    if len(blocks) == 1 and value.stride(1) != 1:  # the result in the memory layout of value
        return torch.bmm(value, next(weights).mT)
    return torch.cat([torch.bmm(block, value.mT) for block in weights], dim=1).mT
