"""Bad input raises a ValueError that names the option or the shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from rga_reid.attention import ATTENTION_MODULES, CAM, CBAM, PAM, RGA, SE, CrissCross, DualAttention, NonLocal


@pytest.mark.parametrize("name", ATTENTION_MODULES)
@pytest.mark.parametrize("method", ["forward", "relations"])
def test_wrong_maps(name: str, method: str) -> None:
    run = getattr(ATTENTION_MODULES[name](32, (4, 2)), method)
    for shape in ((32, 4, 2), (1, 16, 4, 2)):
        with pytest.raises(ValueError, match=re.escape(f"(B, 32, H, W), got {shape}")):
            run(torch.randn(shape))
    with pytest.raises(ValueError, match="int64"):
        run(torch.ones(1, 32, 4, 2, dtype=torch.int64))


@pytest.mark.parametrize(("dim", "expected"), [(1, r"\(B, 4, L\)"), (3, r"\(B, 4, T, H, W\)")])
def test_wrong_rank_of_other_dimensions(dim: int, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"NonLocal: expected {expected}, got \(1, 4, 6, 6\)"):
        NonLocal(4, dim=dim)(torch.randn(1, 4, 6, 6))


def test_map_too_small_to_pool() -> None:
    with pytest.raises(ValueError, match="expected maps of at least 2×2 with sub_sample, got 1×6"):
        NonLocal(4, sub_sample=True)(torch.randn(1, 4, 1, 6))
    with pytest.raises(ValueError, match="expected maps of at least 1×2×2 with sub_sample, got 3×4×1"):
        NonLocal(4, dim=3, sub_sample=True)(torch.randn(1, 4, 3, 4, 1))


BAD_OPTIONS: list[tuple[Callable[[], nn.Module], str]] = [
    (partial(RGA, 8, (4, 2), channel_ratio=16), "channel_ratio"),
    (partial(RGA, 8, (4, 2), spatial_ratio=0), "spatial_ratio"),
    (partial(RGA, 8, (4, 2), down_ratio=-1), "down_ratio"),
    (partial(RGA, 8, (4, 2), spatial=False, channel=False), "expected spatial or channel attention or both"),
    (partial(RGA, 8, 4), r"size: expected \(height, width\), got 4"),
    (partial(RGA, 8, (4, 2, 1)), r"size: expected \(height, width\), got \(4, 2, 1\)"),
    (partial(RGA, 8, (4, 0)), "width"),
    (partial(RGA, 8, (4.5, 2)), "height"),
    (partial(PAM, 4), "ratio"),
    (partial(PAM, 0, ratio=1), "in_channels"),
    (partial(CAM, 0), "in_channels"),
    (partial(DualAttention, 4), "ratio"),
    (partial(DualAttention, 3, head=True), "head"),
    (partial(CrissCross, 4), "ratio"),
    (partial(CrissCross, 8, recurrence=0), "recurrence"),
    (partial(CrissCross, 8, recurrence=10**12), "recurrence"),
    (partial(SE, 8), "ratio"),
    (partial(CBAM, 8), "ratio"),
    (partial(CBAM, 16, kernel_size=4), "kernel_size"),
    (partial(NonLocal, 8, mode="softmax"), "mode"),
    (partial(NonLocal, 8, dim=4), "dim"),
    (partial(NonLocal, 8, inter_channels=0), "inter_channels"),
]


@pytest.mark.parametrize(("build", "message"), BAD_OPTIONS)
def test_bad_options(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("method", ["set_map_size", "resize"])
def test_bad_size(method: str) -> None:
    module = RGA(8, (4, 2))
    with pytest.raises(ValueError, match="height"):
        getattr(module, method)((-1, 3))
    assert module(torch.randn(2, 8, 4, 2)).shape == (2, 8, 4, 2)
