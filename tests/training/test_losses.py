"""Losses against values of the released code, and against their definitions in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.models import TrainingOutput
from rga_reid.training import BatchHardTripletLoss, ReIDLoss

REFERENCE = json.loads((Path(__file__).parent.parent / "fixtures" / "training.json").read_text())


def naive_triplet(features: torch.Tensor, labels: torch.Tensor, margin: float | None) -> float:
    """Compute the loss with a loop over anchors in float64."""
    losses = []
    for i, anchor in enumerate(features.double()):
        distances = [
            (float((anchor - other).norm()), int(labels[j])) for j, other in enumerate(features.double())
        ]
        positive = max(d for j, (d, label) in enumerate(distances) if label == labels[i] and j != i)
        negative = min(d for d, label in distances if label != labels[i])
        gap = torch.tensor(positive - negative, dtype=torch.float64)
        losses.append(float(gap.exp().log1p() if margin is None else (gap + margin).clamp(min=0)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_triplet_is_batch_hard_on_unnormalised_features(margin: float | None, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    features = scale * torch.randn(12, 5, generator=generator)
    labels = torch.arange(4).repeat_interleave(3)
    loss = BatchHardTripletLoss(margin)(features, labels)
    assert float(loss) == pytest.approx(naive_triplet(features, labels, margin), rel=1e-4)


@pytest.mark.parametrize("triplets", ["pre_neck", "post_neck"])
def test_triplet_of_scaled_features(triplets: Literal["pre_neck", "post_neck"]) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, *features = (torch.randn(12, n, generator=generator) for n in (4, 5, 5))
    labels = torch.arange(4).repeat_interleave(3)
    losses = ReIDLoss(margin=None, triplets=triplets, scale=8.0)(TrainingOutput(*features, logits), labels)
    unit = features[1] / features[1].norm(dim=1, keepdim=True)
    expected = naive_triplet(8 * (features[0] if triplets == "pre_neck" else unit), labels, None)
    assert float(losses["triplet"]) == pytest.approx(expected, rel=1e-4)


def test_triplet_is_the_released_one() -> None:
    given = REFERENCE["triplet"]
    features, labels = torch.tensor(given["features"]), torch.tensor(given["labels"])
    assert float(BatchHardTripletLoss(given["margin"])(features, labels)) == pytest.approx(
        given["loss"], rel=1e-5
    )


def test_cross_entropy_is_the_released_one() -> None:
    given = REFERENCE["cross_entropy_label_smoothing"]
    logits, labels = torch.tensor(given["logits"]), torch.tensor(given["targets"])
    # features of different labels are far apart, so the triplet loss is 0
    features = 1000.0 * torch.nn.functional.one_hot(labels, int(labels.max()) + 1).float()
    losses = ReIDLoss(given["epsilon"])(TrainingOutput(features, features, logits), labels)
    assert float(losses["cross_entropy"]) == pytest.approx(given["loss"], rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(losses["cross_entropy"] + losses["triplet"]))


def test_cross_entropy_is_the_mean_over_the_parts() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 3, 6, generator=generator)
    labels = torch.arange(4).repeat_interleave(2)
    features = torch.randn(8, 12, generator=generator)
    loss = ReIDLoss(label_smoothing=0.1)
    found = loss(TrainingOutput(features, features, logits), labels)
    each = [loss(TrainingOutput(features, features, logits[:, part]), labels) for part in range(3)]
    expected = sum(float(one["cross_entropy"]) for one in each) / 3
    assert float(found["cross_entropy"]) == pytest.approx(expected, rel=1e-6)
    assert float(found["triplet"]) == float(each[0]["triplet"])


@pytest.mark.parametrize("triplets", ["pre_neck", "post_neck"])
def test_sum_and_gradients(triplets: Literal["pre_neck", "post_neck"]) -> None:
    generator = torch.Generator().manual_seed(3)
    logits, pre_neck, post_neck = (
        torch.randn(8, n, generator=generator, requires_grad=True) for n in (6, 12, 12)
    )
    labels = torch.arange(4).repeat_interleave(2)
    losses = ReIDLoss(0.1, triplets=triplets)(TrainingOutput(pre_neck, post_neck, logits), labels)
    compared = post_neck.double() / post_neck.double().norm(dim=1, keepdim=True)
    compared = pre_neck if triplets == "pre_neck" else compared
    smooth = 0.9 * torch.nn.functional.one_hot(labels, 6) + 0.1 / 6
    cross_entropy = -(smooth * logits.double().log_softmax(dim=1)).sum(dim=1).mean()
    expected = float(cross_entropy) + naive_triplet(compared.detach(), labels, 0.3)
    assert float(losses["loss"]) == pytest.approx(expected, rel=1e-5)
    losses["loss"].backward()
    given, other = (pre_neck, post_neck) if triplets == "pre_neck" else (post_neck, pre_neck)
    assert logits.grad is not None
    assert given.grad is not None
    assert given.grad.abs().max() > 1e-3
    assert other.grad is None


def test_losses_are_computed_in_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(4)
    given = [torch.randn(8, n, generator=generator).bfloat16() for n in (4, 4, 3)]
    labels = torch.arange(4).repeat_interleave(2) % 3
    for loss in (ReIDLoss(), ReIDLoss(triplets="post_neck")):
        expected = loss.double()(TrainingOutput(*(value.double() for value in given)), labels)["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            found = loss.float()(TrainingOutput(*given), labels)["loss"]
        assert found.dtype == torch.float32
        assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_triplets_option() -> None:
    with pytest.raises(InputError, match="triplets"):
        ReIDLoss(triplets="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scale"):
        ReIDLoss(scale=0)
