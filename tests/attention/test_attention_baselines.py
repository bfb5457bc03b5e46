"""SE and CBAM against torchvision and against loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from rga_reid.attention import CBAM, SE


def test_se_is_torchvisions(randomised: Callable[..., nn.Module]) -> None:
    ours = randomised(SE(32, ratio=8)).double()
    theirs = SqueezeExcitation(32, 4).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 32, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam_by_loops(randomised: Callable[..., nn.Module]) -> None:
    module = randomised(CBAM(6, ratio=2, kernel_size=3)).double().eval()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    a = x.numpy()

    def mlp(v: np.ndarray) -> np.ndarray:
        hidden = state["ChannelGate.mlp.1.weight"] @ v + state["ChannelGate.mlp.1.bias"]
        return state["ChannelGate.mlp.3.weight"] @ np.maximum(hidden, 0) + state["ChannelGate.mlp.3.bias"]

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    expected = np.empty_like(a)
    mean, var, scale, shift = (
        state[f"SpatialGate.spatial.bn.{key}"][0] for key in ("running_mean", "running_var", "weight", "bias")
    )
    for b in range(2):
        channel = sigmoid(mlp(a[b].mean((1, 2))) + mlp(a[b].max((1, 2))))
        weighed = a[b] * channel[:, None, None]
        padded = np.pad(np.stack([weighed.max(0), weighed.mean(0)]), ((0, 0), (1, 1), (1, 1)))
        for i in range(4):
            for j in range(5):
                window = padded[:, i : i + 3, j : j + 3]
                value = (window * state["SpatialGate.spatial.conv.weight"][0]).sum()
                value = (value - mean) / np.sqrt(var + 1e-5) * scale + shift
                expected[b, :, i, j] = weighed[:, i, j] * sigmoid(value)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10)
