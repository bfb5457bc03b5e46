"""Losses of the recipes: cross-entropy with label smoothing, and batch-hard triplets."""

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

from rga_reid._deprecated import rename_option_arguments
from rga_reid.errors import InputError, check_choice
from rga_reid.models import TrainingOutput


class BatchHardTripletLoss(nn.Module):
    """Triplet loss of the hardest positive and negative (Hermans et al., arXiv 1703.07737, eq. 5).

    Uses the Euclidean distance of unnormalised features and the mean over all anchors, as the published
    recipe. The defaults of pytorch-metric-learning normalise features, and average over anchors with a loss
    above 0 only.

    Args:
        margin: margin between the distances; None for the soft margin ``log(1 + exp(d_p - d_n))``.

    Raises:
        InputError: ``margin`` is negative or not finite.
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
        """Return the loss of ``(n, d)`` features with ``(n,)`` labels, a scalar."""
        features = features.float()
        return self.loss(features, labels, self.miner(features, labels))


class ReIDLoss(nn.Module):
    """Sum of the cross-entropy with label smoothing and the batch-hard triplet loss.

    Args:
        label_smoothing: ε of Szegedy et al., arXiv 1512.00567, section 7.
        margin: margin of ``BatchHardTripletLoss``.
        triplets: features that the triplet loss compares. ``pre_neck``: unnormalised features before the neck,
            as in the released RGA code. ``post_neck``: L2-normalised features after the neck, as in
            retrieval. In training from random weights, features before the neck tend to collapse to a point;
            the batch norm of the neck prevents that.

    Raises:
        InputError: ``label_smoothing`` outside 0 to 1, an invalid ``margin`` or unknown ``triplets``.
    """

    @rename_option_arguments("model.loss")
    def __init__(
        self,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        triplets: Literal["pre_neck", "post_neck"] = "pre_neck",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
        check_choice("triplets", triplets, ("pre_neck", "post_neck"))
        self.triplets = triplets
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.triplet = BatchHardTripletLoss(margin)

    def forward(self, output: TrainingOutput, labels: Tensor) -> dict[str, Tensor]:
        """Return the scalars ``loss`` (the sum), ``cross_entropy`` and ``triplet``, computed in float32.

        Args:
            output: output of the model for n images.
            labels: classes ``(n,)``, integers.
        """
        with torch.autocast(output.logits.device.type, enabled=False):
            logits = output.logits.float().movedim(-1, 1)  # (n, classes) or (n, classes, parts)
            parts = labels.view(-1, *(1,) * (logits.ndim - 2)).expand(-1, *logits.shape[2:])
            cross_entropy = self.cross_entropy(logits, parts)
            features = output.pre_neck
            if self.triplets == "post_neck":
                features = F.normalize(output.post_neck.float())
            triplet = self.triplet(features, labels)
        return {"loss": cross_entropy + triplet, "cross_entropy": cross_entropy, "triplet": triplet}
