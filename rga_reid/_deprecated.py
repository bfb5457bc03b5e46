"""Names of version 1, which still work: old import paths, class and function names, and argument names.

Each use warns with a ``DeprecationWarning`` that says what to write instead.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

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


def rename_arguments(**new_names: str) -> Callable[[_Function], _Function]:
    """Return a decorator that makes a function accept the 1.0 names of its keyword arguments.

    Args:
        **new_names: the name of the argument now, by its 1.0 name.

    Raises:
        TypeError: when the decorated function is called with both names of an argument.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_names.items():
                if old in kwargs:
                    name = function.__qualname__
                    if new in kwargs:
                        raise TypeError(f"{name}: got both {new!r} and its old name {old!r}")
                    warnings.warn(f"{name}: {old!r} is now {new!r}", DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        wrapper.renamed_arguments = new_names  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """Return a method that warns and calls the renamed one.

    Args:
        old: class and 1.0 name, such as ``Gallery.verify``.
        new: name of the method now.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*args, **kwargs)

    method.__name__ = old.rpartition(".")[2]
    method.renamed_to = new  # type: ignore[attr-defined]
    method.__doc__ = f"Call ``{new}``, its name now."
    return method


def renamed_property(old: str, new: str) -> property:
    """Return a property that warns and reads the renamed one; see ``renamed_method``."""

    def attribute(self: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(attribute, doc=f"``{new}``, its name now.")
