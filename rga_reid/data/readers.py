"""Read the layouts of data sets into one table."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rga_reid.data.cards import LABEL_COLUMNS, SPLITS, Card, RandomSplit, Source, load_card
from rga_reid.data.columns import UNKNOWN
from rga_reid.data.cuhk03 import scan_cuhk03
from rga_reid.data.images import describe_skipped, display_path, is_ignored_file, list_images
from rga_reid.data.labels import (
    is_label,
    label_column,
    parse_file_name,
    parse_groups,
    parse_integer,
    parse_label,
    parse_pid,
)
from rga_reid.data.mars import scan_mars
from rga_reid.data.records import Labels, Scan, list_entries
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import open_text, truncate

DEFAULT_CARD = "market1501"
COLUMNS = ("path", "pid", "camid", "split")  #: columns that a CSV file must have

_MAX_SHOWN = 3  # problems in an error message; `data check` lists all

_log = logging.getLogger("rga_reid")


def read_table(
    root: str | os.PathLike[str], card: str | os.PathLike[str] | Card = DEFAULT_CARD
) -> pd.DataFrame:
    """Read the table of a data set.

    Args:
        root: folder of the data set, or a ``.csv`` file with the columns path, pid, camid, split, which
            needs no card.
        card: name of a bundled card (``market1501``, ``folders``), path of a card of your own, or a ``Card``;
            see ``load_card``.

    Returns:
        Columns ``path`` (str, below ``root`` as given), ``pid`` and ``camid`` (Int64, or text if not all are whole
        numbers; null where unknown, a pid in CSV files only), ``split`` (str), and the other columns that the card
        or CSV file gives, such as ``track`` and ``clothes``, as labels like ``pid``. Sorted by split (train,
        query, gallery), then by path.

    Raises:
        InputError: the root is missing, empty or of another layout; a file name does not fit the card; a row
            of a CSV or list file is wrong or names a missing file. The first few problems are named.
    """
    scan = scan_data(root, card)
    problems = scan.problems
    if problems:
        shown = "; ".join(str(problem) for problem in problems[:_MAX_SHOWN])
        more = f" ... {len(problems)} in all, see `data check {root}`" if len(problems) > _MAX_SHOWN else ""
        raise InputError(shown + more)
    if scan.skipped:
        _log.warning("%s: %s", root, describe_skipped(scan.skipped))
    return to_table(scan)


def scan_data(root: str | os.PathLike[str], card: str | os.PathLike[str] | Card) -> Scan:
    """Return the images of a data set and everything in it that does not fit, see ``read_table``."""
    path = Path(root)
    scan = scan_csv(path) if is_csv(path) else scan_folder(path, load_card(card))
    scan.rows.sort(key=lambda row: (SPLITS.index(row.split), row.name))
    return scan


def is_csv(root: str | os.PathLike[str]) -> bool:
    """Return whether the root of a data set is a CSV file, by its suffix."""
    return Path(root).suffix.lower() == ".csv"


def to_table(scan: Scan) -> pd.DataFrame:
    """Return the rows of a scan in the columns of ``read_table``."""
    table = _label_columns([row.path for row in scan.rows], [row.labels for row in scan.rows])
    table.insert(3, "split", pd.Series([row.split for row in scan.rows], dtype="str"))
    return table


def _label_columns(paths: Sequence[str], labels: Sequence[Labels]) -> pd.DataFrame:
    def at(row: int) -> str:
        return display_path(paths[row])

    columns = dict.fromkeys(["pid", "camid", *(column for one in labels for column in one)])
    return pd.DataFrame(
        {
            "path": pd.Series(paths, dtype="str"),
            **{column: label_column([one.get(column) for one in labels], at) for column in columns},
        }
    )


def scan_folder(root: Path, card: Card) -> Scan:
    """Read a data set in the card's layout.

    Raises:
        InputError: the root is missing or empty, or a folder of the card is missing or contains no image.
            Problems with single files are collected in the scan.
    """
    if not root.is_dir():
        found = "found a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: expected the folder of a data set ({card.title}), {found}")
    readers = {
        "names": _read_names,
        "lists": _read_lists,
        "identities": _read_identities,
        "cuhk03": scan_cuhk03,
        "mars": scan_mars,
    }
    scan = readers[card.layout](root, card)
    if card.random_split is not None:
        _divide_identities(scan, card, card.random_split, root)
    return scan


def _divide_identities(scan: Scan, card: Card, split: RandomSplit, root: Path) -> None:
    """Turn query and gallery images of identities that are not drawn for testing into training images.

    Identities that are not on both sides stay where they are.
    """
    if split.number is None:
        return
    sides: dict[str, set[int | str]] = {"query": set(), "gallery": set()}
    for row in scan.rows:
        sides[row.split].add(_normalize(row.labels["pid"]))
    special = {*card.junk_pids, *card.distractor_pids}
    people = sorted((sides["query"] & sides["gallery"]) - special, key=str)
    if len(people) <= split.test_identities:
        raise InputError(
            f"{root}: expected more than {split.test_identities} identities that are both in query and gallery "
            f"(card {card.name}), found {len(people)}"
        )
    drawn = np.random.default_rng(split.number).permutation(len(people))[split.test_identities :]
    trained = {people[number] for number in drawn}
    rows, scan.rows = scan.rows, []
    seen: set[str] = set()
    for row in rows:
        if _normalize(row.labels["pid"]) not in trained:
            scan.rows.append(row)
        elif row.path not in seen:
            seen.add(row.path)
            scan.rows.append(row._replace(split="train"))


def _normalize(label: int | str | None) -> int | str:
    """Return a label so that 7 and "007" are equal."""
    number = parse_integer(str(label))
    return str(label) if number is None else number


def _read_names(root: Path, card: Card) -> Scan:
    """Read flat folders; the pattern gives labels from a file's name."""
    scan = Scan()
    for split, source, folder in _find_sources(root, card):
        pattern, given = source.pattern or card.pattern, source.labels
        if source.pid is not None:
            for path in scan.find_images(folder):
                labels = parse_groups(pattern, path.name)
                if labels is not None or source.pattern is None:
                    name = path.relative_to(folder).as_posix()
                    scan.add(split, name, str(path), {**(labels or {}), **given})
            continue
        before = len(scan.rows)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if is_ignored_file(entry.name):
                continue
            labels = parse_groups(pattern, entry.name)
            if labels is None and source.pattern is not None:
                continue
            if labels is None or labels["pid"] is None:
                scan.add_problem("name", entry.path, "the name does not fit the card's pattern")
            elif not entry.is_file():
                scan.add_problem("name", entry.path, "not a file")
            else:
                scan.add(split, entry.name, entry.path, {**labels, **given})
        if len(scan.rows) == before:
            raise InputError(
                f"{folder}: expected images named as {truncate(pattern)} (card {card.name}), "
                f"found {list_entries(folder)}"
            )
    return scan


def _read_lists(root: Path, card: Card) -> Scan:
    """Read list files, a line ``path pid`` per image; the pattern gives other labels from the image's name."""
    scan = Scan()
    for split, source, folder in _find_sources(root, card):
        file = root / str(source.list)
        if not file.exists():
            raise InputError(
                f"{file}: expected this list file (card {card.name}), found {list_entries(root)}"
            )
        empty = True
        with open_text(file) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                empty, where = False, f"{file}, line {number}"
                name, _, pid = line.strip().replace("\t", " ").rpartition(" ")
                if not name.strip():
                    scan.add_problem(
                        "line", where, f"expected 'path pid', got {short_repr(line.strip(), 200)}"
                    )
                else:
                    labels = {"pid": parse_label(pid), **source.labels}
                    scan.add_listed(split, folder, name.rstrip(), labels, pattern=card.pattern, where=where)
        if empty:
            raise InputError(f"{file}: empty, expected a line 'path pid' for each image")
    return scan


def _read_identities(root: Path, card: Card) -> Scan:
    """Read one folder per identity."""
    scan = Scan()
    sources = [*_find_sources(root, card)] or [("train", Source(("",)), root)]
    images: list[tuple[str, str, Path, str, Labels]] = []
    for split, source, folder in sources:
        wanted = None if source.list is None else _read_identity_list(root / source.list)
        before = len(images)
        for path in scan.find_images(folder):
            name = path.relative_to(folder).as_posix()
            identity, *rest = name.split("/")
            labels = parse_groups(source.pattern or card.pattern, path.name)
            if len(rest) != 1:
                scan.add_problem("name", path, f"expected at {folder}/IDENTITY/{path.name}")
            elif (labels is not None or source.pattern is None) and (
                wanted is None or _normalize(identity) in wanted
            ):
                given = {column: label for column, label in (labels or {}).items() if column != "pid"}
                images.append((split, name, path, identity, {**given, **source.labels}))
        if source.pattern is not None and len(images) == before:
            raise InputError(
                f"{folder}: expected images named as {truncate(source.pattern)} (card {card.name}), "
                f"found {list_entries(folder)}"
            )
    pids = _label_folders(root, {(split, identity) for split, _, _, identity, _ in images}, card)
    for name in sorted({image[3] for image in images} - pids.keys()):
        where = next(path.parent for _, _, path, identity, _ in images if identity == name)
        scan.add_problem("name", where, "most folders of identities are named by numbers, this one is not")
    for split, name, path, identity, others in images:
        if identity in pids:
            scan.add(split, name, str(path), {**others, "pid": pids[identity]})
    return scan


def _read_identity_list(file: Path) -> set[int | str]:
    """Return the identities of a list file."""
    if not file.is_file():
        raise InputError(f"{file}: expected this list of identities, found {_list_nearby(file)}")
    with open_text(file) as lines:
        found = {_normalize(word) for line in lines for word in line.replace(",", " ").split()}
    if not found:
        raise InputError(f"{file}: empty, expected identities separated by commas or spaces")
    return found


def _list_nearby(file: Path) -> str:
    folder = file.parent
    return list_entries(folder) if folder.is_dir() else f"no folder {folder.name}"


def _label_folders(root: Path, folders: set[tuple[str, str]], card: Card) -> dict[str, int | str]:
    """Return the pid of each folder name, the same in all splits.

    Folders named by integers have them as pids. If most folders are so, others are left out; otherwise the pids
    are the names, apart from junk and distractors of the card.
    """
    special = {*card.junk_pids, *card.distractor_pids}
    names = sorted({name for _, name in folders})
    pids = {name: pid for name in names if (pid := parse_integer(name)) is not None}
    persons = [name for name in names if pids.get(name, name) not in special]
    numbered = [name for name in persons if name in pids]
    if persons and 2 * len(numbered) <= len(persons) and len(numbered) < len(persons):
        return {name: name if name in persons else pids.get(name, name) for name in names}
    owners: dict[tuple[str, int], str] = {}
    for split, name in sorted(folders):
        if name in pids and (owner := owners.setdefault((split, pids[name]), name)) != name:
            raise InputError(
                f"{root}: in {split} the folders {owner!r} and {name!r} are both pid {pids[name]}"
            )
    return {name: pids.get(name, name) for name in names if name in pids or name in special}


def _find_sources(root: Path, card: Card) -> Iterator[tuple[str, Source, Path]]:
    """Yield split, source and existing folder of each source."""
    for name, split in card.splits.items():
        for source in split.sources:
            folders = [root / folder for folder in source.folder if (root / folder).is_dir()]
            if folders:
                yield name, source, folders[0]
            elif not split.optional:
                raise InputError(_missing_folder(root, card, source))


def _missing_folder(root: Path, card: Card, source: Source) -> str:
    expected = " or ".join(f"{folder}/" for folder in source.folder)
    message = f"{root}: expected the folder {expected} (card {card.name}), found {list_entries(root)}"
    for entry in sorted(root.iterdir()):
        if any((entry / folder).is_dir() for folder in source.folder):
            return f"{message}; did you mean {entry}?"
    if (root / "train").is_dir():
        return f"{message}; for one folder per identity choose the card 'folders'"
    return message


def scan_csv(file: Path) -> Scan:
    """Read a CSV file; relative paths are relative to its folder.

    Raises:
        InputError: the file is missing, is not UTF-8 CSV, lacks a column, or has no rows. Problems with
            single rows are collected in the scan.
    """
    scan = Scan()
    seen: set[tuple[str, str]] = set()
    try:
        with open_text(file) as lines:
            reader = csv.DictReader(lines, strict=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                found = truncate(",".join(reader.fieldnames or ())) or "an empty file"
                expected = ",".join(COLUMNS)
                raise InputError(
                    f"{file}: missing column {', '.join(missing)}; expected {expected}, found {found}"
                )
            for row in reader:
                _read_row(scan, seen, row, file, reader.line_num)
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.reader.line_num}: not valid CSV ({error})") from None
    if not scan.rows and not scan.problems:
        raise InputError(f"{file}: no rows below the header, expected one per image")
    return scan


def _read_row(scan: Scan, seen: set[tuple[str, str]], row: dict[str, str], file: Path, line: int) -> None:
    where = f"{file}, line {line}"
    if None in row or None in row.values():
        scan.add_problem("line", where, "the number of cells differs from the header's")
        return
    name, split = row["path"].strip(), row["split"].strip()
    cells = {column: row[column].strip() for column in LABEL_COLUMNS if column in row}
    labels = {column: None if cell in UNKNOWN else cell for column, cell in cells.items()}
    path = os.path.join(file.parent, name)
    if split not in SPLITS:
        scan.add_problem(
            "line", where, f"split: expected {', '.join(SPLITS)}, got {short_repr(row['split'])}"
        )
    elif (split, name) in seen:
        scan.add_problem("line", where, f"path: {short_repr(name)} is in the split {split} already")
    elif not os.path.isfile(path):
        scan.add_problem("missing", where, f"path: no such image file: {path}")
    else:
        seen.add((split, name))
        scan.add(split, name, path, labels)


def table_from_images(folder: str | os.PathLike[str], paths: Sequence[Path] | None = None) -> pd.DataFrame:
    """Return the images below any folder, with the labels that their names and folders give.

    A file name that begins as Market-1501's do, ``PPPP_cC``, gives pid and camid. A folder directly below
    ``folder`` whose name is an integer gives the pid of its images. Dates such as 20261128 are not pids.

    Args:
        folder: folder, searched with its subfolders.
        paths: images below the folder; all by default, see ``list_images``.

    Returns:
        Columns ``path`` (str, below ``folder`` as given), ``pid`` and ``camid`` (Int64, null where unknown),
        sorted by the path within ``folder``, or in the order of ``paths``.

    Raises:
        InputError: a folder and a file name in it give different pids; see also ``list_images``.
    """
    paths = list_images(folder) if paths is None else paths
    labels: list[Labels] = []
    conflicts = []
    for path in paths:
        pid, camid = parse_file_name(path.name)
        own_folder = parse_pid(path.relative_to(folder).parent.as_posix())
        if None not in (pid, own_folder) and pid != own_folder:
            conflicts.append(f"{path}: the folder says person {own_folder}, the file name says person {pid}")
        labels.append({"pid": own_folder if pid is None else pid, "camid": camid})
    if conflicts:
        more = f" ({len(conflicts)} such files)" if len(conflicts) > 1 else ""
        raise InputError(
            f"{conflicts[0]}{more}; rename the files, or describe the folders as a data set "
            "(the card 'folders' takes the folder's name)"
        )
    return _label_columns([str(path) for path in paths], labels)


def table_from_files(paths: Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    """Return image files, which need not exist, with the labels that their names give.

    Args:
        paths: n files.

    Returns:
        Columns ``path`` (str, as given), ``pid`` and ``camid`` (Int64, null unless the name begins as
        Market-1501's do), n rows in the order of ``paths``.
    """
    labels = [dict(zip(("pid", "camid"), parse_file_name(Path(path).name), strict=True)) for path in paths]
    return _label_columns([os.fspath(path) for path in paths], labels)


def table_digest(table: pd.DataFrame) -> str:
    """Return 16 hexadecimal digits that identify a table by its file names, pids, camids and splits.

    They do not depend on where the images are, or on their pixels.

    Args:
        table: as returned by ``read_table``.
    """
    names = table["path"].map(os.path.basename)
    text = table.assign(path=names)[["path", "pid", "camid", "split"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose_held_out(table: pd.DataFrame, fraction: float, seed: int) -> pd.Series:
    """Return which images of a training table show one of the identities held out for validation.

    Args:
        table: images with integer pids, as of ``read_training``.
        fraction: fraction of the identities.
        seed: random seed of the choice.
    """
    pids = np.sort(table.pid.unique().astype(np.int64))
    chosen = np.random.default_rng(seed).permutation(pids)[: round(fraction * len(pids))]
    return table.pid.isin(chosen)


def read_training(roots: Sequence[str], cards: Sequence[str | os.PathLike[str] | Card]) -> pd.DataFrame:
    """Return the training images of several data sets, with identities and cameras kept apart.

    Args:
        roots, cards: a folder or CSV file, and a card, for each data set; one card may serve all.

    Returns:
        As ``read_table``, with the column ``dataset``, the number of the set. Pids and camids are integers: text
        is numbered from 0 in its order. Images of unknown pid and junk (a negative pid, or one of the card's junk
        pids) are left out. For several sets, pids and camids are renumbered from 0, in the order of the sets and
        of the numbers within.

    Raises:
        InputError: as ``read_table``; fewer or more cards than roots; a file in two sets.
    """
    if len(cards) == 1:
        cards = [*cards] * len(roots)
    if not roots or len(cards) != len(roots):
        raise InputError(f"data: expected a card (dataset) for each root, got {len(cards)} for {len(roots)}")
    tables = []
    for number, (root, card) in enumerate(zip(roots, cards, strict=True)):
        table = read_table(root, card)
        junk = is_label(table.pid, () if is_csv(root) else load_card(card).junk_pids)
        trained = (table.split == "train") & table.pid.notna() & ~junk & ~_is_negative(table.pid)
        table = table[trained].reset_index(drop=True)
        if table.empty:
            raise InputError(f"{root}: no training images (split 'train') in this data set")
        numbers = {column: _number_text(table[column]) for column in ("pid", "camid")}
        tables.append(table.assign(dataset=number, **numbers))
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


def _is_negative(pids: pd.Series) -> pd.Series:
    if pd.api.types.is_string_dtype(pids):
        return pids.str.fullmatch(r"-[0-9]+").fillna(False).astype(bool)
    return (pids < 0).fillna(False).astype(bool)


def _number_text(labels: pd.Series) -> pd.Series:
    """Return labels that are text as numbers from 0, in the order of the texts; integers as they are."""
    if not pd.api.types.is_string_dtype(labels):
        return labels
    numbers, _ = pd.factorize(labels, sort=True)
    return pd.Series(numbers, labels.index, dtype="Int64").mask(labels.isna())
