"""Open-set calibration: the threshold for strangers who are searched in a gallery of a given size.

A false-match rate is one of pairs. A stranger who is searched in a gallery is compared with all its images,
and accepted if one of them reaches the threshold. The terms are those of NIST's evaluations of identification
(Patrick Grother, Mei Ngan, Kayee Hanaoka: Face Recognition Vendor Test, Part 2: Identification, NISTIR 8271):
a non-mate search asks for a person who is not in the gallery, a mate search for one who is.

- FPIR, the false-positive identification rate: the share of non-mate searches that return an image.
- FNIR, the false-negative identification rate: the share of mate searches that return no image of the person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation.calibration import CosineCounts, SortedScores
from rga_reid.evaluation.features import LabelledFeatures, check_pair
from rga_reid.evaluation.relevance import Relevance
from rga_reid.evaluation.similarity import BLOCK_SIZE, CosineScores, tiles, use_full_precision

DET_POINTS = 100  #: points of a DET curve

_CELLS = 2**22  # scores held at a time
_ITEMS = 2**19  # same-identity items at a time
_NEGLIGIBLE = 1e-15  # probability


@dataclass(frozen=True, eq=False)
class OpenSetCalibration:
    """Error rates of searches in a gallery of a given size. Rates are fractions, not percent.

    Args:
        non_mates: the highest score of non-mate searches in galleries of ``measured_size`` images.
        mates: the highest score of a correct match of each mate search.
        gallery_size: number of images of the gallery that the rates are meant for.
        measured_size: number of images of the galleries that were measured: the same, or as many as there are.
    """

    non_mates: HighestCosines
    mates: SortedScores
    gallery_size: int
    measured_size: int

    @property
    def estimated(self) -> bool:
        """True if false-positive rates are extrapolated to a gallery larger than those measured."""
        return self.measured_size < self.gallery_size

    def threshold(self, fpir: float) -> float:
        """Return the smallest threshold whose false-positive identification rate is at most the wanted one.

        Raises:
            InputError: a rate that is not between 0 and 1, or too low for the number of non-mate searches:
                less than one of them would be allowed to return an image.
        """
        if not 0 < fpir < 1:
            raise InputError(f"fpir: expected between 0 and 1, found {fpir!r}")
        measured = _rate_of_size(fpir, self.gallery_size, self.measured_size)
        searches = self.non_mates.searches
        if measured * searches < 1 - 1e-9:
            needed = int(np.ceil(1 / measured - 1e-9))
            raise InputError(
                f"fpir: {fpir:g} for {self.gallery_size:,} images cannot be measured by {searches:,} searches "
                f"for strangers among {self.measured_size:,} images; expected at least {needed:,} searches: use images "
                "of more people, a higher fpir, or a smaller gallery size"
            )
        return float(self.non_mates.thresholds(np.array([measured]))[0])

    def fpir(self, threshold: float) -> float:
        """Return the false-positive identification rate of a gallery of ``gallery_size`` images.

        For a gallery larger than those measured it is an estimate, from the distribution of the maximum of
        independent scores: 1 − (1 − FPIR)^(gallery_size / measured_size). It is too high rather than too low,
        as some people resemble many others.
        """
        rate = self.non_mates.rates(np.array([threshold]))[0]
        return float(_rate_of_size(rate, self.measured_size, self.gallery_size))

    def fnir(self, threshold: float) -> float:
        """Return the false-negative identification rate.

        It does not depend on the size of the gallery: all images of the person are taken to be in it, and a
        search returns all images that reach the threshold.
        """
        return float(1 - self.mates.at_least(threshold) / self.mates.total)

    def det(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the DET curve (detection error trade-off): thresholds, FPIR and FNIR, ``(100,)`` each.

        Wanted rates from that of a single search to 1 are equally spaced on a logarithmic scale.
        """
        wanted = np.geomspace(1 / self.non_mates.searches, 1, DET_POINTS)
        thresholds = self.non_mates.thresholds(wanted)
        rates = _rate_of_size(self.non_mates.rates(thresholds), self.measured_size, self.gallery_size)
        return thresholds, rates, 1 - self.mates.at_least(thresholds) / self.mates.total

    def to_dict(self, fpir: float | None = None, *, threshold: float | None = None) -> dict[str, Any]:
        """Return plain values, for JSON: a threshold, the rates there, and the DET curve.

        Args:
            fpir: the wanted rate.
            threshold: or a threshold found elsewhere.

        Raises:
            InputError: as ``threshold``; neither a rate nor a threshold.
        """
        if threshold is None:
            if fpir is None:
                raise InputError("to_dict: expected fpir or threshold, got neither")
            threshold = self.threshold(fpir)
        names = ("threshold", "fpir", "fnir")
        return {
            "kind": "open_set",
            "threshold": threshold,
            "gallery_size": self.gallery_size,
            "measured_gallery_size": self.measured_size,
            "estimated": self.estimated,
            "wanted_fpir": fpir,
            "fpir": self.fpir(threshold),
            "fnir": self.fnir(threshold),
            "non_mate_searches": self.non_mates.searches,
            "mate_searches": self.mates.total,
            "det": {name: values.tolist() for name, values in zip(names, self.det(), strict=True)},
        }


def _rate_of_size(rates: Any, size: int, other: int) -> Any:
    """Convert false-positive identification rates of galleries of one size to those of another size."""
    return rates if size == other else 1 - (1 - rates) ** (other / size)


def calibrate_open_set(
    query: LabelledFeatures,
    gallery: LabelledFeatures,
    gallery_size: int | None = None,
    *,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> OpenSetCalibration:
    """Measure searches of strangers in galleries of a given size.

    Each query of a known identity is a non-mate search: its person is left out of the gallery, and of all
    galleries of ``gallery_size`` of the other images, drawn without replacement, the expected share that has
    an image above a threshold is computed exactly. Each query with a correct match, see ``score_pairs``, is a
    mate search.

    Args:
        query, gallery: features and labels.
        gallery_size: number of images; by default, as many as there are for each search.
        device, block_size, progress: as for ``score_pairs``.

    Raises:
        InputError: inputs that do not fit together, as for ``score_pairs``; a gallery size below 1.
    """
    check_int("block_size", block_size)
    if gallery_size is not None:
        check_int("gallery_size", gallery_size)
    where = choose_device(device, types=EXACT_TYPES)
    check_pair(query, gallery)
    relevance = Relevance(query.table, gallery.table, (-1,))
    scores = CosineScores(query.features, gallery.features, where)
    known = gallery.pids.notna().to_numpy()[relevance.gallery_rows]
    height = max(1, _CELLS // max(1, len(known)))
    blocks = list(relevance.query_blocks(height, _ITEMS, include_unmatched=True))
    others = [known.sum() - _own_items(relevance, queries, known) for queries in blocks]
    available = min((int(count.min()) for count in others), default=0)
    if available < 1:
        raise InputError("query_pids, gallery_pids: expected gallery images of other people for each query")
    wanted = available if gallery_size is None else gallery_size
    non_mates, mates = HighestCosines(min(wanted, available)), [np.empty(0)]
    done, total = 0, sum(map(len, blocks))
    with use_full_precision(where):
        for queries, count in zip(blocks, others, strict=True):
            cells = _cells(scores, queries, relevance.gallery_rows, block_size)
            items = relevance.same_identity_items(queries)
            cells[:, ~known] = cells[items.query, items.column] = -1
            non_mates.add(cells, count)
            values = scores.exact(queries[items.query], relevance.gallery_rows[items.column])[items.match]
            highest = np.full(len(queries), -np.inf)
            np.maximum.at(highest, items.query[items.match], values)
            mates.append(highest[np.isfinite(highest)])
            done += len(queries)
            if progress is not None:
                progress(done / total)
    found = np.concatenate(mates)
    if not len(found):
        raise relevance.no_match_error()
    return OpenSetCalibration(non_mates, SortedScores(found), wanted, min(wanted, available))


def _own_items(relevance: Relevance, queries: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Count the gallery images of known identity that are left out of each query's non-mate search."""
    items = relevance.same_identity_items(queries)
    return np.bincount(items.query[known[items.column]], minlength=len(queries))


def _cells(
    scores: CosineScores, queries: np.ndarray, gallery_rows: np.ndarray, block_size: int
) -> np.ndarray:
    """Return the cell of each exact cosine, see ``CosineCounts``: int32 ``(queries, gallery rows)``."""
    cells = np.empty((len(queries), len(gallery_rows)), np.int32)
    error = scores.error(torch.float64)
    for tile, first, column in tiles(scores, queries, gallery_rows, block_size, dtype=torch.float64):
        values = tile.cpu().numpy()
        row, place = np.nonzero(CosineCounts.near_edge(values, error))
        values[row, place] = scores.exact(queries[first + row], gallery_rows[column + place])
        cells[first : first + len(values), column : column + values.shape[1]] = CosineCounts.cells(values)
    return cells


class HighestCosines:
    """Distribution of the highest cosine of a search, over searches and over galleries drawn for each.

    Of a search with m other images, sorted by score, the best is the j-th in a share of all galleries of n
    images: it is drawn, and none of the j − 1 before it (hypergeometric distribution). These shares are added
    up in cells, as the counts of ``CosineCounts``.

    Args:
        size: n.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        #: number of searches
        self.searches = 0
        self._shares = np.zeros(CosineCounts.SIZE)

    def add(self, cells: np.ndarray, others: np.ndarray) -> None:
        """Add searches.

        Args:
            cells: cell of each image's cosine, ``(searches, images)``, −1 for an image that is left out.
            others: number of images that are not left out, ``(searches,)``, at least n.
        """
        shares = {int(count): self._first_drawn(int(count)) for count in np.unique(others)}
        longest = max(map(len, shares.values()))
        ordered = -np.sort(-cells, axis=1)[:, :longest]
        for row, count in zip(ordered, others, strict=True):
            share = shares[int(count)]
            np.add.at(self._shares, row[: len(share)], share)
        self.searches += len(cells)

    def rates(self, thresholds: np.ndarray) -> np.ndarray:
        """Return the share of searches whose highest cosine reaches each threshold."""
        clipped = np.clip(thresholds, -1.0, CosineCounts.edge(CosineCounts.SIZE))
        return self._reaching()[CosineCounts.cells(clipped)]

    def thresholds(self, rates: np.ndarray) -> np.ndarray:
        """Return the smallest threshold of each rate that is not exceeded."""
        reaching = self._reaching()
        cells = np.searchsorted(-reaching, -(np.asarray(rates) + 1e-12), side="left")
        return CosineCounts.edge(cells)

    def _reaching(self) -> np.ndarray:
        reaching = np.concatenate([np.cumsum(self._shares[::-1])[::-1], [0.0]]) / self.searches
        return np.minimum(reaching, 1.0)  # sums of shares exceed 1 by rounding

    def _first_drawn(self, count: int) -> np.ndarray:
        """Return the share of galleries in which the j-th of ``count`` images is the first that is drawn."""
        before = np.arange(count - self.size + 1)  # of n images, one is among the first m − n + 1
        none = np.cumprod((count - self.size - before) / (count - before))
        none = np.concatenate([[1.0], none[: np.searchsorted(-none, -_NEGLIGIBLE) + 1]])
        return -np.diff(none)
