"""Do two pictures show the same person? A score, and a decision where a threshold is known."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation.similarity import CosineScores
from rga_reid.inference.embed import Embedder, extract_features
from rga_reid.inputs import is_number, read_json


@dataclass(frozen=True)
class Verification:
    """What two pictures are to each other."""

    score: float  #: cosine of their features, from −1 to 1: higher is more alike
    threshold: float | None  #: None if none is known

    @property
    def same(self) -> bool | None:
        """Whether the score reaches the threshold; None without one."""
        return None if self.threshold is None else bool(self.score >= self.threshold)


def verify(
    model: Embedder,
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    threshold: float | None = None,
    device: str | torch.device | None = None,
) -> Verification:
    """Compare two pictures of people.

    Args:
        model: what embeds them.
        first, second: image files.
        threshold: from which score on they are taken for one person; ``calibrate`` finds it.
        device: where the model runs; by default where it is.

    Raises:
        InputError: a file that is not an image; a feature without a direction.
    """
    features, _ = extract_features(model, [first, second], device=device)
    scores = CosineScores(features[:1], features[1:], torch.device("cpu"))
    here = np.zeros(1, dtype=np.int64)
    return Verification(float(scores.exact(here, here)[0]), threshold)


def read_threshold(path: str | os.PathLike[str]) -> float:
    """The threshold in a JSON file of ``rga-reid calibrate``.

    Raises:
        InputError: no such file, or not one with a threshold.
    """
    values = read_json(path, expected="the JSON of rga-reid calibrate")
    threshold = values.get("threshold") if isinstance(values, dict) else None
    if not is_number(threshold):
        raise InputError(f"{path}: expected the JSON of rga-reid calibrate, with a number 'threshold'")
    return float(threshold)
