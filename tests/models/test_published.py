"""Checkpoints of torchvision, torchreid and fast-reid against the networks they come from, built here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.models import load_model, read_published

SIZE = (64, 32)


def network(depth: int, *, last_stride: int = 2, ceil: bool = False) -> nn.Module:
    """torchvision's network with random weights and statistics, changed as other programs change it."""
    torch.manual_seed(depth)
    body = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=5).eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if last_stride == 1:
        body.layer4[0].conv1.stride = body.layer4[0].downsample[0].stride = (1, 1)
    if ceil:
        body.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return body


def pooled(body: nn.Module, images: Tensor) -> Tensor:
    """What the network pools from images, normalised as for ImageNet."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen: list[Tensor] = []
    body.avgpool.register_forward_hook(lambda _module, _input, output: seen.append(output.flatten(1)))
    with torch.no_grad():
        body((images / 255 - mean) / std)
    return seen[0]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_torchvision(depth: int, images: Tensor, tmp_path: Path) -> None:
    body = network(depth)
    torch.save(body.state_dict(), tmp_path / "m.pth")
    read = read_published(tmp_path / "m.pth", size=SIZE)
    assert (read.source, read.unused, read.model.size) == ("torchvision", ("fc.bias", "fc.weight"), SIZE)
    expected = F.normalize(pooled(body, images))
    torch.testing.assert_close(read.model.embed(images), expected, atol=1e-5, rtol=1e-4)


def test_torchreid(images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = network(18)
    state = {f"module.{key.replace('fc.', 'classifier.')}": value for key, value in body.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 60, "rank1": 0.9}, tmp_path / "model.pth.tar-60")
    target = tmp_path / "m.safetensors"
    words = ["convert", str(tmp_path / "model.pth.tar-60"), str(target), "--size", "64", "32"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "ResNet-18 with no attention for 64x32 images, from torchreid" in said
    assert "not used: classifier.bias, classifier.weight" in said
    expected = F.normalize(pooled(body, images))
    torch.testing.assert_close(load_model(target).embed(images), expected, atol=1e-5, rtol=1e-4)
    assert main([*words, "--last-stride", "1", "--overwrite"]) == 0
    assert load_model(target).backbone.last_stride == 1


def fast_reid(body: nn.Module, channels: int = 512) -> dict[str, Tensor]:
    """The state of a fast-reid model, with a neck whose statistics matter."""
    state = {f"backbone.{k}": v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    generator = torch.Generator().manual_seed(3)
    neck = {
        name: torch.rand(channels, generator=generator) for name in ("weight", "running_mean", "running_var")
    }
    state |= {f"heads.bottleneck.0.{name}": value + 0.5 for name, value in neck.items()}
    state["heads.bottleneck.0.bias"] = torch.zeros(channels)
    state["heads.bottleneck.0.num_batches_tracked"] = torch.tensor(3)
    state["heads.weight"] = torch.zeros(751, channels)
    state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    state["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    return state


def test_fast_reid(images: Tensor, tmp_path: Path) -> None:
    body = network(18, last_stride=1, ceil=True)
    state = fast_reid(body)
    torch.save({"model": state, "iteration": 100}, tmp_path / "model_best.pth")
    read = read_published(tmp_path / "model_best.pth", size=SIZE, pooling="avg")
    assert (read.source, read.unused) == ("fast-reid", ("heads.weight",))
    assert read.model.mean == pytest.approx((0.485, 0.456, 0.406))
    neck = {key: value for key, value in state.items() if "bottleneck" in key}
    mean, var, weight = (neck[f"heads.bottleneck.0.{n}"] for n in ("running_mean", "running_var", "weight"))
    expected = F.normalize((pooled(body, images) - mean) / (var + 1e-5).sqrt() * weight)
    torch.testing.assert_close(read.model.embed(images), expected, atol=1e-5, rtol=1e-4)


def test_files_that_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    state = network(18).state_dict()
    torch.save(state | {"layer2.1.more.weight": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(
        InputError, match=r"more\.pth: .*1 keys unknown \(backbone\.layer2\.1\.more\.weight\)"
    ):
        read_published(tmp_path / "more.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("layer3.1")}, tmp_path / "less.pth")
    with pytest.raises(InputError, match=r"less\.pth: a ResNet with \(2, 2, 1, 2\) blocks"):
        read_published(tmp_path / "less.pth")
    torch.save({f"some.{number}": torch.ones(1) for number in range(20)}, tmp_path / "other.pth")
    out = str(tmp_path / "out.safetensors")
    error = refused("convert", str(tmp_path / "other.pth"), out)
    assert "found 20 tensors" in error
    assert error.count("some.") == 10
    assert not Path(out).exists()
