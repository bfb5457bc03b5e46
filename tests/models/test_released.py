"""Checkpoints of the released RGA code: numbers, forms and sizes."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model, load_model, read_official_rga
from tests.states import weights_by_formula

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """The released RGA-SC network at 256x128, with 751 classes."""
    keys = json.loads((FIXTURES / "network_256x128_keys.json").read_text())["rgasc"]
    return OrderedDict((key, weights_by_formula(key, tuple(shape))) for key, shape in keys.items())


def assert_published(model: EmbeddingModel) -> None:
    """Pooled feature and feature after the neck are those of the published network, to 1e-4 relative."""
    x = torch.from_numpy(np.random.default_rng(3000).standard_normal((2, 3, 256, 128)).astype(np.float32))
    expected = np.load(FIXTURES / "network_256x128.npz")
    with torch.no_grad():
        pooled = model.backbone(x).mean((2, 3)).numpy()
        embedded = model(x).numpy()
    for ours, key in ((pooled, "rgasc/feat_"), (embedded, "rgasc/feat")):
        assert np.abs(ours - expected[key]).max() < 1e-4 * np.abs(expected[key]).max()


def test_reproduces_the_released_network(released: dict[str, Tensor], tmp_path: Path) -> None:
    """As the released code saves it: from DataParallel, in a dictionary with NumPy numbers."""
    wrapped = {
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in released.items()),
        "epoch": 600,
        "best_top1": np.float64(0.961),
        "best_epoch": np.int64(590),
    }
    torch.save(wrapped, tmp_path / "checkpoint_600.pth.tar")
    model = read_official_rga(tmp_path / "checkpoint_600.pth.tar")
    assert model.size == (256, 128)
    assert not model.training
    assert_published(model)


@pytest.mark.slow
def test_converted_model_is_loaded_like_any_other(
    released: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(released, tmp_path / "bare.pth")
    target = tmp_path / "rga.safetensors"
    assert main(["convert", str(tmp_path / "bare.pth"), str(target)]) == 0
    assert "ResNet-50 with rga for 256x128" in capsys.readouterr().out
    assert_published(load_model(target))


def as_released(model: EmbeddingModel) -> dict[str, Tensor]:
    """Return the state of one of our models under the released code's names."""
    names = {"backbone.attention": "backbone.rga_att", "neck.": "feat_bn.", "classifier.": "cls."}
    state = {}
    for key, value in model.state_dict().items():
        prefix = next((ours for ours in names if key.startswith(ours)), "")
        state[names.get(prefix, "") + key.removeprefix(prefix)] = value
    return state


def empty_release(attention: str, size: tuple[int, int], classes: int = 0) -> dict[str, Tensor]:
    """Return a state of the released code whose weights are zeros, for what depends on keys and shapes."""
    with torch.device("meta"):
        model = build_model(depth=50, attention=attention, size=size, classes=classes)
    return {key: torch.zeros(value.shape, dtype=torch.half) for key, value in as_released(model).items()}


@pytest.mark.parametrize(
    ("attention", "size", "classes"),
    [
        ("rga_s", (96, 64), 1041),
        ("rga_c", (64, 32), 3),
        pytest.param("rga", (128, 64), 3, marks=pytest.mark.slow),  # in the fast tier as published
    ],
)
def test_kind_and_size_follow_from_shapes(
    attention: str, size: tuple[int, int], classes: int, tmp_path: Path
) -> None:
    state = empty_release(attention, size, classes)
    name = f"W_{'channel' if attention == 'rga_c' else 'spatial'}.4.bias"
    state[f"backbone.rga_att4.{name}"] += 3
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    read = read_official_rga(tmp_path / "m.pth", size=None if size[0] == 2 * size[1] else size)
    assert read.size == size
    assert read.config is not None
    assert read.config["attention"] == attention
    assert read.backbone.attention4.state_dict()[name].tolist() == [3]


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save(empty_release("rga_s", (96, 64)), tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"m\.pth: .*384 positions"):
        read_official_rga(tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"384 positions.*2048"):
        read_official_rga(tmp_path / "m.pth", size=(256, 128))


def test_other_checkpoints_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: .* checkpoint of the released RGA code.*conv1"):
        read_official_rga(tmp_path / "other.pth")
    incomplete = empty_release("rga_c", (64, 32))
    del incomplete["backbone.layer3.0.conv1.weight"]
    torch.save(incomplete, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part\.pth: .* do not fit .*1 keys missing \(backbone\.layer3"):
        read_official_rga(tmp_path / "part.pth")
    out = str(tmp_path / "out.safetensors")
    assert "other.pth" in refused("convert", str(tmp_path / "other.pth"), out)
    assert "missing.pth: no such file" in refused("convert", str(tmp_path / "missing.pth"), out)
    assert ".safetensors" in refused("convert", str(tmp_path / "other.pth"), str(tmp_path / "out.ckpt"))
    assert not Path(out).exists()
    Path(out).write_text("precious")
    assert "--overwrite" in refused("convert", str(tmp_path / "other.pth"), out)
    assert Path(out).read_text() == "precious"
