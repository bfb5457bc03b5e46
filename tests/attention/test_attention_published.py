"""Attention modules against the numbers of their published implementations."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from rga_reid.attention import CAM, PAM, RGA, CrissCross, NonLocal, criss_cross

TAILS = ("1d_sub0_bn0", "1d_sub1_bn1", "3d_sub0_bn0", "3d_sub1_bn1")
TAILS += ("2d_sub0_bn0", "2d_sub0_bn1", "2d_sub1_bn0", "2d_sub1_bn1")
NON_LOCAL = [
    f"nonlocal_{mode}_{tail}"
    for mode in ("concatenation", "dot_product", "embedded_gaussian", "gaussian")
    for tail in TAILS
]
CASES = ["rga_spatial", "rga_channel", "rga_spatial_channel", "pam", "cam", *NON_LOCAL]
CASES += ["criss_cross_r1", "criss_cross_r2"]


def build(case: str) -> nn.Module:
    if match := re.fullmatch(r"nonlocal_(\w+)_(\d)d_sub(\d)_bn(\d)", case):
        mode, dim, sub_sample, bn_layer = match.groups()
        return NonLocal(16, mode=mode, dim=int(dim), sub_sample=sub_sample == "1", bn_layer=bn_layer == "1")
    if case.startswith("rga"):
        return RGA(64, (16, 8), spatial="spatial" in case, channel="channel" in case)
    if case.startswith("criss_cross"):
        return CrissCross(64, recurrence=int(case[-1]))
    return {"pam": PAM, "cam": CAM}[case](64)


def load(case: str, numbers: dict[str, Tensor]) -> nn.Module:
    module = build(case)
    prefixes = ("state/cca.", "state/")
    state = {
        key[len(next(p for p in prefixes if key.startswith(p))) :]: value
        for key, value in numbers.items()
        if key.startswith("state/")
    }
    module.load_state_dict(state, strict=True)
    return module


def subsample(tensor: Tensor) -> Tensor:
    """Return the numbers that the fixture keeps: every 7th of a large tensor."""
    return tensor.flatten()[::7] if tensor.numel() > 10_000 else tensor


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(theirs.abs().max()))
    assert float((subsample(ours.detach()) - theirs).abs().max()) <= bound


def test_all_published_cases_are_tested(published: dict[str, dict[str, Tensor]]) -> None:
    assert set(published) == set(CASES)


@pytest.mark.parametrize("case", ["criss_cross_r1", "criss_cross_r2"])
def test_criss_cross_of_large_maps(
    case: str, published: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published map is small; the form for large maps gives the same."""
    monkeypatch.setattr(criss_cross, "MAX_DENSE", 0)
    test_outputs_and_gradients(case, published)


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients(case: str, published: dict[str, dict[str, Tensor]]) -> None:
    numbers = published[case]
    module = load(case, numbers)
    x = numbers["x"].clone().requires_grad_()
    assert_same(module.eval()(x), numbers["y_eval"])
    y = module.train()(x)
    assert_same(y, numbers["y_train"])

    (y * numbers["loss_weight"]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    expected = {
        key.removeprefix("grad/").removeprefix("cca."): value
        for key, value in numbers.items()
        if key.startswith("grad/")
    }
    assert set(gradients) == set(expected)
    pairs = [(subsample(x.grad), numbers["grad_x"])]
    pairs += [(gradients[name], expected[name]) for name in expected]
    largest = max(float(theirs.abs().max()) for _, theirs in pairs)
    for ours, theirs in pairs:
        assert float((ours - theirs).abs().max()) <= 1e-4 * largest


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_fast_form_equals_explicit_form_in_float64(
    case: str, training: bool, published: dict[str, dict[str, Tensor]]
) -> None:
    numbers = published[case]
    module = load(case, numbers).double().train(training)
    results = []
    for form in (module, lambda x: module.relations(x).output):
        x = numbers["x"].double().requires_grad_()
        y = form(x)
        inputs = [x, *module.parameters()]
        loss = (y * numbers["loss_weight"].double()).sum()
        results.append([y.detach(), *torch.autograd.grad(loss, inputs)])
    scale = max(1.0, *(float(tensor.abs().max()) for tensor in results[1]))
    for fast, explicit in zip(*results, strict=True):
        assert float((fast - explicit).abs().max()) <= 1e-10 * scale
