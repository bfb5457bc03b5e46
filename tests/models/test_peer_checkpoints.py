"""Checkpoints of other programs against features that their own code computed, see tests/fixtures/convert/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model, load_model, read_published
from tests.seeded import draw_images, fill_state

FIXTURES = Path(__file__).parents[1] / "fixtures" / "convert"
MAX_ERROR = 1e-6  #: of an embedding of length 1
GEM = {"pooling": "gem"}
AVG = {"pooling": "avg"}

#: fixture -> options, backbone of the model, number of unused tensors
CONVERTED: dict[str, tuple[dict[str, Any], str, int]] = {
    "torchreid_osnet_x1_0": ({}, "osnet_x1_0", 2),
    "torchreid_osnet_x0_75": ({}, "osnet_x0_75", 2),
    "torchreid_osnet_x0_5": ({}, "osnet_x0_5", 2),
    "torchreid_osnet_x0_25": ({}, "osnet_x0_25", 2),
    "torchreid_osnet_ibn_x1_0": ({}, "osnet_ibn_x1_0", 2),
    "torchreid_osnet_ain_x1_0": ({}, "osnet_ain_x1_0", 2),
    "torchreid_osnet_ain_x0_75": ({}, "osnet_ain_x0_75", 2),
    "torchreid_osnet_ain_x0_5": ({}, "osnet_ain_x0_5", 2),
    "torchreid_osnet_ain_x0_25": ({}, "osnet_ain_x0_25", 2),
    "torchreid_resnet18": ({}, "resnet18", 2),
    "torchreid_resnet34": ({}, "resnet34", 2),
    "torchreid_resnet50": ({}, "resnet50", 2),
    "torchreid_resnet101": ({}, "resnet101", 2),
    "torchreid_resnet50_fc512": ({}, "resnet50", 2),
    "torchreid_resnet50_ibn_a": ({}, "resnet50_ibn_a", 2),
    "fastreid_bot_r18": (AVG, "resnet18", 1),
    "fastreid_bot_r50": (AVG, "resnet50", 1),
    "fastreid_bot_r50_ibn": (AVG, "resnet50_ibn_a", 1),
    "fastreid_agw_r50": (GEM, "resnet50", 1),
    "fastreid_agw_r101_ibn": (GEM, "resnet101_ibn_a", 1),
    "fastreid_sbs_r50": ({}, "resnet50", 1),
    "fastreid_sbs_r50_ibn": ({}, "resnet50_ibn_a", 1),
    "fastreid_sbs_r18_ibn_gem_dim128": ({}, "resnet18_ibn_a", 1),
    "fastreid_mgn_r50_ibn": ({}, "mgn_resnet50", 16),
    "fastreid_osnet": (AVG, "osnet_x1_0", 1),
    "strong_resnet18_bnneck_after": ({}, "resnet18", 1),
    "strong_resnet18_bnneck_before": ({"neck_feat": "before"}, "resnet18", 6),
    "strong_resnet18_no_after": ({}, "resnet18", 2),
    "strong_resnet50_bnneck_after": ({}, "resnet50", 1),
    "strong_resnet50_ibn_a_bnneck_after": ({}, "resnet50_ibn_a", 3),
    "layumi_resnet50_stride2": ({}, "resnet50", 4),
    "layumi_resnet50_stride1": ({"last_stride": 1}, "resnet50", 4),
    "layumi_resnet50_linear0": ({}, "resnet50", 4),
    "transreid_resnet50": ({}, "resnet50", 6),
    "transreid_vit_base": ({}, "timm/vit_base_patch16_224", 8),
    "transreid_deit_small": ({}, "timm/vit_small_patch16_224", 8),
    "transreid_deit_small_after": ({"neck_feat": "after"}, "timm/vit_small_patch16_224", 3),
    "clipreid_baseline_before": ({}, "timm/vit_base_patch16_clip_quickgelu_224", 12),
    "clipreid_baseline_after": ({"neck_feat": "after"}, "timm/vit_base_patch16_clip_quickgelu_224", 4),
}
SMALL = ("x0_25", "resnet18_bn", "bot_r18", "r18_ibn")
SOURCES = {"torchreid": "torchreid", "fastreid": "fast-reid", "strong": "strong-baseline", "layumi": "layumi",
           "transreid": "TransReID", "clipreid": "CLIP-ReID"}  # fmt: skip


class Peer(NamedTuple):
    """A model of another program."""

    state: dict[str, Tensor]
    size: tuple[int, int]
    features: Tensor  #: (2, d), of length 1

    @property
    def images(self) -> Tensor:
        return torch.from_numpy(draw_images(*self.size))


def read_peer(name: str) -> Peer:
    with np.load(FIXTURES / f"{name}.npz") as fixture:
        state = fill_state(json.loads(str(fixture["shapes"])))
        height, width = fixture["size"].tolist()
        return Peer(state, (height, width), torch.from_numpy(fixture["features"]))


def max_error(model: EmbeddingModel, peer: Peer) -> float:
    return float((model.embed(peer.images) - peer.features).abs().max())


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if any(part in n for part in SMALL) else pytest.mark.slow) for n in CONVERTED],
)
def test_features_are_those_of_the_other_program(name: str, tmp_path: Path) -> None:
    options, backbone, unused = CONVERTED[name]
    peer = read_peer(name)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in peer.state.items()}}, tmp_path / "m.pth"
    )
    read = read_published(tmp_path / "m.pth", size=peer.size, **options)
    assert max_error(read.model, peer) < MAX_ERROR
    assert (read.model.backbone.name, read.source, len(read.unused)) == (
        backbone,
        SOURCES[name.split("_")[0]],
        unused,
    )


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("fastreid_bot_r18", AVG, GEM),
        ("fastreid_bot_r18", AVG, {"pooling": "avg", "last_stride": 2}),
        ("strong_resnet18_bnneck_after", {}, {"neck_feat": "before"}),
        ("torchreid_resnet18", {}, {"last_stride": 1}),
    ],
)
def test_options_change_the_features(name: str, right: Any, wrong: Any, tmp_path: Path) -> None:
    """So that the comparison above would notice a wrong one."""
    peer = read_peer(name)
    torch.save(peer.state, tmp_path / "m.pth")
    assert max_error(read_published(tmp_path / "m.pth", size=peer.size, **right).model, peer) < MAX_ERROR
    assert (
        max_error(read_published(tmp_path / "m.pth", size=peer.size, **wrong).model, peer) > 100 * MAX_ERROR
    )


@pytest.mark.parametrize(
    "name", ["torchreid_osnet_ain_x0_25", "fastreid_sbs_r18_ibn_gem_dim128", "strong_resnet18_bnneck_after"]
)
def test_every_tensor_is_used_or_refused(name: str, tmp_path: Path) -> None:
    peer = read_peer(name)
    for key in ("scale", f"{next(iter(peer.state)).partition('.')[0]}.extra.weight", "layer1.0.extra.bias"):
        torch.save(peer.state | {key: torch.ones(3)}, tmp_path / "m.pth")
        with pytest.raises(InputError, match=rf"m\.pth: .*{key}"):
            read_published(tmp_path / "m.pth", size=peer.size)
    for key in [key for key in peer.state if key.endswith("conv1.weight")][-1:]:
        torch.save({other: value for other, value in peer.state.items() if other != key}, tmp_path / "m.pth")
        with pytest.raises(InputError, match=r"m\.pth: .*missing"):
            read_published(tmp_path / "m.pth", size=peer.size)


def test_a_model_of_this_package_needs_no_conversion(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"tiny\.safetensors: a checkpoint of rga-reid"):
        read_published(tiny_checkpoint)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    """torch counts them since 0.4.1."""
    peer = read_peer("strong_resnet18_bnneck_after")
    torch.save({k: v for k, v in peer.state.items() if "num_batches" not in k}, tmp_path / "m.pth")
    assert max_error(read_published(tmp_path / "m.pth", size=peer.size).model, peer) < MAX_ERROR


with np.load(FIXTURES / "refused.npz") as _refused:
    REFUSED: dict[str, dict[str, list[int]]] = json.loads(str(_refused["shapes"]))

#: fixture -> word of the message that says what it is
NAMED = {
    "torchreid_resnet50mid": "resnet50mid", "torchreid_pcb_p6": "PCB", "torchreid_hacnn": "HACNN",
    "torchreid_mlfn": "MLFN", "torchreid_se_resnet50": "squeeze", "torchreid_resnext50_32x4d": "ResNeXt",
    "torchreid_resnet152": "blocks", "fastreid_s50": "ResNeSt", "fastreid_se": "squeeze", "fastreid_resnext": "ResNeXt",
    "fastreid_repvgg": "RepVGG", "fastreid_vit": "transformer", "fastreid_mobilenetv2": "MobileNet",
    "strong_se_resnet50": "squeeze", "layumi_usam": "USAM", "layumi_pcb": "PCB", "layumi_swin": "layumi",
    "transreid_sie": "SIE", "transreid_jpm": "JPM", "transreid_vit_small": "8 blocks",
    "transreid_only_stride": "overlapping", "clipreid_sie": "SIE", "clipreid_stride": "overlapping",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_represented_are_refused(name: str, tmp_path: Path) -> None:
    """The values do not matter, and only the shapes by which networks are recognised."""
    decisive = (
        "pos_embed",
        "positional_embedding",
        "patch_embed.proj.weight",
        "conv1.weight",
        "conv2.weight",
    )
    state = {
        key: torch.zeros(shape if key.endswith(decisive) else [1] * len(shape), dtype=torch.uint8)
        for key, shape in REFUSED[name].items()
    }
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(InputError, match=rf"m\.pth: .*{NAMED.get(name, '')}") as caught:
        read_published(tmp_path / "m.pth", size=(64, 32), **(AVG if name.startswith("fastreid") else {}))
    assert "\n" not in str(caught.value)
    if name in NAMED:
        assert "ONNX" in str(caught.value)


@pytest.mark.parametrize("shape", [[], [0], [10**12, 0]], ids=str)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("fastreid_sbs_r18_ibn_gem_dim128", "heads.bottleneck.0.weight"),
        ("fastreid_sbs_r18_ibn_gem_dim128", "backbone.layer1.0.conv2.weight"),
        ("torchreid_osnet_x0_25", "conv1.conv.weight"),
        ("torchreid_osnet_x0_25", "fc.0.weight"),
        ("transreid_deit_small", "base.patch_embed.proj.weight"),
        ("transreid_deit_small", "base.pos_embed"),
        ("clipreid_baseline_before", "image_encoder.proj"),
    ],
)
def test_tensors_of_odd_shapes_are_refused(name: str, key: str, shape: list[int], tmp_path: Path) -> None:
    """An empty tensor may claim any size, for which no memory must be taken."""
    with np.load(FIXTURES / f"{name}.npz") as fixture:
        shapes = json.loads(str(fixture["shapes"]))
    keep = ("positional_embedding", "pos_embed", "proj.weight", "conv1.weight")
    state = {k: torch.zeros(s if k.endswith(keep) else [1] * len(s)) for k, s in shapes.items()}
    torch.save(state | {key: torch.zeros(shape)}, tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"m\.pth: ") as caught:
        read_published(tmp_path / "m.pth", size=(64, 32))
    assert "\n" not in str(caught.value)


def fast_reid_settings(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "MODEL": {
            "BACKBONE": {"LAST_STRIDE": 1},
            "HEADS": {"POOL_LAYER": "GlobalAvgPool"},
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
        },
        "INPUT": {"SIZE_TEST": [64, 32]},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        place = settings
        for name in path:
            place = place[name]
        place[last] = value
    return settings


def test_the_pooling_of_fast_reid_must_be_known(tmp_path: Path) -> None:
    """GeM with a fixed exponent, and maximum pooling, leave no tensor."""
    peer = read_peer("fastreid_bot_r18")
    torch.save({"model": peer.state}, tmp_path / "model_best.pth")
    with pytest.raises(InputError, match=r"model_best\.pth: .*config\.yaml.*--pooling"):
        read_published(tmp_path / "model_best.pth", size=peer.size)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(fast_reid_settings(MODEL__HEADS__POOL_LAYER="GlobalMaxPool")))
    with pytest.raises(InputError, match="GlobalMaxPool"):
        read_published(tmp_path / "model_best.pth")
    assert read_published(tmp_path / "model_best.pth", size=(64, 32), pooling="avg").model.gem is None


def test_settings_beside_a_file_of_fast_reid(tmp_path: Path) -> None:
    peer = read_peer("fastreid_bot_r18")
    torch.save({"model": peer.state}, tmp_path / "m.pth")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(fast_reid_settings()))
    read = read_published(tmp_path / "m.pth")
    assert (read.model.size, read.model.backbone.last_stride) == ((64, 32), 1)
    assert max_error(read.model, peer) < MAX_ERROR
    config.write_text(
        yaml.safe_dump(
            fast_reid_settings(
                MODEL__HEADS__POOL_LAYER="GeneralizedMeanPooling",
                MODEL__BACKBONE__LAST_STRIDE=2,
                MODEL__PIXEL_MEAN=[51.0, 102.0, 127.5],
            )
        )
    )
    model = read_published(tmp_path / "m.pth", size=(96, 32)).model
    assert (model.size, model.backbone.last_stride) == ((96, 32), 2)
    assert model.mean == pytest.approx((0.2, 0.4, 0.5))
    assert model.gem is not None
    assert model.gem.p.item() == 3
    buffers = {"pixel_mean": torch.full((1, 3, 1, 1), 25.5), "pixel_std": torch.full((1, 3, 1, 1), 51.0)}
    torch.save({"model": peer.state | buffers}, tmp_path / "m.pth")  # of versions before 1.3
    assert read_published(tmp_path / "m.pth").model.mean == pytest.approx((0.1,) * 3)


def test_settings_beside_a_file_of_layumi(tmp_path: Path) -> None:
    names = {"fc.": "model.fc.", "neck": "classifier.add_block.0"}
    body = build_model(depth=18, size=(64, 32)).backbone.state_dict()
    state = {f"model.{key}": value for key, value in body.items()}
    state |= {
        f"{names['neck']}.{key}": torch.ones(512) for key in ("weight", "running_mean", "running_var", "bias")
    }
    state |= {"classifier.classifier.0.weight": torch.ones(7, 512), "model.fc.bias": torch.ones(1000)}
    torch.save(state, tmp_path / "net_last.pth")
    assert read_published(tmp_path / "net_last.pth", size=(64, 32)).model.backbone.last_stride == 2
    (tmp_path / "opts.yaml").write_text("stride: 1\nnclasses: 751\n")
    read = read_published(tmp_path / "net_last.pth", size=(64, 32))
    assert (read.model.backbone.last_stride, read.source) == (1, "layumi")


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("torchreid_resnet18", {"neck_feat": "before"}, "--neck-feat"),
        ("fastreid_sbs_r18_ibn_gem_dim128", {"pooling": "avg"}, "--pooling"),
        ("torchreid_osnet_x0_25", {"last_stride": 1}, "last_stride"),
        ("torchreid_resnet18", {"pooling": "max"}, "pooling"),
        ("strong_resnet18_bnneck_after", {"neck_feat": "both"}, "neck_feat"),
    ],
)
def test_options_that_do_not_apply(name: str, options: Any, named: str, tmp_path: Path) -> None:
    peer = read_peer(name)
    torch.save(peer.state, tmp_path / "m.pth")
    with pytest.raises(InputError, match=named):
        read_published(tmp_path / "m.pth", size=peer.size, **options)


def test_the_text_encoder_of_clip_reid_is_unused(tmp_path: Path) -> None:
    """Found by the keys alone: the network is refused, because its values are missing."""
    with np.load(FIXTURES / "clipreid_baseline_before.npz") as fixture:
        shapes = json.loads(str(fixture["shapes"]))
    decisive = ("positional_embedding", "conv1.weight", "proj")
    state = {
        key: torch.zeros(shape if key.endswith(decisive) else [1] * len(shape))
        for key, shape in shapes.items()
    }
    state |= {"prompt_learner.cls_ctx": torch.zeros(1), "text_encoder.ln_final.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(InputError, match="of another shape") as caught:
        read_published(tmp_path / "m.pth", size=(64, 32))
    assert "unknown" not in str(caught.value)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    peer = read_peer("fastreid_bot_r18")
    torch.save({"model": peer.state}, tmp_path / "m.pth")
    words = ["convert", str(tmp_path / "m.pth"), str(tmp_path / "m.safetensors"), "--size", "64", "32"]
    assert "--pooling" in refused(*words)
    assert main([*words, "--pooling", "avg"]) == 0
    said = capsys.readouterr().out
    assert "from fast-reid" in said
    assert "512 features, avg pooling, last stride 1" in said
    assert max_error(load_model(tmp_path / "m.safetensors"), peer) < MAX_ERROR
    assert main([*words, "--pooling", "gem", "--overwrite"]) == 0
    model = load_model(tmp_path / "m.safetensors")
    assert model.gem is not None
    assert F.cosine_similarity(model.embed(peer.images), peer.features).max() < 0.9999


def test_published_weights_of_osnet_start_a_training(tmp_path: Path) -> None:
    """The classifier, and the linear layer before it, are not part of the backbone."""
    peer = read_peer("torchreid_osnet_x0_25")
    torch.save(peer.state, tmp_path / "osnet.pth")
    model = build_model(backbone="osnet_x0_25", weights=tmp_path / "osnet.pth", size=peer.size)
    stream = model.backbone.state_dict()["conv3.0.conv2.2.layers.1.conv2.weight"]
    assert torch.equal(stream, peer.state["conv3.0.conv2c.1.conv2.weight"])
    with pytest.raises(InputError, match=r"osnet\.pth: do not fit the backbone osnet_x0_5"):
        build_model(backbone="osnet_x0_5", weights=tmp_path / "osnet.pth", size=peer.size)
