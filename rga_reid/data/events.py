"""Images with what is known about them: from a CSV or Parquet file, or from their paths by a pattern."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from rga_reid.data.columns import CAMERA_ALIAS, RESERVED, UNKNOWN, At, Schema, conform, convert_text
from rga_reid.data.images import display_path, is_unicode, list_images
from rga_reid.errors import InputError, short_repr
from rga_reid.inputs import MAX_ROWS, open_text, read_parquet, truncate

SUFFIXES = (".csv", ".parquet")
_SHOWN = 3  # paths in a message about a pattern


def read_events(
    file: str | os.PathLike[str],
    *,
    images_root: str | os.PathLike[str] | None = None,
    timezone: str | None = None,
    schema: Schema = RESERVED,
    must_exist: bool = True,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read a table of images.

    In a CSV file a column of the schema has the type that it has there. Of other columns the first value decides: a
    number, ``true`` or ``false``, a date with a time, or text. Cells that are empty or ``NA`` are null.

    Args:
        file: a ``.csv`` file in UTF-8 with a header, or a ``.parquet`` file; one column is ``path``.
        images_root: folder of relative paths; the folder of the file by default.
        timezone: see ``conform``.
        schema: columns that are known already, and their types.
        must_exist: refuse paths at which there is no file.

    Returns:
        The table, its paths absolute, and the schema with its new columns; see ``conform``.

    Raises:
        InputError: not such a file, no column ``path``, no rows, a missing image, or a value of another type than
            the others in its column; the message names the line.
    """
    table, at = read_columns(file, timezone=timezone, schema=schema)
    if "path" not in table.columns:
        found = truncate(", ".join(map(str, table.columns))) or "none"
        raise InputError(f"{file}: expected a column 'path', found {found}")
    if table.empty:
        raise InputError(f"{file}: no rows, expected one for each image")
    root = os.path.abspath(Path(file).parent if images_root is None else images_root)
    paths = []
    for row, name in enumerate(table["path"]):
        if not isinstance(name, str) or not name:
            raise InputError(f"{at(row)}: path: expected the name of an image file, got {short_repr(name)}")
        paths.append(os.path.join(root, name))
        if must_exist and not os.path.isfile(paths[-1]):
            raise InputError(f"{at(row)}: path: no such image file: {display_path(paths[-1])}")
    kept, columns = conform(
        table.drop(columns="path"), schema, timezone=timezone, name=os.fspath(file), at=at
    )
    return kept.assign(path=pd.Series(paths, dtype="str")), columns


def read_columns(
    file: str | os.PathLike[str],
    *,
    timezone: str | None = None,
    schema: Schema = RESERVED,
    only: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, At]:
    """Return the columns of a ``.csv`` or ``.parquet`` file, and a function that names its rows in messages.

    Args:
        file, timezone, schema: see ``read_events``.
        only: columns to read, if the file has them; all by default.

    Raises:
        InputError: see ``read_events``; any columns are accepted.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{file}: expected a table that ends in {' or '.join(SUFFIXES)}")
    if suffix == ".parquet":
        table, at = read_parquet(file), partial("{}: row {}".format, file)
        return table if only is None else table[[name for name in table.columns if name in only]], at
    cells, lines = _read_csv(file)
    if only is not None:
        cells = cells[[name for name in cells.columns if name in only]]

    def name_line(row: int) -> str:
        return f"{file}, line {lines[row]}"

    return _convert(cells, schema, timezone, name_line), name_line


def table_from_pattern(
    folder: str | os.PathLike[str],
    pattern: str,
    *,
    timezone: str | None = None,
    schema: Schema = RESERVED,
    paths: Sequence[Path] | None = None,
) -> tuple[pd.DataFrame, dict[str, str], pd.Series]:
    """Return the images below a folder, with what a pattern finds in their paths.

    Args:
        folder: folder, searched with its subfolders.
        pattern: regular expression with named groups, the columns. It is searched in the path within the folder,
            with ``/``; in images that do not match, the columns are null.
        timezone, schema: see ``read_events``.
        paths: images below the folder, of which none needs to match; all by default.

    Returns:
        The table, sorted by path or in the order of ``paths``, the schema with its new columns, and which images match,
        bool ``(n,)``.

    Raises:
        InputError: see ``match_paths``; a value of another type than the others in its column.
    """
    must_match = paths is None
    if paths is None:
        paths = [path for path in list_images(folder) if is_unicode(str(path))]
    found = match_paths(folder, pattern, paths, must_match=must_match)
    names = list(found)
    groups = [{} if match is None else match.groupdict() for match in found.values()]
    cells = pd.DataFrame(groups, columns=list(_compile(pattern).groupindex), dtype=object)

    def at(row: int) -> str:
        return display_path(os.path.join(folder, names[row]))

    table = _convert(cells, schema, timezone, at)
    kept, columns = conform(table, schema, timezone=timezone, name="--pattern", at=at)
    matching = pd.Series([match is not None for match in found.values()])
    return kept.assign(path=pd.Series(map(str, paths), dtype="str")), columns, matching


def match_paths(
    folder: str | os.PathLike[str], pattern: str, paths: Sequence[Path], *, must_match: bool = False
) -> dict[str, re.Match[str] | None]:
    """Search a pattern in the paths of images, see ``table_from_pattern``.

    Returns:
        The match for each path within the folder; None where the pattern does not match.

    Raises:
        InputError: not a regular expression, or one without named groups; with ``must_match`` also one that matches
            no image. The message shows three paths.
    """
    names = [path.relative_to(folder).as_posix() for path in paths]
    shown = ", ".join(map(display_path, names[:_SHOWN])) or "none"
    compiled = _compile(pattern)
    if not compiled.groupindex:
        raise InputError(
            f"--pattern {pattern}: expected named groups such as (?P<camera>cam[0-9]+); the first paths are {shown}"
        )
    found = {name: compiled.search(name) for name in names}
    if must_match and not any(found.values()):
        raise InputError(
            f"--pattern {pattern}: matches none of {len(names):,} images; the first paths are {shown}"
        )
    return found


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--pattern: not a regular expression ({truncate(error)})") from None
    if "path" in compiled.groupindex:
        raise InputError(f"--pattern {pattern}: a group is called path; expected another name")
    return compiled


def _convert(cells: pd.DataFrame, schema: Schema, timezone: str | None, at: At) -> pd.DataFrame:
    """Return a table of texts in the types that they stand for."""
    columns = {}
    for column in cells.columns:
        texts = cells[column].astype("string").str.strip()
        if column != "path":
            texts = texts.mask(texts.isin(UNKNOWN))
        known = "camera" if column == CAMERA_ALIAS else column
        columns[column] = convert_text(texts, known, schema.get(known), timezone=timezone, at=at)
    return pd.DataFrame(columns, index=cells.index)


def _read_csv(file: str | os.PathLike[str]) -> tuple[pd.DataFrame, list[int]]:
    """Return the cells of a CSV file, and the number of each row's line."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        with open_text(file) as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise InputError(f"{file}: its first line is empty; expected the names of the columns")
            for row in reader:
                if len(row) != len(header) and row:
                    raise InputError(
                        f"{file}, line {reader.line_num}: expected {len(header)} cells, as in the header, "
                        f"found {len(row)}"
                    )
                if len(rows) >= MAX_ROWS:
                    raise InputError(f"{file}: expected at most {MAX_ROWS:,} rows, found more")
                if row:
                    rows.append(row)
                    numbers.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: not valid CSV ({error})") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise InputError(
            f"{file}: expected a different name for each column, found {twice[0] if twice else ''!r} twice"
        )
    return pd.DataFrame(rows, columns=header, dtype=object), numbers
