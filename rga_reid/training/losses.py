"""The two losses of the recipe; miners and triplets are pytorch-metric-learning's."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from rga_reid.errors import InputError, check_choice
from rga_reid.models import TrainingOutput


class BatchHardTripletLoss(nn.Module):
    """Hardest positive against hardest negative of each anchor (Hermans et al., arXiv 1703.07737, eq. 5).

    Euclidean distance of unnormalised features, mean over all anchors. The library's defaults normalise
    and average over the anchors with a loss above 0; the published recipe does neither.

    Args:
        margin: in units of the distance; None for the soft margin ``log(1 + exp(d_p - d_n))``.

    Raises:
        InputError: a margin below 0, or that is no number.
    """

    def __init__(self, margin: float | None = 0.3) -> None:
        super().__init__()
        if margin is not None and not 0 <= margin < math.inf:
            raise InputError(f"margin: expected a number of at least 0 or null, got {margin}")
        distance = LpDistance(normalize_embeddings=False, p=2)
        self.miner = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(
            margin=0.0 if margin is None else margin,
            smooth_loss=margin is None,
            distance=distance,
            reducer=MeanReducer(),
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """``(n, d)`` features and ``(n,)`` labels to a scalar."""
        features = features.float()
        return self.loss(features, labels, self.miner(features, labels))


class ReIDLoss(nn.Module):
    """Label-smoothed cross-entropy on the logits + triplet loss, 1 : 1.

    Args:
        label_smoothing: ε of Szegedy et al., arXiv 1512.00567, section 7.
        margin: see ``BatchHardTripletLoss``.
        triplets: what the triplet loss compares. ``pooled``: the features before the neck, of any length, as
            the released RGA code. ``embedded``: those after it, L2-normalised, as retrieval. Trained from
            random weights the former tend to shrink to a point, where the loss stays at its value for equal
            distances; behind the neck's batch norm they cannot.

    Raises:
        InputError: a smoothing outside 0 to 1, a margin as above, or unknown ``triplets``.
    """

    def __init__(
        self,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        triplets: Literal["pooled", "embedded"] = "pooled",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
        check_choice("triplets", triplets, ("pooled", "embedded"))
        self.triplets = triplets
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.triplet = BatchHardTripletLoss(margin)

    def forward(self, output: TrainingOutput, labels: Tensor) -> dict[str, Tensor]:
        """Scalars ``loss`` (the sum), ``cross_entropy`` and ``triplet``, computed in float32.

        Args:
            output: of n images.
            labels: whole numbers ``(n,)``, the classes.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            logits = output.logits.float().movedim(-1, 1)  # classes second, then parts, if there are any
            parts = labels.view(-1, *(1,) * (logits.ndim - 2)).expand(-1, *logits.shape[2:])
            cross_entropy = self.cross_entropy(logits, parts)
            features = output.features
            if self.triplets == "embedded":
                features = F.normalize(output.embedded.float())
            triplet = self.triplet(features, labels)
        return {"loss": cross_entropy + triplet, "cross_entropy": cross_entropy, "triplet": triplet}
