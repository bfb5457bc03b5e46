"""The images of a data set, and the files or lines in it that do not fit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from rga_reid.data.images import display_path, find_images, is_unicode
from rga_reid.data.labels import parse_groups
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import MAX_ROWS, truncate

MAX_PROBLEMS = 100_000  #: problems of a data set after which reading stops


Labels = Mapping[str, int | str | None]  #: label of an image by column


class Row(NamedTuple):
    """One image. Rows of a split are ordered by ``name``, the path within the split, with ``/``.

    Labels are numbers, or text as it was found; ``to_table`` gives the columns their types.
    """

    split: str
    name: str
    path: str
    labels: Labels  #: ``pid``, ``camid`` and any other column


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set."""

    kind: str  #: "count", "match", "missing", "name", "line", "duplicate", or the fault of an image
    where: str  #: file, or file and line
    detail: str  #: what is wrong, in words

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


@dataclass
class Scan:
    """Rows and problems of a data set, collected while it is read."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  #: files without a suffix of images, by suffix

    def add(self, split: str, name: str, path: str, labels: Labels) -> None:
        """Add an image. Raise ``InputError`` beyond ``MAX_ROWS``."""
        if len(self.rows) >= MAX_ROWS:
            raise InputError(
                f"{display_path(path)}: expected at most {MAX_ROWS:,} images in a data set, found more"
            )
        if is_unicode(path):
            self.rows.append(Row(split, name, path, labels))
        else:
            self.add_problem("name", path, "the name is not valid UTF-8")

    def add_listed(
        self, split: str, folder: Path, name: str, given: Labels, *, pattern: str | None, where: str
    ) -> None:
        """Add an image that a list names, or the problem with it.

        Args:
            split: split of the image.
            folder: folder of the split's images.
            name: path of the image within ``folder``, with ``/``.
            given: labels that the list and the card give.
            pattern: pattern of the card, for the last part of ``name``; it gives other labels.
            where: the list, or its line.
        """
        path, labels = os.path.join(folder, name), parse_groups(pattern, name.rpartition("/")[2])
        shown = short_repr(name, 200)
        if not is_inside(name):
            self.add_problem("name", where, f"{shown} leads outside the data set")
        elif labels is None:
            self.add_problem("name", where, f"the name {shown} does not fit the card's pattern")
        elif not os.path.isfile(path):
            self.add_problem("missing", where, f"no such image file: {path}")
        else:
            self.add(split, name, path, {**labels, **given} if labels else given)

    def add_problem(self, kind: str, where: str | os.PathLike[str], detail: str) -> None:
        """Add a problem. Raise ``InputError`` beyond ``MAX_PROBLEMS``."""
        if len(self.problems) >= MAX_PROBLEMS:
            raise InputError(
                f"more than {MAX_PROBLEMS:,} problems in this data set, the first: {self.problems[0]}"
            )
        self.problems.append(Problem(kind, display_path(where), truncate(detail)))

    def find_images(self, folder: Path) -> list[Path]:
        """Return the images below a folder, and count the other files in ``skipped``."""
        images, skipped = find_images(folder)
        self.skipped += skipped
        return images


def list_entries(folder: Path) -> str:
    """Return a few names in a folder, for an error message."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    except OSError as error:
        raise InputError(f"{folder}: cannot read this folder ({error.strerror})") from None
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{display_path(', '.join(names[:6]))}{more}" if names else "nothing: it is empty"


def is_inside(path: str) -> bool:
    """Return whether a relative path stays below the folder that it is relative to."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
