"""Gathering values by weights, in the form that suits shape and memory layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 512  # queries; up to here the weights of all are made at once
BLOCK = 256  # queries at a time beyond: their weights stay in the cache


def blocks_of(queries: Tensor, dim: int) -> Sequence[Tensor]:
    """Queries lie along ``dim``: all in one block if they are few, otherwise blocks of ``BLOCK``."""
    return [queries] if queries.shape[dim] <= WHOLE else queries.split(BLOCK, dim)


def gather(weights: Iterable[Tensor], values: Tensor) -> Tensor:
    """out[:, i] = Σⱼ weights[i, j] values[:, j], for ``weights`` in blocks of rows i.

    The result has the memory layout of ``values``, so that what follows need not copy it.

    Shape: blocks (..., n, M), values (..., C, M) -> (..., C, sum of n).
    """
    if values.stride(-2) == 1:
        rows = [block @ values.mT for block in weights]
        return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=-2)).mT
    columns = [values @ block.mT for block in weights]
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


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
    return gather(((block.mT @ key).softmax(dim=2) for block in blocks_of(query, dim=2)), value)
