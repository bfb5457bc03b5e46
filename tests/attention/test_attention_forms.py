"""The fast forms hold no relation matrix, and can be traced, exported and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from rga_reid.attention import ATTENTION_MODULES, CAM, DualAttention, NonLocal
from tests.memory import measured

EXPORTED: dict[str, Callable[..., nn.Module]] = {
    **ATTENTION_MODULES,
    "dual_head": partial(DualAttention, ratio=2, head=True),
    "nonlocal_pooled": partial(NonLocal, sub_sample=True),
    "nonlocal_gaussian": partial(NonLocal, mode="gaussian"),
    "nonlocal_dot_product": partial(NonLocal, mode="dot_product"),
    "nonlocal_concatenation": partial(NonLocal, mode="concatenation"),
}
#: compilers are slow: one module in the fast tier, all in the slow one
COMPILED = [pytest.param(name, marks=[] if name == "cam" else [pytest.mark.slow]) for name in EXPORTED]


WIDE = (40, 20)  # 800 positions
MATRIX = 4 * 800 * 800  # bytes of a matrix for one image; batches have two
NO_MATRIX = ["rga", "pam", "nonlocal", "nonlocal_gaussian", "nonlocal_dot_product", "nonlocal_concatenation"]


@pytest.mark.parametrize("name", [*NO_MATRIX, "criss_cross"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inference_holds_no_relation_matrix(name: str, layout: torch.memory_format) -> None:
    module = EXPORTED[name](16, WIDE).eval()
    x = torch.randn(2, 16, *WIDE).to(memory_format=layout)
    with torch.no_grad(), measured() as fast:
        module(x)
    with torch.no_grad(), measured() as explicit:
        _ = module.relations(x)
    assert fast.largest_tensor < MATRIX
    assert explicit.largest_tensor >= 2 * MATRIX


def test_inference_holds_no_channel_matrix() -> None:
    module, x = CAM(800).eval(), torch.randn(2, 800, 4, 4)
    with torch.no_grad(), measured() as fast:
        module(x)
    assert fast.largest_tensor < MATRIX


@pytest.mark.parametrize("name", ["rga", "nonlocal_dot_product", "criss_cross"])
def test_training_holds_no_relation_matrix(name: str) -> None:
    module, x = EXPORTED[name](16, WIDE), torch.randn(2, 16, *WIDE, requires_grad=True)
    with measured() as fast:
        module(x).sum().backward()
    assert fast.largest_tensor < MATRIX


@pytest.mark.parametrize("name", COMPILED)
def test_export_with_any_batch_size(name: str, randomised: Callable[..., nn.Module]) -> None:
    module = randomised(EXPORTED[name](32, (6, 4))).eval()
    x = torch.randn(3, 32, 6, 4)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=True)
    other = torch.randn(5, 32, 6, 4)
    torch.testing.assert_close(program.module()(other), module(other), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_trace_with_any_batch_size(name: str, randomised: Callable[..., nn.Module]) -> None:
    module = randomised(EXPORTED[name](32, (6, 4))).eval()
    traced = torch.jit.trace(module, torch.randn(3, 32, 6, 4))
    other = torch.randn(5, 32, 6, 4)
    torch.testing.assert_close(traced(other), module(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPILED)
def test_compile_in_one_graph(name: str, randomised: Callable[..., nn.Module]) -> None:
    module = randomised(EXPORTED[name](32, (6, 4))).double()
    if name == "dual_head":
        module.conv8[0].p = 0.0  # dropout is random
    x = torch.randn(3, 32, 6, 4, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (compiled, module):
        module.zero_grad()
        y = run(x)
        y.square().sum().backward()
        gradients.append([y.detach(), *(p.grad.clone() for p in module.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7)


@pytest.fixture
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Tensors with a device and a shape but no values, so that no GPU is needed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@pytest.mark.parametrize("name", ATTENTION_MODULES)
def test_runs_on_a_gpu_without_leaving_it(name: str, fake_gpu: FakeTensorMode) -> None:
    map_size = (30, 20)
    with torch.device("cuda"):
        module = ATTENTION_MODULES[name](64, map_size)
        x = torch.empty(2, 64, *map_size)
    y = module(x)
    assert (y.device.type, y.shape) == ("cuda", x.shape)
    output = module.relations(x).output
    assert (output.device.type, output.shape) == ("cuda", x.shape)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EXPORTED)
def test_runs_in_mixed_precision_on_a_gpu(
    name: str, dtype: torch.dtype, train: bool, fake_gpu: FakeTensorMode
) -> None:
    with torch.device("cuda"):
        module = EXPORTED[name](64, (30, 20)).train(train)
        x = torch.empty(2, 64, 30, 20, dtype=dtype)
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)  # torch.autocast disables itself without a GPU
    try:
        y = module(x)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert (y.device.type, y.shape) == ("cuda", x.shape)


class AttentionCalls(TorchFunctionMode):
    """Collects the arguments of ``scaled_dot_product_attention``."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.arguments += args[:3]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["pam", "cam", "dual", "nonlocal", "nonlocal_gaussian"])
def test_fused_kernels_accept_the_memory_layout(
    name: str, layout: torch.memory_format, fake_gpu: FakeTensorMode
) -> None:
    with torch.device("cuda"):
        module = EXPORTED[name](64, (30, 20))
        x = torch.empty(2, 64, 30, 20).to(memory_format=layout)
    with AttentionCalls() as calls:
        module(x)
    assert calls.arguments
    # torch's CUDA kernels need contiguous rows; it would fall back to one that holds all N x N weights
    assert {argument.stride(-1) for argument in calls.arguments} == {1}


class SubnormalFactors(TorchDispatchMode):
    """Counts the subnormal numbers in the factors of matrix products; they slow these down on some processors."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            for factor in args:
                size = factor.detach().abs()
                self.count += int(((size > 0) & (size < torch.finfo(size.dtype).tiny)).sum())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("module", [CAM(32), NonLocal(32, mode="gaussian")], ids=["cam", "nonlocal_gaussian"])
@pytest.mark.parametrize("training", [False, True])
def test_no_products_of_subnormal_numbers(module: nn.Module, training: bool) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.5)
    x = 3 * torch.randn(2, 32, 30, 20, generator=torch.Generator().manual_seed(0))
    weights = module.relations(x).matrices
    assert any(((w > 0) & (w < torch.finfo(w.dtype).tiny)).any() for w in weights.values())
    with SubnormalFactors() as seen, torch.set_grad_enabled(training):
        y = module(x.requires_grad_(training))
        if training:
            y.square().sum().backward()
    assert seen.count == 0
    exact = deepcopy(module).double()
    torch.testing.assert_close(exact(x.double()), exact.relations(x.double()).output)
