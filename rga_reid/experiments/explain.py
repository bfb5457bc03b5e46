"""Run models on pictures and collect the traces of their attention modules, for ``explain``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.data import read_image
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, load_model, resolve_attention
from rga_reid.models.analysis import attention_name, capture_stages, untrained_model
from rga_reid.models.embedding import uint8_batch
from rga_reid.reports.explorer import Exhibit
from rga_reid.reports.relation_views import stage_view

Files = Sequence[str | os.PathLike[str]]
#: checkpoints, or loaded models by the name that is shown
Models = Files | Mapping[str, EmbeddingModel]

SIZE = (256, 128)  #: input height and width of untrained networks
DEFAULT_ATTENTION = ("rga", "nonlocal", "pam", "cam", "criss_cross")  #: compared if nothing is named


def explain(
    images: Files,
    *,
    checkpoints: Models = (),
    attention: Sequence[str] = (),
    seed: int = 0,
    twins: bool = True,
    named: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Exhibit]:
    """Trace attention modules on pictures.

    Args:
        images: image files; equal file names are shown with their folders.
        checkpoints: trained models, as files or loaded.
        attention: short names or class paths of attention modules. Without checkpoints, one untrained ResNet-50
            with each of them (by default ``DEFAULT_ATTENTION``), all with the same backbone weights. With
            checkpoints, the modules that they must have.
        seed: random seed of untrained weights.
        twins: show each trained model next to an untrained network of the same architecture.
        named: show the names of loaded models in place of those of their modules.
        progress: called with the finished fraction.

    Raises:
        InputError: an unreadable image, an unknown module, or a checkpoint without the requested attention.
    """
    if not images:
        raise InputError("images: expected at least one, got none")
    photos = shorten_paths(images)
    pictures = [read_image(path) for path in photos]
    files = load_models(checkpoints, attention)
    for name, model in files.items():
        if not model.backbone.attention_stages():
            raise InputError(
                f"{name}: expected a model with attention, found none; the views gradcam and activation need none"
            )
    trained = list(files.values())
    sizes = {model.size for model in trained} or {SIZE}
    pixels = {size: [uint8_batch([picture], size) for picture in pictures] for size in sizes}
    shown = {size: [one[0].permute(1, 2, 0).numpy() for one in batch] for size, batch in pixels.items()}
    # each model is built just before it runs: (is trained, name in messages, name, source, how to build it)
    plans: list[tuple[bool, str, str, str, Callable[[], EmbeddingModel]]] = []
    modules = [attention_name(next(iter(model.backbone.attention_stages().values()))) for model in trained]
    configs: set[str] = set()
    for model, module, name in zip(trained, modules, files, strict=True):
        is_unique = modules.count(module) == 1
        shown_name, source = (name, "") if named else ("", "" if is_unique else name)
        plans.append((True, name, shown_name, source, partial(lambda loaded: loaded, model)))
        # one untrained network for models that differ in weights only
        if twins and model.config is not None and repr(model.config) not in configs:
            configs.add(repr(model.config))
            build = partial(_untrained_twin, model, torch.cat(pixels[model.size]), seed)
            source = "" if is_unique else "{}, {}×{}".format(network_title(model), *model.size)
            plans.append((False, f"untrained {name}", "", source, build))
    if not trained:
        batch = torch.cat(pixels[SIZE])
        for name in dict.fromkeys(attention or DEFAULT_ATTENTION):
            plans.append((False, name, "", "", partial(untrained_model, name, batch, seed=seed)))
    exhibits: list[list[Exhibit]] = [[] for _ in pictures]
    for done, (is_trained, model_name, shown_name, source, build_model) in enumerate(plans):
        model = build_model()
        for number, image in enumerate(photos.values()):
            captures = capture_stages(model, pixels[model.size][number])
            for capture in captures:  # a picture would not show NaN and infinity as such
                tensors = (capture.output, *capture.matrices.values(), *capture.weights.values())
                if not all(one.isfinite().all() for one in tensors):
                    raise InputError(
                        f"{model_name}: attention after stage {capture.stage}: NaN or infinite values"
                    )
            exhibits[number].append(
                Exhibit(
                    captures[0].mechanism,
                    is_trained,
                    image,
                    shown[model.size][number],
                    [stage_view(capture) for capture in captures],
                    network_title(model),
                    source,
                    shown_name,
                )
            )
            progress((done + (number + 1) / len(photos)) / len(plans))
    return [exhibit for of_image in exhibits for exhibit in of_image]


def network_title(model: EmbeddingModel) -> str:
    """Return the name of a network: ``ResNet-50``."""
    # EmbeddingModel also takes a plain module, which has no title
    return str(getattr(model.backbone, "title", type(model.backbone).__name__))


def shorten_paths(files: Sequence[str | os.PathLike[str]]) -> dict[Path, str]:
    """Return each file once, with the shortest end of its path that is unique."""
    first: dict[Path, Path] = {}
    for file in files:
        first.setdefault(Path(file).resolve(), Path(file))
    paths = list(first.values())
    for count in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(paths, names, strict=True))
    return {path: str(path) for path in paths}


def load_models(
    checkpoints: Models, attention: Sequence[str] = (), *, classifier: bool = False
) -> dict[str, EmbeddingModel]:
    """Load checkpoints; return the models by the shortest end of each path that is unique.

    Args:
        checkpoints: files; a mapping of loaded models is checked and returned.
        attention: short names or class paths of modules that each model must have.
        classifier: keep the classifier.

    Raises:
        InputError: an unreadable checkpoint, an unknown module, or a model without one of the modules.
    """
    for name in attention:
        resolve_attention(name)
    if isinstance(checkpoints, Mapping):
        models = dict(checkpoints)
    else:
        models = {
            name: load_model(path, classifier=classifier) for path, name in shorten_paths(checkpoints).items()
        }
    for file, model in models.items():
        found = {stage: attention_name(module) for stage, module in model.backbone.attention_stages().items()}
        names = list(dict.fromkeys(found.values()))
        missing = [
            name for name in attention if not any(_is_variant(one, name.rpartition(".")[2]) for one in names)
        ]
        if missing:
            actual = f"{', '.join(names)} after stages {', '.join(map(str, found))}" if found else "none"
            raise InputError(f"{file}: expected a model with attention {', '.join(missing)}, found {actual}")
    return models


def _is_variant(found: str, expected: str) -> bool:
    """Whether a module is the expected one, or the expected one with other options."""
    return found == expected or (found not in ATTENTION_MODULES and found.startswith(f"{expected}_"))


def _untrained_twin(model: EmbeddingModel, pixels: Tensor, seed: int) -> EmbeddingModel:
    """An untrained model of the same architecture."""
    assert model.config is not None  # the model was loaded from a checkpoint
    return untrained_model(pixels=pixels, seed=seed, **model.config)
