"""Build a model from the plain values in recipes and checkpoints."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from rga_reid._deprecated import current_arguments
from rga_reid.attention import ATTENTION_MODULES
from rga_reid.errors import InputError, check_choice, short_repr
from rga_reid.inputs import truncate
from rga_reid.models.backbone import AttentionFactory, Backbone, Size, check_size
from rga_reid.models.embedding import IMAGENET_MEAN, IMAGENET_STD, EmbeddingModel, Neck, Pooling
from rga_reid.models.mgn import MGN
from rga_reid.models.network import NetworkBackbone, UserBackbone
from rga_reid.models.osnet import ARCHITECTURES as OSNETS
from rga_reid.models.osnet import OSNet
from rga_reid.models.resnet import DEPTHS, ResNet
from rga_reid.models.weights import diff_state_dicts, read_own_checkpoint, read_published_state
from rga_reid.runtime import import_class

AttentionChoice = str | Mapping[str, Any] | None
BackboneChoice = str | Mapping[str, Any]

#: name -> depth, and whether with IBN-a
RESNETS = {
    f"resnet{depth}{'_ibn_a' if ibn else ''}": (depth, ibn) for ibn in (False, True) for depth in DEPTHS
}
_RESNET_OPTIONS = {"non_local", "stem_relu"}
MGN_NAME = "mgn_resnet50"

#: keys of ``model.config``, which a checkpoint may set; the source of pretrained weights is not among them
CONFIG = frozenset(
    {
        "backbone", "attention", "stages", "last_stride", "size", "stem_pool", "stripes", "pooling", "embedding_dim",
        "neck", "mean", "std",
    }
)  # fmt: skip


def build_model(
    *,
    classes: int = 0,
    backbone: BackboneChoice = "resnet50",
    depth: int | None = None,
    attention: AttentionChoice = None,
    stages: Sequence[int] | None = None,
    last_stride: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    size: Sequence[int] = (256, 128),
    stem_pool: Literal["padded", "ceil", "half"] = "padded",
    stripes: int = 0,
    pooling: Pooling = "avg",
    embedding_dim: int | None = None,
    neck: Neck = "bn",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> EmbeddingModel:
    """Build an ``EmbeddingModel`` and store in ``model.config`` how to build it again.

    Args:
        classes: training identities; 0 for inference only.
        backbone: ``resnet18``, ``resnet34``, ``resnet50`` or ``resnet101``, each also with ``_ibn_a``;
            ``osnet_x1_0`` and the other ``rga_reid.models.osnet.ARCHITECTURES``; ``timm/NAME`` or
            ``torchvision/NAME``; the class path of your own network, see ``UserBackbone``; or a mapping
            ``{"class_path": ..., "init_args": {...}}`` of such a name and options of the network, for a ResNet
            ``non_local`` and ``stem_relu``.
        depth: 18, 34, 50 or 101, the name of these backbones in version 1.
        attention: None, a short name (``rga_reid.attention.ATTENTION_MODULES``), a class path, or a mapping
            ``{"class_path": ..., "init_args": {...}}``.
        stages: the stages that an attention module follows; None for all.
        last_stride: stride of the last stage, 1 or 2; None for 1 where the architecture allows it.
        weights: ``imagenet`` (torchvision's or timm's, downloaded on first use); a file of published weights of
            this backbone, whose classifier is left out; a checkpoint of this package, all but its classifier;
            None for random weights.
        size, stem_pool: as in ``ResNet``.
        stripes, pooling, embedding_dim, neck: as in ``EmbeddingModel``.
        mean, std: normalisation of the RGB channels, on the scale 0 to 1; None for the backbone's.

    Returns:
        The model, in training mode: images ``(n, 3, H, W)`` to features, see ``EmbeddingModel``.

    Raises:
        InputError: an unknown backbone, attention or option, as for ``ResNet`` and ``EmbeddingModel``; weights
            that are unavailable or do not fit.
    """
    if depth is not None:
        if backbone != "resnet50":
            raise InputError(f"depth: another name of backbone, which is given, too ({short_repr(backbone)})")
        check_choice("depth", depth, DEPTHS)
        backbone = f"resnet{depth}"
    own = None if weights is None or weights == "imagenet" else read_own_checkpoint(weights)
    published = weights if own is None else None
    network = _make_backbone(backbone, attention, stages, last_stride, published, size, stem_pool)
    if own is not None:  # images are prepared as in its training
        mean, std = (given or own[0].get(key) for key, given in (("mean", mean), ("std", std)))
    mean = network.mean or IMAGENET_MEAN if mean is None else mean
    std = network.std or IMAGENET_STD if std is None else std
    config = {
        "backbone": dict(backbone) if isinstance(backbone, Mapping) else backbone,
        "attention": dict(attention) if isinstance(attention, Mapping) else attention,
        "stages": list(network.stages),
        "last_stride": network.last_stride,
        "size": list(network.size),
        "stem_pool": stem_pool,
        "stripes": stripes,
        "mean": list(mean),
        "std": list(std),
    }
    # without the defaults, so that the hash of an older model's configuration does not change
    head = {"pooling": pooling, "embedding_dim": embedding_dim, "neck": neck}
    defaults = {"pooling": "avg", "embedding_dim": None, "neck": "bn"}
    config |= {key: value for key, value in head.items() if value != defaults[key]}
    model = EmbeddingModel(
        network,
        classes,
        stripes=stripes,
        pooling=pooling,
        embedding_dim=embedding_dim,
        neck=neck,
        mean=mean,
        std=std,
        config=config,
    )
    if own is not None:
        _start_from(model, str(weights), *own)
    return model


def _start_from(
    model: EmbeddingModel, name: str, source: Mapping[str, Any], state: dict[str, Tensor]
) -> None:
    """Load a checkpoint of this package for fine-tuning, and print what is not used of it and what is new.

    Its classifier is left out. Attention modules, pooling and the neck may be others: one of which any tensor
    differs is left out as a whole.

    Raises:
        InputError: the backbone is another one.
    """
    labels = state.get("classifier.weight")
    state, own = (
        {key: value for key, value in one.items() if not key.startswith("classifier.")}
        for one in (state, model.state_dict())
    )
    fits = {key for key in own.keys() & state.keys() if own[key].shape == state[key].shape}
    changed = {_part_of(key) for key in (own.keys() | state.keys()) - fits} - {""}
    used = {key: value for key, value in state.items() if _part_of(key) not in changed}
    wrong = diff_state_dicts({key: value for key, value in own.items() if _part_of(key) not in changed}, used)
    if wrong:
        theirs = source.get("backbone", f"resnet{source.get('depth', 50)}")
        raise InputError(
            f"weights {name}: a checkpoint of the backbone {short_repr(theirs)}, which does not fit "
            f"{model.backbone.name}: {wrong}"
        )
    model.load_state_dict(used, strict=False)
    unused, new = (sorted(changed & {_part_of(key) for key in one}) for one in (state, own))
    unused += [] if labels is None else [f"classifier of {len(labels)} identities"]
    new += [] if model.classifier is None else ["classifier"]
    print(
        f"weights {name}: not used: {', '.join(unused) or 'nothing'}; new: {', '.join(new) or 'nothing'}",
        file=sys.stderr,
    )


def _part_of(key: str) -> str:
    """Return the attention module, or the part of the head, of a tensor; empty for the rest of the backbone."""
    found = re.match(r"(?:backbone\.)?(attention[0-9]+|neck|embedding|gem)\.", key)
    return found[1] if found else ""


def _make_backbone(
    choice: BackboneChoice,
    attention: AttentionChoice,
    stages: Sequence[int] | None,
    last_stride: int | None,
    weights: str | os.PathLike[str] | None,
    size: Sequence[int],
    stem_pool: Literal["padded", "ceil", "half"],
) -> Backbone:
    """Return the backbone that a recipe or a checkpoint names, with pretrained weights and attention."""
    factory = resolve_attention(attention)
    name, options = _name_and_options("backbone", choice)
    check_choice("last_stride", last_stride, (1, 2, None))
    height, width = size
    if name in RESNETS:
        _check_options(name, options, _RESNET_OPTIONS)
        depth, ibn = RESNETS[name]
        stride = 1 if last_stride is None else last_stride
        return ResNet(depth, factory, stages, stride, weights, (height, width), stem_pool, ibn=ibn, **options)
    if name == MGN_NAME:
        _check_options(name, options, {"ibn", "gem"})
        if weights is not None:
            raise InputError(
                f"weights: cannot be loaded into {name}; expected null, or a checkpoint by --init-from"
            )
        return MGN(factory, (height, width), 1 if last_stride is None else last_stride, **options)
    if stem_pool != "padded":
        raise InputError(f"stem_pool: only for {', '.join(RESNETS)}, not for {short_repr(name)}")
    if name in OSNETS:
        _check_options(name, options, set())
        if last_stride is not None:
            raise InputError(
                f"last_stride: {name} has no last stage with a stride: expected null, got {last_stride}"
            )
        osnet = OSNet(name, factory, stages, (height, width))
        if weights == "imagenet":
            raise InputError(
                f"weights 'imagenet': cannot be downloaded for {name}; give the path of torchreid's file, or null"
            )
        if weights is not None:
            osnet.load_published(read_published_state(weights), os.fspath(weights))
        return osnet
    check_size(size)
    library, _, rest = name.partition("/")
    network: NetworkBackbone
    if library == "timm" and rest:
        from rga_reid.models.timm_backbone import TimmBackbone  # slow to import, as torchvision is

        network = TimmBackbone(rest, (height, width), last_stride, weights == "imagenet", options)
    elif library == "torchvision" and rest:
        from rga_reid.models.torchvision_backbone import TorchvisionBackbone

        network = TorchvisionBackbone(rest, (height, width), last_stride, weights == "imagenet", options)
    elif "." in name and "/" not in name:
        network = _make_user_backbone(name, options, (height, width), last_stride, weights == "imagenet")
    else:
        raise InputError(f"backbone: unknown {short_repr(name)}{_suggest_backbone(name)}")
    if weights is not None and weights != "imagenet":
        network.load_published(read_published_state(weights), os.fspath(weights))
    network.insert_attention(factory, stages)
    return network


def _check_options(name: str, options: Mapping[str, Any], known: set[str]) -> None:
    """Check the ``init_args`` of a network of this package, all of which are true or false.

    Raises:
        InputError: an unknown option, or another value.
    """
    for key, value in options.items():
        if key not in known or not isinstance(value, bool):
            expected = " or ".join(f"{one} (true or false)" for one in sorted(known)) or "none"
            raise InputError(
                f"backbone {name}: init_args: expected {expected}, got {short_repr({key: value})}"
            )


def _make_user_backbone(
    name: str, options: Mapping[str, Any], size: Size, last_stride: int | None, imagenet: bool
) -> NetworkBackbone:
    """Return the backbone of a user's class, which gets ``size`` and ``last_stride`` if it takes them.

    Raises:
        InputError: ``last_stride`` for a class that does not take it, ImageNet weights, or a class that fails.
    """
    factory = _import_class("backbone", name)
    taken = inspect.signature(factory).parameters
    given: dict[str, Any] = {"size": size} | ({} if last_stride is None else {"last_stride": last_stride})
    wrong = []  # all at once, since a recipe for another backbone may set both
    if last_stride is not None and "last_stride" not in taken:
        wrong.append(("takes no last_stride", "--model.last_stride null"))
    if imagenet:
        wrong.append(("has no ImageNet weights", "--model.weights null or a file"))
    if wrong:
        reasons, expected = (" and ".join(words) for words in zip(*wrong, strict=True))
        raise InputError(f"backbone {name}: {reasons}: expected {expected}")
    try:
        net = factory(**{key: value for key, value in given.items() if key in taken} | dict(options))
    except InputError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise InputError(f"backbone {name}: {type(error).__name__}: {truncate(error)}") from None
    return UserBackbone(name, net, size)


def _suggest_backbone(name: str) -> str:
    """Return the known backbones nearest to an unknown name, and the kinds of names."""
    import timm
    import torchvision

    known = {model: f"torchvision/{model}" for model in torchvision.models.list_models(torchvision.models)}
    known |= {model: f"timm/{model}" for model in timm.list_models()}
    known |= {model: model for model in (*RESNETS, *OSNETS)}
    near = difflib.get_close_matches(name.rpartition("/")[2], known, n=3)
    suggestion = f"did you mean {' or '.join(known[model] for model in near)}? " if near else ""
    return (
        f"; {suggestion}known: {', '.join((*RESNETS, *OSNETS))}, timm/NAME, torchvision/NAME, or a class path"
    )


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
    name, options = _name_and_options("attention", choice)
    if name in ATTENTION_MODULES:
        factory: Any = ATTENTION_MODULES[name]
    elif "." in name:
        factory = _import_class("attention", name, trusted)
    else:
        known = ", ".join(ATTENTION_MODULES)
        raise InputError(f"attention: unknown module {short_repr(name)}; known: {known}, or a class path")
    options = current_arguments(factory, options)
    try:
        inspect.signature(factory).bind(1, (1, 1), **options)
    except TypeError as error:
        raise InputError(f"attention {name}: {truncate(error)}") from None
    return partial(factory, **options)


def _name_and_options(kind: str, choice: Any) -> tuple[str, Mapping[str, Any]]:
    mapping = {"class_path": choice} if isinstance(choice, str) else choice
    if isinstance(mapping, Mapping) and set(mapping) <= {"class_path", "init_args"}:
        name, options = mapping.get("class_path"), mapping.get("init_args") or {}
        if (
            isinstance(name, str)
            and isinstance(options, Mapping)
            and all(isinstance(k, str) for k in options)
        ):
            return name, options
    raise InputError(f"{kind}: expected a name, or class_path and init_args, got {short_repr(choice)}")


def check_classes(config: Mapping[str, Any]) -> None:
    """Check that building the model of a checkpoint's configuration imports no module of the user.

    Raises:
        InputError: it names a class of a module that the program has not imported.
    """
    resolve_attention(config.get("attention"), trusted=False)
    name, _ = _name_and_options("backbone", config.get("backbone", "resnet50"))
    if "." in name and "/" not in name:
        _import_class("backbone", name, trusted=False)


def _import_class(kind: str, path: str, trusted: bool = True) -> type[nn.Module]:
    """Return a class of modules by its path.

    Args:
        kind: ``attention`` or ``backbone``.
        path: module and class.
        trusted: see ``resolve_attention``.
    """
    module_name = path.rpartition(".")[0]
    shown = f"{kind} {truncate(path)}"
    is_ours = kind == "attention" and _is_attention(module_name)
    if not trusted and not is_ours and module_name not in sys.modules:
        raise InputError(
            f"{shown}: named by a checkpoint but not part of rga_reid.attention; if you trust it, "
            f"add --import {truncate(module_name)} (in Python: import it first)"
        )
    found = import_class(path, shown)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise InputError(f"{shown}: expected a torch.nn.Module class, got {short_repr(found)}")
    is_ours = kind == "attention" and _is_attention(found.__module__)
    if not trusted and not is_ours and found.__module__.split(".")[0] == "rga_reid":
        # other classes here build models from their arguments, which could name a module to import
        raise InputError(f"{shown}: named by a checkpoint but not part of rga_reid.attention")
    return found


def _is_attention(module_name: str) -> bool:
    return f"{module_name}.".startswith("rga_reid.attention.")
