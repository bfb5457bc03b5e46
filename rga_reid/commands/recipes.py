"""Recipes: YAML files of training options, bundled by name or a user's own by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rga_reid.errors import InputError
from rga_reid.resources import find_resource


def read_recipe(name: str, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a recipe; those of the recipe that its key ``base`` names lie beneath them.

    Mappings are merged key by key, anything else replaces what it overrides. A mapping with a
    ``class_path`` replaces the one beneath it whole: options of another class would make no sense.

    Args:
        name: of a bundled recipe (``market1501/rga_sc``) or the path of a YAML file. ``base`` is a name,
            or a path relative to the file it stands in.

    Raises:
        InputError: unknown recipe, not a YAML mapping, or a recipe that is its own base.
    """
    path = _locate(name)
    if path in _seen:
        raise InputError(f"recipe {path}: is its own base")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"recipe {path}: not a YAML file ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"recipe {path}: expected a mapping of options, got {type(content).__name__}")
    base: str | None = content.pop("base", None)
    if base is None:
        return content
    beside = path.parent / str(base)
    found = str(beside) if beside.suffix in (".yaml", ".yml") else str(base)
    return merge(read_recipe(found, _seen=(*_seen, path)), content)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and "class_path" not in value
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _locate(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"recipe {name}: no such file")
        return path.resolve()
    return find_resource("configs", name)
