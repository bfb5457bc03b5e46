"""The best matches of each query, as an evaluation sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

_BLOCK = 256  # queries at a time
_SPARE = 16  # more candidates than are asked for: float32 may order nearly equal scores wrongly


def leading_matches(
    features: np.ndarray, table: pd.DataFrame, count: int = 10, *, junk_pids: Sequence[int] = (-1,)
) -> pd.DataFrame:
    """The gallery images that rank first for each query, without those that the evaluation leaves out.

    Args:
        features: float32 ``(n, d)``, rows of length 1.
        table: their n rows, of the splits query and gallery, with path, pid and camid.
        count: images for each query, fewer where there are not as many.
        junk_pids: identities that are left out.

    Returns:
        Columns ``query`` and ``gallery`` (numbers within their splits), ``rank`` (from 1), ``score``, and
        ``path``, ``pid``, ``camid`` of the match. Equal scores go by gallery order.
    """
    asks = (table["split"] == "query").to_numpy()
    query, gallery = table[asks].reset_index(drop=True), table[~asks].reset_index(drop=True)
    x, y = features[asks], features[~asks]
    codes = [pd.factorize(pd.concat([query[name], gallery[name]]))[0] for name in ("pid", "camid", "path")]
    junk = gallery["pid"].isin(list(junk_pids)).to_numpy()
    kept = min(count + _SPARE, len(gallery))
    parts = []
    for start in range(0, len(query), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(query)))
        scores = x[rows] @ y.T
        pid, camera, path = (_equal(code, rows, len(query)) for code in codes)
        scores[junk[None] | (pid & camera) | path] = -np.inf
        chosen = np.sort(np.argpartition(-scores, kept - 1, axis=1)[:, :kept], axis=1)
        exact = np.einsum("qkd,qd->qk", y[chosen].astype(np.float64), x[rows].astype(np.float64))
        exact[np.take_along_axis(scores, chosen, axis=1) == -np.inf] = -np.inf
        order = np.argsort(-exact, axis=1, kind="stable")[:, :count]
        parts.append((np.take_along_axis(chosen, order, axis=1), np.take_along_axis(exact, order, axis=1)))
    chosen, exact = (np.concatenate(part) for part in zip(*parts, strict=True))
    width = chosen.shape[1]
    found = pd.DataFrame(
        {
            "query": np.repeat(np.arange(len(query)), width),
            "rank": np.tile(np.arange(1, width + 1), len(query)),
            "gallery": chosen.ravel(),
            "score": exact.ravel(),
        }
    )
    found = found[np.isfinite(found["score"])].reset_index(drop=True)
    described = gallery[["path", "pid", "camid"]].iloc[found["gallery"]].reset_index(drop=True)
    return pd.concat([found, described], axis=1)


def _equal(code: np.ndarray, rows: np.ndarray, queries: int) -> np.ndarray:
    """Which queries and gallery images have the same known label, ``(len(rows), g)``."""
    own, other = code[:queries][rows][:, None], code[queries:][None]
    return (own == other) & (own >= 0)
