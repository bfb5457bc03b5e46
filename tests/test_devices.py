"""The choice of a device."""

from __future__ import annotations

import pytest
import torch

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError


def test_default_device_is_the_gpu_if_there_is_one() -> None:
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_named_device_is_returned(device: str | torch.device) -> None:
    assert choose_device(device) == choose_device(device, types=EXACT_TYPES) == torch.device("cpu")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta", ""])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}'"):
        choose_device(name)


def test_a_device_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="cuda"):
        choose_device("cpu", types=("cuda",))
