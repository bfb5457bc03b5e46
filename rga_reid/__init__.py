"""rga-reid: person re-identification with relation-aware global attention.

Importing the package is cheap; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "2.0.0"

_LAZY = {
    "load_embedder": "rga_reid.inference",
    "load_model": "rga_reid.models",
    "EmbeddingModel": "rga_reid.models",
    "evaluate_ranking": "rga_reid.evaluation",
    "Gallery": "rga_reid.gallery",
    "extract_features": "rga_reid.inference",
    "show": "rga_reid.experiments.show",
    "InputError": "rga_reid.errors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
