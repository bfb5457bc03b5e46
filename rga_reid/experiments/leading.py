"""The best matches of every query, as an evaluation sees them, in one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rga_reid.evaluation import ranked_lists


def leading_matches(
    features: np.ndarray, table: pd.DataFrame, count: int = 10, *, junk_pids: Sequence[int] = (-1,)
) -> pd.DataFrame:
    """The gallery images that rank first for each query, without those that the evaluation leaves out.

    Args:
        features: float32 ``(n, d)``.
        table: their n rows, of the splits query and gallery, with path, pid and camid.
        count: images for each query, fewer where there are not as many.
        junk_pids: identities that are left out.

    Returns:
        Columns ``query`` and ``gallery`` (numbers within their splits), ``rank`` (from 1), ``score``, and
        ``path``, ``pid``, ``camid`` of the match. Equal scores go by gallery order.
    """
    asks = (table["split"] == "query").to_numpy()
    query, gallery = table[asks].reset_index(drop=True), table[~asks].reset_index(drop=True)
    lists = ranked_lists(
        features[asks], features[~asks], query, gallery, range(len(query)), top_k=count, junk_pids=junk_pids
    )
    sizes = [len(ranked.rows) for ranked in lists]
    found = np.concatenate([ranked.rows for ranked in lists])
    return pd.DataFrame(
        {
            "query": np.repeat([ranked.query for ranked in lists], sizes),
            "rank": np.concatenate([np.arange(1, size + 1) for size in sizes]),
            "gallery": found,
            "score": np.concatenate([ranked.scores for ranked in lists]),
            **gallery[["path", "pid", "camid"]].iloc[found].reset_index(drop=True),
        }
    )
