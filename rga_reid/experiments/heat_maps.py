"""Compute heat maps of models over pictures, for ``explain``: Grad-CAM, activations and gates."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rga_reid.data import read_image
from rga_reid.errors import InputError, check_choice
from rga_reid.experiments.explain import (
    DEFAULT_ATTENTION,
    SIZE,
    Files,
    Models,
    load_models,
    network_title,
    shorten_paths,
)
from rga_reid.models import EmbeddingModel
from rga_reid.models.analysis import Gate, capture_gates, untrained_model
from rga_reid.models.embedding import uint8_batch
from rga_reid.models.saliency import (
    GradCAM,
    activation_map,
    embedding_norm,
    grad_cam,
    identity_logit,
    similarity_to,
)
from rga_reid.reports.heat_maps import VIEWS, HeatMap, MapView, english
from rga_reid.reports.language import Text

DEFAULT_GATES = ("rga", "se", "cbam")  #: untrained modules whose gates are compared if nothing is named
LENGTH = Text("score_length")  #: the score that Grad-CAM explains by default
#: cosine of two embeddings above which their difference is rounding, and so is the gradient of the cosine
MAX_SIMILARITY = 1 - 1e-6


class Photo(NamedTuple):
    """A picture and its name for the reader."""

    name: str
    picture: Image.Image


def default_view(models: Mapping[str, EmbeddingModel]) -> Literal["relations", "gradcam"]:
    """Return ``relations`` if every model has attention or if there are no models, otherwise ``gradcam``."""
    has_attention = all(model.backbone.attention_stages() for model in models.values())
    return "relations" if has_attention else "gradcam"


def heat_maps(
    images: Files,
    view: MapView = "gradcam",
    *,
    checkpoints: Models = (),
    attention: Sequence[str] = (),
    similar_to: str | os.PathLike[str] | None = None,
    identity: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[HeatMap]:
    """Compute maps of models over pictures, for ``heat_map_page`` and ``heat_map_figure``.

    Args:
        images: image files; equal file names are shown with their folders.
        view: ``gradcam``, ``activation`` or ``gates``.
        checkpoints: trained models with any backbone, as files or loaded.
        attention: as for ``explain``; untrained networks for gates have ``DEFAULT_GATES`` by default.
        similar_to: explain the cosine similarity to this picture by Grad-CAM; its own map is returned too.
        identity: explain the logit of this training identity, numbered from 0. Without ``similar_to`` and
            ``identity``, Grad-CAM explains the length of the embedding, see ``embedding_norm``.
        seed: random seed of untrained weights.
        progress: called with the finished fraction.

    Raises:
        InputError: an unreadable image, an unknown module, a checkpoint without the requested attention, gates or
            classifier, an unknown identity, or two pictures with one embedding.
    """
    check_choice("view", view, VIEWS)
    if similar_to is not None and identity is not None:
        raise InputError("similar_to, identity: expected at most one of them, got both")
    if view != "gradcam" and (similar_to is not None or identity is not None):
        raise InputError(f"similar_to, identity: expected the view gradcam, got {view}")
    if identity is not None and not checkpoints:
        raise InputError("identity: expected a checkpoint with its classifier, got none")
    if not images:
        raise InputError("images: expected at least one, got none")
    files = list(images) if similar_to is None else [*images, similar_to]
    pictures = {path.resolve(): Photo(name, read_image(path)) for path, name in shorten_paths(files).items()}
    photos = [pictures[file] for file in dict.fromkeys(Path(image).resolve() for image in images)]
    other = None if similar_to is None else pictures[Path(similar_to).resolve()]
    loaded = load_models(checkpoints, attention, classifier=identity is not None)
    builds: list[tuple[Text | str, Callable[[], EmbeddingModel]]] = [
        (name, partial(lambda model: model, model)) for name, model in loaded.items()
    ]
    if not loaded:
        batch = uint8_batch([photo.picture for photo in photos], SIZE)
        for name in attention or (DEFAULT_GATES if view == "gates" else DEFAULT_ATTENTION):
            label = Text("untrained_model", {"name": name})
            builds.append((label, partial(untrained_model, name, batch, seed=seed)))
    maps: list[list[HeatMap]] = [[] for _ in photos]
    for done, (model_label, build) in enumerate(builds):
        shown = _Model(model_label, build())
        for number, photo in enumerate(photos):
            if view == "gates":
                maps[number] += shown.gates(photo)
            elif view == "activation":
                maps[number].append(shown.activation(photo))
            elif other is not None:
                maps[number] += shown.similarity(photo, other)
            else:
                maps[number].append(shown.score(photo, identity))
            progress((done + (number + 1) / len(photos)) / len(builds))
    return [one for of_photo in maps for one in of_photo]


class _Model:
    """A model under the name that is shown, and its maps."""

    def __init__(self, label: Text | str, model: EmbeddingModel) -> None:
        self.label, self.name, self.model = label, english(label), model

    def gates(self, photo: Photo) -> list[HeatMap]:
        gates = capture_gates(self.model, self._pixels(photo))
        if not gates:
            raise InputError(f"{self.name}: expected a model with gates, such as RGA, SE or CBAM, found none")
        maps = []
        for gate in gates:
            what, weights = _describe_gate(gate), gate.weights
            if weights.shape[1] == 1:
                maps.append(self._heat_map(photo, what, weights[0, 0], from_zero=False))
            else:
                note = Text("map_channels", {"count": weights.shape[1]})
                maps.append(self._heat_map(photo, what, weights[0, :, 0, 0], note, from_zero=False))
        return maps

    def activation(self, photo: Photo) -> HeatMap:
        return self._heat_map(photo, "", activation_map(self.model, self._pixels(photo))[0])

    def similarity(self, one: Photo, two: Photo) -> list[HeatMap]:
        """Return both maps of a pair."""
        pixels = [self._pixels(one), self._pixels(two)]
        embeddings = self.model.embed(torch.cat(pixels))
        cosine = float(embeddings[0] @ embeddings[1])
        if cosine > MAX_SIMILARITY:
            raise InputError(
                f"{self.name}: {one.name} and {two.name} have the same embedding, where the gradient of the "
                "similarity is 0; expected two different pictures"
            )
        section = Text("map_pair", {"one": one.name, "two": two.name})
        score = Text("note_cosine", {"value": f"{cosine:.3f}"})
        return [
            self._cam(photo, cam, photo.name, score, section)
            for photo, cam in (
                (one, grad_cam(self.model, pixels[0], similarity_to(embeddings[1]))),
                (two, grad_cam(self.model, pixels[1], similarity_to(embeddings[0]))),
            )
        ]

    def score(self, photo: Photo, identity: int | None) -> HeatMap:
        if identity is None:
            cam = grad_cam(self.model, self._pixels(photo), embedding_norm)
            return self._cam(photo, cam, "", Text("note_length", {"value": f"{float(cam.scores):.3g}"}))
        try:
            cam = grad_cam(self.model, self._pixels(photo), identity_logit(self.model, identity))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        logit = Text("note_logit", {"identity": identity, "value": f"{float(cam.scores):.3g}"})
        return self._cam(photo, cam, "", logit)

    def _cam(self, photo: Photo, cam: GradCAM, what: str, score: Text, section: Text | str = "") -> HeatMap:
        kept, total = float(cam.maps.sum()), float(cam.signed.abs().sum())
        if float(cam.signed.abs().max()) <= torch.finfo(torch.float32).eps * abs(float(cam.scores)):
            zero = torch.zeros_like(cam.maps[0])
            return self._heat_map(photo, what, zero, score, Text("map_constant"), section=section)
        note = Text("map_cut", {"share": f"{100 * (1 - kept / total):.0f}"})
        return self._heat_map(photo, what, cam.maps[0], score, note, section=section)

    def _heat_map(
        self,
        photo: Photo,
        what: Text | str,
        values: Tensor,
        *notes: Text,
        from_zero: bool = True,
        section: Text | str = "",
    ) -> HeatMap:
        height, width = self.model.size
        network = Text("map_network", {"name": network_title(self.model), "height": height, "width": width})
        grid = [Text("map_places", dict(zip("hw", values.shape, strict=True)))] if values.ndim == 2 else []
        return HeatMap(
            photo.name,
            self._pixels(photo)[0].permute(1, 2, 0).numpy(),
            self.label,
            what,
            values.detach().float().cpu().numpy(),
            from_zero=from_zero,
            notes=[*notes, *grid],
            network=network,
            section=section,
        )

    def _pixels(self, photo: Photo) -> Tensor:
        return uint8_batch([photo.picture], self.model.size)


def _describe_gate(gate: Gate) -> Text:
    """Return the place of a gate and its name, of which those of the attention modules here have translations."""
    name = Text(f"gate_{gate.name}") if gate.name in ("spatial", "channel") else gate.name
    _, is_attention, stage = gate.place.partition("attention ")
    if is_attention:
        return Text("gate_after", {"stage": stage, "name": name})
    return Text("gate_at", {"place": gate.place, "name": name})
