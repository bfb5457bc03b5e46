"""The ways a data set lies on disk, each read into a ``Survey``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rga_reid.data.cards import Card, Source
from rga_reid.data.cuhk03 import survey_cuhk03
from rga_reid.data.images import is_litter, list_images
from rga_reid.data.survey import INTEGER, Survey, contents, numbers_in
from rga_reid.errors import InputError, quoted
from rga_reid.inputs import opened_text, shortened


def survey_folder(root: Path, card: Card) -> Survey:
    """Read a data set in the card's layout.

    Raises:
        InputError: the root is missing or empty, or a folder that the card names is missing or holds no
            image. What is wrong with single files is gathered in the survey.
    """
    if not root.is_dir():
        found = "found a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: expected the folder of a data set ({card.title}), {found}")
    readers = {
        "names": _read_names,
        "lists": _read_lists,
        "identities": _read_identities,
        "cuhk03": survey_cuhk03,
    }
    return readers[card.layout](root, card)


def _read_names(root: Path, card: Card) -> Survey:
    """Flat folders; the pattern tells pid and camid from a file's name."""
    survey = Survey()
    for split, source, folder in _sources(root, card):
        if source.pid is not None:
            for path in list_images(folder):
                camid = (numbers_in(card.pattern, path.name) or {}).get("camid")
                survey.add(split, path.relative_to(folder).as_posix(), str(path), source.pid, camid)
            continue
        before = len(survey.rows)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_litter(entry.name):
                continue
            numbers = numbers_in(card.pattern, entry.name)
            if numbers is None or numbers["pid"] is None:
                survey.add_problem("name", entry.path, "the name does not fit the card's pattern")
            elif not entry.is_file():
                survey.add_problem("name", entry.path, "not a file")
            else:
                survey.add(split, entry.name, entry.path, numbers["pid"], numbers.get("camid"))
        if len(survey.rows) == before:
            raise InputError(
                f"{folder}: expected images named as {shortened(card.pattern)} (card {card.name}), "
                f"found {contents(folder)}"
            )
    return survey


def _read_lists(root: Path, card: Card) -> Survey:
    """List files, a line ``path pid`` for each image; the pattern, if any, tells the camid from its name."""
    survey = Survey()
    for split, source, folder in _sources(root, card):
        listing = root / str(source.list)
        if not listing.exists():
            raise InputError(f"{listing}: expected this list file (card {card.name}), found {contents(root)}")
        empty = True
        with opened_text(listing) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    _read_line(survey, card, split, folder, line.strip(), f"{listing}, line {number}")
        if empty:
            raise InputError(f"{listing}: empty, expected a line 'path pid' for each image")
    return survey


def _read_line(survey: Survey, card: Card, split: str, folder: Path, line: str, where: str) -> None:
    name, _, pid = line.replace("\t", " ").rpartition(" ")
    name = name.rstrip()
    if not name or not INTEGER.fullmatch(pid):
        survey.add_problem("line", where, f"expected 'path pid', got {quoted(line, 200)}")
    else:
        survey.add_listed(split, folder, name, int(pid), pattern=card.pattern, where=where)


def _read_identities(root: Path, card: Card) -> Survey:
    """One folder per identity; a folder's name is the pid, or if any is not a number, its place in order."""
    survey = Survey()
    places = [(split, folder) for split, _, folder in _sources(root, card)] or [("train", root)]
    images = []
    for split, folder in places:
        for path in list_images(folder):
            name = path.relative_to(folder).as_posix()
            identity, *rest = name.split("/")
            if len(rest) == 1:
                images.append((split, name, path, identity))
            else:
                survey.add_problem("name", path, f"expected at {folder}/IDENTITY/{path.name}")
    pids = _folder_pids(root, {(split, identity) for split, _, _, identity in images})
    for split, name, path, identity in images:
        numbers = numbers_in(card.pattern, path.name) or {}
        survey.add(split, name, str(path), pids[identity], numbers.get("camid"))
    return survey


def _folder_pids(root: Path, folders: set[tuple[str, str]]) -> dict[str, int]:
    """Folder name -> pid, the same in all splits. ``folders``: (split, name)."""
    names = sorted({name for _, name in folders})
    if not all(INTEGER.fullmatch(name) for name in names):
        return {name: number for number, name in enumerate(names)}
    owners: dict[tuple[str, int], str] = {}
    for split, name in sorted(folders):
        owner = owners.setdefault((split, int(name)), name)
        if owner != name:
            raise InputError(
                f"{root}: in {split} the folders {owner!r} and {name!r} are both pid {int(name)}"
            )
    return {name: int(name) for name in names}


def _sources(root: Path, card: Card) -> Iterator[tuple[str, Source, Path]]:
    """Each split's sources with the folder that is there."""
    for name, split in card.splits.items():
        for source in split.sources:
            folders = [root / folder for folder in source.folder if (root / folder).is_dir()]
            if folders:
                yield name, source, folders[0]
            elif not split.optional:
                raise InputError(_missing_folder(root, card, source))


def _missing_folder(root: Path, card: Card, source: Source) -> str:
    wanted = " or ".join(f"{folder}/" for folder in source.folder)
    message = f"{root}: expected the folder {wanted} (card {card.name}), found {contents(root)}"
    for entry in sorted(root.iterdir()):
        if any((entry / folder).is_dir() for folder in source.folder):
            return f"{message}; did you mean {entry}?"
    if (root / "train").is_dir():
        return f"{message}; for one folder per identity choose the card 'folders'"
    return message
