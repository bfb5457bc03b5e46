"""Attention modules: (B, C, H, W) -> (B, C, H, W), built by ``Module(in_channels, size)``.

``forward`` is the fast exact form; ``relations(x)`` the explicit one, with every matrix and intermediate tensor.

To add one, write its module and test, and add a line to ``ATTENTION_MODULES``. Commands, ablation plans with
``attention: others``, explorer, documentation and shared tests use that list; titles come from the docstrings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

from torch import nn

from rga_reid._deprecated import module_getattr
from rga_reid.attention.cam import CAM
from rga_reid.attention.cbam import CBAM
from rga_reid.attention.criss_cross import CrissCross
from rga_reid.attention.dual import DualAttention
from rga_reid.attention.non_local import NonLocal
from rga_reid.attention.pam import PAM
from rga_reid.attention.rga import RGA
from rga_reid.attention.se import SE
from rga_reid.attention.trace import Relations, Step, Trace


def _load(path: str, **options: bool) -> Callable[[int, Sequence[int]], nn.Module]:
    module, name = path.split(".")
    attention = getattr(import_module(f"{__name__}.{module}"), name)
    return partial(attention, **options) if options else attention


#: short name, as in ``--model.attention``, -> class or callable (in_channels, size)
ATTENTION_MODULES: dict[str, Callable[[int, Sequence[int]], nn.Module]] = {
    "rga": _load("rga.RGA"),
    "rga_s": _load("rga.RGA", channel=False),
    "rga_c": _load("rga.RGA", spatial=False),
    "pam": _load("pam.PAM"),
    "cam": _load("cam.CAM"),
    "dual": _load("dual.DualAttention"),
    "nonlocal": _load("non_local.NonLocal"),
    "criss_cross": _load("criss_cross.CrissCross"),
    "se": _load("se.SE"),
    "cbam": _load("cbam.CBAM"),
}

__all__ = [
    "ATTENTION_MODULES",
    "CAM",
    "CBAM",
    "PAM",
    "RGA",
    "SE",
    "CrissCross",
    "DualAttention",
    "NonLocal",
    "Relations",
    "Step",
    "Trace",
]

__getattr__ = module_getattr(__name__)
