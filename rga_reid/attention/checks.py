"""Bad input, refused with what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_SHAPES = {1: "(B, {}, L)", 2: "(B, {}, H, W)", 3: "(B, {}, T, H, W)"}


def check_map(name: str, x: Tensor, channels: int, *, dim: int = 2) -> None:
    """Refuse ``x`` unless it is a floating-point batch of maps of ``channels`` channels over ``dim`` axes."""
    if x.dim() != dim + 2 or x.shape[1] != channels:
        raise ValueError(f"{name}: expected {_SHAPES[dim].format(channels)}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def positive(**values: int) -> None:
    """Refuse a value that is not a whole number of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def map_size(size: Sequence[int]) -> tuple[int, int]:
    """``size`` as (H, W), both at least 1."""
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(f"size: expected (height, width), got {size!r}")
    height, width = size
    positive(height=height, width=width)
    return int(height), int(width)


def reduced(channels: int, ratio: int, name: str = "ratio") -> int:
    """channels // ratio.

    Raises:
        ValueError: no channel would be left.
    """
    positive(**{"in_channels": channels, name: ratio})
    if ratio > channels:
        raise ValueError(f"{name}: expected at most in_channels = {channels}, got {ratio} (no channel left)")
    return channels // ratio
