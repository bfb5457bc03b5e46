"""Build a model from the plain values in recipes and checkpoints."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from rga_reid._deprecated import current_arguments
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.embedding import IMAGENET_MEAN, IMAGENET_STD, EmbeddingModel
from rga_reid.models.resnet import STAGES, AttentionFactory, ResNet

AttentionChoice = str | Mapping[str, Any] | None

#: keys of ``model.config``, which a checkpoint may set; the source of pretrained weights is not among them
CONFIG = frozenset(
    {"depth", "attention", "stages", "last_stride", "size", "stem_pool", "stripes", "mean", "std"}
)


def build_model(
    *,
    classes: int = 0,
    depth: int = 50,
    attention: AttentionChoice = None,
    stages: Sequence[int] = STAGES,
    last_stride: int = 1,
    weights: str | None = None,
    size: Sequence[int] = (256, 128),
    stem_pool: Literal["padded", "ceil"] = "padded",
    stripes: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EmbeddingModel:
    """Build an ``EmbeddingModel`` and store in ``model.config`` how to build it again.

    Args:
        classes: training identities; 0 for inference only.
        attention: None, a short name (``rga_reid.attention.ATTENTION_MODULES``), a class path, or a mapping
            ``{"class_path": ..., "init_args": {...}}``.
        depth, stages, last_stride, weights, size, stem_pool: as in ``ResNet``.
        stripes, mean, std: as in ``EmbeddingModel``.

    Returns:
        The model, in training mode: images ``(n, 3, H, W)`` to features, see ``EmbeddingModel``.

    Raises:
        InputError: an unknown attention or option, as for ``ResNet`` and ``EmbeddingModel``; weights that are
            unavailable or do not fit.
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
    """Return the callable ``(in_channels, size) -> Module`` that a recipe or a checkpoint names.

    Args:
        choice: see ``build_model``.
        trusted: False for a choice read from a checkpoint. Then only ``rga_reid.attention`` and modules that the
            program has already imported are used, so that a file cannot import arbitrary code.

    Raises:
        InputError: an unknown name, class path or option.
    """
    if choice is None:
        return None
    name, options = _name_and_options(choice)
    if name in ATTENTION_MODULES:
        factory: Any = ATTENTION_MODULES[name]
    elif "." in name:
        factory = _import_class(name, trusted)
    else:
        known = ", ".join(ATTENTION_MODULES)
        raise InputError(f"attention: unknown module {short_repr(name)}; known: {known}, or a class path")
    options = current_arguments(factory, options)
    try:
        inspect.signature(factory).bind(1, (1, 1), **options)
    except TypeError as error:
        raise InputError(f"attention {name}: {truncate(error)}") from None
    return partial(factory, **options)


def _name_and_options(choice: Any) -> tuple[str, Mapping[str, Any]]:
    mapping = {"class_path": choice} if isinstance(choice, str) else choice
    if isinstance(mapping, Mapping) and set(mapping) <= {"class_path", "init_args"}:
        name, options = mapping.get("class_path"), mapping.get("init_args") or {}
        if (
            isinstance(name, str)
            and isinstance(options, Mapping)
            and all(isinstance(k, str) for k in options)
        ):
            return name, options
    raise InputError(f"attention: expected a name, or class_path and init_args, got {short_repr(choice)}")


def _import_class(path: str, trusted: bool) -> type[nn.Module]:
    module_name, _, class_name = path.rpartition(".")
    shown = truncate(path)
    if not trusted and not _is_attention(module_name) and module_name not in sys.modules:
        raise InputError(
            f"attention {shown}: named by a checkpoint but not part of rga_reid.attention; if you trust it, "
            f"add --import {truncate(module_name)} (in Python: import it first)"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a module may raise anything
        raise InputError(f"attention {shown}: cannot import it ({truncate(error)})") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"attention {shown}: expected a torch.nn.Module class, got {short_repr(found)}")
    if not trusted and found.__module__.split(".")[0] == "rga_reid" and not _is_attention(found.__module__):
        # other classes here build models from their arguments, which could name a module to import
        raise InputError(f"attention {shown}: named by a checkpoint but not part of rga_reid.attention")
    return found


def _is_attention(module_name: str) -> bool:
    return f"{module_name}.".startswith("rga_reid.attention.")
