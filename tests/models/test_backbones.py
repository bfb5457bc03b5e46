"""Backbones of this package, timm, torchvision and the user; against the bare networks of these libraries."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model, count_costs, export_model, load_model, save_model
from rga_reid.models.saliency import embedding_norm, grad_cam

SIZE = (96, 48)


class SmallNet(nn.Module):
    """A backbone as a user writes it: two convolutions, each a stage."""

    channels = 24
    stage_names = ("first", "second")

    def __init__(self, last_stride: int = 2) -> None:
        super().__init__()
        self.last_stride = last_stride
        self.first = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 24, 3, last_stride, 1), nn.BatchNorm2d(24), nn.ReLU())

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        height, width = size[0] // 4, size[1] // 4
        return [(height, width), (-(-height // self.last_stride), -(-width // self.last_stride))]

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images))


class PlainNet(nn.Module):
    """A backbone with what is needed only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = width
        self.conv = nn.Conv2d(3, width, 8, stride=8)

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return [(size[0] // 8, size[1] // 8)]

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


MINE = f"{__name__}.SmallNet"
PLAIN = {"class_path": f"{__name__}.PlainNet", "init_args": {"width": 12}}
STAGED = [
    "resnet18",
    "resnet50",
    "resnet18_ibn_a",
    "osnet_x0_25",
    "osnet_ain_x0_25",
    "timm/mobilenetv2_100",
    "timm/resnetv2_50",
    "timm/convnext_atto",
    "torchvision/mobilenet_v2",
    MINE,
]
VIT = "timm/vit_tiny_patch16_224"
ALL = [*STAGED, VIT, PLAIN]


def name_of(value: Any) -> str | None:
    return (
        value.rpartition(".")[2]
        if isinstance(value, str)
        else "PlainNet"
        if isinstance(value, dict)
        else None
    )


def mark_large(choices: list[Any]) -> list[Any]:
    """Return parameters; those of the networks that take seconds are for the slow tests."""
    large = ("resnet50", "timm/resnetv2_50", "torchvision/mobilenet_v2")
    slow = pytest.mark.slow
    return [pytest.param(one, id=name_of(one), marks=[slow] if one in large else []) for one in choices]


@pytest.fixture(scope="module")
def models() -> dict[str, EmbeddingModel]:
    """One model of each backbone without attention; tests must not change them."""
    torch.manual_seed(0)
    return {str(choice): build_model(backbone=choice, size=SIZE).eval() for choice in ALL}


@pytest.fixture
def model(models: dict[str, EmbeddingModel], choice: Any) -> EmbeddingModel:
    return models[str(choice)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("choice", ALL, ids=name_of)
def test_maps_have_the_announced_shapes(model: EmbeddingModel) -> None:
    backbone = model.backbone
    for size in (SIZE, (64, 32), SIZE):
        backbone.set_input_size(size)
        output = backbone(torch.zeros(1, 3, *size))
        assert output.shape == (1, backbone.channels, *backbone.map_sizes(size)[-1])
    assert model.dimension == backbone.channels


@pytest.mark.parametrize("choice", mark_large(ALL))
def test_round_trip(model: EmbeddingModel, images: Tensor, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    assert torch.equal(loaded.embed(images), model.embed(images))


@pytest.mark.parametrize("choice", ALL, ids=name_of)
def test_costs_are_those_of_the_layers(model: EmbeddingModel) -> None:
    """Multiply-accumulates from the shapes that hooks see: of convolutions, linear layers and attention."""
    macs = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            macs.append(output.numel() * module.weight[0].numel())
        elif isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif isinstance(module, timm.layers.Attention):
            _, tokens, width = inputs[0].shape
            macs.append(2 * tokens * tokens * width)  # q k and attention times v

    handles = [module.register_forward_hook(count) for module in model.backbone.modules()]  # type: ignore[arg-type]
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, *SIZE))
    for handle in handles:
        handle.remove()
    costs = count_costs(model.backbone).set_index("part")
    assert costs.loc["total", "macs"] == sum(macs)
    assert costs.loc["total", "parameters"] == sum(p.numel() for p in model.backbone.parameters())
    assert costs.macs[:-1].sum() == costs.macs["total"]
    assert costs.parameters[:-1].sum() == costs.parameters["total"]


@pytest.mark.parametrize("choice", mark_large(STAGED))
def test_attention_follows_the_stages(choice: str, images: Tensor, tmp_path: Path) -> None:
    """Attention gets maps of the announced sizes, its output continues, and copies have separate modules."""
    stages = [1, 2] if choice == MINE else [2, 3] if choice.startswith("osnet") else [2, 4]
    model = build_model(backbone=choice, attention="rga", stages=stages, size=SIZE).eval()
    backbone = model.backbone
    sizes, seen = backbone.map_sizes(SIZE), {}
    assert [*backbone.attention_stages()] == stages
    handles = [
        module.register_forward_hook(lambda _, x, y, stage=stage: seen.update({stage: (x[0].shape[2:], y)}))
        for stage, module in backbone.attention_stages().items()
    ]
    before = model.embed(images)
    assert {stage: tuple(shape) for stage, (shape, _) in seen.items()} == {s: sizes[s - 1] for s in stages}
    for handle in handles:
        handle.remove()
    costs = count_costs(backbone).set_index("part")
    assert (costs.loc[[f"attention {stage}" for stage in stages], "macs"] > 0).all()
    assert costs.macs[:-1].sum() == costs.macs["total"]
    save_model(model, tmp_path / "m.safetensors")
    assert torch.equal(load_model(tmp_path / "m.safetensors").embed(images), before)
    twin = copy.deepcopy(model)
    for module in backbone.attention_stages().values():
        module.register_forward_hook(lambda _, x, y: torch.randn_like(y))
    assert not torch.equal(model.embed(images), before)
    assert torch.equal(twin.embed(images), before)
    backbone.set_input_size((64, 32))
    assert backbone(torch.zeros(1, 3, 64, 32)).shape[2:] == backbone.map_sizes((64, 32))[-1]


@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "resnetv2_50", "convnext_atto", "swin_tiny_patch4_window7_224", "resnet18"]
)
def test_timm_convolutional_networks(name: str) -> None:
    """The bare network with the same weights returns the same map."""
    model = build_model(backbone=f"timm/{name}", size=SIZE, last_stride=2).eval().backbone
    options = {"img_size": SIZE, "strict_img_size": False} if "swin" in name else {}
    bare = timm.create_model(name, num_classes=0, **options).eval()
    state = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    assert all(key.startswith("head.") for key in bare.load_state_dict(state, strict=False).missing_keys)
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        expected = bare.forward_features(x)
        if "swin" in name:
            expected = expected.permute(0, 3, 1, 2)
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "cait_xxs24_224"]
)
def test_timm_transformers(name: str) -> None:
    """The feature is what timm pools, at any image of whole patches."""
    model = build_model(backbone=f"timm/{name}", size=SIZE).eval().backbone
    bare = timm.create_model(name, num_classes=0, img_size=SIZE).eval()
    state = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    bare.load_state_dict(state)
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, :, 0, 0], bare(x))


def test_last_map_of_a_transformer(models: dict[str, EmbeddingModel]) -> None:
    backbone = models[VIT].backbone
    backbone.set_input_size((64, 48))
    outputs: list[Tensor] = []
    handle = backbone.map_layer().register_forward_hook(lambda *call: outputs.append(call[2]))
    backbone(torch.rand(2, 3, 64, 48))
    handle.remove()
    maps = backbone.to_map(outputs[0])
    assert maps.shape == (2, 192, 4, 3)
    assert torch.equal(maps[:, :, 1, 2], outputs[0][:, 1 + 3 + 2])  # after the class token and a row
    backbone.set_input_size(SIZE)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "cait_xxs24_224"])
def test_nothing_bypasses_the_last_map_of_a_transformer(name: str) -> None:
    """These read all patches after the last block; without its output, all images have the same feature."""
    size = (56, 42) if "patch14" in name else SIZE
    backbone = build_model(backbone=f"timm/{name}", size=size).eval().backbone
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        first, second = backbone(images)
        assert not torch.equal(first, second)
        handle = backbone.map_layer().register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        first, second = backbone(images)
        handle.remove()
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["mixer_s16_224", "xcit_nano_12_p16_224", "vit_small_patch16_18x2_224"])
def test_other_transformers_have_no_map(name: str) -> None:
    size = (224, 224)
    model = build_model(backbone=f"timm/{name}", size=size).eval()
    with pytest.raises(InputError, match="expected a last map"):
        grad_cam(model, torch.zeros(1, 3, *size, dtype=torch.uint8), embedding_norm)


@pytest.mark.parametrize("name", ["mobilenet_v2", "convnext_tiny", "densenet121", "swin_t"])
def test_torchvision_networks(name: str) -> None:
    model = build_model(backbone=f"torchvision/{name}", size=SIZE, last_stride=2).eval().backbone
    bare = torchvision.models.get_model(name, weights=None).eval()
    state = {key.removeprefix("net."): value for key, value in model.state_dict().items()}
    missing = bare.load_state_dict(state, strict=False).missing_keys
    assert all(key.startswith(("classifier.", "head.")) for key in missing)
    bare.classifier = bare.head = nn.Identity()
    x = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(x).mean((2, 3)), bare(x).flatten(1))


@pytest.mark.parametrize("depth", [18, 50])
def test_last_stride_is_that_of_our_resnets(depth: int) -> None:
    """timm's ResNet with last stride 1 returns what ours does with the same weights."""
    ours = build_model(backbone=f"resnet{depth}", size=SIZE).eval().backbone
    theirs = build_model(backbone=f"timm/resnet{depth}", size=SIZE, last_stride=1).eval().backbone
    theirs.net.load_state_dict(ours.state_dict())  # type: ignore[operator, union-attr]
    x = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("timm/convnext_atto", True),
        ("timm/mobilenetv3_small_050", False),
        (VIT, False),
        ("torchvision/mobilenet_v2", True),
        ("torchvision/vgg11", False),
        ("osnet_x0_25", False),
        (MINE, True),
        (PLAIN, False),
    ],
    ids=name_of,
)
def test_last_stride(name: Any, allowed: bool) -> None:
    with torch.device("meta"):
        chosen = None if name == MINE else build_model(backbone=name, size=SIZE).backbone.last_stride
        if not allowed:
            assert chosen != 1
            with pytest.raises(InputError, match="last_stride"):
                build_model(backbone=name, size=SIZE, last_stride=1)
            return
        sizes = [
            build_model(backbone=name, size=SIZE, last_stride=s).backbone.map_sizes(SIZE) for s in (1, 2)
        ]
    assert chosen in (None, 1)
    assert sizes[0][-1] == sizes[0][-2] == sizes[1][-2] != sizes[1][-1]


@pytest.mark.parametrize(
    "choice",
    ["osnet_ain_x0_25", "timm/mobilenetv2_100", "timm/convnext_atto", VIT, "torchvision/mobilenet_v2"],
)
def test_checkpointing_changes_neither_gradients_nor_running_statistics(choice: str) -> None:
    attention = None if choice == VIT else "rga"
    plain = build_model(backbone=choice, attention=attention, size=(64, 32)).backbone.double().train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout | timm.layers.DropPath):
            module.eval()
    other = copy.deepcopy(plain)
    other.checkpointing = True
    other = copy.deepcopy(other)  # a copy recomputes its own modules
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    runs = [0, 0]
    for number, model in enumerate((plain, other)):

        def count(*_: Any, number: int = number) -> None:
            runs[number] += 1

        layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        handles = [layer.register_forward_hook(count) for layer in layers]
        model(x).square().mean().backward()
        for handle in handles:
            handle.remove()
    assert runs[1] > runs[0]
    for (name, one), two in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    for (name, one), two in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name


FIRST_STAGE = {
    "resnet18": ("conv1.", "bn1.", "layer1."),
    "torchvision/mobilenet_v2": tuple(f"net.features.{row}." for row in range(4)),
    "timm/mobilenetv2_100": ("net.conv_stem.", "net.bn1.", "net.blocks.0.", "net.blocks.1."),
    MINE: ("net.first.",),
}


@pytest.mark.parametrize("choice", FIRST_STAGE, ids=name_of)
def test_frozen_stages_keep_weights_and_statistics(choice: str) -> None:
    model = build_model(backbone=choice, attention="pam", size=(64, 32))
    model.backbone.freeze_stages(1)
    model.eval()
    model = copy.deepcopy(model).train()
    before = copy.deepcopy(model.backbone.state_dict())
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, 1e6)  # some gradients are tiny
    model(torch.randn(4, 3, 64, 32)).pre_neck.square().mean().backward()
    optimizer.step()
    after = model.backbone.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(name.startswith("attention1.") for name in moved)
    network = {name for name in after if not name.startswith("attention")}
    assert network - moved == {name for name in network if name.startswith(FIRST_STAGE[choice])}


@pytest.mark.parametrize(("choice", "count"), [("resnet18", 5), ("resnet18", -1), (PLAIN, 1)])
def test_frozen_stages_that_do_not_exist(choice: Any, count: int) -> None:
    backbone = build_model(backbone=choice, attention=None, size=(64, 32)).backbone
    with pytest.raises(InputError, match="frozen_stages"):
        backbone.freeze_stages(count)


def test_every_parameter_has_a_gradient() -> None:
    """DistributedDataParallel needs it; timm's classifiers contain norms that the last map does not use."""
    for choice in ("timm/convnext_atto", "timm/mobilenetv3_small_050", VIT, "timm/tiny_vit_5m_224"):
        backbone = copy.deepcopy(build_model(backbone=choice, size=(64, 32)).backbone)
        backbone(torch.rand(2, 3, 64, 32)).square().sum().backward()
        assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("choice", "mean"), [(VIT, 0.5), ("timm/convnext_atto", 0.485), ("torchvision/mobilenet_v2", 0.485)]
)
def test_normalisation_is_that_of_the_pretrained_weights(models: Any, choice: str, mean: float) -> None:
    assert (models[choice].mean[0], models[choice].config["mean"][0]) == (mean, mean)


FORMATS = {"torchscript": "pt", "onnx": "onnx", "safetensors": "safetensors"}
EXPORTS = [
    pytest.param(
        choice,
        kind,
        id=f"{name_of(choice)}-{kind}",
        marks=[] if choice == MINE and kind != "onnx" else [pytest.mark.slow],
    )
    for choice in ALL
    for kind in FORMATS
]


@pytest.mark.parametrize(("choice", "kind"), EXPORTS)
def test_export(choice: Any, kind: str, tmp_path: Path) -> None:
    """The exporter compares the file with the model."""
    attention = "rga" if choice in STAGED else None
    model = build_model(backbone=choice, attention=attention, size=(64, 32)).eval()
    assert export_model(model, tmp_path / f"m.{FORMATS[kind]}", kind) > 0.9999


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backbone": "resnet51"}, "resnet50"),
        ({"backbone": "timm/mobilenetv2_10"}, "mobilenetv2_100"),
        ({"backbone": "mobilenetv2_100"}, "timm/mobilenetv2_100"),
        ({"backbone": "torchvision/mobilenetv2"}, "mobilenet_v2"),
        ({"backbone": "torchvision/resnet18"}, "timm/resnet18"),
        ({"backbone": "timm/hf-hub:a/b"}, "no model 'hf-hub"),
        ({"backbone": "no.such.Net"}, "no.such"),
        ({"backbone": {"class_path": VIT, "init_args": {"pretrained": True}}}, "pretrained"),
        ({"backbone": {"class_path": VIT, "init_args": {"depht": 3}}}, "depht"),
        ({"backbone": {"class_path": MINE, "init_args": {"depth": 3}}}, "depth"),
        ({"backbone": "torch.nn.Identity"}, "channels"),
        ({"backbone": VIT, "attention": "rga"}, "attention"),
        ({"backbone": PLAIN, "attention": "rga"}, "attention"),
        ({"backbone": MINE, "attention": "se", "stages": [3]}, "stages"),
        ({"backbone": "timm/convnext_atto", "stages": [0]}, "stages"),
        ({"backbone": VIT, "size": (70, 40)}, "70x40"),
        ({"backbone": VIT, "stem_pool": "ceil"}, "stem_pool"),
        ({"backbone": VIT, "last_stride": 3}, "last_stride"),
        ({"backbone": MINE, "weights": "imagenet"}, "--model.weights null"),
        ({"backbone": PLAIN, "last_stride": 1}, "--model.last_stride null"),
        (
            {"backbone": PLAIN, "last_stride": 1, "weights": "imagenet"},
            "--model.last_stride null and --model.weights null",
        ),
        ({"backbone": "osnet_x0_25", "weights": "imagenet"}, "weights"),
        ({"backbone": "resnet50_ibn_a", "weights": "imagenet"}, "weights"),
        ({"backbone": "osnet_x0_2"}, "osnet_x0_25"),
        ({"backbone": "osnet_x0_25", "attention": "se", "stages": [4]}, "stages"),
        ({"backbone": {"class_path": "resnet50", "init_args": {"non_locals": True}}}, "non_local"),
        ({"backbone": {"class_path": "resnet50", "init_args": {"non_local": 3}}}, "non_local"),
        ({"backbone": {"class_path": "resnet18", "init_args": {"non_local": True}}}, "non_local"),
        ({"backbone": "mgn_resnet50"}, "size"),
        ({"backbone": "mgn_resnet50", "size": (96, 32), "attention": "se"}, "attention"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], named: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=named) as error:
        build_model(**{"size": (64, 32), **options})
    assert "\n" not in str(error.value)


def test_a_network_of_another_shape_than_announced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SmallNet, "channels", 16)
    with pytest.raises(InputError, match=r"SmallNet.*16.*24"):
        build_model(backbone=MINE, size=SIZE)


def test_transformers_refuse_other_sizes_by_one_line(models: dict[str, EmbeddingModel]) -> None:
    with pytest.raises(InputError, match="70x40"):
        models[VIT].backbone.set_input_size((70, 40))


def test_attention_of_a_channels_last_network() -> None:
    """Swin's stages return (n, h, w, C); the attention module takes (n, C, h, w)."""
    backbone = build_model(
        backbone="timm/swin_tiny_patch4_window7_224", attention="se", stages=[1, 4], size=(64, 32)
    ).backbone.eval()
    shapes = []
    for module in backbone.attention_stages().values():
        module.register_forward_hook(lambda _, x, y: shapes.append((tuple(x[0].shape), tuple(y.shape))))
    assert backbone(torch.rand(1, 3, 64, 32)).shape == (1, 768, 2, 1)
    assert shapes == [((1, 96, 16, 8),) * 2, ((1, 768, 2, 1),) * 2]


@pytest.mark.parametrize("path", ["this.Zen", "rga_reid.training.module.ReIDModule"])
def test_a_checkpoint_imports_no_backbone(path: str, tmp_path: Path) -> None:
    """Nor does it build other classes of this package, which could import more."""
    model = build_model(backbone=MINE, size=SIZE)
    assert model.config is not None
    model.config["backbone"] = {"class_path": path, "init_args": {}}
    save_model(model, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=rf"m\.safetensors: backbone {path}: named by a checkpoint"):
        load_model(tmp_path / "m.safetensors")
    assert "this" not in sys.modules
