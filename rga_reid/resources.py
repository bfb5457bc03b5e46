"""Find the bundled recipes, plans and data set cards by name, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

from rga_reid.errors import InputError, did_you_mean, short_repr

_PACKAGE = Path(__file__).resolve().parent
_MAX_NAMES = 8  # known names in a message
_NOUNS = {"configs": "recipe", "plans": "plan", "datasets": "data set card"}
_PLANS = "ablations"  # folder of the plans among the recipes


def list_resources(kind: str) -> list[str]:
    """Return the sorted names of the bundled ``configs`` (recipes), ``plans`` or ``datasets``.

    A name is the path below the folder without its suffix, such as ``market1501/rga_sc``. Names of plans
    begin with ``ablations/``.
    """
    return sorted(_files(kind))


def find_resource(kind: str, name: str) -> Path:
    """Return the path of a bundled YAML file by its name in ``list_resources(kind)``.

    Raises:
        InputError: no such name; the message suggests the closest ones.
    """
    files = _files(kind)
    if name in files:
        return files[name]
    others = [noun for other, noun in _NOUNS.items() if name in _files(other)]
    hint = f", which is a {others[0]}" if others else did_you_mean(name, files)
    near = difflib.get_close_matches(name, files, n=_MAX_NAMES)
    shown = sorted(list(dict.fromkeys([*near, *sorted(files)]))[:_MAX_NAMES])
    more = f" and {len(files) - len(shown)} more" if len(shown) < len(files) else ""
    raise InputError(
        f"unknown {_NOUNS[kind]} {short_repr(name)}{hint} "
        f"(known: {', '.join(shown) or 'none'}{more}; a file of your own is given by a path ending in .yaml)"
    )


def _files(kind: str) -> dict[str, Path]:
    name = "datasets" if kind == "datasets" else "configs"
    folder = _PACKAGE / name  # in an installed wheel
    if not folder.is_dir():
        checkout = _PACKAGE.parent
        # beside an installed package, `datasets` would be another project's
        folder = checkout / name if (checkout / "cli.py").is_file() else folder
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    plans = kind == "plans"
    return {name: path for name, path in files.items() if name.startswith(f"{_PLANS}/") == plans}
