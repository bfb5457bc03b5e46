"""Runs models on pictures and collects what their attention does: what ``explain`` shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.data import read_image
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, load_model
from rga_reid.models.analysis import StageCapture, attention_name, capture_stages, untrained_model
from rga_reid.models.embedding import uint8_batch
from rga_reid.reports.explorer import Exhibit
from rga_reid.reports.relation_views import stage_view

SIZE = (256, 128)  #: of what an untrained network sees
COMPARED = ("rga", "nonlocal", "pam", "cam", "criss_cross")


def explain(
    images: Sequence[str | os.PathLike[str]],
    *,
    checkpoints: Sequence[str | os.PathLike[str]] = (),
    attention: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Exhibit]:
    """What mechanisms of attention think of pictures.

    Args:
        images: image files, told apart by their names, and the folders they lie in where needed.
        checkpoints: trained models; each is shown beside an untrained network of the same build. Those of
            one mechanism are told apart in the same way.
        attention: short names of mechanisms. Without a checkpoint one untrained ResNet-50 with each (by
            default those of ``COMPARED``), all with the same backbone; else which the checkpoints must have.
        seed: of untrained weights.
        progress: called with the share that is done.

    Raises:
        InputError: an unreadable image, an unknown mechanism, a checkpoint without the attention asked for.
    """
    for name in attention:
        if name not in ATTENTION_MODULES:
            raise InputError(
                f"attention: unknown mechanism {name!r}; expected some of {', '.join(ATTENTION_MODULES)}"
            )
    if not images:
        raise InputError("images: expected at least one, got none")
    photos, files = names_of(images), names_of(checkpoints)
    pictures = [read_image(path) for path in photos]
    trained = [_checked(path, attention) for path in files]
    sizes = {model.size for model in trained} or {SIZE}
    pixels = {size: [uint8_batch([picture], size) for picture in pictures] for size in sizes}
    shown = {size: [one[0].permute(1, 2, 0).numpy() for one in batch] for size, batch in pixels.items()}
    makers: list[tuple[bool, str, str, Callable[[], EmbeddingModel]]] = []
    builds: set[str] = set()
    mechanisms = [_mechanism(model) for model in trained]
    for model, mechanism, name in zip(trained, mechanisms, files.values(), strict=True):
        alone = mechanisms.count(mechanism) == 1
        makers.append((True, name, "" if alone else name, partial(_itself, model)))
        if _build(model) not in builds:
            builds.add(_build(model))
            source = "" if alone else describe(model)
            twin = partial(_twin, model, torch.cat(pixels[model.size]), seed)
            makers.append((False, f"the untrained twin of {name}", source, twin))
    if not trained:
        everything = torch.cat(pixels[SIZE])
        for name in dict.fromkeys(attention or COMPARED):
            makers.append((False, name, "", partial(untrained_model, name, everything, seed=seed)))
    exhibits: list[list[Exhibit]] = [[] for _ in pictures]
    for done, (is_trained, called, source, make) in enumerate(makers):
        model = make()
        for number, name in enumerate(photos.values()):
            pixel: Tensor = pixels[model.size][number]
            captures = capture_stages(model, pixel)
            _check_finite(captures, called)
            exhibits[number].append(
                Exhibit(
                    captures[0].mechanism,
                    is_trained,
                    name,
                    shown[model.size][number],
                    [stage_view(capture) for capture in captures],
                    describe(model),
                    source,
                )
            )
            progress((done + (number + 1) / len(photos)) / len(makers))
    return [exhibit for of_image in exhibits for exhibit in of_image]


def _check_finite(captures: Sequence[StageCapture], model: str) -> None:
    """A picture of values that are no numbers would look like any other."""
    for capture in captures:
        for what in (capture.output, *capture.matrices.values()):
            if not bool(what.isfinite().all()):
                raise InputError(f"{model}: attention after stage {capture.stage}: NaN or infinite numbers")


def describe(model: EmbeddingModel) -> str:
    """``ResNet-50, 256×128 pixels``."""
    return f"ResNet-{model.backbone.depth}, {model.size[0]}×{model.size[1]} pixels"


def _mechanism(model: EmbeddingModel) -> str:
    """The mechanism after the first stage that has one: what its exhibit is called."""
    return attention_name(next(iter(model.backbone.attention_stages().values())))


def _build(model: EmbeddingModel) -> str:
    """Equal for models that differ in their weights alone."""
    return repr(model.config)


def names_of(files: Sequence[str | os.PathLike[str]]) -> dict[Path, str]:
    """Each file once, with the last parts of its path, as few as tell all of them apart."""
    first: dict[Path, Path] = {}
    for file in files:
        first.setdefault(Path(file).resolve(), Path(file))
    paths = list(first.values())
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    return {path: str(path) for path in paths}


def _checked(path: str | os.PathLike[str], attention: Sequence[str]) -> EmbeddingModel:
    """The model of a checkpoint, if it has all of ``attention``, or any where that is empty."""
    model = load_model(path)
    found = {stage: attention_name(module) for stage, module in model.backbone.attention_stages().items()}
    names = list(dict.fromkeys(found.values()))
    missing = [name for name in attention if not any(_is_a(name, one) for one in names)]
    if missing or not found:
        asked = f"attention {', '.join(missing)}" if missing else "attention"
        places = f"{', '.join(names)} after stages {', '.join(map(str, found))}" if found else "none"
        raise InputError(f"{os.fspath(path)}: expected a model with {asked}, it has {places}")
    return model


def _is_a(asked: str, found: str) -> bool:
    """Whether a mechanism found is the one asked for, or that one with other options."""
    return found == asked or (found not in ATTENTION_MODULES and found.startswith(f"{asked}_"))


def _itself(model: EmbeddingModel) -> EmbeddingModel:
    return model


def _twin(model: EmbeddingModel, pixels: Tensor, seed: int) -> EmbeddingModel:
    """An untrained model of the same build."""
    assert model.config is not None  # it is of a checkpoint
    return untrained_model(pixels=pixels, seed=seed, **model.config)
