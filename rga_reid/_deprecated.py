"""Names of version 1, which still work: old paths, old names, old arguments. Each use warns."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

#: 1.0 package -> 1.0 name -> where it is now
ALIASES: dict[str, dict[str, str]] = {
    "rga_reid.attention": {"MECHANISMS": "rga_reid.attention.ATTENTION_MODULES"},
    "rga_reid.evaluation": {"NoCameras": "rga_reid.evaluation.IgnoreCameras"},
    "rga_reid.models": {"Mirrored": "rga_reid.models.FlipTTA"},
    "rga_reid.retrieval": {
        "Erasure": "rga_reid.gallery.RemovalResult",
        "Gallery": "rga_reid.gallery.Gallery",
        "GalleryBuilder": "rga_reid.gallery.GalleryBuilder",
        "ModelRecord": "rga_reid.inference.ModelFingerprint",
        "Verification": "rga_reid.inference.Verification",
        "extract_features": "rga_reid.inference.extract_features",
        "stream_features": "rga_reid.inference.stream_features",
        "verify": "rga_reid.inference.verify",
    },
}


def module_getattr(package: str) -> Callable[[str], Any]:
    """Return a module ``__getattr__`` that resolves the 1.0 names of a package."""

    def getattribute(name: str) -> Any:
        target = ALIASES[package].get(name)
        if target is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is now {target}", DeprecationWarning, stacklevel=2)
        module, _, attribute = target.rpartition(".")
        return getattr(importlib.import_module(module), attribute)

    return getattribute
