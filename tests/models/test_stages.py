"""Captures: what each module of attention saw, against a run by hand."""

from __future__ import annotations

import pytest
import torch

from rga_reid.attention import NonLocal
from rga_reid.errors import InputError
from rga_reid.models import build_model
from rga_reid.models.analysis import attention_name, capture_stages, untrained_model
from rga_reid.reports.glossary import lookup


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 64, 32), dtype=torch.uint8, generator=generator)


def test_each_stage_saw_what_the_backbone_gave_it(pixels: torch.Tensor) -> None:
    model = untrained_model("rga", pixels, depth=18, size=(64, 32))
    captures = capture_stages(model, pixels)
    assert [(c.stage, c.mechanism) for c in captures] == [(n, "rga") for n in (1, 2, 3, 4)]
    body = model.backbone
    with torch.inference_mode():
        x = body.maxpool(body.relu(body.bn1(body.conv1(model.normalise(pixels)))))
        for capture in captures:
            x = getattr(body, f"layer{capture.stage}")(x)
            torch.testing.assert_close(capture.x, x)
            x = getattr(body, f"attention{capture.stage}")(x)
            torch.testing.assert_close(capture.output, x, rtol=1e-4, atol=1e-5)


def test_untrained_models_of_a_seed_share_their_backbone(pixels: torch.Tensor) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second = (untrained_model(name, pixels, depth=18, size=(64, 32)) for name in ("pam", "cam"))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.backbone.layer4[1].conv2.weight, second.backbone.layer4[1].conv2.weight)
    drop = {"class_path": "rga_reid.attention.DualAttention", "init_args": {"head": True}}  # which draws, too
    one, two = (untrained_model(drop, pixels, depth=18, size=(64, 32), stages=(1,)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for first_norm, second_norm in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(first_norm, second_norm)
    other = untrained_model("pam", pixels, depth=18, size=(64, 32), seed=1)
    assert not torch.equal(first.backbone.conv1.weight, other.backbone.conv1.weight)


def test_untrained_batch_norms_know_the_picture(pixels: torch.Tensor) -> None:
    model = untrained_model("pam", pixels, depth=18, size=(64, 32))
    first = model.backbone.conv1(model.normalise(pixels)).detach()
    torch.testing.assert_close(model.backbone.bn1.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert model.backbone.bn1.momentum == 0.1
    assert not model.training


def test_a_model_without_attention_is_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(InputError, match="expected attention after at least one stage"):
        capture_stages(build_model(depth=18, size=(64, 32)), pixels)


@pytest.mark.parametrize("name", ["rga", "rga_s", "rga_c", "pam", "cam", "nonlocal", "criss_cross", "se"])
def test_names(name: str) -> None:
    model = build_model(depth=18, size=(64, 32), attention=name, stages=(2,))
    assert attention_name(model.backbone.attention2) == name


@pytest.mark.parametrize("mode", ["gaussian", "dot_product", "concatenation"])
def test_modes_that_mean_something_else_are_part_of_the_name(mode: str) -> None:
    assert attention_name(NonLocal(8, mode=mode)) == f"nonlocal_{mode}"
    assert lookup(f"nonlocal_{mode}").title.startswith("Non-local block, ")
