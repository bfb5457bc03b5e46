"""The precision ``auto``: bfloat16 where the device multiplies it.

Where it does not, torch still computes in bfloat16, several times slower than in float32.
"""

from __future__ import annotations

from typing import Any, Literal, get_type_hints

import pytorch_lightning as pl
import torch

from rga_reid.errors import InputError

_WHOLE = ("16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16")

#: what ``trainer.precision`` takes: Lightning's own values, and ``auto``
Precision = get_type_hints(pl.Trainer.__init__)["precision"] | Literal["auto"]


def resolve_precision(precision: Any, accelerator: Any = "auto") -> Any:
    """Lightning's name for a precision: ``auto`` becomes ``bf16-mixed`` or ``32-true``, others stay.

    Args:
        precision, accelerator: options of ``pytorch_lightning.Trainer``.

    Raises:
        InputError: a precision of the weights themselves other than float32.
    """
    if str(precision) in _WHOLE:
        raise InputError(
            f"trainer.precision: expected 32-true, 16-mixed, bf16-mixed or auto, got {precision}: weights "
            "and images are float32"
        )
    if precision != "auto":
        return precision
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if multiplies_bfloat16("cuda" if on_gpu else "cpu") else "32-true"


def multiplies_bfloat16(device: Literal["cpu", "cuda"]) -> bool:
    """Whether the device has instructions for it: AVX-512 BF16, AMX or Arm's BF16; on CUDA from Ampere on."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    named: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    if named:
        return any(named.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


__all__ = ["Precision", "multiplies_bfloat16", "resolve_precision"]
