"""Matrix products that keep all bits of float32, whatever the program around has chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within the block: no autograd, no autocast, no TF32 or bfloat16 inside float32 products.

    The last two would put the error of a product far beyond what float32 promises.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _ieee_products():
        yield


@contextmanager
def _ieee_products() -> Iterator[None]:
    backends: list[Any] = [
        getattr(part, "matmul", None) for part in (torch.backends.cuda, torch.backends.mkldnn)
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):  # torch before 2.9
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
