"""The bundled recipes, plans and data set cards: found by name in a checkout and an installed wheel alike."""

from __future__ import annotations

import difflib
from pathlib import Path

from rga_reid.errors import InputError, did_you_mean, short_repr

_PACKAGE = Path(__file__).resolve().parent
_NAMED = 8  # known names in a message, at most
_NOUNS = {"configs": "recipe", "plans": "plan", "datasets": "data set card"}
_PLANS = "ablations"  # the folder of plans, among the recipes


def list_resources(kind: str) -> list[str]:
    """Names of the bundled YAML files of a kind, sorted: ``configs`` (recipes), ``plans`` or ``datasets``.

    A name is the path below the folder without its suffix, such as ``market1501/rga_sc``; a plan's begins
    with ``ablations/``.
    """
    return sorted(_files(kind))


def find_resource(kind: str, name: str) -> Path:
    """Path of the bundled YAML file ``name`` of a kind, see ``list_resources``.

    Raises:
        InputError: no such name; the message suggests the nearest and tells some of the known.
    """
    files = _files(kind)
    if name in files:
        return files[name]
    others = [noun for other, noun in _NOUNS.items() if name in _files(other)]
    hint = f", which is a {others[0]}" if others else did_you_mean(name, files)
    near = difflib.get_close_matches(name, files, n=_NAMED)
    folder = name.rpartition("/")[0]
    beside = [known for known in files if known.rpartition("/")[0] == folder]
    nearest_first = dict.fromkeys([*near[1:], *sorted(beside), *sorted(files)])
    named = sorted(list(nearest_first)[:_NAMED])
    more = f" and {len(files) - len(named)} more" if len(named) < len(files) else ""
    raise InputError(
        f"unknown {_NOUNS[kind]} {short_repr(name)}{hint} "
        f"(known: {', '.join(named) or 'none'}{more}; one of your own is named by a path that ends in .yaml)"
    )


def _files(kind: str) -> dict[str, Path]:
    place = "datasets" if kind == "datasets" else "configs"
    folder = _PACKAGE / place  # where a wheel puts them
    if not folder.is_dir():
        checkout = _PACKAGE.parent
        # beside an installed package, `datasets` would be another project's
        folder = checkout / place if (checkout / "cli.py").is_file() else folder
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    wanted = kind == "plans"
    return {name: path for name, path in files.items() if name.startswith(f"{_PLANS}/") == wanted}
