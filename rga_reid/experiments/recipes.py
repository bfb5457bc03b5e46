"""Recipes: YAML files of training options, bundled by name or a user's own by path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import read_yaml
from rga_reid.resources import find_resource

_SECTIONS = ("model", "data", "trainer", "test")


def read_recipe(name: str, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a recipe; those of the recipe that its key ``base`` names lie beneath them.

    Mappings are merged key by key, anything else replaces what it overrides. A mapping with a
    ``class_path`` replaces the one beneath it whole: options of another class would make no sense.

    Args:
        name: of a bundled recipe (``market1501/rga_sc``) or the path of a YAML file. ``base`` is a name,
            or a path relative to the file it stands in.

    Raises:
        InputError: unknown recipe, not a YAML mapping, a section that is none, or a recipe that is its own
            base.
    """
    path, content = read_mapping(name)
    if path in _seen:
        raise InputError(f"recipe {path}: is its own base")
    if "variants" in content:
        raise InputError(
            f"recipe {path}: expected options of train, found a plan of ablate (it has variants)"
        )
    try:
        check_sections(content)
    except InputError as error:
        raise InputError(f"recipe {path}: {error}") from None
    base: str | None = content.pop("base", None)
    if base is None:
        return content
    return merge(read_recipe(relative_to(path, str(base)), _seen=(*_seen, path)), content)


def read_mapping(name: str, *, what: str = "recipe") -> tuple[Path, dict[str, Any]]:
    """The file that a bundled name or a path means, and the mapping that it holds.

    Args:
        name: bundled, or a path.
        what: it should be: the messages begin with it.

    Raises:
        InputError: unknown name, no such file, not a YAML mapping.
    """
    path = _locate(name, what)
    content = read_yaml(path, what=what)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{what} {path}: expected a mapping of options, got {type(content).__name__}")
    return path, content


def check_sections(options: Mapping[str, Any]) -> None:
    """Refuse a section of options that is anything else: the parser would pass over it without a word.

    Raises:
        InputError: the message names the section.
    """
    for section in _SECTIONS:
        found = options.get(section)
        if found is not None and not isinstance(found, dict):
            raise InputError(f"{section}: expected a mapping of options, got {short_repr(found)}")


def relative_to(file: Path, name: str) -> str:
    """A recipe's name as the YAML file ``file`` means it: paths are relative to the folder it stands in."""
    beside = file.parent / name
    return str(beside) if beside.suffix in (".yaml", ".yml") else name


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and "class_path" not in value
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _locate(name: str, what: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{what} {name}: no such file")
        return path.resolve()
    return find_resource("plans" if what == "plan" else "configs", name)
