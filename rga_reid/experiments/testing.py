"""A model on the test images of a data set: features, then the ranking of the gallery for each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import RankingResult, ReRanking, evaluate_ranking
from rga_reid.retrieval import extract_features
from rga_reid.retrieval.extraction import Embedder


def evaluate_model(
    model: Embedder,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int] = (-1,),
    batch_size: int = 64,
    device: str | torch.device | None = None,
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank all gallery images of ``table`` for each of its queries, in the protocol of Market-1501.

    Args:
        model: what embeds the images.
        table: columns path, pid, camid and split, as ``read_table`` gives.
        junk_pids: gallery images with these pids count neither as right nor as wrong.
        batch_size, device: of the embedding.
        max_rank: length of the CMC curve.
        rerank: re-rank by k-reciprocal neighbours.
        progress: told the share of the ranking that is done.

    Raises:
        InputError: no query or no gallery images; no query with a match.
    """
    features, table = embed_tested(model, table, batch_size, device)
    return evaluate_features(
        features,
        table,
        junk_pids=junk_pids,
        device=device,
        max_rank=max_rank,
        rerank=rerank,
        progress=progress,
    )


def embed_tested(
    model: Embedder,
    table: pd.DataFrame,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Features ``(n, d)`` of the query and gallery images of ``table``, and their rows.

    Raises:
        InputError: no query or no gallery images.
    """
    for split in ("query", "gallery"):
        if not (table.split == split).any():
            raise InputError(f"testing needs images of the split '{split}': this data set has none")
    return extract_features(model, table[table.split != "train"], batch_size, device)


def evaluate_features(
    features: np.ndarray,
    table: pd.DataFrame,
    *,
    junk_pids: Sequence[int] = (-1,),
    device: str | torch.device | None = None,
    max_rank: int = 50,
    rerank: ReRanking | None = None,
    progress: Callable[[float], None] | None = None,
) -> RankingResult:
    """Rank the gallery for each query, given the features of ``embed_tested``; see ``evaluate_model``."""
    asks = (table.split == "query").to_numpy()
    query, gallery = table[asks], table[~asks]
    cameras = table.camid.notna().any()
    return evaluate_ranking(
        features[asks],
        features[~asks],
        query.pid,
        gallery.pid,
        query.camid if cameras else None,
        gallery.camid if cameras else None,
        junk_pids=tuple(junk_pids),
        max_rank=max_rank,
        query_paths=query.path,
        gallery_paths=gallery.path,
        rerank=rerank,
        progress=progress,
    )
