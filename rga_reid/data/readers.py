"""The ways a data set lies on disk, each read into a ``Survey``."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from rga_reid.data.cards import SPLITS, Card, Source, load_card
from rga_reid.data.cuhk03 import scan_cuhk03
from rga_reid.data.images import is_ignored_file, list_images
from rga_reid.data.records import INTEGER, Scan, list_entries, parse_integers
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import open_text, truncate


def scan_folder(root: Path, card: Card) -> Scan:
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
        "cuhk03": scan_cuhk03,
    }
    return readers[card.layout](root, card)


def _read_names(root: Path, card: Card) -> Scan:
    """Flat folders; the pattern tells pid and camid from a file's name."""
    survey = Scan()
    for split, source, folder in _sources(root, card):
        if source.pid is not None:
            for path in list_images(folder):
                camid = (parse_integers(card.pattern, path.name) or {}).get("camid")
                survey.add(split, path.relative_to(folder).as_posix(), str(path), source.pid, camid)
            continue
        before = len(survey.rows)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_ignored_file(entry.name):
                continue
            numbers = parse_integers(card.pattern, entry.name)
            if numbers is None or numbers["pid"] is None:
                survey.add_problem("name", entry.path, "the name does not fit the card's pattern")
            elif not entry.is_file():
                survey.add_problem("name", entry.path, "not a file")
            else:
                survey.add(split, entry.name, entry.path, numbers["pid"], numbers.get("camid"))
        if len(survey.rows) == before:
            raise InputError(
                f"{folder}: expected images named as {truncate(card.pattern)} (card {card.name}), "
                f"found {list_entries(folder)}"
            )
    return survey


def _read_lists(root: Path, card: Card) -> Scan:
    """List files, a line ``path pid`` for each image; the pattern, if any, tells the camid from its name."""
    survey = Scan()
    for split, source, folder in _sources(root, card):
        listing = root / str(source.list)
        if not listing.exists():
            raise InputError(
                f"{listing}: expected this list file (card {card.name}), found {list_entries(root)}"
            )
        empty = True
        with open_text(listing) as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    empty = False
                    _read_line(survey, card, split, folder, line.strip(), f"{listing}, line {number}")
        if empty:
            raise InputError(f"{listing}: empty, expected a line 'path pid' for each image")
    return survey


def _read_line(survey: Scan, card: Card, split: str, folder: Path, line: str, where: str) -> None:
    name, _, pid = line.replace("\t", " ").rpartition(" ")
    name = name.rstrip()
    if not name or not INTEGER.fullmatch(pid):
        survey.add_problem("line", where, f"expected 'path pid', got {short_repr(line, 200)}")
    else:
        survey.add_listed(split, folder, name, int(pid), pattern=card.pattern, where=where)


def _read_identities(root: Path, card: Card) -> Scan:
    """One folder per identity; a folder's name is the pid, or if any is not a number, its place in order."""
    survey = Scan()
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
        numbers = parse_integers(card.pattern, path.name) or {}
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
    message = f"{root}: expected the folder {wanted} (card {card.name}), found {list_entries(root)}"
    for entry in sorted(root.iterdir()):
        if any((entry / folder).is_dir() for folder in source.folder):
            return f"{message}; did you mean {entry}?"
    if (root / "train").is_dir():
        return f"{message}; for one folder per identity choose the card 'folders'"
    return message


COLUMNS = ("path", "pid", "camid", "split")

# "3.0" is what a spreadsheet or a data frame writes for 3 in a column with empty cells
WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")


def scan_csv(file: Path) -> Scan:
    """Read a CSV file; relative paths are relative to its folder.

    Raises:
        InputError: the file is missing, is not UTF-8 CSV, lacks a column, or has no row. What is wrong with
            single rows is gathered in the survey.
    """
    survey = Scan()
    seen: set[tuple[str, str]] = set()
    try:
        with open_text(file) as lines:
            reader = csv.DictReader(lines, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                found = ",".join(reader.fieldnames or ()) or "an empty file"
                expected = ",".join(COLUMNS)
                raise InputError(
                    f"{file}: missing column {', '.join(missing)}; expected {expected}, found {found}"
                )
            for row in reader:
                _read_row(survey, seen, row, file, reader.line_num)
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.reader.line_num}: not valid CSV ({error})") from None
    if not survey.rows and not survey.problems:
        raise InputError(f"{file}: no rows below the header, expected one per image")
    return survey


def _read_row(survey: Scan, seen: set[tuple[str, str]], row: dict[str, str], file: Path, line: int) -> None:
    where = f"{file}, line {line}"
    if None in row or None in row.values():
        survey.add_problem("line", where, "the number of cells differs from the header's")
        return
    name, split = row["path"].strip(), row["split"].strip()
    pid, camid = (WHOLE_NUMBER.fullmatch(row[column].strip()) for column in ("pid", "camid"))
    path = os.path.join(file.parent, name)
    if pid is None:
        survey.add_problem("line", where, f"pid: expected a whole number, got {short_repr(row['pid'])}")
    elif camid is None and row["camid"].strip():
        found = short_repr(row["camid"])
        survey.add_problem("line", where, f"camid: expected a whole number or nothing, got {found}")
    elif split not in SPLITS:
        survey.add_problem(
            "line", where, f"split: expected {', '.join(SPLITS)}, got {short_repr(row['split'])}"
        )
    elif (split, name) in seen:
        survey.add_problem("line", where, f"path: {short_repr(name)} is in the split {split} already")
    elif not os.path.isfile(path):
        survey.add_problem("missing", where, f"path: no such image file: {path}")
    else:
        seen.add((split, name))
        survey.add(split, name, path, int(pid[1]), None if camid is None else int(camid[1]))


DEFAULT_CARD = "market1501"

_NAMED = 3  # problems that an error message names; `data check` lists all
_MARKET_NAME = re.compile(r"(?P<pid>-1|[0-9]{1,18})_c(?P<camid>[0-9]{1,18})(?![0-9])")


def read_table(
    root: str | os.PathLike[str], card: str | os.PathLike[str] | Card = DEFAULT_CARD
) -> pd.DataFrame:
    """The table of a data set.

    Args:
        root: folder of the data set; or a ``.csv`` file with the columns path, pid, camid, split, which needs
            no card.
        card: name of a bundled card (``market1501``, ``folders``), path of one's own, or a ``Card``.

    Returns:
        Columns ``path`` (str, below ``root`` as given), ``pid`` (Int64, never null), ``camid`` (Int64, null
        where unknown) and ``split`` (str). Sorted by split (train, query, gallery), then by the path within.

    Raises:
        InputError: the root is missing, empty or of another layout; a file's name does not fit the card; a
            row of a CSV or list file is wrong or names a file that is missing. The first few are named.
    """
    survey = scan_data(root, card)
    problems = survey.problems
    if problems:
        named = "; ".join(str(problem) for problem in problems[:_NAMED])
        more = f" ... {len(problems)} in all, see `data check {root}`" if len(problems) > _NAMED else ""
        raise InputError(named + more)
    return to_table(survey)


def scan_data(root: str | os.PathLike[str], card: str | os.PathLike[str] | Card) -> Scan:
    """The images of a data set and everything in it that does not fit, see ``read_table``."""
    place = Path(root)
    survey = scan_csv(place) if is_csv(place) else scan_folder(place, load_card(card))
    survey.rows.sort(key=lambda row: (SPLITS.index(row.split), row.name))
    return survey


def is_csv(root: str | os.PathLike[str]) -> bool:
    """Whether a data set's root is a CSV file, by its suffix."""
    return Path(root).suffix.lower() == ".csv"


def to_table(survey: Scan) -> pd.DataFrame:
    """The rows of a survey in the columns of ``read_table``."""
    rows = survey.rows
    return pd.DataFrame(
        {
            "path": pd.Series([row.path for row in rows], dtype="str"),
            "pid": pd.array([row.pid for row in rows], dtype="Int64"),
            "camid": pd.array([row.camid for row in rows], dtype="Int64"),
            "split": pd.Series([row.split for row in rows], dtype="str"),
        }
    )


def table_from_images(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The images below any folder, with what their names tell.

    A name that begins as Market-1501's do, ``PPPP_cC``, tells pid and camid. Otherwise a folder directly
    below ``folder`` whose name is a whole number tells the pid of the images in it.

    Returns:
        Columns ``path`` (str, below ``folder`` as given), ``pid`` and ``camid`` (Int64, null where unknown),
        sorted by the path within ``folder``.

    Raises:
        InputError: see ``list_images``.
    """
    paths = list_images(folder)
    table = table_from_files(paths)
    parents = [path.relative_to(folder).parent.as_posix() for path in paths]
    own_folder = [int(parent) if INTEGER.fullmatch(parent) else None for parent in parents]
    in_market = [_MARKET_NAME.match(path.name) is not None for path in paths]
    table["pid"] = table["pid"].where(in_market, pd.array(own_folder, dtype="Int64"))
    return table


def table_from_files(paths: Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    """Some image files, which need not exist, with what their names tell.

    Args:
        paths: n files.

    Returns:
        Columns ``path`` (str, as given), ``pid`` and ``camid`` (Int64, null unless the name begins as
        Market-1501's do), n rows in the order of ``paths``.
    """
    names = [_MARKET_NAME.match(Path(path).name) for path in paths]
    return pd.DataFrame(
        {
            "path": pd.Series([os.fspath(path) for path in paths], dtype="str"),
            "pid": pd.array([int(name["pid"]) if name else None for name in names], dtype="Int64"),
            "camid": pd.array([int(name["camid"]) if name else None for name in names], dtype="Int64"),
        }
    )


def table_digest(table: pd.DataFrame) -> str:
    """16 hexadecimal digits that tell a table of images by its names, identities, cameras and splits.

    They are the same wherever the images lie; their pixels are not looked at.

    Args:
        table: as of ``read_table``.
    """
    names = table["path"].map(os.path.basename)
    text = table.assign(path=names)[["path", "pid", "camid", "split"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_training(roots: Sequence[str], cards: Sequence[str | os.PathLike[str] | Card]) -> pd.DataFrame:
    """The training images of several data sets, their identities and cameras kept apart.

    Args:
        roots, cards: a folder or CSV file, and a card, for each data set; one card may serve all.

    Returns:
        As ``read_table``, with the column ``dataset``, the number of the set. Junk (a negative pid, or one
        that the card calls so) is nobody, and left out. Where there are several sets, pids and camids are
        numbered anew from 0, in the order of the sets and of the numbers within.

    Raises:
        InputError: as ``read_table``; not as many cards as roots; a file that is in two sets.
    """
    if len(cards) == 1:
        cards = [*cards] * len(roots)
    if not roots or len(cards) != len(roots):
        raise InputError(f"data: expected a card (dataset) for each root, got {len(cards)} for {len(roots)}")
    tables = []
    for number, (root, card) in enumerate(zip(roots, cards, strict=True)):
        table = read_table(root, card)
        junk = (table.pid < 0) | table.pid.isin(() if is_csv(root) else load_card(card).junk_pids)
        table = table[(table.split == "train") & ~junk].reset_index(drop=True)
        if table.empty:
            raise InputError(f"{root}: no training images (split 'train') in this data set")
        tables.append(table.assign(dataset=number))
    if len(tables) == 1:
        return tables[0]
    joined = pd.concat(tables, ignore_index=True)
    files = joined.path.map(os.path.realpath)
    twice = files.duplicated()
    if twice.any():
        first = joined.dataset[files == files[twice.idxmax()]].iloc[0]
        again = joined.dataset[twice.idxmax()]
        raise InputError(
            f"data: {int(twice.sum()):,} training images are in two data sets, {roots[first]} and "
            f"{roots[again]}, which would make two people of one; the first: {joined.path[twice.idxmax()]}"
        )
    joined["pid"] = joined.groupby(["dataset", "pid"]).ngroup().astype("Int64")
    known = joined.camid.notna()
    joined.loc[known, "camid"] = joined[known].groupby(["dataset", "camid"]).ngroup().astype("Int64")
    return joined
