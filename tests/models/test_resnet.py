"""ResNet with attention slots."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch._subclasses.fake_tensor import FakeTensorMode

from rga_reid.attention import CAM, PAM, RGA
from rga_reid.errors import InputError
from rga_reid.models import ResNet, build_model, count_parameters

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.mark.parametrize(
    ("depth", "last_stride", "stem_pool"),
    [(18, 1, "ceil"), (18, 2, "padded"), (18, 1, "half"), (50, 1, "padded"), (50, 2, "ceil")],
)
@pytest.mark.parametrize("size", [(75, 43), (70, 37)])
def test_map_sizes_are_those_of_the_forward_pass(
    depth: int, last_stride: int, size: tuple[int, int], stem_pool: Any
) -> None:
    with torch.device("meta"):
        model = ResNet(depth, last_stride=last_stride, size=size, stem_pool=stem_pool).eval()
    seen: list[tuple[int, ...]] = []
    for stage in (1, 2, 3, 4):
        getattr(model, f"layer{stage}").register_forward_hook(
            lambda _module, _input, output: seen.append(tuple(output.shape[2:]))
        )
    with torch.no_grad():
        output = model(torch.empty(1, 3, *size, device="meta"))
    assert seen == model.map_sizes(size)
    assert output.shape == (1, {18: 512, 50: 2048}[depth], *seen[-1])


@pytest.mark.parametrize("depth", [18, 50])
def test_it_is_torchvisions(depth: int) -> None:
    """Equal seeds give equal weights, and the same features of an image."""
    torch.manual_seed(3)
    published = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    torch.manual_seed(3)
    model = ResNet(depth, last_stride=2, size=(64, 64)).eval()
    state = {key: value for key, value in published.state_dict().items() if not key.startswith("fc.")}
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(published.fc(model(x).mean((2, 3))), published(x))


@pytest.mark.parametrize(
    ("spatial", "channel", "published"), [(1, 0, 3_223_800), (0, 1, 3_090_296), (1, 1, 6_314_096)]
)
def test_parameter_counts_are_the_published_ones(spatial: int, channel: int, published: int) -> None:
    def attention(channels: int, size: tuple[int, int]) -> RGA:
        return RGA(channels, size, spatial=bool(spatial), channel=bool(channel))

    with torch.device("meta"):
        trunk = count_parameters(ResNet(50))
        assert trunk == 23_508_032
        assert count_parameters(ResNet(50, attention)) - trunk == published


def test_attention_follows_the_chosen_stages_only() -> None:
    model = ResNet(18, CAM, stages=(2, 4), size=(64, 32))
    kinds = [type(getattr(model, f"attention{stage}")).__name__ for stage in (1, 2, 3, 4)]
    assert kinds == ["Identity", "CAM", "Identity", "CAM"]


def test_set_input_size_lets_position_bound_attention_take_other_images() -> None:
    model = ResNet(18, RGA, size=(64, 32)).eval()
    model.set_input_size((96, 48))
    assert model(torch.rand(1, 3, 96, 48)).shape == (1, 512, 6, 3)
    with pytest.raises(ValueError, match="size"):
        model(torch.rand(1, 3, 64, 32))
    model.set_input_size((64, 32))
    assert model(torch.rand(1, 3, 64, 32)).shape == (1, 512, 4, 2)


@pytest.mark.parametrize("attention", [None, RGA, PAM])
def test_forward_mixes_no_devices(attention: type | None) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        model = ResNet(18, attention, size=(64, 32))
        output = model(torch.rand(2, 3, 64, 32))
    assert output.device.type == "cuda"
    assert output.shape == (2, 512, 4, 2)


def test_weights_from_a_path(tmp_path: Path) -> None:
    published = torchvision.models.resnet18(weights=None)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    model = ResNet(18, weights=tmp_path / "weights.pth", size=(64, 32))
    torch.testing.assert_close(model.layer3[1].conv2.weight, published.layer3[1].conv2.weight)
    with pytest.raises(InputError, match=r"weights\.pth: not a torchvision resnet34"):
        ResNet(34, weights=tmp_path / "weights.pth", size=(64, 32))
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"broken\.pth: not a checkpoint"):
        ResNet(18, weights=tmp_path / "broken.pth", size=(64, 32))
    with pytest.raises(InputError, match="no such file"):
        ResNet(18, weights=tmp_path / "missing.pth", size=(64, 32))


def test_imagenet_weights_offline_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Offline:
        class IMAGENET1K_V1:
            @staticmethod
            def get_state_dict(**_options: object) -> None:
                raise OSError("name resolution failed")

    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Offline)
    with pytest.raises(InputError, match=r"cannot download.*offline.*path"):
        ResNet(18, weights="imagenet", size=(64, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 19}, "depth: expected 18 or 34 or 50 or 101, got 19"),
        ({"last_stride": 3}, "last_stride: expected 1 or 2, got 3"),
        ({"stages": (1, 5)}, "stages"),
        ({"stages": (1, 1)}, "stages"),
        ({"size": (16, 8)}, "size: expected at least 32x32"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResNet(**{"depth": 18, **options})  # type: ignore[arg-type]


def test_checkpointing_changes_neither_gradients_nor_running_statistics() -> None:
    """RGA updates running statistics by its own code, which must not count a batch twice either."""
    torch.manual_seed(0)
    plain = ResNet(18, RGA, size=(32, 32)).double().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.checkpointing = True
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (plain, checkpointed):
        model(x).square().mean().backward()
    for (name, one), two in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    for (name, one), two in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(one, two), name


def test_the_first_pool_without_padding() -> None:
    padded, ceil = (ResNet(18, size=(64, 32), stem_pool=pool) for pool in ("padded", "ceil"))
    x = torch.randn(1, 64, 33, 17)
    assert torch.equal(ceil.maxpool(x), torch.nn.functional.max_pool2d(x, 3, 2))
    assert padded.maxpool(x).shape[2:] == (17, 9)
    with pytest.raises(InputError, match="stem_pool: expected padded or ceil"):
        ResNet(18, stem_pool="other")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_depth_is_another_name_of_the_backbone(depth: int) -> None:
    with torch.device("meta"):
        one, other = build_model(depth=depth), build_model(backbone=f"resnet{depth}")
    assert one.config == other.config
    assert (one.backbone.stages, one.backbone.last_stride) == ((1, 2, 3, 4), 1)
    assert list(one.state_dict()) == list(other.state_dict())


def test_depth_and_backbone_together_are_refused() -> None:
    with pytest.raises(InputError, match="depth"):
        build_model(depth=18, backbone="resnet34")
