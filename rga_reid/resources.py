"""The bundled recipes and data set cards, found by name from a checkout and from an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

from rga_reid.errors import InputError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent
_NOUNS = {"configs": "recipe", "datasets": "data set card"}


def list_resources(kind: str) -> list[str]:
    """Names of the bundled YAML files of a kind, sorted: ``configs`` (recipes) or ``datasets`` (cards).

    A name is the path below the folder without its suffix, such as ``market1501/rga_sc``.
    """
    return sorted(_files(kind))


def find_resource(kind: str, name: str) -> Path:
    """Path of the bundled YAML file ``name`` of a kind, see ``list_resources``.

    Raises:
        InputError: no such name; the message lists the known ones and suggests the nearest.
    """
    files = _files(kind)
    if name in files:
        return files[name]
    known = ", ".join(sorted(files)) or "none"
    raise InputError(f"unknown {_NOUNS[kind]} {name!r}{did_you_mean(name, files)} (known: {known})")


def _files(kind: str) -> dict[str, Path]:
    folder = _PACKAGE / kind  # where a wheel puts them
    if not folder.is_dir():
        checkout = _PACKAGE.parent
        # beside an installed package, `datasets` would be another project's
        folder = checkout / kind if (checkout / "cli.py").is_file() else folder
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
