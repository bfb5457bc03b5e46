"""Where tensors are computed."""

from __future__ import annotations

import torch

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import truncate


def available_device(name: str | torch.device) -> torch.device:
    """A device that this machine has.

    Raises:
        InputError: an unknown device, or one that is not there.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = truncate(str(error).split("\n")[0])
        raise InputError(f"device {short_repr(str(name))}: not available ({reason})") from None
    if device.type == "meta":  # its tensors have no numbers
        raise InputError(f"device {short_repr(str(name))}: not available (it computes nothing)")
    return device
