"""Calibration: the threshold for a wanted false-match rate, and the error rates of thresholds.

A pair is accepted as one person if its score reaches the threshold: ``score >= threshold``. The terms are
those of ISO/IEC 19795-1: a false match is an impostor pair that is accepted, a false non-match a genuine pair
that is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation.features import LabelledFeatures, as_array, check_pair, label_pair
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, CosineScores, tiles, use_full_precision

BINS = 100  #: bins of the histograms


@dataclass(frozen=True, eq=False)
class Calibration:
    """Error rates of thresholds on measured pairs. Rates are fractions, not percent."""

    genuine: SortedScores  #: scores of pairs of one person
    impostor: SortedScores | CosineCounts  #: scores of pairs of two people

    def threshold(self, false_match_rate: float) -> float:
        """Return the smallest threshold whose measured false-match rate is at most the wanted one.

        Raises:
            InputError: a rate that is not between 0 and 1, or too low for the number of impostor scores: less
                than one false match would be allowed, so nothing would have been measured.
        """
        total = self.impostor.total
        if not 0 < false_match_rate < 1:
            raise InputError(f"false_match_rate: expected between 0 and 1, found {false_match_rate!r}")
        allowed = int(false_match_rate * total)
        allowed += (allowed + 1) / total <= false_match_rate  # the product may have been rounded down,
        allowed -= allowed / total > false_match_rate  # or up
        if allowed < 1:
            raise InputError(
                f"false_match_rate: {false_match_rate:g} cannot be measured on {total:,} impostor scores; "
                f"expected {1 / total:.2g} or more, or at least {int(np.ceil(1 / false_match_rate)):,} scores"
            )
        return self.impostor.threshold(allowed)

    def false_match_rate(self, threshold: float) -> float:
        """Return the fraction of the impostor scores that reach the threshold."""
        return float(self.impostor.at_least(threshold) / self.impostor.total)

    def false_non_match_rate(self, threshold: float) -> float:
        """Return the fraction of the genuine scores that do not reach the threshold."""
        return float(1 - self.genuine.at_least(threshold) / self.genuine.total)

    @cached_property
    def equal_error_rate(self) -> float:
        """The minimum over thresholds of the larger of both error rates."""
        thresholds = self.genuine.values  # between two of them only the false-match rate changes: it falls
        false_matches = self.impostor.at_least(thresholds) / self.impostor.total
        false_non_matches = 1 - self.genuine.at_least(thresholds) / self.genuine.total
        return float(np.maximum(false_matches, false_non_matches).min())

    def histograms(self, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both distributions in bins of equal width.

        Returns:
            Edges ``(bins + 1,)``, and the numbers of genuine and of impostor scores ``(bins,)``. A bin
            includes its lower edge, the last bin also its upper edge.
        """
        low, high = zip(self.genuine.bounds, self.impostor.bounds, strict=True)
        edges = np.linspace(min(low), max(high), bins + 1)
        counts = []
        for scores in (self.genuine, self.impostor):
            reaching = scores.at_least(edges)
            reaching[0], reaching[-1] = scores.total, 0
            counts.append(-np.diff(reaching))
        return edges, counts[0], counts[1]

    def to_dict(
        self, false_match_rate: float | None = None, *, threshold: float | None = None
    ) -> dict[str, Any]:
        """Return plain values, for JSON.

        Args:
            false_match_rate: wanted rate; if given, its threshold and the rates measured there come first.
            threshold: a threshold found elsewhere, for the rates measured there.

        Returns:
            ``kind`` ("per_pair"), ``threshold``, ``wanted_false_match_rate`` (None for a threshold found
            elsewhere), ``false_match_rate``, ``false_matches`` and ``false_non_match_rate`` if a rate or a
            threshold was given; then ``equal_error_rate``,
            ``genuine_pairs``, ``impostor_pairs`` and ``histogram`` (``edges``, ``genuine``, ``impostor``). Rates
            are fractions.

        Raises:
            InputError: as ``threshold``.
        """
        at_threshold: dict[str, Any] = {}
        if false_match_rate is not None:
            threshold = self.threshold(false_match_rate)
        if threshold is not None:
            at_threshold = {
                "kind": "per_pair",
                "threshold": threshold,
                "wanted_false_match_rate": false_match_rate,
                "false_match_rate": self.false_match_rate(threshold),
                "false_matches": int(self.impostor.at_least(threshold)),
                "false_non_match_rate": self.false_non_match_rate(threshold),
            }
        edges, genuine, impostor = (values.tolist() for values in self.histograms())
        return {
            **at_threshold,
            "equal_error_rate": self.equal_error_rate,
            "genuine_pairs": self.genuine.total,
            "impostor_pairs": self.impostor.total,
            "histogram": {"edges": edges, "genuine": genuine, "impostor": impostor},
        }


def calibrate(genuine_scores: Any, impostor_scores: Any) -> Calibration:
    """Calibrate on scores of pairs with known identities.

    Args:
        genuine_scores: scores of pairs of one person, ``(n,)``; higher is more similar.
        impostor_scores: scores of pairs of two people, ``(m,)``, or their counts from ``pair_scores``.

    Raises:
        InputError: no scores, or a score that is not a finite number.

    Example:
        >>> calibration = calibrate([0.6, 0.8, 0.9, 0.3], [0.1, 0.2, 0.3, 0.4])
        >>> threshold = calibration.threshold(false_match_rate=0.25)
        >>> threshold > 0.3, calibration.false_non_match_rate(threshold)
        (True, 0.25)
    """
    genuine = SortedScores(_score_list(genuine_scores, "genuine_scores"))
    if isinstance(impostor_scores, CosineCounts):
        return Calibration(genuine, impostor_scores)
    return Calibration(genuine, SortedScores(_score_list(impostor_scores, "impostor_scores")))


def _score_list(values: Any, name: str) -> np.ndarray:
    scores = as_array(values)
    if scores.ndim != 1 or not len(scores) or scores.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers (n,), at least one, found {scores.dtype} {scores.shape}")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        raise InputError(f"{name}: entry {int(np.argmax(wrong))} is {scores[np.argmax(wrong)]}")
    return scores.astype(np.float64)


_QUERIES = 2048  # queries compared at a time, in float64
_ITEMS = 2**19  # same-identity items at a time


@dataclass(frozen=True, eq=False)
class PairScores:
    """Cosines of pairs of images."""

    genuine: np.ndarray  #: float64 (pairs,): scores of all pairs of one person
    impostor: CosineCounts  #: counts of all pairs of two people, which may be billions


def pair_scores(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> PairScores:
    """Score each query with each gallery item, see ``score_pairs``.

    Args:
        query_features, gallery_features, query_pids, gallery_pids: as for ``evaluate_ranking``.
        query_camids, gallery_camids, junk_pids, query_paths, gallery_paths: as for ``evaluate_ranking``.
        device, block_size, progress: as for ``score_pairs``.
    """
    query, gallery = label_pair(
        query_features,
        gallery_features,
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    return score_pairs(
        query, gallery, junk_pids=junk_pids, device=device, block_size=block_size, progress=progress
    )


def score_pairs(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    *,
    junk_pids: Sequence[int | str] = (-1,),
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> PairScores:
    """Score each query with each gallery item that the evaluation does not remove.

    Genuine pairs are the correct matches of the Market-1501 protocol: one person, in two cameras where
    cameras are known. Impostor pairs are all pairs of two different known people. Pairs of one person and
    camera, the query's own file, junk, and images of unknown identity are left out.

    Scores are float64 dot products of the float32 rows scaled to length 1. All genuine scores are kept.
    Impostor scores are counted in the cells of a grid: by products in float64, and exactly where a product is
    within its error of an edge of the grid. So memory does not grow with the number of impostor pairs,
    and no count depends on the block size, the number of threads or the device.

    Args:
        query, gallery: features and labels.
        junk_pids: identities to leave out.
        device: device of the products, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: called with the fraction of the work that is done.

    Raises:
        InputError: inputs that do not fit together; a row of features with NaN, infinity or only zeros; no
            genuine pair, or no impostor pair.
    """
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    check_pair(query, gallery)
    relevance = Relevance(query.table, gallery.table, junk_pids)
    scores = CosineScores(query.features, gallery.features, where)
    known = gallery.pids.notna().to_numpy()[relevance.gallery_rows]
    genuine, impostor = [np.empty(0)], CosineCounts()
    blocks = list(relevance.query_blocks(_QUERIES, _ITEMS, include_unmatched=True))
    done, total = 0, sum(map(len, blocks))
    with use_full_precision(where):
        for queries in blocks:
            count_cosines(impostor, scores, queries, relevance.gallery_rows[known], block_size)
            items = relevance.same_identity_items(queries)
            item_scores = scores.exact(queries[items.query], relevance.gallery_rows[items.column])
            impostor.add(item_scores[known[items.column]], -1)  # they were counted with the others
            genuine.append(item_scores[items.match])
            done += len(queries)
            if progress is not None:
                progress(done / total)
    found = PairScores(np.concatenate(genuine), impostor)
    if not len(found.genuine):
        raise relevance.no_match_error()
    if not impostor.total:
        raise InputError("query_pids, gallery_pids: expected pairs of two different people, found none")
    return found


def count_cosines(
    counts: CosineCounts,
    scores: CosineScores,
    queries: np.ndarray,
    gallery_rows: np.ndarray,
    block_size: int,
) -> None:
    """Count the cosines of all pairs of these rows exactly."""
    error = scores.error(torch.float64)
    for tile, first_query, first_column in tiles(
        scores, queries, gallery_rows, block_size, dtype=torch.float64
    ):
        values = tile.cpu().numpy()
        query, column = np.nonzero(counts.near_edge(values, error))
        values[query, column] = scores.exact(
            queries[first_query + query], gallery_rows[first_column + column]
        )
        counts.add(values)


_NORMAL = float(np.finfo(np.float64).smallest_normal)
_HALF = 2**20  # a cell is 2 / _HALF wide


class SortedScores:
    """Sorted scores, which give thresholds of the precision of float64.

    Args:
        scores: float64 ``(n,)``, finite.
    """

    def __init__(self, scores: np.ndarray) -> None:
        #: (n,), ascending
        self.values = np.sort(scores)

    @property
    def total(self) -> int:
        """Number of scores."""
        return len(self.values)

    @property
    def bounds(self) -> tuple[float, float]:
        """A lower and an upper bound of all scores."""
        return float(self.values[0]), float(self.values[-1])

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        """Return the number of scores that reach each threshold."""
        return self.total - np.searchsorted(self.values, thresholds, side="left")

    def threshold(self, allowed: int) -> float:
        """Return the smallest threshold that at most ``allowed`` scores reach, fewer than all."""
        above = float(np.nextafter(self.values[self.total - 1 - allowed], np.inf))
        # a thread that flushes subnormal numbers to zero would treat 5e-324 as 0, which is to be excluded
        return above if abs(above) >= _NORMAL else _NORMAL


class CosineCounts:
    """Counts of cosines, used as ``SortedScores``, in cells around the multiples of 2⁻¹⁹, from −1 to 1.

    The cell of a score is exact, so the count at an edge of the grid is exact, and thresholds are such edges.
    A threshold within a cell counts all of the cell, so a number of false matches is never understated. Edges
    are odd multiples of 2⁻²⁰: the cosines of simple features, above all 0 and 1, are not edges.
    """

    SIZE = _HALF + 1  #: number of cells

    def __init__(self) -> None:
        self._counts = np.zeros(self.SIZE, dtype=np.int64)

    @staticmethod
    def cells(scores: np.ndarray | float) -> np.ndarray:
        """Return the number of the cell of each score, without rounding."""
        return ((np.floor(np.multiply(scores, float(_HALF))).astype(np.int64) + 1) >> 1) + _HALF // 2

    @staticmethod
    def near_edge(scores: np.ndarray, error: float) -> np.ndarray:
        """Return whether each score is so close to an edge that an error could change its cell."""
        height = scores * (_HALF / 2) + 0.5
        return abs(height - np.rint(height)) <= error * (_HALF / 2) + 1e-9  # 1e-9: rounding here

    def add(self, scores: np.ndarray, times: int = 1) -> None:
        """Count cosines; ``times=-1`` removes them again."""
        np.add.at(self._counts, self.cells(scores), times)

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    @property
    def bounds(self) -> tuple[float, float]:
        filled = np.flatnonzero(self._counts)
        return self.edge(int(filled[0])), self.edge(int(filled[-1]) + 1)

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        clipped = np.clip(thresholds, -1.0, 1 + 1 / _HALF)  # no score is beyond the last edge
        return self._reaching()[self.cells(clipped)]

    def threshold(self, allowed: int) -> float:
        return self.edge(int(np.argmax(self._reaching() <= allowed)))

    @staticmethod
    def edge(cells: Any) -> Any:
        """Return the lower edge of each cell, given as an integer or an array."""
        return (2 * cells - 1) / _HALF - 1

    def _reaching(self) -> np.ndarray:
        """Count the scores that reach the lower edge of each cell, and the upper edge of the last."""
        return np.concatenate([np.cumsum(self._counts[::-1])[::-1], [0]])
