"""Compare two pictures: a similarity score and, with a threshold, a decision."""

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
    """Result of comparing two pictures."""

    score: float  #: cosine of their features, from −1 to 1; higher is more similar
    threshold: float | None  #: None if unknown

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
        model: see ``Embedder``.
        first, second: image files.
        threshold: least score of the same person; ``calibrate`` finds it.
        device: device to run on; by default the model's current one.

    Raises:
        InputError: a file is not an image; a feature is zero, NaN or infinite.
    """
    features, _ = extract_features(model, [first, second], device=device)
    scores = CosineScores(features[:1], features[1:], torch.device("cpu"))
    row = np.zeros(1, dtype=np.int64)
    return Verification(float(scores.exact(row, row)[0]), threshold)


def read_threshold(path: str | os.PathLike[str]) -> float:
    """Return the threshold in a JSON file of ``rga-reid calibrate``.

    Raises:
        InputError: the file is missing or has no threshold.
    """
    values = read_json(path, expected="the JSON of rga-reid calibrate")
    threshold = values.get("threshold") if isinstance(values, dict) else None
    if not is_number(threshold):
        raise InputError(f"{path}: expected the JSON of rga-reid calibrate, with a number 'threshold'")
    return float(threshold)
