"""The device that tensors are computed on."""

from __future__ import annotations

from collections.abc import Collection

import torch

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate

#: device types that can compute float32 products in full precision, as exact ranking needs
EXACT_TYPES = ("cpu", "cuda")


def choose_device(
    device: str | torch.device | None = None, *, types: Collection[str] | None = None
) -> torch.device:
    """Return the requested device, or a GPU if there is one and the CPU otherwise.

    Args:
        device: name of a device, such as ``cpu`` or ``cuda:0``; None to choose.
        types: accepted device types; any type by default.

    Raises:
        InputError: the device is unknown, missing on this machine or of another type.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = short_repr(str(device))
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = truncate(str(error).split("\n")[0])
        raise InputError(f"device {name}: not available ({reason})") from None
    if chosen.type == "meta":  # its tensors hold no values
        raise InputError(f"device {name}: not available (it computes nothing)")
    if types is not None and chosen.type not in types:
        raise InputError(f"device {name}: expected {' or '.join(types)}")
    return chosen
