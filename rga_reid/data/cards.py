"""Data set cards: the layout of a data set, the meaning of its identity numbers, and its counts.

A card is a short YAML file; ``datasets/README.md`` describes its keys.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from rga_reid.data.records import is_inside
from rga_reid.errors import InputError, did_you_mean, short_repr
from rga_reid.inputs import read_yaml, truncate
from rga_reid.resources import find_resource

SPLITS = ("train", "query", "gallery")  #: in the order of a table
LAYOUTS = ("names", "lists", "identities", "cuhk03")


@dataclass(frozen=True)
class Source:
    """A folder of images of a split.

    Args:
        folder: names of the folder, relative to the root; the first that exists is read, as versions of a
            data set may name their folders differently.
        list: layout ``lists``: text file in the root with a line ``path pid`` per image, the path relative to
            the folder. Layout ``cuhk03``: MATLAB file of the protocol.
        pid: layout ``names``: pid (a number or text) of all images of this source, whatever their names.
    """

    folder: tuple[str, ...]
    list: str | None = None
    pid: int | str | None = None


@dataclass(frozen=True)
class Split:
    """The sources of a split and its expected counts; None where the card does not give them.

    Args:
        sources: sources, read in this order.
        images: number of files of every kind.
        identities: number of identities without junk and distractors.
        junk: number of files with a junk pid.
        distractors: number of files with a distractor pid.
        optional: the split may be absent.
    """

    sources: tuple[Source, ...]
    images: int | None = None
    identities: int | None = None
    junk: int | None = None
    distractors: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Card:
    """The card of a data set.

    Args:
        name: short name, which may be part of a file name.
        title: full name.
        layout: ``names`` (pid in the file name), ``lists`` (pid in a list file), ``identities`` (one folder
            per identity) or ``cuhk03`` (images inside cuhk-03.mat, see ``cuhk03.py``).
        splits: the splits of the data set, out of ``train``, ``query`` and ``gallery``.
        pattern: regular expression for a whole file name, with the named groups ``pid`` (layout ``names``)
            and ``camid``; in the layout ``identities`` the camera of other names is unknown.
        junk_pids: pids of images that are left out of training and ranking.
        distractor_pids: pids of gallery images that match no query.
        cameras: number of cameras.
        citation, url, terms: reference, where to request the data, and terms of use.

    Raises:
        InputError: an invalid field; the message names card and key.
    """

    name: str
    title: str
    layout: str
    splits: Mapping[str, Split]
    pattern: str | None = None
    junk_pids: tuple[int | str, ...] = ()
    distractor_pids: tuple[int | str, ...] = ()
    cameras: int | None = None
    citation: str = ""
    url: str = ""
    terms: str = ""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            self._refuse("layout", f"expected one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not self.splits:
            self._refuse("splits", f"expected at least one of {', '.join(SPLITS)}")
        for name, split in self.splits.items():
            self._check_split(name, split)
        groups = self._groups()
        if self.layout == "names" and "pid" not in groups:
            self._refuse("pattern", "the layout 'names' needs a pattern with the group (?P<pid>...)")
        if groups - {"pid", "camid"}:
            self._refuse("pattern", f"unknown group {min(groups - {'pid', 'camid'})!r}, known: pid, camid")

    def _check_split(self, name: str, split: Split) -> None:
        if name not in SPLITS:
            self._refuse(f"splits.{truncate(name, 80)}", f"unknown split, known: {', '.join(SPLITS)}")
        if not split.sources:
            self._refuse(f"splits.{name}.sources", "expected at least one source")
        for number, source in enumerate(split.sources):
            key = f"splits.{name}.sources[{number}]"
            if not source.folder:
                self._refuse(f"{key}.folder", "expected at least one folder name")
            for part in (*source.folder, *([source.list] if source.list is not None else [])):
                if not is_inside(part):
                    self._refuse(key, f"expected a path within the data set's root, got {part!r}")
            listed = self.layout in ("lists", "cuhk03")
            if (source.list is None) == listed:
                problem = "needs" if listed else "does not take"
                self._refuse(f"{key}.list", f"the layout {self.layout!r} {problem} a list file")
            if source.pid is not None and self.layout != "names":
                self._refuse(f"{key}.pid", f"the layout {self.layout!r} does not take one pid for a source")

    def _groups(self) -> set[str]:
        if self.pattern is None:
            return set()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # FutureWarning of re
                return set(re.compile(self.pattern).groupindex)
        except (re.error, OverflowError, RecursionError, MemoryError) as error:
            self._refuse("pattern", f"not a regular expression ({truncate(error)})")

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise InputError(f"card {self.name}: {key}: {problem}")


def load_card(card: str | os.PathLike[str] | Card) -> Card:
    """Return a bundled card by its name, or the card in a YAML file. A ``Card`` is returned as it is.

    Raises:
        InputError: an unknown name (the known ones are listed), a missing file, or an invalid card; the
            message names the card and the key.
    """
    if isinstance(card, Card):
        return card
    text = os.fspath(card)
    own = isinstance(card, os.PathLike) or text.endswith((".yaml", ".yml")) or os.sep in text
    path = Path(text) if own else find_resource("datasets", text)
    return _build(Card, read_yaml(path, what="card"), f"card {path}", "")


def _build(cls: Any, value: Any, card: str, key: str) -> Any:
    """Return a dataclass from a YAML mapping; ``card`` and ``key`` say where the mapping is."""
    if not isinstance(value, Mapping):
        raise InputError(f"{card}: {key or 'the file'}: expected keys and values, got {short_repr(value)}")
    known = {item.name: item for item in fields(cls)}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in known:
            hint = did_you_mean(str(name), known) or f" (known: {', '.join(known)})"
            raise InputError(f"{card}: {prefix}{truncate(name, 80)}: unknown key{hint}")
    for name, item in known.items():
        if name not in value and item.default is MISSING:
            raise InputError(f"{card}: {prefix}{name}: this key is missing")
    return cls(**{name: _convert(name, item, card, f"{prefix}{name}") for name, item in value.items()})


def _convert(name: str, value: Any, card: str, key: str) -> Any:
    """Return the value of a key as the dataclasses above hold it."""
    if name == "folder" and isinstance(value, str):
        value = [value]
    expected, is_valid = _EXPECTED[name]
    if not is_valid(value):
        raise InputError(f"{card}: {key}: expected {expected}, got {short_repr(value)}")
    if name == "splits":
        return {
            str(split): _build(Split, item, card, f"{key}.{truncate(split, 80)}")
            for split, item in value.items()
        }
    if name == "sources":
        return tuple(_build(Source, item, card, f"{key}[{number}]") for number, item in enumerate(value))
    if isinstance(value, str):
        return value.strip()
    return tuple(value) if isinstance(value, list) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_integer(value: Any) -> bool:
    return type(value) is int  # not a bool


def _is_label(value: Any) -> bool:
    return _is_integer(value) or _is_text(value)


def _is_list(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


_TEXT = ("a text", _is_text)
_COUNT = ("a count (a whole number, not negative)", lambda value: _is_integer(value) and value >= 0)
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("name", "title", "layout", "pattern", "citation", "url", "terms", "list"), _TEXT),
    **dict.fromkeys(("images", "identities", "junk", "distractors", "cameras"), _COUNT),
    **dict.fromkeys(
        ("junk_pids", "distractor_pids"), ("a list of whole numbers or texts", _is_list(_is_label))
    ),
    "pid": ("a whole number or a text", _is_label),
    "optional": ("true or false", lambda value: isinstance(value, bool)),
    "folder": ("a folder name, or a list of them", _is_list(_is_text)),
    "sources": ("a list of sources", lambda value: isinstance(value, list)),
    "splits": ("keys and values", lambda value: isinstance(value, Mapping)),
}
