"""The embedding head, and what ``embed`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.models import (
    EmbeddingModel,
    TrainingOutput,
    build_model,
    load_model,
    save_model,
)
from rga_reid.models.embedding import GeM


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return build_model(depth=18, attention="rga", size=(64, 32), classes=5)


def test_training_returns_features_and_logits(model: EmbeddingModel) -> None:
    output = model.train()(torch.rand(4, 3, 64, 32))
    assert isinstance(output, TrainingOutput)
    assert output.pre_neck.shape == output.post_neck.shape == (4, 512)
    assert model.classifier is not None
    torch.testing.assert_close(model.classifier(output.post_neck), output.logits)
    assert not model.neck.bias.requires_grad
    assert model.classifier.bias is None


def striped(stripes: int, classes: int = 5) -> EmbeddingModel:
    torch.manual_seed(0)
    return build_model(depth=18, attention="rga", size=(64, 32), classes=classes, stripes=stripes)


@pytest.mark.parametrize(("stripes", "rows"), [(2, [(0, 2), (2, 4)]), (3, [(0, 2), (1, 3), (2, 4)])])
def test_stripes_are_means_of_rows_of_the_map(stripes: int, rows: list[tuple[int, int]]) -> None:
    """Where the 4 rows of the map cannot be shared out, neighbouring stripes overlap."""
    model = striped(stripes).train()
    images = torch.rand(4, 3, 64, 32)
    seen: list[torch.Tensor] = []
    hook = model.backbone.attention4.register_forward_hook(lambda *call: seen.append(call[2]))
    output = model(images)
    hook.remove()
    x = seen[0].detach().double().numpy()
    parts = [x.mean((2, 3)), *(x[:, :, top:bottom].mean((2, 3)) for top, bottom in rows)]
    np.testing.assert_allclose(output.pre_neck.detach(), np.concatenate(parts, 1), atol=1e-5)
    assert output.post_neck.shape == output.pre_neck.shape == (4, model.dimension)
    assert model.eval()(images).shape == (4, 512 * (1 + stripes))


def test_each_stripe_is_classified_by_itself() -> None:
    model = striped(2).train()
    output = model(torch.rand(4, 3, 64, 32))
    assert output.logits.shape == (4, 3, 5)
    assert model.classifier is not None
    for part in range(3):
        own = output.post_neck[:, 512 * part : 512 * (part + 1)]
        torch.testing.assert_close(output.logits[:, part], own @ model.classifier.weight[:, part].T)


@pytest.mark.parametrize("stripes", [0, 2])
def test_generalised_mean_pooling(stripes: int) -> None:
    """Of the last map: (mean of x^p)^(1/p), in float64 by NumPy; p is trained."""
    model = build_model(depth=18, size=(64, 32), pooling="gem", stripes=stripes).train()
    assert model.gem is not None
    assert model.gem.p.item() == 3
    with torch.no_grad():
        model.gem.p.fill_(2.5)
    seen: list[torch.Tensor] = []
    hook = model.backbone.register_forward_hook(lambda *call: seen.append(call[2]))
    output = model(torch.rand(4, 3, 64, 32))
    hook.remove()
    x = np.maximum(seen[0].detach().double().numpy(), 1e-6)
    parts = [x, x[:, :, :2], x[:, :, 2:]] if stripes else [x]
    expected = [np.power(np.power(part, 2.5).mean((2, 3)), 0.4) for part in parts]
    np.testing.assert_allclose(output.pre_neck.detach(), np.concatenate(expected, 1), rtol=1e-4, atol=1e-6)
    output.pre_neck.sum().backward()
    assert model.gem.p.grad is not None
    assert float(model.gem.p.grad) != 0


def test_generalised_mean_between_mean_and_maximum() -> None:
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(GeM(1.0)(x)[:, :, 0, 0], x.mean((2, 3)))
    torch.testing.assert_close(GeM(500.0)(x)[:, :, 0, 0], x.amax((2, 3)), atol=0.01, rtol=0)
    large = torch.full((1, 1, 2, 2), 100.0, dtype=torch.float16)
    assert GeM().half()(large).item() == pytest.approx(100, rel=1e-3)


def test_a_reduced_embedding() -> None:
    """Linear layer, batch norm with bias, ReLU, as OSNet ends; the classifier sees the result."""
    model = build_model(depth=18, size=(64, 32), classes=5, embedding_dim=16, neck="bn_relu").train()
    assert (model.dimension, model.neck.bias.requires_grad) == (16, True)
    output = model(torch.rand(4, 3, 64, 32))
    pre, post = output.pre_neck.detach().double(), output.post_neck.detach().double()
    normed = (pre - pre.mean(0)) / (pre.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(post, normed.clamp(min=0), atol=1e-4, rtol=1e-4)
    assert output.logits.shape == (4, 5)
    assert model.embedding is not None
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_hook(lambda *call: seen.append(call[2]))
    feature = model.eval()(torch.rand(1, 3, 64, 32))
    reduced = seen[0].mean((2, 3)) @ model.embedding.weight.T
    torch.testing.assert_close(feature, model.neck(reduced).relu())


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max"},
        {"embedding_dim": 0},
        {"embedding_dim": 16, "stripes": 2},
        {"neck": "no"},
    ],
    ids=str,
)
def test_wrong_options_of_the_head(options: dict[str, Any]) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=next(iter(options))):
        build_model(depth=18, size=(64, 32), **options)


def test_embed_is_the_normalised_feature_of_the_normalised_image(model: EmbeddingModel) -> None:
    images = torch.randint(0, 256, (3, 3, 64, 32), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    model.eval()
    with torch.no_grad():
        feature = model((images / 255 - mean) / std)
    expected = feature / feature.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.embed(images, batch_size=2), expected, atol=1e-5, rtol=1e-4)


def test_a_device_that_is_not_there(model: EmbeddingModel, tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 64, 32, dtype=torch.uint8)
    save_model(build_model(depth=18, size=(64, 32)), tmp_path / "m.safetensors")
    for use in (model.embed, lambda image, device: load_model(tmp_path / "m.safetensors", device)):
        with pytest.raises(InputError, match="device 'cuda:99': not available"):
            use(image, device="cuda:99")


def test_more_stripes_than_rows_are_refused() -> None:
    """Neighbours would be the same row."""
    assert striped(4).stripes == 4
    for wrong in (-1, 5, 65, True, 2.5, "2"):
        with pytest.raises(InputError, match=rf"stripes: .* got {wrong!r}"):
            striped(wrong)  # type: ignore[arg-type]


def test_embed_leaves_the_mode_as_it_was(model: EmbeddingModel) -> None:
    model.train()
    model.backbone.bn1.eval()  # frozen
    model.embed(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))
    assert model.training
    assert [norm.training for norm in (model.backbone.bn1, model.neck)] == [False, True]


def test_embeddings_may_be_learned_from(model: EmbeddingModel) -> None:
    embedded = model.embed(torch.zeros(2, 3, 64, 32, dtype=torch.uint8))
    head = torch.nn.Linear(embedded.shape[1], 3)
    head(embedded).sum().backward()
    assert not embedded.requires_grad
    torch.testing.assert_close(head.weight.grad, embedded.sum(0).expand(3, -1))


def test_old_names_of_the_training_output() -> None:
    output = TrainingOutput(torch.zeros(1), torch.ones(1), torch.ones(2))
    with pytest.warns(DeprecationWarning, match="pre_neck"):
        assert output.features is output.pre_neck  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="post_neck"):
        assert output.embedded is output.post_neck  # type: ignore[attr-defined]
