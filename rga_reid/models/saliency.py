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

    A_c is channel c of the last map of the backbone. If the model pools that map by its mean, the sum over all
    positions before the ReLU, divided by their number, is the derivative of the score times the pooled feature.

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

    gradient = None
    with torch.inference_mode(False), torch.enable_grad(), _hook_map(model, cut_graph) as to_map:
        scores = score(_run(model, images))
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(scores.sum(), kept[-1:], allow_unused=True)
    if gradient is None:
        raise InputError("Grad-CAM: the embedding does not depend on the last map of the backbone")
    weights = to_map(gradient).mean((2, 3), keepdim=True)
    return GradCAM((weights * to_map(kept[-1].detach())).sum(1).float(), scores.detach())


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

    with torch.no_grad(), _hook_map(model, keep) as to_map:
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
    """Return the score that is the cosine similarity to an embedding ``(d,)``."""
    return lambda features: F.cosine_similarity(features, reference[None].to(features), dim=1)


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
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Call ``hook`` on the output of the layer with the last map; yield the function that makes maps of outputs."""
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
        yield check_map
    finally:
        handle.remove()
