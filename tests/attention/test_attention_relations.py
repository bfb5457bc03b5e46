"""Relations: matrices, weights and flow of each attention module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rga_reid.attention import CAM, CBAM, PAM, RGA, SE, CrissCross, DualAttention, NonLocal
from rga_reid.attention.trace import Trace

N, C = 12, 8  # maps of 4×3 with 8 channels
MATRICES = {
    "rga": (
        RGA(C, (4, 3), channel_ratio=2, spatial_ratio=2, down_ratio=1),
        {"spatial": (N, N), "channel": (C, C)},
    ),
    "pam": (PAM(C), {"positions": (N, N)}),
    "cam": (CAM(C), {"channels": (C, C)}),
    "dual": (DualAttention(C), {"positions": (N, N), "channels": (C, C)}),
    "dual_head": (DualAttention(C, ratio=1, head=True), {"positions": (N, N), "channels": (2, 2)}),
    "nonlocal": (NonLocal(C), {"positions": (N, N)}),
    "nonlocal_pooled": (NonLocal(C, sub_sample=True), {"positions": (N, 2)}),
    "nonlocal_concatenation": (NonLocal(C, mode="concatenation"), {"positions": (N, N)}),
    "criss_cross": (CrissCross(C), {"pass_1": (N, N), "pass_2": (N, N)}),
    "se": (SE(C, ratio=2), {}),
    "cbam": (CBAM(C, ratio=2), {}),
}
WEIGHTS = {
    "rga": {"spatial": (2, 1, 4, 3), "channel": (2, C, 1, 1)},
    "se": {"channel": (2, C, 1, 1)},
    "cbam": {"channel": (2, C, 1, 1), "spatial": (2, 1, 4, 3)},
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, C, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prepare(name: str, randomised: Callable[..., nn.Module]) -> nn.Module:
    return randomised(MATRICES[name][0]).double().eval()


@pytest.mark.parametrize("name", MATRICES)
def test_shapes_and_flow(name: str, x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    relations = prepare(name, randomised).relations(x)
    expected = {key: (2, *shape) for key, shape in MATRICES[name][1].items()}
    assert {key: tuple(matrix.shape) for key, matrix in relations.matrices.items()} == expected
    weights = {key: tuple(weight.shape) for key, weight in relations.weights.items()}
    assert weights == WEIGHTS.get(name, {})
    flow = relations.flow
    assert flow[0].tensor is x
    torch.testing.assert_close(flow[-1].tensor, relations.output)
    assert all(step.symbol and step.meaning and step.shape == tuple(step.tensor.shape) for step in flow)
    assert all(step.formula for step in flow[1:])
    assert len({step.symbol for step in flow}) == len(flow)
    for matrix in relations.matrices.values():
        assert any(step.tensor is matrix for step in flow)


@pytest.mark.parametrize("name", MATRICES)
def test_a_formula_names_what_its_tensor_is_computed_from(
    name: str, x: Tensor, randomised: Callable[..., nn.Module]
) -> None:
    """The oracle is autograd: the recorded tensors that its graph reaches first from a step."""
    x.requires_grad_()
    trace = Trace()
    trace.step("x", "input map", "", x)
    prepare(name, randomised).relations(x).explicit(x, trace)
    leaf = x.view_as(x).grad_fn.next_functions[0][0]
    symbols = {leaf: "x", **{step.tensor.grad_fn: step.symbol for step in trace.flow[1:]}}
    for step in trace.flow[1:]:
        found, reached = set(), [parent for parent, _ in step.tensor.grad_fn.next_functions]
        while reached:
            node = reached.pop()
            if node in symbols:
                found.add(symbols[node])
            elif node is not None:
                reached += [parent for parent, _ in node.next_functions]
        assert set(step.inputs) == found, step.symbol


def test_names_in_a_formula_are_whole_symbols() -> None:
    trace = Trace()
    for symbol in ("x", "x'", "a_s", "y"):
        trace.step(symbol, "", "", torch.zeros(1))
    trace.step("z", "", "max(x'ᵀ a_s) · conv_x(a)", torch.zeros(1))
    assert trace.flow[-1].inputs == ("x'", "a_s")
    trace.step("d", "", "|a_s_i - x_j|²", x)
    assert trace.flow[-1].inputs == ("a_s", "x")


@pytest.mark.parametrize("name", [name for name in MATRICES if MATRICES[name][1]])
def test_output_follows_each_matrix(name: str, x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    module = prepare(name, randomised)
    for key in MATRICES[name][1]:
        relations = module.relations(x)
        before = relations.output
        relations.matrices[key].mul_(1.5)
        assert not torch.allclose(relations.output, before)

        relations = module.relations(x)
        changed = {**relations.matrices, key: relations.matrices[key] * 1.5}
        assert not torch.allclose(dataclasses.replace(relations, matrices=changed).output, before)
        torch.testing.assert_close(relations.output, before)

        relations.matrices[key].requires_grad_()
        (gradient,) = torch.autograd.grad(relations.output.sum(), relations.matrices[key])
        assert gradient.abs().sum() > 0


def test_weights_follow_the_matrices(x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    relations = prepare("rga", randomised).relations(x)
    before = relations.weights
    relations.matrices["channel"].add_(1)
    assert torch.equal(relations.weights["spatial"], before["spatial"])
    assert not torch.allclose(relations.weights["channel"], before["channel"])
    torch.testing.assert_close(
        relations.output, x * relations.weights["spatial"] * relations.weights["channel"]
    )


@pytest.mark.parametrize("name", MATRICES)
def test_relations_do_not_change_the_module(
    name: str, x: Tensor, randomised: Callable[..., nn.Module]
) -> None:
    module = prepare(name, randomised).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    relations = module.relations(x)
    assert relations.output.isfinite().all()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert "Tensor" not in str(type(relations.explicit))


@pytest.mark.parametrize("name", ["pam", "cam", "dual", "nonlocal", "criss_cross"])
def test_softmax_weights_sum_to_one(name: str, x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    for matrix in prepare(name, randomised).relations(x).matrices.values():
        torch.testing.assert_close(matrix.sum(2), torch.ones_like(matrix[..., 0]))


def test_cam_favours_the_least_alike(x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    matrix = prepare("cam", randomised).relations(x).matrices["channels"]
    assert torch.equal(matrix.argmax(2), (x.flatten(2) @ x.flatten(2).mT).argmin(2))


def test_criss_cross_sees_one_cross_then_everything(x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    relations = prepare("criss_cross", randomised).relations(x)
    for matrix in relations.matrices.values():
        for i in range(N):
            for j in range(N):
                crossing = i // 3 == j // 3 or i % 3 == j % 3
                assert bool((matrix[:, i, j] > 0).all()) == crossing
    first, second = relations.matrices.values()
    assert bool((second @ first > 0).all())


def test_dual_attention_is_both_branches(x: Tensor, randomised: Callable[..., nn.Module]) -> None:
    module = prepare("dual", randomised)
    torch.testing.assert_close(module(x), module.sa(x) + module.sc(x) - x)
    head = prepare("dual_head", randomised)
    branches = head.conv51(head.sa(head.conv5a(x))), head.conv52(head.sc(head.conv5c(x)))
    torch.testing.assert_close(head(x), head.conv8[1](branches[0] + branches[1]))
    assert {"conv5a.0.weight", "sa.gamma", "conv51.1.bias", "conv8.1.weight"} <= set(head.state_dict())
