"""From scores to decisions: the threshold that lets a wanted fraction of impostors pass, and what it costs.

A pair is taken for one person if its score reaches the threshold: ``score >= threshold``. The terms are
those of ISO/IEC 19795-1: a false match is an impostor pair that is accepted, a false non-match a genuine pair
that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation.features import feature_pair, label_tables
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, CosineScores, tiles, use_full_precision

BINS = 100  #: of the histograms


@dataclass(frozen=True, eq=False)
class Calibration:
    """What thresholds do on measured pairs. Rates are fractions, not percent."""

    genuine: SortedScores  #: of pairs that show one person
    impostor: ScoreCounts  #: of pairs that show two

    def threshold(self, false_match_rate: float) -> float:
        """The smallest threshold whose measured false-match rate is not above the wanted one.

        Raises:
            InputError: a rate that is not between 0 and 1, or too low for the number of impostor scores: less
                than one of them would be allowed to pass, so nothing would have been measured.
        """
        total = self.impostor.total
        if not 0 < false_match_rate < 1:
            raise InputError(f"false_match_rate: expected between 0 and 1, found {false_match_rate!r}")
        most = int(false_match_rate * total)
        most += (most + 1) / total <= false_match_rate  # the product may have been rounded down,
        most -= most / total > false_match_rate  # or up
        if most < 1:
            raise InputError(
                f"false_match_rate: {false_match_rate:g} cannot be measured on {total:,} impostor scores; "
                f"expected {1 / total:.2g} or more, or at least {int(np.ceil(1 / false_match_rate)):,} scores"
            )
        return self.impostor.threshold(most)

    def false_match_rate(self, threshold: float) -> float:
        """Fraction of the impostor scores that reach the threshold."""
        return float(self.impostor.at_least(threshold) / self.impostor.total)

    def false_non_match_rate(self, threshold: float) -> float:
        """Fraction of the genuine scores that do not reach the threshold."""
        return float(1 - self.genuine.at_least(threshold) / self.genuine.total)

    @cached_property
    def equal_error_rate(self) -> float:
        """The lowest rate that both errors can be kept to: min over thresholds of the larger of the two."""
        thresholds = self.genuine.values  # between two of them only the false-match rate changes: it falls
        false_matches = self.impostor.at_least(thresholds) / self.impostor.total
        false_non_matches = 1 - self.genuine.at_least(thresholds) / self.genuine.total
        return float(np.maximum(false_matches, false_non_matches).min())

    def histograms(self, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Both distributions in bins of equal width.

        Returns:
            Edges ``(bins + 1,)``, and the numbers of genuine and of impostor scores ``(bins,)``: in a bin are
            those from its lower edge to below the next, in the last also those at its upper edge.
        """
        low, high = zip(self.genuine.bounds, self.impostor.bounds, strict=True)
        edges = np.linspace(min(low), max(high), bins + 1)
        counts = []
        for scores in (self.genuine, self.impostor):
            reaching = scores.at_least(edges)
            reaching[0], reaching[-1] = scores.total, 0
            counts.append(-np.diff(reaching))
        return edges, counts[0], counts[1]

    def to_dict(self, false_match_rate: float | None = None) -> dict[str, Any]:
        """Plain values, for JSON.

        Args:
            false_match_rate: wanted; if given, the threshold for it and what was measured there come first.

        Returns:
            ``threshold``, ``wanted_false_match_rate``, ``false_match_rate``, ``false_matches`` and
            ``false_non_match_rate`` if a rate was given; then ``equal_error_rate``, ``genuine_pairs``,
            ``impostor_pairs`` and ``histogram`` (``edges``, ``genuine``, ``impostor``). Rates are fractions.

        Raises:
            InputError: as for ``threshold``.
        """
        chosen: dict[str, Any] = {}
        if false_match_rate is not None:
            threshold = self.threshold(false_match_rate)
            chosen = {
                "threshold": threshold,
                "wanted_false_match_rate": false_match_rate,
                "false_match_rate": self.false_match_rate(threshold),
                "false_matches": int(self.impostor.at_least(threshold)),
                "false_non_match_rate": self.false_non_match_rate(threshold),
            }
        edges, genuine, impostor = (values.tolist() for values in self.histograms())
        return {
            **chosen,
            "equal_error_rate": self.equal_error_rate,
            "genuine_pairs": self.genuine.total,
            "impostor_pairs": self.impostor.total,
            "histogram": {"edges": edges, "genuine": genuine, "impostor": impostor},
        }


def calibrate(genuine_scores: Any, impostor_scores: Any) -> Calibration:
    """Learn what thresholds do from scores of pairs whose identities are known.

    Args:
        genuine_scores: of pairs that show one person, ``(n,)``; higher is more alike.
        impostor_scores: of pairs that show two, ``(m,)``; or the counts that ``pair_scores`` makes of them.

    Raises:
        InputError: no scores, or something that is not a finite number.
    """
    impostor: ScoreCounts
    if isinstance(impostor_scores, CosineCounts):
        impostor = impostor_scores
    else:
        impostor = SortedScores(_score_list(impostor_scores, "impostor_scores"))
    return Calibration(SortedScores(_score_list(genuine_scores, "genuine_scores")), impostor)


def _score_list(values: Any, name: str) -> np.ndarray:
    plain = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
    scores = np.asarray(plain)
    if scores.ndim != 1 or not len(scores) or scores.dtype.kind not in "fiu":
        raise InputError(f"{name}: expected numbers (n,), at least one, found {scores.dtype} {scores.shape}")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        raise InputError(f"{name}: entry {int(np.argmax(wrong))} is {scores[np.argmax(wrong)]}")
    return scores.astype(np.float64)


_QUERIES = 2048  # prepared at a time, in float64
_OWN = 2**19  # pairs of one identity at a time


@dataclass(frozen=True, eq=False)
class PairScores:
    """Cosines of pairs of images, by whether they show the same person."""

    genuine: np.ndarray  #: float64 (pairs,): of every pair of one person
    impostor: CosineCounts  #: of the pairs of different people, of which there may be thousands of millions


def pair_scores(
    query_features: Any,
    gallery_features: Any,
    query_pids: Any,
    gallery_pids: Any,
    query_camids: Any = None,
    gallery_camids: Any = None,
    *,
    junk_pids: Sequence[int] = (-1,),
    query_paths: Iterable[Any] | None = None,
    gallery_paths: Iterable[Any] | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> PairScores:
    """Compare each query with each gallery item that a ranking would show it.

    Genuine are the correct matches of the Market-1501 protocol: one person, in two cameras where cameras are
    known. Impostors are all pairs of two different known people. Pairs of one person and camera, the query's
    own file, junk, and images of unknown identity take no part.

    Scores are float64 dot products of the float32 rows scaled to length 1. The genuine ones are all kept. For
    the impostors, exact counts on a grid are kept, by products in float64; a score that lies within their
    error of an edge of the grid is computed on its own. So memory does not grow with the number of impostor
    pairs, and no count depends on the block size, the number of threads or the device.

    Args:
        query_features, gallery_features, query_pids, gallery_pids: as for ``evaluate_ranking``.
        query_camids, gallery_camids, junk_pids, query_paths, gallery_paths: likewise.
        device: where the products are computed, such as "cuda".
        block_size: gallery rows held on the device at a time.
        progress: told the fraction that is done, now and then.

    Raises:
        InputError: inputs that do not fit together; a row of features with NaN, infinity or only zeros; no
            genuine pair, or no impostor pair.
    """
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    features = feature_pair(query_features, gallery_features)
    tables = label_tables(
        (len(features[0]), len(features[1])),
        query_pids,
        gallery_pids,
        query_camids,
        gallery_camids,
        query_paths,
        gallery_paths,
    )
    truth = Relevance(*tables, junk_pids)
    scores = CosineScores(*features, where)
    known = tables[1]["pid"].notna().to_numpy()[truth.gallery_rows]
    genuine, impostor = [np.empty(0)], CosineCounts()
    blocks = list(truth.blocks(_QUERIES, _OWN, strangers=True))
    done, total = 0, sum(map(len, blocks))
    with use_full_precision(where):
        for queries in blocks:
            _count_all(impostor, scores, queries, truth.gallery_rows[known], block_size)
            own = truth.own_items(queries)
            own_scores = scores.exact(queries[own.query], truth.gallery_rows[own.column])
            impostor.add(own_scores[known[own.column]], -1)
            genuine.append(own_scores[own.match])
            done += len(queries)
            if progress is not None:
                progress(done / total)
    found = PairScores(np.concatenate(genuine), impostor)
    if not len(found.genuine):
        raise truth.explain_no_match()
    if not impostor.total:
        raise InputError("query_pids, gallery_pids: expected pairs of two different people, found none")
    return found


def _count_all(
    counts: CosineCounts,
    scores: CosineScores,
    queries: np.ndarray,
    gallery_rows: np.ndarray,
    block_size: int,
) -> None:
    """Count the cosines of all pairs of these rows."""
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
_HALF = 2**20  # half the cells' width is 1 / _HALF


class ScoreCounts(Protocol):
    """Some scores, as a calibration needs them."""

    @property
    def total(self) -> int:
        """How many scores there are."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Numbers between which all scores are."""

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        """How many scores reach each threshold."""

    def threshold(self, most: int) -> float:
        """The smallest threshold that at most so many scores reach, fewer than there are."""


class SortedScores:
    """Every score is kept: thresholds are as fine as float64.

    Args:
        scores: float64 ``(n,)``, finite.
    """

    def __init__(self, scores: np.ndarray) -> None:
        #: (n,), ascending
        self.values = np.sort(scores)

    @property
    def total(self) -> int:
        return len(self.values)

    @property
    def bounds(self) -> tuple[float, float]:
        return float(self.values[0]), float(self.values[-1])

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        return self.total - np.searchsorted(self.values, thresholds, side="left")

    def threshold(self, most: int) -> float:
        above = float(np.nextafter(self.values[self.total - 1 - most], np.inf))
        # a thread that flushes subnormal numbers to zero would take 5e-324 for the 0 that it is to exclude
        return above if abs(above) >= _NORMAL else _NORMAL


class CosineCounts:
    """Counts of cosines in cells of width 2⁻¹⁹ (0.0000019) around the multiples of 2⁻¹⁹, from −1 to 1.

    Which cell a score is in is decided exactly, so the count at an edge of the grid is exact, and thresholds
    are such edges. In between, all of the cell counts: a number of false matches is never understated. The
    edges are odd multiples of 2⁻²⁰, which the cosines of simple features, 0 and 1 before all, are not.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_HALF + 1, dtype=np.int64)

    @staticmethod
    def cells(scores: np.ndarray | float) -> np.ndarray:
        """Number of the cell of each score; no rounding is involved."""
        return ((np.floor(np.multiply(scores, float(_HALF))).astype(np.int64) + 1) >> 1) + _HALF // 2

    @staticmethod
    def near_edge(scores: np.ndarray, error: float) -> np.ndarray:
        """Whether each score is so near to an edge that an error of this size could change its cell."""
        height = scores * (_HALF / 2) + 0.5
        return abs(height - np.rint(height)) <= error * (_HALF / 2) + 1e-9  # 1e-9: of this arithmetic

    def add(self, scores: np.ndarray, times: int = 1) -> None:
        """Count cosines; with −1, take them out again."""
        np.add.at(self._counts, self.cells(scores), times)

    @property
    def total(self) -> int:
        return int(self._counts.sum())

    @property
    def bounds(self) -> tuple[float, float]:
        filled = np.flatnonzero(self._counts)
        return self._edge(int(filled[0])), self._edge(int(filled[-1]) + 1)

    def at_least(self, thresholds: np.ndarray | float) -> np.ndarray:
        clipped = np.clip(thresholds, -1.0, 1 + 1 / _HALF)  # beyond the last edge there is nothing
        return self._reaching()[self.cells(clipped)]

    def threshold(self, most: int) -> float:
        return self._edge(int(np.argmax(self._reaching() <= most)))

    @staticmethod
    def _edge(cell: int) -> float:
        """Lower edge of a cell."""
        return (2 * cell - 1) / _HALF - 1

    def _reaching(self) -> np.ndarray:
        """How many scores reach the lower edge of each cell, and that of one more."""
        return np.concatenate([np.cumsum(self._counts[::-1])[::-1], [0]])
