"""Maps of what a model uses in a picture: Grad-CAM and the activation of the last map, for any backbone.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra: Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization, ICCV 2017, arXiv 1610.02391. Section 3, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid.errors import InputError, check_int
from rga_reid.models.embedding import EmbeddingModel, eval_mode, uint8_batch

Score = Callable[[Tensor], Tensor]  #: features after the neck (n, d) -> score of each picture (n,)


class GradCAM(NamedTuple):
    """Grad-CAM maps of a batch."""

    signed: Tensor  #: (n, h, w) before the ReLU: positive where the activations raise the score
    scores: Tensor  #: (n,)

    @property
    def maps(self) -> Tensor:
        """Grad-CAM, (n, h, w): the positive part."""
        return self.signed.clamp(min=0)


def grad_cam(model: EmbeddingModel, images: Tensor, score: Score) -> GradCAM:
    """Compute Grad-CAM of a score for each picture.

        α_c = mean over positions of ∂ score / ∂ A_c                          (1)
        map = ReLU(Σ_c α_c A_c)                                               (2)

    A_c is channel c of the last map of the backbone. A backbone whose output is that map is followed by a mean over
    positions and the neck, an affine batch norm. Both orders give the same embedding, so A is the map after the
    neck there: the constant that the neck subtracts is part of each position. Otherwise it would be missing from
    the sum, and could make the whole map negative. All positions before the ReLU then add up to the score.

    Args:
        model: in any mode; runs in evaluation mode.
        images: uint8 ``(n, 3, h, w)``; resized to the model's size if necessary.
        score: ``embedding_norm``, or the result of ``similarity_to`` or ``identity_logit``.

    Raises:
        InputError: the backbone has no map, or the score does not depend on it.
    """
    kept: list[Tensor] = []

    def cut_graph(output: Any) -> Tensor:
        # gradients are needed from here on only; a copy continues, as the next layer may work in place
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    with torch.inference_mode(False), torch.enable_grad(), _hook_map(model, cut_graph) as (layer, to_map):
        features = _run(model, images)
        if not features.requires_grad:
            features.requires_grad_()
        scores = score(features)
        (of_features,) = torch.autograd.grad(scores.sum(), features, retain_graph=True)
        of_map = None
        if features.grad_fn is not None:
            (of_map,) = torch.autograd.grad(features, kept[-1], of_features, allow_unused=True)
    if of_map is None:
        raise InputError("Grad-CAM: the embedding does not depend on the last map of the backbone")
    signed = (to_map(of_map).mean((2, 3), keepdim=True) * to_map(kept[-1].detach())).sum(1).float()
    if layer is model.backbone:
        missing = (of_features * features.detach()).sum(1) - signed.sum((1, 2))
        signed = signed + missing[:, None, None] / signed[0].numel()
    return GradCAM(signed, scores.detach())


def activation_map(model: EmbeddingModel, images: Tensor) -> Tensor:
    """Return the strength of the last map of the backbone at each position, float ``(n, h, w)``.

    The sum of squares over the channels, divided by its L2 norm over positions, as in torchreid's
    ``visualize_actmap`` (Zhou, Xiang: Torchreid, arXiv 1910.10093). A map of zeros stays zero.

    Args:
        model, images: as for ``grad_cam``.

    Raises:
        InputError: the backbone has no map.
    """
    kept: list[Tensor] = []

    def keep(output: Any) -> None:
        kept.append(output.clone())  # the next layer may work in place

    with torch.no_grad(), _hook_map(model, keep) as (_, to_map):
        _run(model, images)
    energy = to_map(kept[-1]).float().square().sum(1)
    return F.normalize(energy.flatten(1)).view_as(energy)


def embedding_norm(features: Tensor) -> Tensor:
    """Return the length of each embedding.

    Its gradient is that of the dot product with the direction of the embedding, so it shows where a picture's
    own embedding comes from. The cosine similarity to itself would have a gradient of 0.
    """
    return features.norm(dim=1)


def similarity_to(reference: Tensor) -> Score:
    """Return the score that is the cosine similarity to an embedding ``(d,)``.

    In its gradient the length of the features is constant. Otherwise contributions to the cosine would cancel:
    they would add up to 0 for any two pictures.
    """

    def score(features: Tensor) -> Tensor:
        direction = F.normalize(reference.to(features), dim=0)
        return features @ direction / features.detach().norm(dim=1)

    return score


def identity_logit(model: EmbeddingModel, identity: int) -> Score:
    """Return the score that is the logit of a training identity; with stripes, the mean over the parts.

    Args:
        model: with its classifier.
        identity: from 0, in the order of the training labels.

    Raises:
        InputError: no classifier, or no such identity.
    """
    classifier = model.classifier
    if classifier is None:
        raise InputError("identity: expected a model with its classifier, found none")
    check_int("identity", identity, 0, classifier.weight.shape[0] - 1)
    return lambda features: classifier(features)[..., identity].reshape(len(features), -1).mean(1)


def _run(model: EmbeddingModel, images: Tensor) -> Tensor:
    """Return the features after the neck, (n, d)."""
    with eval_mode(model):
        device = next(model.parameters()).device
        return model(model.normalise(uint8_batch(images, model.size, device)))


@contextmanager
def _hook_map(
    model: EmbeddingModel, hook: Callable[[Any], Tensor | None]
) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Call ``hook`` on the output of the layer with the last map.

    Yields:
        The layer, and the function that makes a map of its output.
    """
    backbone: Any = model.backbone
    layer: nn.Module = backbone.map_layer() if hasattr(backbone, "map_layer") else backbone
    to_map = getattr(backbone, "to_map", lambda output: output)

    def check_map(output: Tensor) -> Tensor:
        found: Any = to_map(output)
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[2:].numel() < 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"{type(backbone).__name__}: expected a last map (n, C, h, w) of several positions, got {shape}"
            )
        return found

    def checked_hook(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        check_map(output)
        return hook(output)

    handle = layer.register_forward_hook(checked_hook)
    try:
        yield layer, check_map
    finally:
        handle.remove()
