"""Grad-CAM and activation maps, against formulas written again here; gates of attention modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rga_reid.attention import CBAM
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel, build_model
from rga_reid.models.analysis import capture_gates, capture_stages, compute_gates
from rga_reid.models.saliency import (
    activation_map,
    embedding_norm,
    grad_cam,
    identity_logit,
    similarity_to,
)

SIZE = (64, 32)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)


class Patches(nn.Module):
    """A small convolutional backbone; channels of its map have both signs."""

    channels = 5
    size = SIZE

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.channels, 16, stride=16)
        self.act = nn.ReLU(inplace=inplace)

    def map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return [(size[0] // 16, size[1] // 16)]

    def attention_stages(self) -> dict[int, nn.Module]:
        return {}

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


class BeforeActivation(Patches):
    """Its hook point is before a ReLU."""

    def map_layer(self) -> nn.Module:
        return self.conv

    def to_map(self, output: Tensor) -> Tensor:
        return output

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.conv(images))


class Tokens(Patches):
    """Tokens (n, 1 + positions, C) as in a transformer; the feature is a mean of patches and the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(self.channels, self.channels)

    def map_layer(self) -> nn.Module:
        return self.block

    def to_map(self, output: Tensor) -> Tensor:
        return output[:, 1:].mT.unflatten(2, self.map_sizes(SIZE)[0])

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv(images).flatten(2).mT
        tokens = self.block(torch.cat([patches.mean(1, keepdim=True), patches], 1))
        return tokens.square().mean(1)[:, :, None, None]


def embedding_model(backbone: Any, **options: Any) -> EmbeddingModel:
    """A model whose neck does something."""
    model = EmbeddingModel(backbone, **options).eval()
    model.neck.weight.data.uniform_(0.5, 2)
    model.neck.running_mean.uniform_(-1, 1)
    return model


def cam_by_hand(model: EmbeddingModel, maps: Tensor, score: Any) -> np.ndarray:
    """Grad-CAM of one picture, before the ReLU, of the network with its neck moved before the pooling.

    As in the paper's equations, channel by channel, in float64.
    """
    after_neck = model.neck.double()(maps.double().flatten(2).mT.flatten(0, 1)).mT.unflatten(
        1, maps.shape[2:]
    )
    model.neck.float()
    leaf = after_neck[None].detach().requires_grad_()
    score(leaf.mean((2, 3))).sum().backward()
    out = np.zeros(maps.shape[2:])
    for activation, gradient in zip(leaf.detach().numpy()[0], leaf.grad.numpy()[0], strict=True):
        out += gradient.sum() / gradient.size * activation
    return out


def test_a_linear_score_of_the_pooled_map_weighs_its_channels(pixels: Tensor) -> None:
    model = EmbeddingModel(Patches()).eval()
    w = torch.randn(5)
    found = grad_cam(model, pixels, lambda features: features @ w)
    with torch.no_grad():
        maps = model.backbone(model.normalise(pixels))
    weighed = torch.einsum("c,nchw->nhw", w, maps) / 8 / (1 + model.neck.eps) ** 0.5
    torch.testing.assert_close(found.signed, weighed)
    torch.testing.assert_close(found.maps, weighed.clamp(min=0))
    assert (weighed < 0).any()
    torch.testing.assert_close(found.signed.sum((1, 2)), found.scores)


def test_each_score_follows_the_equations(pixels: Tensor) -> None:
    model = embedding_model(build_model(depth=18, attention="cbam", size=SIZE).backbone, classes=4)
    nn.init.normal_(model.classifier.weight)
    reference = torch.randn(model.dimension)
    weight = model.classifier.weight.detach().double()
    with torch.no_grad():
        maps = model.backbone(model.normalise(pixels))
        features = model(model.normalise(pixels)).double()
    for row in (0, 1):
        length = features[row].norm()
        scores = {
            "similarity": (
                similarity_to(reference),
                lambda f, length=length: (f * reference.double()).sum() / length / reference.double().norm(),
            ),
            "logit": (identity_logit(model, 2), lambda f: (f * weight[2]).sum()),
            "length": (embedding_norm, lambda f: f.square().sum().sqrt()),
        }
        for name, (score, by_hand) in scores.items():
            found = grad_cam(model, pixels, score)
            expected = cam_by_hand(model, maps[row : row + 1], by_hand)
            assert np.ptp(expected) > 0, name
            np.testing.assert_allclose(
                found.signed[row], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
            )
            np.testing.assert_allclose(found.maps[row], np.maximum(found.signed[row], 0))
            assert float(found.scores[row]) == pytest.approx(float(by_hand(features[row])), rel=1e-4)
            assert found.signed[row].sum() == pytest.approx(float(found.scores[row]), rel=1e-4)


def test_stripes_take_part(pixels: Tensor) -> None:
    model = embedding_model(Patches(), classes=4, stripes=2)
    nn.init.normal_(model.classifier.weight)
    found = grad_cam(model, pixels, identity_logit(model, 2))
    with torch.no_grad():
        maps = model.backbone(model.normalise(pixels))
        parts = model(model.normalise(pixels)).unflatten(1, (3, 5))
    logits = torch.einsum("npc,pc->n", parts, model.classifier.weight[2]) / 3
    torch.testing.assert_close(found.scores, logits)
    torch.testing.assert_close(found.signed.sum((1, 2)), logits)
    scale = (model.neck.weight / (model.neck.running_var + model.neck.eps).sqrt()).view(3, 5)
    alpha = (
        (scale * model.classifier.weight[2]).sum(0) / 3 / 8
    )  # the mean over positions: each is in one stripe
    alpha_map = torch.einsum("c,nchw->nhw", alpha, maps)
    constant = found.signed - alpha_map
    torch.testing.assert_close(constant, constant.mean((1, 2), keepdim=True).expand_as(constant))


def test_a_gradient_predicts_the_change_of_the_similarity(pixels: Tensor) -> None:
    """Against finite differences, where no autograd is involved; before the neck's constant is added."""
    model = embedding_model(Patches())
    reference = torch.randn(5)
    found = grad_cam(model, pixels[:1], similarity_to(reference))
    with torch.no_grad():
        maps = model.backbone(model.normalise(pixels[:1])).double()
        neck = model.neck.double()
        length = neck(maps.mean((2, 3))).norm()

        def similarity(maps: Tensor) -> Tensor:
            return neck(maps.mean((2, 3)))[0] @ reference.double() / reference.double().norm() / length

        weights = []
        for channel in range(5):
            step = torch.zeros_like(maps)
            step[:, channel] = 1e-5
            weights.append(float(similarity(maps + step) - similarity(maps - step)) / 2e-5 / 8)
        zero = maps.clone()
        zero[:] = (neck.running_mean - neck.bias / neck.weight * (neck.running_var + neck.eps).sqrt())[
            :, None, None
        ]
        assert float(similarity(zero).abs()) < 1e-9
    expected = torch.einsum("c,chw->hw", torch.tensor(weights).double(), (maps - zero)[0])
    torch.testing.assert_close(found.signed[0].double(), expected, rtol=1e-3, atol=1e-5)


def test_layers_after_the_hook_may_work_in_place(pixels: Tensor) -> None:
    torch.manual_seed(1)
    plain = embedding_model(BeforeActivation())
    torch.manual_seed(1)
    inplace = embedding_model(BeforeActivation(inplace=True))
    for one, two in zip(
        grad_cam(plain, pixels, embedding_norm), grad_cam(inplace, pixels, embedding_norm), strict=True
    ):
        assert torch.equal(one, two)
    assert torch.equal(activation_map(plain, pixels), activation_map(inplace, pixels))
    with torch.no_grad():
        assert (plain.backbone.conv(plain.normalise(pixels)) < 0).any()


def test_tokens_become_maps(pixels: Tensor) -> None:
    model = embedding_model(Tokens())
    found = grad_cam(model, pixels, embedding_norm)
    tokens = []
    handle = model.backbone.block.register_forward_hook(lambda _, __, output: tokens.append(output))
    score = model(model.normalise(pixels)).norm(dim=1).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, tokens[0])
    alpha = gradient[:, 1:].mean(1)  # without the class token
    expected = torch.einsum("nc,npc->np", alpha, tokens[0][:, 1:]).unflatten(1, (4, 2))
    torch.testing.assert_close(found.signed, expected)
    energy = tokens[0][:, 1:].square().sum(2)
    expected = (energy / energy.square().sum(1, keepdim=True).sqrt()).unflatten(1, (4, 2))
    torch.testing.assert_close(activation_map(model, pixels), expected.detach())


def test_the_activation_is_that_of_torchreid(pixels: Tensor) -> None:
    model = build_model(depth=18, size=SIZE).eval()
    with torch.no_grad():
        outputs = model.backbone(model.normalise(pixels)).double().numpy()
    energy = (outputs**2).sum(1)
    expected = energy / np.linalg.norm(energy.reshape(2, -1), axis=1)[:, None, None]
    np.testing.assert_allclose(activation_map(model, pixels), expected, rtol=1e-4)
    for parameter in model.backbone.parameters():
        parameter.data.zero_()
    assert activation_map(model, pixels).eq(0).all()


def test_the_model_is_left_as_it_was(pixels: Tensor) -> None:
    model = build_model(depth=18, size=SIZE, attention="se").train()
    model.neck.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode():
        grad_cam(model, pixels, embedding_norm)
    activation_map(model, pixels)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert not model.neck.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.backbone._forward_hooks


class NoMap(Patches):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean((2, 3), keepdim=True)


class Elsewhere(BeforeActivation):
    """Its hook point does not lead to the output."""

    def forward(self, images: Tensor) -> Tensor:
        self.conv(images)
        return images.mean((2, 3), keepdim=True)[:, [0, 1, 2, 0, 1]]


def test_models_without_a_map_or_classifier_are_refused(pixels: Tensor) -> None:
    for compute in (
        lambda model: grad_cam(model, pixels, embedding_norm),
        lambda m: activation_map(m, pixels),
    ):
        with pytest.raises(InputError, match=r"NoMap: .*\(2, 5, 1, 1\)"):
            compute(EmbeddingModel(NoMap()))
    for frozen in (False, True):
        with pytest.raises(InputError, match="last map"):
            grad_cam(EmbeddingModel(Elsewhere()).requires_grad_(not frozen), pixels, embedding_norm)
    with pytest.raises(InputError, match="classifier"):
        identity_logit(EmbeddingModel(Patches()), 0)
    for identity in (-1, 4):
        with pytest.raises(InputError, match="from 0 to 3"):
            identity_logit(EmbeddingModel(Patches(), 4), identity)


class Plain(nn.Module):
    """A user's attention: ``forward`` only, in place."""

    def __init__(self, in_channels: int, size: Any) -> None:
        super().__init__()
        del size

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.25)


class Gated(Plain):
    """A user's attention with gates."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)["where"]

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        return {"where": x.mean(1, keepdim=True).sigmoid(), "which": x.mean((2, 3), keepdim=True).sigmoid()}


def user_model(attention: type[nn.Module]) -> EmbeddingModel:
    return build_model(
        depth=18, size=SIZE, stages=(2, 4), attention=f"{__name__}.{attention.__name__}"
    ).eval()


def test_attention_without_relations_is_captured(pixels: Tensor) -> None:
    model = user_model(Plain)
    one, two = capture_stages(model, pixels[:1])
    assert (one.stage, one.mechanism, one.matrices, one.weights) == (2, "Plain", {}, {})
    body = model.backbone
    with torch.no_grad():
        x = body.maxpool(body.relu(body.bn1(body.conv1(model.normalise(pixels[:1])))))
        x = body.layer2(body.layer1(x))
    torch.testing.assert_close(one.x, x)
    torch.testing.assert_close(one.output, 0.25 * x)
    assert [step.symbol for step in two.flow] == ["x", "out"]
    assert capture_gates(model, pixels[:1]) == []


def test_gates_are_captured(pixels: Tensor) -> None:
    model = user_model(Gated)
    captures = capture_stages(model, pixels[:1])
    gates = capture_gates(model, pixels[:1])
    assert [(place, name) for place, name, _ in gates] == [
        ("attention 2", "where"),
        ("attention 2", "which"),
        ("attention 4", "where"),
        ("attention 4", "which"),
    ]
    for capture, (where, which) in zip(captures, (gates[:2], gates[2:]), strict=True):
        x = capture.x
        torch.testing.assert_close(where.weights, torch.sigmoid(x.sum(1, keepdim=True) / x.shape[1]))
        torch.testing.assert_close(which.weights[0, :, 0, 0], torch.sigmoid(x[0].flatten(1).mean(1)))
        assert list(capture.weights) == ["where", "which"]
        torch.testing.assert_close(capture.output, x * where.weights)


def test_gates_of_our_modules_scale_the_map(pixels: Tensor) -> None:
    model = build_model(depth=18, size=SIZE, stages=(3,), attention="cbam").eval()
    (capture,) = capture_stages(model, pixels[:1])
    channel, spatial = capture_gates(model, pixels[:1])
    assert (channel.place, channel.name, spatial.name) == ("attention 3", "channel", "spatial")
    torch.testing.assert_close(capture.output, capture.x * channel.weights * spatial.weights)
    assert capture_gates(build_model(depth=18, size=SIZE, attention="pam"), pixels[:1]) == []


def test_a_gated_layer_inside_the_backbone_is_found(pixels: Tensor) -> None:
    model = build_model(depth=18, size=SIZE)
    model.backbone.layer3[1].add_module("excite", Gated(256, None))
    layer = model.backbone.layer3[1]
    layer.bn2 = nn.Sequential(layer.bn2, layer.excite)
    del layer.excite
    model.backbone.layer4.add_module("gates", nn.Identity())  # a submodule of that name is not a method
    assert [gate.place for gate in capture_gates(model, pixels[:1])] == ["layer3.1.bn2.1"] * 2


@pytest.mark.parametrize(
    "wrong", [None, [1], {"a": 1.0}, {"a": torch.ones(1, 8, 4, 4)}, {"a": torch.ones(8)}]
)
def test_gates_of_another_form_are_refused(wrong: Any) -> None:
    module = Gated(8, None)
    module.gates = type("Other", (Gated,), {"gates": lambda self, x: wrong})(8, None).gates  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"Gated\.gates"):
        compute_gates(module, torch.ones(1, 8, 4, 4))
    assert set(compute_gates(CBAM(16), torch.ones(1, 16, 4, 4))) == {"channel", "spatial"}
