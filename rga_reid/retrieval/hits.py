"""What a search found, before it is a table: and its shortlist put in a better order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rga_reid.evaluation import ReRanking, re_ranked_distances
from rga_reid.retrieval.refusals import no_numbers


@dataclass(frozen=True)
class Hits:
    """Images found for some queries, one query after the other, best first.

    Args:
        counts: int64 ``(q,)``, how many for each query; n in all.
        scores: float64 ``(n,)``.
        ids: int64 ``(n,)``.
        table: n rows ``path, pid, camid``, numbered from 0.
        vectors: gives those of some of the n rows, by number: float32 ``(len(rows), d)``.

    Raises:
        InputError: a score that is not finite: the gallery's vectors are not.
    """

    counts: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    table: pd.DataFrame
    vectors: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        if not np.isfinite(self.scores).all():
            raise no_numbers()

    def re_ranked(self, queries: np.ndarray, settings: ReRanking, top_k: int) -> Hits:
        """The best of each query's hits in the order of k-reciprocal re-ranking.

        Neighbours are those among the query and its own hits, whatever other queries there are. Hits of equal
        re-ranked distance stay in their order.

        Args:
            queries: unit rows, float32 ``(q, d)``.
            settings: where a query has fewer hits than neighbours are asked for, all of them are neighbours.
            top_k: hits to keep of each query.
        """
        chosen = []
        for query, stop, count in zip(queries, self.counts.cumsum(), self.counts, strict=True):
            if count:
                rows = np.arange(stop - count, stop)
                distances = re_ranked_distances(
                    query[None],
                    self.vectors(rows),
                    k1=min(settings.k1, int(count)),
                    k2=min(settings.k2, int(count) + 1),
                    lambda_value=settings.lambda_value,
                )
                chosen.append(rows[np.argsort(distances[0], kind="stable")[:top_k]])
        rows = np.concatenate([np.empty(0, np.int64), *chosen])
        return Hits(
            np.minimum(self.counts, top_k),
            self.scores[rows],
            self.ids[rows],
            self.table.take(rows).reset_index(drop=True),
            lambda some: self.vectors(rows[some]),
        )

    def to_frame(self, *, with_ids: bool = False) -> pd.DataFrame:
        """As ``Gallery.search`` gives it."""
        starts = self.counts.cumsum() - self.counts
        columns = {
            "query": np.repeat(np.arange(len(self.counts)), self.counts),
            "rank": np.arange(len(self.ids)) - np.repeat(starts, self.counts) + 1,
            "score": self.scores,
            **{name: self.table[name].array for name in self.table.columns},
        }
        return pd.DataFrame(columns | {"id": self.ids} if with_ids else columns)
