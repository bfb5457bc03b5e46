"""Recipes: YAML files of training options, bundled by name or a user's own by path."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from rga_reid._deprecated import RECIPES, rename_options
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import read_yaml
from rga_reid.resources import find_resource

_SECTIONS = ("model", "data", "trainer", "test")


def read_recipe(name: str, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the options of a recipe, merged over those of its ``base``.

    Mappings are merged key by key; any other value replaces the one of the base. A mapping with a
    ``class_path`` replaces the whole value, because options of another class would not fit. ``imports`` names
    modules to import first; those of the base come before the recipe's.

    Args:
        name: bundled recipe (``market1501/rga_sc``), or path of a YAML file. ``base`` is a bundled name, or a
            path relative to the file that names it.

    Raises:
        InputError: unknown recipe, not a YAML mapping, a section that is not a mapping, or a recipe that is
            its own base.
    """
    if name in RECIPES:
        base, options = RECIPES[name]
        warnings.warn(f"recipe {name} is now {describe_recipe(base, options)}", FutureWarning, stacklevel=2)
        return merge(read_recipe(base, _seen=_seen), deepcopy(options))
    path, content = read_mapping(name)
    if path in _seen:
        raise InputError(f"recipe {path}: is its own base")
    if "variants" in content:
        raise InputError(f"recipe {path}: expected options of train, found a plan of ablate (with variants)")
    try:
        check_sections(content)
        content = rename_options(content)
        imports = check_imports(content.pop("imports", None))
    except InputError as error:
        raise InputError(f"recipe {path}: {error}") from None
    parent = content.pop("base", None)
    if parent is not None:
        content = merge(read_recipe(relative_to(path, str(parent)), _seen=(*_seen, path)), content)
    return add_imports(content, imports)


def check_imports(value: Any) -> list[str]:
    """Return the modules that ``imports`` of a recipe or a plan names: one, several, or none.

    Raises:
        InputError: neither a name nor a list of names.
    """
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"imports: expected a list of module names, got {short_repr(value)}")
    return names


def add_imports(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the options of a recipe that imports these modules, too, after its own."""
    imports = list(dict.fromkeys([*options.get("imports", []), *names]))
    return {**options, "imports": imports} if imports else dict(options)


def describe_recipe(name: str, options: Mapping[str, Any]) -> str:
    """Return a recipe with options as the words of a command line."""
    words = [name]
    for section, values in options.items():
        words += [f"--{section}.{key} {'null' if value is None else value}" for key, value in values.items()]
    return " ".join(words)


def read_mapping(name: str, *, what: str = "recipe") -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of a recipe or a plan.

    Args:
        name: bundled name, or path of a YAML file.
        what: ``recipe`` or ``plan``; error messages begin with it.

    Raises:
        InputError: unknown name, no such file, not a YAML mapping.
    """
    path = _find_file(name, what)
    content = read_yaml(path, what=what)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{what} {path}: expected a mapping of options, got {type(content).__name__}")
    return path, content


def check_sections(options: Mapping[str, Any]) -> None:
    """Refuse a section that is not a mapping, which the option parser would ignore.

    Raises:
        InputError: naming the section.
    """
    for section in _SECTIONS:
        value = options.get(section)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{section}: expected a mapping of options, got {short_repr(value)}")


def relative_to(file: Path, name: str) -> str:
    """Resolve the name of a recipe in the YAML file ``file``: paths are relative to its folder."""
    path = file.parent / name
    return str(path) if path.suffix in (".yaml", ".yml") else name


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Return ``override`` merged over ``base``; neither is changed."""
    merged = dict(base)
    for key, value in override.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and "class_path" not in value
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _find_file(name: str, what: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{what} {name}: no such file")
        return path.resolve()
    return find_resource("plans" if what == "plan" else "configs", name)
