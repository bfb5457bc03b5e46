"""Properties of every attention module on random maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rga_reid.attention import ATTENTION_MODULES, CAM, CBAM, PAM, RGA, SE, CrissCross, DualAttention, NonLocal
from rga_reid.attention.non_local import MODES

#: options for maps with few channels; a module without an entry is tested with 16 times as many
SMALL: dict[str, Callable[..., nn.Module]] = {
    "rga": partial(RGA, channel_ratio=2, spatial_ratio=3, down_ratio=2),
    "rga_s": partial(RGA, channel=False, channel_ratio=4),
    "rga_c": partial(RGA, spatial=False, channel_ratio=4),
    "pam": partial(PAM, ratio=2),
    "cam": CAM,
    "dual": partial(DualAttention, ratio=2),
    "nonlocal": NonLocal,
    "nonlocal_gaussian": partial(NonLocal, mode="gaussian"),
    "nonlocal_dot_product": partial(NonLocal, mode="dot_product", bn_layer=False),
    "nonlocal_concatenation": partial(NonLocal, mode="concatenation", inter_channels=3),
    "criss_cross": partial(CrissCross, ratio=2, recurrence=1),
    "criss_cross_3": partial(CrissCross, ratio=4, recurrence=3),
    "se": partial(SE, ratio=2),
    "cbam": partial(CBAM, ratio=2, kernel_size=3),
}
FAMILY: dict[str, Callable[..., nn.Module]] = {**ATTENTION_MODULES, **SMALL}
LAYOUTS = ("contiguous", "channels_last", "strided")

any_map = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,  # the same maps in every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def widen(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape with the channels that a module needs."""
    return shape if name in SMALL else (shape[0], 16 * shape[1], *shape[2:])


def draw_map(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if layout == "strided":
        batch, channels, height, width = shape
        wide = torch.randn((batch, 2 * channels, width, height + 1), generator=generator, dtype=torch.float64)
        return wide[:, ::2, :, 1:].mT.to(dtype)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


shapes = st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("name", FAMILY)
@any_map
@given(shape=shapes, layout=st.sampled_from(LAYOUTS), training=st.booleans(), seed=st.integers(0, 99))
def test_forward_equals_the_explicit_form(
    name: str,
    shape: tuple[int, int, int, int],
    layout: str,
    training: bool,
    seed: int,
    randomised: Callable[..., nn.Module],
) -> None:
    if shape[0] * shape[2] * shape[3] == 1:
        training = False  # batch norm has no statistics of one number
    shape = widen(name, shape)
    module = randomised(FAMILY[name](shape[1], shape[2:]), seed).double().train(training)
    x = draw_map(shape, layout, torch.float64, seed)
    explicit = module.relations(x).output
    fast = module(x)
    assert fast.shape == x.shape
    torch.testing.assert_close(fast, explicit, rtol=1e-8, atol=1e-8)


#: the product is computed in another order where the map has few positions
FEW = {"sides": [4], "batch": 2, "channels": 7, "mode": "dot_product", "sub_sample": True}


@settings(any_map, max_examples=24)
@example(**FEW, bn_layer=False, training=False, seed=0)
@given(
    sides=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    batch=st.integers(2, 3),
    channels=st.integers(1, 7),
    mode=st.sampled_from(MODES),
    sub_sample=st.booleans(),
    bn_layer=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_nonlocal_in_all_its_forms(
    sides: list[int],
    batch: int,
    channels: int,
    mode: str,
    sub_sample: bool,
    bn_layer: bool,
    training: bool,
    seed: int,
    randomised: Callable[..., nn.Module],
) -> None:
    block = NonLocal(channels, mode=mode, dim=len(sides), sub_sample=sub_sample, bn_layer=bn_layer)
    block = randomised(block, seed).double().train(training)
    x = draw_map((batch, channels, *sides), "contiguous", torch.float64, seed)
    torch.testing.assert_close(block(x), block.relations(x).output, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
@any_map
@given(shape=shapes, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 99))
def test_half_precision(
    name: str,
    dtype: torch.dtype,
    bound: float,
    shape: tuple[int, int, int, int],
    layout: str,
    seed: int,
    randomised: Callable[..., nn.Module],
) -> None:
    shape = widen(name, shape)
    module = randomised(FAMILY[name](shape[1], shape[2:]), seed).to(dtype).eval()
    x = draw_map(shape, layout, dtype, seed) / 2
    with torch.no_grad():
        y = module(x)
        exact = module.double()(x.double())
    assert y.dtype == dtype
    scale = max(1.0, float(exact.abs().max()))
    assert float((y.double() - exact).abs().max()) <= bound * scale


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nonlocal_dot_products_of_many_positions_in_float16(
    layout: str, randomised: Callable[..., nn.Module]
) -> None:
    """The sum over positions overflows float16, the mean does not."""
    block = randomised(NonLocal(8, mode="dot_product", bn_layer=False), 0)
    with torch.no_grad():
        block.phi.bias += 8
        block.g.bias += 8
    x = draw_map((1, 8, 64, 32), layout, torch.float16, 0)
    with torch.no_grad():
        y = block.half()(x)
        exact = block.double()(x.double())
        sums = block.phi(x.double()).flatten(2) @ block.g(x.double()).flatten(2).mT
    assert float(sums.abs().max()) > torch.finfo(torch.float16).max
    assert float((y.double() - exact).abs().max()) <= 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("name", FAMILY)
def test_autocast_trains(name: str, randomised: Callable[..., nn.Module]) -> None:
    shape = widen(name, (4, 8, 6, 5))
    module = randomised(FAMILY[name](shape[1], shape[2:]))
    x = draw_map(shape, "channels_last", torch.bfloat16, 0).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_against_finite_differences(name: str, randomised: Callable[..., nn.Module]) -> None:
    shape = widen(name, (2, 4, 2, 2))
    module = randomised(FAMILY[name](shape[1], shape[2:]), seed=4).double()
    x = draw_map(shape, "strided", torch.float64, 1).requires_grad_()
    names = [key for key, _ in module.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in module.parameters()))
    for training in (False, True):
        module.train(training)
        # fast mode compares a random projection of the Jacobian
        assert torch.autograd.gradcheck(run, inputs, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", FAMILY)
def test_memory_layout_is_kept(name: str, layout: str, randomised: Callable[..., nn.Module]) -> None:
    shape = widen(name, (2, 8, 12, 11))
    module = randomised(FAMILY[name](shape[1], shape[2:])).double().eval()
    x = draw_map(shape, "contiguous", torch.float64, 3)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    y = module(x.to(memory_format=memory_format))
    torch.testing.assert_close(y, module(x))
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("name", ["pam", "cam", "dual", "nonlocal", "criss_cross"])
def test_new_residual_modules_are_the_identity(name: str) -> None:
    x = torch.randn(2, 64, 8, 4)
    torch.testing.assert_close(ATTENTION_MODULES[name](64, (8, 4))(x), x)


@pytest.mark.parametrize(
    "name", ["pam", "nonlocal", "nonlocal_gaussian", "nonlocal_concatenation", "criss_cross_3"]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_forms_for_many_positions(name: str, layout: str, randomised: Callable[..., nn.Module]) -> None:
    """Blocks of 256 queries, the last one smaller, and criss-cross by lines."""
    module = randomised(FAMILY[name](8, (29, 23))).double().eval()
    x = draw_map((2, 8, 29, 23), layout, torch.float64, 6)
    torch.testing.assert_close(module(x), module.relations(x).output, rtol=1e-10, atol=1e-10)


def test_form_for_many_channels(randomised: Callable[..., nn.Module]) -> None:
    module = randomised(CAM(600)).double()
    x = draw_map((2, 600, 3, 2), "contiguous", torch.float64, 7)
    torch.testing.assert_close(module(x), module.relations(x).output, rtol=1e-10, atol=1e-10)
