"""What a reader finds in a data set: its images, and the files or lines that do not fit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rga_reid.data.images import display_path, is_unicode
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import MAX_ROWS, truncate

INTEGER = re.compile(r"-?[0-9]{1,18}")
MAX_PROBLEMS = 100_000  #: of a data set, after which there is no more point in reading on


class Row(NamedTuple):
    """One image. ``name`` orders the rows of a split: its path within the split, with ``/``."""

    split: str
    name: str
    path: str
    pid: int
    camid: int | None


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a data set: which file or line, and what with it."""

    kind: str  #: "count", "match", "missing", "name", "line", or the fault of an image
    where: str  #: the file, or the file and line
    detail: str  #: what is wrong, in words

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


@dataclass
class Scan:
    """The rows and problems of a data set, gathered while it is read."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, split: str, name: str, path: str, pid: int, camid: int | None) -> None:
        """Add an image. ``InputError`` if there are more than ``MAX_ROWS``."""
        if len(self.rows) >= MAX_ROWS:
            raise InputError(
                f"{display_path(path)}: expected at most {MAX_ROWS:,} images in a data set, found more"
            )
        if is_unicode(path):
            self.rows.append(Row(split, name, path, pid, camid))
        else:
            self.add_problem("name", path, "the name is not valid UTF-8")

    def add_listed(
        self, split: str, folder: Path, name: str, pid: int, *, pattern: str | None, where: str
    ) -> None:
        """Add an image that a list names, or what is wrong with it.

        Args:
            split, pid: of the image.
            folder: of the split's images.
            name: path of the image within ``folder``, with ``/``.
            pattern: of the card: what the last part of ``name`` is like, and what tells its camera.
            where: the list, or its line.
        """
        path, numbers = os.path.join(folder, name), parse_integers(pattern, name.rpartition("/")[2])
        if not is_inside(name):
            self.add_problem("name", where, f"{short_repr(name, 200)} leads outside the data set")
        elif numbers is None:
            self.add_problem(
                "name", where, f"the name {short_repr(name, 200)} does not fit the card's pattern"
            )
        elif not os.path.isfile(path):
            self.add_problem("missing", where, f"no such image file: {path}")
        else:
            self.add(split, name, path, pid, numbers.get("camid"))

    def add_problem(self, kind: str, where: str | os.PathLike[str], detail: str) -> None:
        """Add something wrong. ``InputError`` if there is more than ``MAX_PROBLEMS``."""
        if len(self.problems) >= MAX_PROBLEMS:
            raise InputError(
                f"more than {MAX_PROBLEMS:,} problems in this data set, the first: {self.problems[0]}"
            )
        self.problems.append(Problem(kind, display_path(where), truncate(detail)))


def list_entries(folder: Path) -> str:
    """What lies in a folder, in a few words, for an error message."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot read this folder ({error.strerror})") from None
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{display_path(', '.join(names[:6]))}{more}" if names else "nothing: it is empty"


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def parse_integers(pattern: str | None, name: str) -> dict[str, int | None] | None:
    """What the pattern's groups tell: None if the name does not fit, or a group is not a whole number.

    Any name fits where there is no pattern.
    """
    if pattern is None:
        return {}
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    texts = match.groupdict()
    if not all(text is None or INTEGER.fullmatch(text) for text in texts.values()):
        return None
    return {group: None if text is None else int(text) for group, text in texts.items()}
