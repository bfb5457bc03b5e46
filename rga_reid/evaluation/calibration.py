"""From scores to decisions: the threshold that lets a wanted fraction of impostors pass, and what it costs.

A pair is taken for one person if its score reaches the threshold: ``score >= threshold``. The terms are
those of ISO/IEC 19795-1: a false match is an impostor pair that is accepted, a false non-match a genuine pair
that is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation.score_counts import CosineCounts, ScoreCounts, SortedScores

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
