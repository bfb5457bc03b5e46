"""A model from plain values: what recipes and checkpoints hold."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from rga_reid import attention as mechanisms
from rga_reid.errors import InputError
from rga_reid.models.embedding import IMAGENET_MEAN, IMAGENET_STD, EmbeddingModel
from rga_reid.models.resnet import AttentionFactory, ResNet

AttentionChoice = str | Mapping[str, Any] | None


def build_model(
    *,
    classes: int = 0,
    depth: int = 50,
    attention: AttentionChoice = None,
    stages: Sequence[int] = (1, 2, 3, 4),
    last_stride: int = 1,
    weights: str | None = None,
    size: Sequence[int] = (256, 128),
    stem_pool: Literal["padded", "ceil"] = "padded",
    stripes: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EmbeddingModel:
    """Build an ``EmbeddingModel`` and note in ``model.config`` how to build it again.

    Args:
        classes: training identities; 0 for inference only.
        attention: None, a short name (``rga_reid.attention.MECHANISMS``), a class path, or a mapping
            ``{"class_path": ..., "init_args": {...}}``.
        depth, stages, last_stride, weights, size, stem_pool: as in ``ResNet``.
        stripes, mean, std: as in ``EmbeddingModel``.
    """
    height, width = size
    backbone = ResNet(
        depth, resolve_attention(attention), tuple(stages), last_stride, weights, (height, width), stem_pool
    )
    config = {
        "depth": depth,
        "attention": dict(attention) if isinstance(attention, Mapping) else attention,
        "stages": list(stages),
        "last_stride": last_stride,
        "size": [height, width],
        "stem_pool": stem_pool,
        "stripes": stripes,
        "mean": list(mean),
        "std": list(std),
    }
    return EmbeddingModel(backbone, classes, stripes=stripes, mean=mean, std=std, config=config)


def resolve_attention(choice: AttentionChoice, *, trusted: bool = True) -> AttentionFactory | None:
    """The callable ``(in_channels, size) -> Module`` that a recipe or a checkpoint names.

    Args:
        choice: see ``build_model``.
        trusted: false for a choice read from a checkpoint: then only this package's modules and modules
            that the program has already imported are used, so that a file cannot import what it likes.

    Raises:
        InputError: an unknown name, class path or option.
    """
    if choice is None:
        return None
    name = choice if isinstance(choice, str) else choice.get("class_path")
    options = {} if isinstance(choice, str) else dict(choice.get("init_args") or {})
    unknown = set() if isinstance(choice, str) else set(choice) - {"class_path", "init_args"}
    if not isinstance(name, str) or unknown:
        raise InputError(f"attention: expected a name, or class_path and init_args, got {choice}")
    if name in mechanisms.MECHANISMS:
        factory: Any = mechanisms.MECHANISMS[name]
    elif "." in str(name):
        factory = _import_class(str(name), trusted)
    else:
        known = ", ".join(mechanisms.MECHANISMS)
        raise InputError(f"attention: unknown mechanism {name!r}; known: {known}, or a class path")
    try:
        inspect.signature(factory).bind(1, (1, 1), **options)
    except TypeError as error:
        raise InputError(f"attention {name}: {error}") from None
    return partial(factory, **options)


def _import_class(path: str, trusted: bool) -> type[nn.Module]:
    module_name, _, class_name = path.rpartition(".")
    if not trusted and module_name.split(".")[0] != "rga_reid" and module_name not in sys.modules:
        raise InputError(
            f"attention {path}: named by a checkpoint but not part of rga_reid; import {module_name} first"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"attention {path}: cannot import it ({error})") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"attention {path}: expected a torch.nn.Module class, got {found!r}")
    return found
