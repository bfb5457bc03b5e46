"""The public Python API is the one in surface.txt, so that a changed name or argument is seen in review.

``python tests/test_surface.py`` writes the file again.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SURFACE = Path(__file__).with_name("surface.txt")
PACKAGES = (
    "rga_reid",
    "rga_reid.attention",
    "rga_reid.data",
    "rga_reid.data.synthetic",
    "rga_reid.evaluation",
    "rga_reid.gallery",
    "rga_reid.inference",
    "rga_reid.models",
    "rga_reid.serving",
    "rga_reid.training",
)


class Text(str):
    """A default value that ``inspect`` prints without quotes."""

    __repr__ = str.__str__


def describe_signature(function: Any) -> str:
    """Return names, kinds and defaults of the parameters, without types."""
    plain = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        if isinstance(default, types.FunctionType | type) and default is not inspect.Parameter.empty:
            default = Text(default.__qualname__)
        if parameter.name != "self":
            plain.append(parameter.replace(annotation=inspect.Parameter.empty, default=default))
    return str(inspect.Signature(plain))


def iter_members(cls: type) -> Iterator[str]:
    """Iterate over public methods and properties, without those of other libraries and dataclass fields."""
    names = {name for base in cls.__mro__ if base.__module__.startswith("rga_reid") for name in vars(base)}
    fields = {*getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "_fields", ())}
    for name in sorted(names - fields):
        raw = inspect.getattr_static(cls, name)
        if name.startswith("_"):
            continue
        if isinstance(raw, classmethod | staticmethod):
            yield f"{name}{describe_signature(getattr(cls, name))}  [{type(raw).__name__}]"
        else:
            yield f"{name}{describe_signature(raw)}" if inspect.isfunction(raw) else name


def describe_package(package: str) -> Iterator[str]:
    """Iterate over the lines of a package: one for each name in its ``__all__``, and those of its members."""
    module = importlib.import_module(package)
    yield package
    for name in sorted(module.__all__):
        value = getattr(module, name)
        home = getattr(value, "__module__", package)
        if package == "rga_reid" and home != package and callable(value):
            yield f"    {name}  [{home.rpartition('.')[0]}]"  # described in its own package
        elif inspect.isclass(value):
            yield f"    class {name}{describe_signature(value)}"
            yield from (f"        {line}" for line in iter_members(value))
        elif inspect.isfunction(value):
            yield f"    {name}{describe_signature(value)}"
        elif isinstance(value, dict):
            yield f"    {name}: {', '.join(value)}"
        else:
            yield f"    {name}: {type(value).__name__}"
    yield ""


def describe_surface() -> list[str]:
    """Return all lines of surface.txt."""
    return [line for package in PACKAGES for line in describe_package(package)]


def test_surface_is_up_to_date() -> None:
    written = SURFACE.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(written, describe_surface(), "surface.txt", "code", lineterm="", n=0))
    hint = "if this is intended, run `python tests/test_surface.py` and commit surface.txt"
    assert not changes, "\n".join(["the public API has changed:", *changes, hint])


def test_every_package_with_public_names_is_listed() -> None:
    root = Path(importlib.import_module("rga_reid").__file__ or "").parent
    public = {
        ".".join(("rga_reid", *file.parent.relative_to(root).parts))
        for file in root.rglob("__init__.py")
        if "__all__" in file.read_text(encoding="utf-8")
    }
    assert public == set(PACKAGES)


if __name__ == "__main__":
    SURFACE.write_text("\n".join(describe_surface()) + "\n", encoding="utf-8")
