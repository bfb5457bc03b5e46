"""Data set cards: the layout of a data set, the meaning of its identity numbers, and its counts.

A card is a short YAML file; ``datasets/README.md`` describes its keys.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from rga_reid.data.columns import CAMERA, RESULT_COLUMNS
from rga_reid.data.records import Labels, is_inside
from rga_reid.errors import InputError, check_int, did_you_mean, short_repr
from rga_reid.inputs import read_yaml, truncate
from rga_reid.resources import find_resource

SPLITS = ("train", "query", "gallery")  #: in the order of a table
LAYOUTS = ("names", "lists", "identities", "cuhk03", "mars")
ALL = "all"  #: in place of the number of a random split

#: columns that protocols use; cards may give others, too
LABEL_COLUMNS = ("pid", "camid", "track", "clothes", "modality")
_TAKEN = ("path", "split", "dataset", CAMERA, *RESULT_COLUMNS)
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Source:
    """A folder of images of a split.

    Args:
        folder: names of the folder, relative to the root; the first that exists is read, as versions of a
            data set may name their folders differently.
        list: layout ``lists``: text file in the root with a line ``path pid`` per image, the path relative to
            the folder. Layout ``identities``: text file of the identities to read, separated by commas or
            spaces; all by default. Layouts ``cuhk03`` and ``mars``: MATLAB file.
        pid: layout ``names``: pid (a number or text) of all images of this source, whatever their names.
        camid: camera (a number or text) of all images of this source.
        columns: label of all images of this source by column, such as ``{modality: infrared}``.
        pattern: layouts ``names`` and ``identities``: replaces the pattern of the card; files with other
            names do not belong to this source.
    """

    folder: tuple[str, ...]
    list: str | None = None
    pid: int | str | None = None
    camid: int | str | None = None
    columns: Mapping[str, int | str] = field(default_factory=dict)
    pattern: str | None = None

    @property
    def labels(self) -> Labels:
        """Labels of all images of this source."""
        labels = {"pid": self.pid, "camid": self.camid, **self.columns}
        return {column: label for column, label in labels.items() if label is not None}


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
        tracks: number of tracks.
    """

    sources: tuple[Source, ...]
    images: int | None = None
    identities: int | None = None
    junk: int | None = None
    distractors: int | None = None
    optional: bool = False
    tracks: int | None = None


@dataclass(frozen=True)
class RandomSplit:
    """A random division of the identities that are both in query and gallery.

    Args:
        test_identities: number of identities that are drawn for testing; the others are for training.
        number: number of the split, the random seed; None: all identities are for testing, as for a model
            that was trained on other data.
    """

    test_identities: int
    number: int | None = 0


@dataclass(frozen=True)
class Card:
    """The card of a data set.

    Args:
        name: short name, which may be part of a file name.
        title: full name.
        layout: ``names`` (pid in the file name), ``lists`` (pid in a list file), ``identities`` (one folder
            per identity), ``cuhk03`` (images inside cuhk-03.mat, see ``cuhk03.py``) or ``mars`` (tracks in
            MATLAB files, see ``mars.py``).
        splits: the splits of the data set, out of ``train``, ``query`` and ``gallery``.
        pattern: regular expression for a whole file name, with the named groups ``pid`` (layout ``names``),
            ``camid``, ``track`` or any other column; in the layout ``identities`` the labels of other names
            are unknown.
        junk_pids: pids of images that are left out of training and ranking.
        distractor_pids: pids of gallery images that match no query.
        cameras: number of cameras.
        citation, url, terms: reference, where to request the data, and terms of use.
        random_split: divides the identities of ``query`` and ``gallery``, whose training images become the
            split ``train``; None for data sets with fixed splits.
        protocol: protocol of ``rga-reid test``, unless another one is chosen; None: that of Market-1501, with
            the cameras that are known.
        counts_from: where the counts were published.

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
    random_split: RandomSplit | None = None
    protocol: str | None = None
    counts_from: str = ""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            self._refuse("layout", f"expected one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if not self.splits:
            self._refuse("splits", f"expected at least one of {', '.join(SPLITS)}")
        for name, split in self.splits.items():
            self._check_split(name, split)
        self._check_columns("pattern", self._groups("pattern", self.pattern))
        if self.random_split is not None:
            prefix = f"card {self.name}: random_split"
            check_int(f"{prefix}.test_identities", self.random_split.test_identities)
            if self.random_split.number is not None:
                check_int(f"{prefix}.number", self.random_split.number, 0)
            if set(self.splits) != {"query", "gallery"}:
                self._refuse("random_split", "expected the splits query and gallery, which it divides")

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
            listed = self.layout in ("lists", "cuhk03", "mars")
            if (source.list is None) == listed and self.layout != "identities":
                problem = "needs" if listed else "does not take"
                self._refuse(f"{key}.list", f"the layout {self.layout!r} {problem} a list file")
            if source.pid is not None and self.layout != "names":
                self._refuse(f"{key}.pid", f"the layout {self.layout!r} does not take one pid for a source")
            if source.pattern is not None and listed:
                self._refuse(
                    f"{key}.pattern", f"the layout {self.layout!r} does not take a pattern for a source"
                )
            where, pattern = "pattern", self.pattern
            if source.pattern is not None:
                where, pattern = f"{key}.pattern", source.pattern
            groups = self._groups(where, pattern)
            if self.layout == "names" and source.pid is None and "pid" not in groups:
                self._refuse(where, "the layout 'names' needs a pattern with the group (?P<pid>...)")
            self._check_columns(where, groups)
            self._check_columns(f"{key}.columns", set(source.columns))

    def _groups(self, key: str, pattern: str | None) -> set[str]:
        if pattern is None:
            return set()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # FutureWarning of re
                return set(re.compile(pattern).groupindex)
        except (re.error, OverflowError, RecursionError, MemoryError) as error:
            self._refuse(key, f"not a regular expression ({truncate(error)})")

    def _check_columns(self, key: str, columns: set[str]) -> None:
        """Refuse a name that is in use, is no name, or is probably a misspelt one."""
        for column in sorted(columns - set(LABEL_COLUMNS)):
            hint = did_you_mean("camid" if column == CAMERA else column, LABEL_COLUMNS)
            if column in _TAKEN or hint or not _COLUMN.fullmatch(column):
                self._refuse(key, f"the column {short_repr(column)} cannot be used{hint}")

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise InputError(f"card {self.name}: {key}: {problem}")


def load_card(card: str | os.PathLike[str] | Card) -> Card:
    """Return a bundled card by its name, or the card in a YAML file. A ``Card`` is returned as it is.

    ``viper:3`` is the card ``viper`` with split number 3 of its random splits, ``viper:all`` the one with all
    identities for testing.

    Raises:
        InputError: an unknown name (the known ones are listed), a missing file, or an invalid card; the
            message names the card and the key.
    """
    if isinstance(card, Card):
        return card
    text = os.fspath(card)
    name, colon, number = text.rpartition(":")
    if not colon or not (number == ALL or number.isdecimal()):
        name, number = text, ""
    own = isinstance(card, os.PathLike) or name.endswith((".yaml", ".yml")) or os.sep in name
    path = Path(name) if own else find_resource("datasets", name)
    found: Card = _build(Card, read_yaml(path, what="card"), f"card {path}", "")
    if not number:
        return found
    if found.random_split is None:
        raise InputError(f"card {found.name}: has fixed splits, so no split {number!r}")
    split = replace(found.random_split, number=None if number == ALL else int(number))
    return replace(found, random_split=split)


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
        if name not in value and item.default is MISSING and item.default_factory is MISSING:
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
    if name == "random_split":
        return _build(RandomSplit, value, card, key)
    if name == "columns":
        return {
            str(column): label.strip() if isinstance(label, str) else label for column, label in value.items()
        }
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
    **dict.fromkeys(("name", "title", "layout", "pattern", "list", "protocol"), _TEXT),
    **dict.fromkeys(("citation", "url", "terms", "counts_from"), _TEXT),
    **dict.fromkeys(("images", "identities", "junk", "distractors", "tracks", "cameras"), _COUNT),
    **dict.fromkeys(("test_identities", "number"), _COUNT),
    **dict.fromkeys(
        ("junk_pids", "distractor_pids"), ("a list of whole numbers or texts", _is_list(_is_label))
    ),
    **dict.fromkeys(("pid", "camid"), ("a whole number or a text", _is_label)),
    "columns": (
        "a whole number or a text for each column",
        lambda value: isinstance(value, Mapping) and all(map(_is_label, value.values())),
    ),
    "random_split": ("keys and values", lambda value: isinstance(value, Mapping)),
    "optional": ("true or false", lambda value: isinstance(value, bool)),
    "folder": ("a folder name, or a list of them", _is_list(_is_text)),
    "sources": ("a list of sources", lambda value: isinstance(value, list)),
    "splits": ("keys and values", lambda value: isinstance(value, Mapping)),
}
