"""Data sets and folders of images as pandas tables, one row per image."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rga_reid.data.cards import SPLITS, Card, load_card
from rga_reid.data.csv_files import survey_csv
from rga_reid.data.images import list_images
from rga_reid.data.layouts import survey_folder
from rga_reid.data.survey import INTEGER, Survey
from rga_reid.errors import InputError

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
    survey = survey_data(root, card)
    problems = survey.problems
    if problems:
        named = "; ".join(str(problem) for problem in problems[:_NAMED])
        more = f" ... {len(problems)} in all, see `data check {root}`" if len(problems) > _NAMED else ""
        raise InputError(named + more)
    return to_table(survey)


def survey_data(root: str | os.PathLike[str], card: str | os.PathLike[str] | Card) -> Survey:
    """The images of a data set and everything in it that does not fit, see ``read_table``."""
    place = Path(root)
    survey = survey_csv(place) if is_csv(place) else survey_folder(place, load_card(card))
    survey.rows.sort(key=lambda row: (SPLITS.index(row.split), row.name))
    return survey


def is_csv(root: str | os.PathLike[str]) -> bool:
    """Whether a data set's root is a CSV file, by its suffix."""
    return Path(root).suffix.lower() == ".csv"


def to_table(survey: Survey) -> pd.DataFrame:
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
