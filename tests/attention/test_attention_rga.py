"""RGA: other map sizes, and the equations of the paper by loops."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rga_reid._deprecated import RGA_ARGUMENTS
from rga_reid.attention import RGA
from rga_reid.models import resolve_attention

OVER_POSITIONS = ("gg_spatial", "gx_channel", "theta_channel", "phi_channel")


def maps_of(module: RGA, name: str, size: tuple[int, int]) -> Tensor:
    """The weights over positions of one layer, as maps."""
    return getattr(module, name)[0].weight.detach().reshape(-1, 1, *size)


def expected_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Area-preserving bilinear interpolation, axis by axis, by the definition of a triangle filter."""
    for axis, new in zip((2, 3), size, strict=True):
        old = maps.shape[axis]
        support = max(1.0, old / new)
        centres = (torch.arange(new, dtype=maps.dtype) + 0.5) * old / new - 0.5
        filters = (1 - (torch.arange(old, dtype=maps.dtype) - centres[:, None]).abs() / support).clamp(min=0)
        filters = filters / filters.sum(1, keepdim=True) * old / new
        maps = (maps.movedim(axis, -1) @ filters.T).movedim(-1, axis)
    return maps


@pytest.mark.parametrize("size", [(8, 4), (16, 8), (13, 9), (1, 1), (4, 16)])
@pytest.mark.parametrize("kind", ["spatial", "channel", "both"])
def test_set_map_size_is_resize_without_new_parameters(
    kind: str, size: tuple[int, int], randomised: Callable[..., nn.Module]
) -> None:
    module = randomised(RGA(16, (8, 4), spatial=kind != "channel", channel=kind != "spatial")).double().eval()
    x = torch.randn(2, 16, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = copy.deepcopy(module.state_dict())
    resized = copy.deepcopy(module)
    module.set_map_size(size)
    resized.resize(size)
    torch.testing.assert_close(module(x), resized(x))
    torch.testing.assert_close(module.relations(x).output, resized(x))
    assert (module.size, module.map_size) == ((8, 4), size)
    assert (resized.size, resized.map_size) == (size, size)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("size", [(16, 8), (5, 3), (8, 9)])
def test_resize_interpolates_the_weights_as_maps(
    size: tuple[int, int], randomised: Callable[..., nn.Module]
) -> None:
    module = randomised(RGA(16, (8, 4))).double()
    before = {name: maps_of(module, name, (8, 4)) for name in OVER_POSITIONS}
    others = {k: v.clone() for k, v in module.state_dict().items() if not k.startswith(OVER_POSITIONS)}
    module.resize(size)
    for name, maps in before.items():
        torch.testing.assert_close(maps_of(module, name, size), expected_maps(maps, size))
        assert getattr(module, name)[0].in_channels == getattr(module, name)[0].weight.shape[1]
    for name, value in others.items():
        assert torch.equal(module.state_dict()[name], value)


def test_own_size_is_the_exact_original(randomised: Callable[..., nn.Module]) -> None:
    module = randomised(RGA(16, (8, 4))).eval()
    x = torch.randn(2, 16, 8, 4)
    y = module(x)
    weight = module.gg_spatial[0].weight
    module.set_map_size((16, 8))
    module.set_map_size((8, 4))
    assert torch.equal(module(x), y)
    assert module.gg_spatial[0].weight is weight


@pytest.mark.parametrize("kind", ["spatial", "channel"])
def test_gradients_reach_the_weights_through_the_interpolation(
    kind: str, randomised: Callable[..., nn.Module]
) -> None:
    module = randomised(RGA(4, (3, 2), spatial=kind == "spatial", channel=kind == "channel", channel_ratio=2))
    module = module.double().eval()
    module.set_map_size((4, 4))
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    names = [f"{layer}_{kind}.0.weight" for layer in ("gg", "gx", "theta", "phi")]
    values = [module.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, values, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_resize_trains_on(randomised: Callable[..., nn.Module]) -> None:
    module = randomised(RGA(16, (8, 4)))
    module.theta_channel[0].weight.requires_grad_(False)
    module.resize((6, 6))
    module(torch.randn(2, 16, 6, 6)).sum().backward()
    assert module.gg_spatial[0].weight.grad.shape == (4, 72, 1, 1)
    assert module.theta_channel[0].weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_another_size(dtype: torch.dtype, randomised: Callable[..., nn.Module]) -> None:
    module = randomised(RGA(16, (8, 4))).to(dtype).eval()
    module.set_map_size((6, 6))
    assert module(torch.randn(2, 16, 6, 6, dtype=dtype)).dtype == dtype


def test_wrong_map_size_names_built_current_and_got() -> None:
    module = RGA(16, (8, 4))
    with pytest.raises(ValueError, match=r"expected maps of 8×4 \(parameters are built for 8×4\), got 12×4"):
        module(torch.randn(2, 16, 12, 4))
    module.set_map_size((12, 4))
    module(torch.randn(2, 16, 12, 4))
    with pytest.raises(ValueError, match=r"expected maps of 12×4 \(parameters are built for 8×4\), got 8×4"):
        module.relations(torch.randn(2, 16, 8, 4))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 4)])
def test_hidden_widths_never_fall_to_zero(size: tuple[int, int]) -> None:
    module = RGA(8, size).train()
    assert min(parameter.numel() for parameter in module.parameters()) > 0
    assert module(torch.randn(4, 8, *size)).isfinite().all()


def test_published_widths() -> None:
    """ResNet-50, stage 1, 256×128: C 256, N 2048."""
    module = RGA(256, (64, 32))
    assert module.theta_spatial[0].weight.shape == (32, 256, 1, 1)
    assert module.gg_spatial[0].weight.shape == (256, 4096, 1, 1)
    assert [module.W_spatial[i].weight.shape[:2] for i in (0, 3)] == [(32, 257), (1, 32)]
    assert module.phi_channel[0].weight.shape == (256, 2048, 1, 1)
    assert module.gg_channel[0].weight.shape == (32, 512, 1, 1)
    assert [module.W_channel[i].weight.shape[:2] for i in (0, 3)] == [(4, 33), (1, 4)]


def test_relations_are_directed(randomised: Callable[..., nn.Module]) -> None:
    """G[i, j] = θ(xᵢ)ᵀ φ(xⱼ); node i is described by what i says of the others, after what they say of i."""
    module = randomised(RGA(8, (3, 2), channel=False)).double().eval()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    relations = module.relations(x)
    G = relations.matrices["spatial"]
    theta, phi = module.theta_spatial(x).flatten(2), module.phi_spatial(x).flatten(2)
    torch.testing.assert_close(G, torch.einsum("bci,bcj->bij", theta, phi))
    stacked = {step.symbol: step.tensor for step in relations.flow}["r_s"]
    assert torch.equal(stacked[..., 0], torch.cat([G.mT, G], 1))
    assert not torch.allclose(G, G.mT)


@pytest.mark.parametrize(("spatial", "channel"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("training", [True, False])
def test_zero_init_gate_attends_to_all_nodes_alike(spatial: bool, channel: bool, training: bool) -> None:
    torch.manual_seed(0)
    module = RGA(16, (6, 4), spatial=spatial, channel=channel, zero_init_gate=True).train(training)
    x = torch.randn(3, 16, 6, 4)
    y = module(x)
    torch.testing.assert_close(y, x * 0.5 ** (spatial + channel))
    (y * torch.randn(y.shape)).sum().backward()
    for kind in ("spatial",) * spatial + ("channel",) * channel:
        assert float(getattr(module, f"W_{kind}")[4].weight.grad.abs()) > 0


def test_the_name_of_zero_init_gate_in_version_1() -> None:
    (old,) = RGA_ARGUMENTS
    with pytest.warns(DeprecationWarning, match="zero_init_gate"):
        module = RGA(16, (6, 4), **{old: True})
    assert float(module.W_spatial[4].weight.detach()) == 0
    choice = {"class_path": "rga_reid.attention.RGA", "init_args": {old: True, "channel": False}}
    assert float(resolve_attention(choice)(16, (6, 4)).W_spatial[4].weight.detach()) == 0


def set_momentum_none(module: RGA) -> None:
    for norm in batch_norms(module):
        norm.momentum = None


def set_mixed_settings(module: RGA) -> None:
    for number, norm in enumerate(batch_norms(module)):
        norm.momentum, norm.eps = 0.1 + 0.05 * (number % 3), 1e-5 * (1 + number % 4)


def freeze_some(module: RGA) -> None:
    for number, norm in enumerate(batch_norms(module)):
        norm.train(number % 2 == 0)


def keep_no_statistics(module: RGA) -> None:
    for norm in batch_norms(module):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def batch_norms(module: RGA) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def by_its_layers(module: RGA, x: Tensor) -> Tensor:
    """RGA by the paper's equations, with the module's layers called as they are."""
    b, c, _, _ = x.shape
    for kind in ("spatial", "channel"):
        gx, gg, W, theta, phi = (
            getattr(module, f"{name}_{kind}") for name in ("gx", "gg", "W", "theta", "phi")
        )
        nodes = x if kind == "spatial" else x.flatten(2).mT.unsqueeze(3)  # features, then the nodes
        G = theta(nodes).flatten(2).mT @ phi(nodes).flatten(2)
        related = gg(torch.cat([G.mT, G], dim=1).view(b, -1, *nodes.shape[2:]))
        a = torch.sigmoid(W(torch.cat([gx(nodes).mean(1, keepdim=True), related], dim=1)))
        x = x * (a if kind == "spatial" else a.view(b, c, 1, 1))
    return x


@pytest.mark.parametrize("change", [set_momentum_none, set_mixed_settings, freeze_some, keep_no_statistics])
def test_batch_norms_with_settings_of_their_own(
    change: Callable[[RGA], None], randomised: Callable[..., nn.Module]
) -> None:
    """As torch's own modules do it: three training steps and then eval, with their running statistics."""
    fast = randomised(RGA(16, (6, 4))).double()
    change(fast.train())
    plain = copy.deepcopy(fast)
    generator = torch.Generator().manual_seed(5)
    for training in (True, True, True, False):
        if not training:
            fast.eval()
            plain.eval()
        x = torch.randn(3, 16, 6, 4, dtype=torch.float64, generator=generator)
        explicit = fast.relations(x).output
        found, expected = fast(x), by_its_layers(plain, x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(explicit, expected)
        state = plain.state_dict()
        for name, value in fast.state_dict().items():
            torch.testing.assert_close(value, state[name], msg=name)


def test_a_batch_of_no_image() -> None:
    module = RGA(16, (4, 2)).eval()
    assert module(torch.empty(0, 16, 4, 2)).shape == (0, 16, 4, 2)
