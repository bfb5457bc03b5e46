"""Initial weights: published files, downloads, and checkpoints of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model, load_model, save_model
from rga_reid.models.checkpoints import CONFIG_KEY

SIZE = (64, 32)


def make_bare(choice: str) -> nn.Module:
    library, _, name = choice.rpartition("/")
    if library == "timm":
        return timm.create_model(name, num_classes=7)
    return torchvision.models.get_model(name, weights=None, num_classes=7)


def write_safetensors(state: dict[str, Tensor], file: Path) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, file.with_suffix(".safetensors"))
    return file.with_suffix(".safetensors")


def write_wrapped(state: dict[str, Tensor], file: Path) -> Path:
    """As torchreid saves a model trained on several GPUs."""
    torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}, "epoch": 3}, file)
    return file


def write_bare(state: dict[str, Tensor], file: Path) -> Path:
    torch.save(state, file)
    return file


def own_state(model: EmbeddingModel) -> dict[str, Tensor]:
    return {key.removeprefix("net."): value for key, value in model.backbone.state_dict().items()}


@pytest.mark.parametrize(
    ("choice", "write"),
    [
        ("resnet18", write_bare),
        ("resnet18", write_wrapped),
        ("timm/mobilenetv2_100", write_wrapped),
        ("timm/convnext_atto", write_safetensors),
        ("torchvision/mobilenet_v2", write_bare),
    ],
)
def test_published_files(choice: str, write: Callable[..., Path], tmp_path: Path) -> None:
    """The classifier of other classes is left out."""
    state = make_bare(choice).state_dict()
    model = build_model(backbone=choice, weights=write(state, tmp_path / "w.pth"), size=SIZE)
    found = own_state(model)
    assert len(found) > 50
    for key, value in found.items():
        assert torch.equal(value, state[key]), key
    assert "weights" not in (model.config or {})


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    """From 14x14 patches of 224x224 images to 4x2: a ramp stays one, and the class token is kept."""
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    ramp = torch.linspace(0, 1, 14)[:, None, None].expand(14, 14, 192).reshape(1, 196, 192)
    net.pos_embed.data = torch.cat([torch.full((1, 1, 192), 7.0), ramp], 1)
    file = write_bare(net.state_dict(), tmp_path / "w.pth")
    found = own_state(build_model(backbone="timm/vit_tiny_patch16_224", weights=file, size=SIZE))["pos_embed"]
    assert found.shape == (1, 1 + 4 * 2, 192)
    assert (found[0, 0] == 7).all()
    rows = found[0, 1:].view(4, 2, 192)
    torch.testing.assert_close(rows[:, 0], rows[:, 1])
    torch.testing.assert_close(rows[:, 0, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]), atol=0.05, rtol=0)


@pytest.mark.parametrize("choice", ["resnet18", "timm/mobilenetv2_100", "torchvision/mobilenet_v2"])
def test_weights_that_fit_partly_are_refused(choice: str, tmp_path: Path) -> None:
    state = make_bare(choice).state_dict()
    names = [key for key in state if not key.startswith(("fc", "classifier")) and key.endswith(".weight")]
    for key in names[:12]:
        del state[key]
    unexpected = "features.99.weight" if "torchvision" in choice else "extra.weight"
    state[unexpected] = torch.zeros(1)
    with pytest.raises(InputError, match=r"w\.pth") as error:
        build_model(backbone=choice, weights=write_bare(state, tmp_path / "w.pth"), size=SIZE)
    message = str(error.value)
    assert "12 keys missing" in message
    assert f"({', '.join(sorted(names[:12])[:10])}, ...)" in message
    assert unexpected in message


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = write_bare(make_bare("resnet18").state_dict(), tmp_path / "w.pth")
    for choice in ("timm/convnext_atto", "timm/vit_tiny_patch16_224", "torchvision/mobilenet_v2"):
        with pytest.raises(InputError, match=r"w\.pth"):
            build_model(backbone=choice, weights=file, size=SIZE)


def test_timm_downloads_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an offline machine the message says what to do."""
    asked: list[Any] = []

    def create(name: str, pretrained: bool, **options: Any) -> None:
        asked.append((name, pretrained))
        raise OSError("name resolution failed")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(InputError, match=r"weights.*convnext_atto.*offline") as error:
        build_model(backbone="timm/convnext_atto.d2_in1k", weights="imagenet", size=SIZE)
    assert "\n" not in str(error.value)
    assert asked == [("convnext_atto.d2_in1k", True)]


@pytest.mark.parametrize("versions", [("DEFAULT",), ("IMAGENET1K_V1", "DEFAULT")])
def test_torchvision_downloads_its_weights(
    versions: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, other = (make_bare("torchvision/mobilenet_v2") for _ in range(2))
    first = SimpleNamespace(get_state_dict=lambda **_: bare.state_dict())
    second = SimpleNamespace(get_state_dict=lambda **_: other.state_dict())
    weights = SimpleNamespace(**dict(zip(versions, (first, second), strict=False)))
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: weights)
    model = build_model(backbone="torchvision/mobilenet_v2", weights="imagenet", size=SIZE)
    assert torch.equal(own_state(model)["features.4.conv.0.0.weight"], bare.features[4].conv[0][0].weight)


def save_trained(model: EmbeddingModel, file: Path) -> Path:
    """Write a checkpoint as training does."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.01)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, CONFIG_KEY: model.config}, file)
    return file


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_fine_tuning(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything but the classifier is loaded, including attention, neck and the normalisation."""
    options: dict[str, Any] = {"backbone": "timm/convnext_atto", "attention": "se", "size": SIZE}
    trained = build_model(**options, classes=5, mean=(0.4, 0.5, 0.6))
    file = save_trained(trained, tmp_path / "m.ckpt")
    if suffix == "safetensors":
        file = tmp_path / "m.safetensors"
        save_model(trained, file)
    model = build_model(**options, classes=9, weights=file)
    assert model.classifier is not None
    assert len(model.classifier.weight) == 9
    expected = trained.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(value, expected[key]), key
    assert model.mean == (0.4, 0.5, 0.6)
    report = capsys.readouterr().err
    assert report.count("\n") == 1
    assert str(file) in report
    assert ("classifier of 5 identities" in report) == (suffix == "ckpt")


def test_fine_tuning_with_other_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report names attention modules and necks that are left out or new."""
    trained = build_model(depth=18, attention="se", stages=[2, 3], size=SIZE)
    file = save_trained(trained, tmp_path / "m.ckpt")
    model = build_model(depth=18, attention="se", stages=[3, 4], size=SIZE, stripes=2, weights=file)
    expected, found = trained.backbone.state_dict(), model.backbone.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in found if "attention4" not in key)
    used, new = capsys.readouterr().err.split("; new: ")
    assert [name in used for name in ("attention2", "attention3", "attention4", "neck")] == [
        True,
        False,
        False,
        True,
    ]
    assert [name in new for name in ("attention2", "attention3", "attention4", "neck")] == [
        False,
        False,
        True,
        True,
    ]


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    file = save_trained(build_model(depth=18, size=SIZE), tmp_path / "m.ckpt")
    with pytest.raises(InputError, match=r"m\.ckpt.*resnet18.*resnet34"):
        build_model(depth=34, weights=file, size=SIZE)


@pytest.mark.parametrize("stripes", [0, 2])
def test_the_classifier_is_kept_on_request(stripes: int, tmp_path: Path) -> None:
    trained = build_model(depth=18, size=SIZE, classes=6, stripes=stripes)
    file = save_trained(trained, tmp_path / "m.ckpt")
    model = load_model(file, classifier=True)
    assert model.classifier is not None
    assert trained.classifier is not None
    assert torch.equal(model.classifier.weight, trained.classifier.weight)
    assert load_model(file).classifier is None
    save_model(trained, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"m\.safetensors.*classifier"):
        load_model(tmp_path / "m.safetensors", classifier=True)
