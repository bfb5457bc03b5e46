"""Copies for inference embed as the model does, without its batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rga_reid.attention import ATTENTION_MODULES, RGA
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model, save_model

SIZE = (64, 32)


def build(**options: Any) -> EmbeddingModel:
    """Return a model whose attention acts, with statistics and weights of batch norms that are far from 0 and 1."""
    torch.manual_seed(0)
    model = build_model(weights=None, size=SIZE, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(gamma := getattr(module, "gamma", None), nn.Parameter):
            nn.init.constant_(gamma, 0.5)
    return model


def draw_images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    "options",
    [
        *({"backbone": "resnet18", "attention": name} for name in ATTENTION_MODULES),
        {"backbone": "resnet50"},
        {"backbone": "torchvision/mobilenet_v2", "attention": "rga", "stages": [2, 3]},
        {"backbone": "osnet_x1_0", "pooling": "gem"},
    ],
    ids=str,
)
def test_embeddings_and_norms(options: dict[str, Any]) -> None:
    model, images = build(**options), draw_images()
    expected, state = model.embed(images), {key: value.clone() for key, value in model.state_dict().items()}
    optimized = model.optimize()
    torch.testing.assert_close(optimized.embed(images), expected, rtol=1e-4, atol=1e-6)
    assert count_norms(optimized) == 0 < count_norms(model)
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)  # it was not changed


def test_norms_that_follow_no_convolution_stay() -> None:
    model, images = build(backbone="resnet50_ibn_a"), draw_images()
    optimized = model.optimize()
    torch.testing.assert_close(optimized.embed(images), model.embed(images), rtol=1e-4, atol=1e-6)
    assert 0 < count_norms(optimized) < count_norms(model)


def test_half_precision() -> None:
    model, images = build(backbone="resnet18", attention="rga"), draw_images()
    optimized = model.optimize(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in optimized.parameters()} == {torch.bfloat16}
    embeddings = optimized.embed(images)
    assert embeddings.dtype == torch.float32
    assert (embeddings * model.embed(images)).sum(1).min() > 0.999
    with pytest.raises(InputError, match="int8"):
        model.optimize(dtype=torch.int8)


def test_copies_cannot_be_saved(tmp_path: Any) -> None:
    with pytest.raises(InputError):
        save_model(build(backbone="resnet18").optimize(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("kinds", [{}, {"channel": False}, {"spatial": False}], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rga_folds_for_its_current_map_size(
    kinds: dict[str, bool], memory_format: torch.memory_format
) -> None:
    module = RGA(16, (8, 4), **kinds)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    module.eval().set_map_size((6, 3))
    x = torch.randn(2, 16, 6, 3).to(memory_format=memory_format)
    torch.testing.assert_close(module.fold()(x), module.relations(x).output)
