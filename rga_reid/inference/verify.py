"""Compare two pictures: a similarity score and, with a threshold, a decision."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from rga_reid.errors import InputError, short_repr
from rga_reid.evaluation.similarity import CosineScores
from rga_reid.inference.embed import extract_features
from rga_reid.inference.embedder import Embedder
from rga_reid.inputs import is_number, read_json

MAX_RATIO = 2  #: between the number of images searched and the calibrated one


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


@dataclass(frozen=True)
class Threshold:
    """Least score of a match, and what it was calibrated for."""

    value: float
    kind: str = "given"  #: "given" by the user, "per_pair" or "open_set"
    rate: float | None = None  #: wanted rate of false matches (per pair) or of strangers accepted (open set)
    gallery_size: int | None = None  #: images of the gallery of an open-set threshold

    def __str__(self) -> str:
        """Return the number, and its kind in words unless the user gave it."""
        size = f"{self.gallery_size or 0:,} images"
        known = self.rate is not None
        kinds = {
            "per_pair": " (per pair" + (f": false-match rate {self.rate:g})" if known else ")"),
            "open_set": f" (open set: {f'FPIR {self.rate:g} in ' if known else ''}a gallery of {size})",
        }
        return f"{self.value:.6f}{kinds.get(self.kind, '')}"

    def gallery_warning(self, images: int) -> str | None:
        """Return why the rate does not hold for a search among so many images, or None if it does."""
        if self.kind == "per_pair":
            return (
                f"the threshold is one of pairs: of strangers, {images:,} images accept more; calibrate "
                "--open-set finds a threshold for a gallery"
            )
        if (
            self.gallery_size is None
            or self.gallery_size / MAX_RATIO <= images <= self.gallery_size * MAX_RATIO
        ):
            return None
        calibrated = (
            f"the threshold was calibrated for a gallery of {self.gallery_size:,} images; among {images:,} it"
        )
        if images < self.gallery_size:  # as most filters leave: not worth a calibration for each
            return (
                f"{calibrated} accepts fewer strangers than wanted, and may miss more matches than necessary"
            )
        return (
            f"{calibrated} accepts more strangers than wanted: calibrate --open-set --gallery-size {images}"
        )


def read_calibration(path: str | os.PathLike[str]) -> Threshold:
    """Return the threshold in a JSON file of ``rga-reid calibrate``.

    Raises:
        InputError: the file is missing, has no threshold, or one of an unknown kind.
    """
    values = read_json(path, expected="the JSON of rga-reid calibrate")
    if not isinstance(values, dict) or not is_number(values.get("threshold")):
        raise InputError(f"{path}: expected the JSON of rga-reid calibrate, with a number 'threshold'")
    threshold, kind = float(values["threshold"]), values.get("kind", "per_pair")  # without a kind: version 1
    rate = values.get("wanted_fpir" if kind == "open_set" else "wanted_false_match_rate")
    rate = float(rate) if is_number(rate) else None
    if kind == "per_pair":
        return Threshold(threshold, kind, rate)
    size = values.get("gallery_size")
    if kind != "open_set" or type(size) is not int or size < 1:
        raise InputError(
            f"{path}: expected a threshold of the kind per_pair, or open_set with a whole number 'gallery_size', "
            f"found the kind {short_repr(kind)}"
        )
    return Threshold(threshold, kind, rate, size)
