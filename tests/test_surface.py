"""The public surface is the one written down in surface.txt: a name, an argument or an option that changes
changes that list too, where a reviewer sees it.

    python tests/test_surface.py    # writes the list anew, from the code as it is
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from rga_reid.commands import COMMANDS

LIST = Path(__file__).with_name("surface.txt")
RENEW = "if that is meant, run `python tests/test_surface.py` and commit the list"
PACKAGES = (
    "rga_reid",
    "rga_reid.attention",
    "rga_reid.data",
    "rga_reid.data.synthetic",
    "rga_reid.evaluation",
    "rga_reid.models",
    "rga_reid.retrieval",
    "rga_reid.training",
)
FOREIGN = ("--trainer", "--model.optimizer.", "--print_config", "--help")  # options of Lightning and torch


def described(value: Any) -> str:
    """A default as its author wrote it, without addresses."""
    if isinstance(value, types.FunctionType | type):
        return value.__qualname__
    return repr(value)


def signature(function: Any) -> str:
    """Names, kinds and defaults of the parameters; types are mypy's business."""
    plain = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        default = parameter.default
        shown = inspect.Parameter.empty if default is inspect.Parameter.empty else _Shown(described(default))
        plain.append(parameter.replace(annotation=inspect.Parameter.empty, default=shown))
    return str(inspect.Signature(plain))


class _Shown:
    """A default that ``inspect`` prints as this text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def members(cls: type) -> Iterator[str]:
    """Public methods and properties that are ours: those of torch and Lightning are theirs.

    Fields are left out: the constructor lists them.
    """
    names = {name for base in cls.__mro__ if base.__module__.startswith("rga_reid") for name in vars(base)}
    fields = {*getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "_fields", ())}
    for name in sorted(names - fields):
        if name.startswith("_"):
            continue
        raw = inspect.getattr_static(cls, name)
        if isinstance(raw, classmethod | staticmethod):
            yield f"{name}{signature(getattr(cls, name))}  [{type(raw).__name__}]"
        elif inspect.isfunction(raw):
            yield f"{name}{signature(raw)}"
        else:
            yield name


def taught() -> dict[str, set[str]]:
    """Names that the Python blocks of the guides import from modules beside the packages."""
    found: dict[str, set[str]] = {}
    top = LIST.parents[1]
    for guide in (*top.glob("*.md"), *top.glob("docs/**/*.md")):
        for block in re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S):
            if (
                "class " in block
            ):  # a file of CONTRIBUTING.md's example, whose author works inside the package
                continue
            imports = re.findall(r"^from (rga_reid[\w.]*) import (?:\(([^)]*)\)|(.+))$", block, re.M)
            uses = re.findall(
                r"\b(rga_reid(?:\.[a-z_]\w*)+)\.(\w+)", re.sub(r"^from .*$", "", block, flags=re.M)
            )
            for module, several, one in [*imports, *((place, "", name) for place, name in uses)]:
                names = re.findall(r"(\w+)(?: as \w+)?", re.sub(r"#.*", "", several or one))
                if module not in PACKAGES:
                    found.setdefault(module, set()).update(names)
    return found


def names_of(package: str, names: Iterable[str] | None = None) -> Iterator[str]:
    """The lines of a package: what its ``__all__`` holds; of a module: these names."""
    module = importlib.import_module(package)
    yield package
    for name in sorted(module.__all__ if names is None else names):
        value = getattr(module, name)
        home = getattr(value, "__module__", package)
        if package == "rga_reid" and home != package and callable(value):
            yield f"    {name}  [{home.rpartition('.')[0]}]"  # described where it is at home
        elif inspect.isclass(value):
            yield f"    class {name}{signature(value)}"
            yield from (f"        {line}" for line in members(value))
        elif inspect.isfunction(value):
            yield f"    {name}{signature(value)}"
        elif isinstance(value, dict):
            yield f"    {name}: {', '.join(value)}"
        else:
            yield f"    {name}: {type(value).__name__}"
    yield ""


def options_of(name: str, parser: ArgumentParser) -> Iterator[str]:
    """A line for a command, or for each of its actions."""
    words = []
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner, below in action.choices.items():
                yield from options_of(f"{name} {inner}", below)
            return
        named = [str(action.metavar or action.dest)]
        longest = max(action.option_strings or named, key=len).rstrip("+")  # which the parser adds to lists
        if not (longest.startswith(FOREIGN) or longest.endswith(".help") or "-->" in longest):
            words.append(longest)
    yield f"    {name} {' '.join(words)}"


def surface() -> list[str]:
    """All lines of the list."""
    lines = [line for package in PACKAGES for line in names_of(package)]
    for module, names in sorted(taught().items()):
        lines += names_of(module, names)
    lines.append("commands")
    for name in COMMANDS:
        parser = importlib.import_module(f"rga_reid.commands.{name}").parser()
        lines += options_of(name, parser)
    return lines


def test_the_surface_is_the_one_written_down() -> None:
    written = LIST.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(written, surface(), "surface.txt", "the code", lineterm="", n=0))
    assert not changes, "\n".join(["the public surface has changed:", *changes, RENEW])


def test_every_package_with_public_names_is_listed() -> None:
    """A package that gets an ``__all__`` is public from then on."""
    root = Path(importlib.import_module("rga_reid").__file__ or "").parent
    public = {
        ".".join(("rga_reid", *file.parent.relative_to(root).parts))
        for file in root.rglob("__init__.py")
        if "__all__" in file.read_text(encoding="utf-8")
    }
    assert public == set(PACKAGES)


def test_what_guides_import_from_modules_is_listed() -> None:
    found = taught()
    assert "explain" in found["rga_reid.experiments.explain"]
    assert "feature_space_plot" in found["rga_reid.reports.plots"]
    written = LIST.read_text(encoding="utf-8")
    for module, names in found.items():
        part = written.split(f"\n{module}\n")[1].split("\n\n")[0]
        assert all(re.search(rf"^    (class )?{name}\b", part, re.M) for name in names), module


def test_a_changed_default_changes_the_list() -> None:
    def before(a: int, *, b: float = 0.5) -> None: ...

    def after(a: int, *, b: float = 0.25) -> None: ...

    assert signature(before) == "(a, *, b=0.5)"
    assert signature(after) != signature(before)


if __name__ == "__main__":
    LIST.write_text("\n".join(surface()) + "\n", encoding="utf-8")
