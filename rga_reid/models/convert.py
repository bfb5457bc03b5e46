"""Convert checkpoints of other programs to models of this package.

The program is recognised by the keys. Every tensor is used, or is one that features do not depend on, such as the
classifier's; a checkpoint with any other tensor is refused, because a part of its network would be missing. The tests
compare features with those of the programs' own code.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rga_reid.errors import InputError, check_choice, short_repr
from rga_reid.inputs import is_number, truncate
from rga_reid.models.build import MGN_NAME
from rga_reid.models.checkpoints import build_with_state
from rga_reid.models.conversion import NORM, Conversion, ConversionOptions, ConvertedModel, State
from rga_reid.models.embedding import EmbeddingModel, Pooling
from rga_reid.models.mgn import PARTS
from rga_reid.models.resnet import Size
from rga_reid.models.weights import list_keys, read_own_checkpoint, read_tensors

PROGRAMS = "the released RGA code, torchvision, torchreid, fast-reid, strong-baseline, layumi, TransReID or CLIP-ReID"
POOLINGS = ("avg", "gem")
NECK_FEATURES = ("after", "before")


def read_published(
    path: str | os.PathLike[str],
    *,
    size: Sequence[int] | None = None,
    last_stride: int | None = None,
    pooling: Pooling | None = None,
    neck_feat: str | None = None,
) -> ConvertedModel:
    """Read a checkpoint of another program, see ``PROGRAMS``. Nothing is unpickled.

    A ``config.yaml`` of fast-reid, or an ``opts.yaml`` of layumi, in the same folder gives size, stride, pooling and
    normalisation. Arguments come first.

    Args:
        path: a ``.safetensors`` or torch file: a state_dict, bare or under ``state_dict`` or ``model``; keys
            with or without the prefix ``module.``.
        size: (H, W) in pixels of the images it was trained on; 256×128 by default, but see
            ``read_official_rga``.
        last_stride: stride of stage 4 of a ResNet, which the weights do not determine; by default 1 for fast-reid,
            strong-baseline and torchreid's ``resnet50_fc512``, 2 for the others.
        pooling: ``avg`` or ``gem``. Needed for fast-reid if neither the file nor a ``config.yaml`` says it: GeM with
            a fixed exponent, which is 3 there, leaves no tensor.
        neck_feat: feature before or after the batch norm, ``TEST.NECK_FEAT`` of these programs: by default ``after``
            for strong-baseline, ``before`` for TransReID and CLIP-ReID, as in their recipes.

    Raises:
        InputError: not a checkpoint of these programs, or one with parts that this package does not have, or with
            NaN or infinite weights; an option that does not apply.
    """
    file = Path(path)
    check_choice("pooling", pooling, (*POOLINGS, None))
    check_choice("neck_feat", neck_feat, (*NECK_FEATURES, None))
    state = {key.removeprefix("module."): value for key, value in read_tensors(file).items()}
    if any(key.startswith("backbone.rga_att") for key in state):
        source = "the released RGA code"
        _check_options(source, pooling, neck_feat)
        unused = tuple(sorted(key for key in state if key.startswith("cls.")))
        return ConvertedModel(convert_official_rga(file, state, size), source, unused)
    options = ConversionOptions((size[0], size[1]) if size else None, last_stride, pooling, neck_feat)
    found = Conversion(file, state, options)
    read = next((read for belongs, read in _READERS if belongs(state)), None)
    found.refuse_unsupported()
    if read is None:
        if read_own_checkpoint(file) is not None:
            raise InputError(f"{file}: a checkpoint of rga-reid, which needs no conversion")
        raise InputError(
            f"{file}: expected a checkpoint of {PROGRAMS}, found {len(state)} tensors: "
            f"{list_keys(sorted(state)) or 'none'}"
        )
    try:
        read(found)
    except InputError:
        raise
    except Exception as error:  # tensors of any shapes
        raise InputError(f"{file}: not a network of {found.source} ({truncate(error)})") from None
    _check_options(found.source, pooling, neck_feat)
    return found.build()


def _check_options(source: str, pooling: str | None, neck_feat: str | None) -> None:
    """Check that options apply to a program.

    Raises:
        InputError: one does not.
    """
    transformers = ("TransReID", "CLIP-ReID")
    if neck_feat is not None and source not in ("strong-baseline", *transformers):
        raise InputError(f"--neck-feat: only for strong-baseline, TransReID and CLIP-ReID, not for {source}")
    if pooling is not None and source in ("the released RGA code", *transformers):
        raise InputError(f"--pooling: the pooling of {source} is known; expected none, got {pooling}")


def _has(*beginnings: str) -> Callable[[State], bool]:
    """Return a test of whether a state_dict has keys with all of these beginnings."""
    return lambda state: all(any(key.startswith(one) for key in state) for one in beginnings)


def _read_plain_resnet(found: Conversion) -> None:
    """Read a ResNet of torchvision or torchreid; torchreid's may end in a linear layer, batch norm and ReLU."""
    found.source = "torchreid" if "classifier.weight" in found.left else "torchvision"
    found.move_resnet("", last_stride=1 if "fc.0.weight" in found.left else 2)
    _move_torchreid_head(found)
    found.drop(r"(fc|classifier)\.(weight|bias)")
    found.set_pooling()


def _move_torchreid_head(found: Conversion) -> None:
    """Move the linear layer, batch norm and ReLU after the pooling of torchreid's models, if there are any."""
    if "fc.0.weight" in found.left:
        found.move_reduction("fc.0", "fc.1")
        found.config["neck"] = "bn_relu"


def _read_torchreid_osnet(found: Conversion) -> None:
    found.source = "torchreid"
    found.move_osnet("")
    _move_torchreid_head(found)
    found.drop(r"classifier\.(weight|bias)")
    found.set_pooling()


def _read_fast_reid(found: Conversion) -> None:
    """Read BoT, AGW or SBS of fast-reid on a ResNet or an OSNet."""
    found.source = "fast-reid"
    stride = _apply_fast_reid_settings(found, "heads.pool_layer.p")
    if any(key.startswith("backbone.layer4.") for key in found.left):
        found.move_resnet("backbone.", last_stride=stride)
        found.config["stem_pool"] = "ceil"
        _move_non_local(found)
    else:
        found.move_osnet("backbone.")
    found.set_pooling("heads.pool_layer.p")
    first = found.left.get("heads.bottleneck.0.weight")
    if first is not None and first.ndim > 1:
        found.move_reduction("heads.bottleneck.0", "heads.bottleneck.1")
    else:
        found.move("heads.bottleneck.0.", "neck.")
    found.drop(r"heads\.(classifier\.)?weight")


def _move_non_local(found: Conversion) -> None:
    """Use the non-local blocks, which follow the last blocks of a stage, in order."""
    numbers: dict[str, set[int]] = {}
    for key in found.left:
        if match := re.match(r"backbone\.NL_(\d)\.(\d+)\.", key):
            numbers.setdefault(match[1], set()).add(int(match[2]))
    for stage, ours in numbers.items():
        blocks = {key.split(".")[2] for key in found.weights if key.startswith(f"backbone.layer{stage}.")}
        for number in ours:
            block = len(blocks) - len(ours) + number
            found.move(f"backbone.NL_{stage}.{number}.", f"backbone.layer{stage}.{block}.non_local.")
    if numbers:
        found.config["backbone"] = {"class_path": found.config["backbone"], "init_args": {"non_local": True}}


def _read_mgn(found: Conversion) -> None:
    """Read MGN of fast-reid. Its heads are one linear layer for each part, and one neck for all of them."""
    found.source = "fast-reid"
    heads = [f"b{branch}{stripe or ''}_head" for branch, stripe in PARTS]
    has_gem = f"{heads[0]}.pool_layer.p" in found.left
    stride = _apply_fast_reid_settings(found, f"{heads[0]}.pool_layer.p")
    is_gem = has_gem or found.options.pooling == "gem"
    for theirs, ours in {"0": "stem.0", "1": "stem.1", "4": "layer1", "5": "layer2", "6": "layer3.0"}.items():
        found.move(f"backbone.{theirs}.", f"backbone.{ours}.")
    for branch in ("1", "2", "3"):
        found.move(f"b{branch}.", f"backbone.branch{branch}.")
    norms = []
    for number, head in enumerate(heads):
        found.weights[f"backbone.reductions.{number}.weight"] = found.take(
            f"{head}.bottleneck.0.weight"
        ).flatten(1)
        if is_gem:
            exponent = found.take(f"{head}.pool_layer.p") if has_gem else torch.tensor([3.0])
            found.weights[f"backbone.pools.{number}.p"] = exponent
        norms.append([found.take(f"{head}.bottleneck.1.{name}") for name in NORM])
    for name, values in zip(NORM, zip(*norms, strict=True), strict=True):
        found.weights[f"neck.{name}"] = torch.cat(values)
    found.drop(r"b\d+_head\.weight", r"b\d+_head\.bottleneck\.1\.num_batches_tracked")
    options = {"gem": is_gem, "ibn": any(".bn1.IN." in key for key in found.weights)}
    found.config |= {
        "backbone": {"class_path": MGN_NAME, "init_args": options},
        "last_stride": found.config.get("last_stride", stride),
    }


_FAST_REID_POOLING: dict[str, Pooling] = {
    "GlobalAvgPool": "avg",
    "FastGlobalAvgPool": "avg",
    "GeneralizedMeanPooling": "gem",
    "GeneralizedMeanPoolingP": "gem",
}


def _apply_fast_reid_settings(found: Conversion, exponent: str) -> int:
    """Use a ``config.yaml`` in the folder of the file, the options of the user, and tensors of older versions.

    Args:
        found: gets size, normalisation and pooling.
        exponent: name of the trained exponent of GeM, which shows that pooling.

    Returns:
        The stride of the last stage.

    Raises:
        InputError: nothing says how the network pools, or it pools in a way that this package does not have.
    """
    settings = found.read_beside("config.yaml")

    def get(*names: str) -> Any:
        value: Any = settings
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    pooling, options = get("MODEL", "HEADS", "POOL_LAYER"), found.options
    if options.pooling is None and pooling is not None:
        if pooling not in _FAST_REID_POOLING:
            raise found.refuse(f"a fast-reid model that pools by {short_repr(pooling)}, says config.yaml")
        found.options = replace(options, pooling=_FAST_REID_POOLING[pooling])
    elif options.pooling is None and exponent not in found.left:
        raise InputError(
            f"{found.file}: the file does not say how the network pools; put its config.yaml beside it, or give "
            "--pooling avg (GlobalAvgPool) or gem (GeneralizedMeanPooling)"
        )
    size = get("INPUT", "SIZE_TEST")
    if options.size is None and isinstance(size, list) and len(size) == 2:
        found.config["size"] = tuple(size)
    for buffer, name, ours in (("pixel_mean", "PIXEL_MEAN", "mean"), ("pixel_std", "PIXEL_STD", "std")):
        values = get("MODEL", name)
        if buffer in found.left:
            values = found.take(buffer).ravel().tolist()
        if isinstance(values, list) and all(map(is_number, values)):
            found.config[ours] = [value / 255 for value in values]
    stride = get("MODEL", "BACKBONE", "LAST_STRIDE")
    return stride if stride in (1, 2) else 1


def _read_strong_baseline(found: Conversion) -> None:
    """Read a ResNet of strong-baseline or TransReID. Without IBN, the stem has no ReLU.

    Both have the same tensors, but TransReID's comes with its classifier before the neck, and with another pooling
    after the stem.
    """
    order = [key for key in found.state if key in ("bottleneck.weight", "classifier.weight")]
    is_transreid = order == ["classifier.weight", "bottleneck.weight"]
    found.source = "TransReID" if is_transreid else "strong-baseline"
    found.move_resnet("base.", last_stride=1)
    name = found.config["backbone"]
    if not name.endswith("_ibn_a"):
        found.config["backbone"] = {"class_path": name, "init_args": {"stem_relu": False}}
    if is_transreid:
        found.config["stem_pool"] = "half"
    _move_neck(found, found.options.neck_feat or ("before" if is_transreid else "after"))
    found.drop(r"base\.fc\.(weight|bias)", r"classifier\.(weight|bias)")
    found.set_pooling()


def _move_neck(found: Conversion, neck_feat: str) -> None:
    """Use the batch norm of strong-baseline, unless features before it are compared."""
    if neck_feat == "after":
        found.move("bottleneck.", "neck.")
    else:
        found.drop(r"bottleneck\..*")


def _read_transreid(found: Conversion) -> None:
    """Read the plain transformer of TransReID."""
    found.source = "TransReID"
    _choose_vit(found, "base.pos_embed", "base.patch_embed.proj.weight", "base.blocks.", "qkv.bias")
    found.move("base.fc.", "fc.")
    found.unused += [
        f"base.{key}" for key in ("fc.weight", "fc.bias") if found.weights.pop(key, None) is not None
    ]
    found.move("base.", "backbone.net.")
    _move_neck(found, found.options.neck_feat or "before")
    found.drop(r"classifier\.(weight|bias)")


def _choose_vit(found: Conversion, positions: str, patches: str, blocks: str, bias: str) -> None:
    """Choose timm's transformer of patches of 16 pixels by its width and depth.

    Args:
        found: gets backbone and normalisation.
        positions, patches: keys of the position embedding and of the patch embedding.
        blocks: beginning of the keys of blocks.
        bias: end of the keys of biases of the attention.
    """
    for key in (positions, patches):
        if key not in found.left:
            raise InputError(f"{found.file}: {found.source}: missing {key}")
    width, patch = found.left[patches].shape[0], found.left[patches].shape[-1]
    numbers = {key.removeprefix(blocks).split(".")[0] for key in found.left if key.startswith(blocks)}
    has_bias = any(key.endswith(bias) for key in found.left)
    if patch != 16 or len(numbers) != 12 or not has_bias or width not in (384, 768):
        raise found.refuse(
            f"a transformer of {len(numbers)} blocks of width {width} on patches of {patch} pixels"
        )
    (height, width_), tokens = found.config["size"], found.left[positions].shape[-2]
    if tokens != height // 16 * (width_ // 16) + 1:
        raise found.refuse(
            f"a transformer with {tokens - 1} positions, but images of {height}x{width_} have "
            f"{height // 16 * (width_ // 16)} patches: trained on another size (give --size), or on overlapping patches"
        )
    found.channels = width
    found.config |= {
        "backbone": "timm/vit_base_patch16_224" if width == 768 else "timm/vit_small_patch16_224",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }


_CLIP_NAMES = {
    r"conv1\.": "patch_embed.proj.",
    r"ln_pre\.": "norm_pre.",
    r"ln_post\.": "norm.",
    r"transformer\.resblocks\.(\d+)\.ln_([12])\.": r"blocks.\1.norm\2.",
    r"transformer\.resblocks\.(\d+)\.attn\.in_proj_": r"blocks.\1.attn.qkv.",
    r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.": r"blocks.\1.attn.proj.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.": r"blocks.\1.mlp.fc1.",
    r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.": r"blocks.\1.mlp.fc2.",
}


def _read_clip_reid(found: Conversion) -> None:
    """Read the image encoder of CLIP-ReID: its feature is the class token, and the token projected by CLIP."""
    found.source = "CLIP-ReID"
    encoder, net = "image_encoder.", "backbone.net."
    _choose_vit(
        found,
        f"{encoder}positional_embedding",
        f"{encoder}conv1.weight",
        f"{encoder}transformer.resblocks.",
        "in_proj_bias",
    )
    found.config["backbone"] = "timm/vit_base_patch16_clip_quickgelu_224"
    found.weights[f"{net}cls_token"] = found.take(f"{encoder}class_embedding")[None, None]
    found.weights[f"{net}pos_embed"] = found.take(f"{encoder}positional_embedding")[None]
    projection = found.take(f"{encoder}proj")
    if projection.ndim != 2 or len(projection) != found.channels:
        raise InputError(f"{found.file}: {encoder}proj: of shape {tuple(projection.shape)}")
    found.weights["embedding.weight"] = torch.cat([torch.eye(len(projection)), projection.float().mT])
    found.config["embedding_dim"] = dimension = sum(projection.shape)
    for key in [key for key in found.left if key.startswith(encoder)]:
        ours = key.removeprefix(encoder)
        for theirs, name in _CLIP_NAMES.items():
            ours = re.sub(f"^{theirs}", name, ours)
        found.weights[net + ours] = found.left.pop(key)
    if found.options.neck_feat == "after":
        for name in NORM:
            both = [found.take(f"{neck}.{name}") for neck in ("bottleneck", "bottleneck_proj")]
            found.weights[f"neck.{name}"] = torch.cat(both)
    found.channels = dimension
    found.drop(r"bottleneck(_proj)?\..*", r"classifier(_proj)?\.weight", r"(prompt_learner|text_encoder)\..*")


def _read_layumi(found: Conversion) -> None:
    """Read ``ft_net`` of layumi's Person_reID_baseline_pytorch."""
    found.source = "layumi"
    stride = found.read_beside("opts.yaml").get("stride")
    found.move_resnet("model.", last_stride=stride if stride in (1, 2) else 2)
    first = found.left.get("classifier.add_block.0.weight")
    if first is not None and first.ndim > 1:
        found.move_reduction("classifier.add_block.0", "classifier.add_block.1")
    else:
        found.move("classifier.add_block.0.", "neck.")
    found.drop(r"model\.fc\.(weight|bias)", r"classifier\.classifier\.0\.(weight|bias)")
    found.set_pooling()


#: keys that a program's state_dict has, and the function that reads it; the first that fits
_READERS: list[tuple[Callable[[State], bool], Callable[[Conversion], None]]] = [
    (_has("backbone.", "b1_head.", "b3."), _read_mgn),
    (_has("backbone.layer4.", "heads."), _read_fast_reid),
    (_has("backbone.conv2.0.conv2a.", "heads."), _read_fast_reid),
    (_has("base.cls_token", "base.pos_embed"), _read_transreid),
    (_has("base.layer4."), _read_strong_baseline),
    (_has("image_encoder.positional_embedding"), _read_clip_reid),
    (_has("model.layer4.", "classifier.add_block."), _read_layumi),
    (_has("conv2.0.conv2a."), _read_torchreid_osnet),
    (_has("conv2.0.conv2.0.layers."), _read_torchreid_osnet),
    (_has("layer4.0.conv1.weight"), _read_plain_resnet),
]


_RENAMED = {"backbone.rga_att": "backbone.attention", "feat_bn.": "neck.", "cls.": "classifier."}
_KINDS = {(True, True): "rga", (True, False): "rga_s", (False, True): "rga_c"}
_STRIDE = 4  # pixels per position after stage 1


def read_official_rga(path: str | os.PathLike[str], *, size: Sequence[int] | None = None) -> EmbeddingModel:
    """Load a checkpoint of the released code: a ResNet-50 with RGA-S, RGA-C or RGA-SC after each stage.

    The kind of RGA and the number of positions of its maps follow from keys and shapes.

    Args:
        path: a file of ``torch.save``: the state_dict, or a dictionary with the key ``state_dict``; keys with or
            without the prefix ``module.``; a classifier of any number of classes. Nothing is unpickled.
        size: (H, W) in pixels of the images it was trained on. The number of positions fits many sizes; the
            default is the one with H = 2W.

    Returns:
        The model in evaluation mode, without its classifier.

    Raises:
        InputError: no such file, not a checkpoint of the released code, or of another size.
    """
    return convert_official_rga(Path(path), read_tensors(path), size)


def convert_official_rga(
    file: Path, content: Mapping[str, Tensor], size: Sequence[int] | None
) -> EmbeddingModel:
    """Return the model of the state_dict that ``read_official_rga`` reads."""
    state = {_rename(key.removeprefix("module.")): value for key, value in content.items()}
    spatial, channel = (
        state.get(f"backbone.attention1.{name}.0.weight") for name in ("gg_spatial", "theta_channel")
    )
    if spatial is None and channel is None:
        raise InputError(
            f"{file}: expected a checkpoint of the released RGA code (keys like "
            "backbone.rga_att1.theta_spatial.0.weight), found "
            f"{truncate(', '.join(list(state)[:3])) or 'no tensor'}"
        )
    positions = _positions(spatial, channel)
    config = {
        "backbone": "resnet50",
        "attention": _KINDS[spatial is not None, channel is not None],
        "size": _input_size(file, positions, size),
    }
    return build_with_state(file, config, state)


def _rename(key: str) -> str:
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def _positions(spatial: Tensor | None, channel: Tensor | None) -> int:
    """Return the positions of the maps after stage 1: gg takes two values for each, θ of the channels one."""
    if spatial is not None:
        return spatial.shape[1] // 2
    assert channel is not None
    return channel.shape[1]


def _input_size(file: Path, positions: int, size: Sequence[int] | None) -> Size:
    if size is None:
        width = math.isqrt(positions // 2)
        if 2 * width * width != positions:
            raise InputError(
                f"{file}: its maps have {positions} positions after stage 1, which fits no image twice as high "
                "as wide; give the size (height, width) it was trained on"
            )
        return 2 * width * _STRIDE, width * _STRIDE
    height, width = size
    given = math.ceil(height / _STRIDE) * math.ceil(width / _STRIDE)
    if given != positions:
        raise InputError(
            f"{file}: its maps have {positions} positions after stage 1, but images of {height}x{width} "
            f"have {given}; give the size (height, width) it was trained on"
        )
    return height, width
