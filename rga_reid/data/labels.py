"""Labels: identities and cameras, as numbers or text, and one rule for those in the names of files and folders.

A column of labels has integers if all are whole numbers, otherwise text.

A file name that begins as Market-1501's do, ``PPPP_cC``, gives the identity and the camera. The folder of an
image gives its identity if the folder's name is an integer. A number that reads as a date is not an identity.
Where folder and file name disagree, nothing is guessed: see ``table_from_images``. A data set's card says
what its names mean, and takes precedence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from rga_reid.data.columns import RESERVED, TYPES, At, convert, is_whole, plain_records, rename_camid
from rga_reid.data.images import display_path
from rga_reid.errors import sanitize

_INTEGER = re.compile(r"0*(-?[0-9]{1,18})")  # MARS writes -1 as 00-1
_MARKET_NAME = re.compile(r"(?P<pid>0*-1|[0-9]{1,18})_c(?P<camid>[0-9]{1,18})(?![0-9])")
_DATE = re.compile(  # 20261128, perhaps followed by a time, 1530 or 153000
    r"(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])([0-9]{4}|[0-9]{6})?"
)


def label_column(values: Iterable[int | str | None], at: At) -> pd.Series:
    """Return labels as integers if all are whole numbers, otherwise as text.

    Args:
        values: whole numbers or text, None where unknown.
        at: names a row in error messages.

    Raises:
        InputError: values of another type, or numbers of more than 64 bits.
    """
    return convert(pd.Series(values, dtype=object), "pid", RESERVED["pid"], at=at)[1]


def align_labels(one: pd.Series, other: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return two columns of labels in one type, so that equal labels compare equal.

    If one has integers and the other text, both become text, and whole numbers in that text lose their zeros: 7
    and "007" are equal.
    """
    if pd.api.types.is_string_dtype(one) == pd.api.types.is_string_dtype(other):
        return one, other
    aligned = []
    for labels in (one, other):
        if pd.api.types.is_string_dtype(labels):
            # each distinct text once: labels repeat
            numbers = {
                text: str(int(text.partition(".")[0])) for text in labels.dropna().unique() if is_whole(text)
            }
            labels = labels.replace(numbers) if numbers else labels
        aligned.append(labels.astype(TYPES["string"]))
    return aligned[0], aligned[1]


def is_label(labels: pd.Series, wanted: Iterable[int | str]) -> pd.Series:
    """Return which labels are among the wanted ones, as booleans; null labels are not."""
    if not pd.api.types.is_string_dtype(labels):
        numbers = [
            int(value.partition(".")[0]) if isinstance(value, str) else value
            for value in wanted
            if not isinstance(value, str) or is_whole(value)
        ]
        return labels.isin(numbers)
    return labels.isin([str(value) for value in wanted])


def is_text(labels: pd.Series) -> bool:
    """Return whether labels are text for good: a column of a typed table, not of one as users and files have it."""
    return isinstance(labels.dtype, pd.StringDtype) and labels.dtype.na_value is pd.NA


def plain_label(value: Any) -> int | str | None:
    """Return a label of a table as Python has it, None for null."""
    if isinstance(value, str):
        return value
    return None if pd.isna(value) else int(value)


def parse_integer(text: str) -> int | None:
    """Return the integer that a name, or a part of it, stands for; None for other texts."""
    match = _INTEGER.fullmatch(text)
    return None if match is None else int(match[1])


def parse_label(text: str) -> int | str:
    """Return the label that a name, or a part of it, stands for; ``label_column`` decides whether 007 is a number."""
    number = parse_integer(text)
    return text if number is None or is_whole(text) else number


def parse_pid(text: str) -> int | None:
    """Return the identity that a name stands for: an integer that does not read as a date."""
    return None if _DATE.fullmatch(text) else parse_integer(text)


def parse_file_name(name: str) -> tuple[int | None, int | None]:
    """Return identity and camera of a file name; None where it does not give them."""
    match = _MARKET_NAME.match(name)
    return (None, None) if match is None else (parse_pid(match["pid"]), int(match["camid"]))


def parse_groups(pattern: str | None, name: str) -> dict[str, int | str | None] | None:
    """Return the labels of a card's pattern by group, such as ``pid`` and ``camid``; None if the name does not fit.

    Any name fits if there is no pattern.
    """
    if pattern is None:
        return {}
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    return {group: parse_label(text) if text else None for group, text in match.groupdict().items()}


def summarize_labels(table: pd.DataFrame, rows: int = 3) -> Iterator[str]:
    """Yield lines that show what was read about images: counts, then the first rows.

    Args:
        table: columns ``path``, ``pid``, ``camera`` (or ``camid``) and others, null where unknown.
        rows: number of rows to show.
    """
    table = rename_camid(table)
    junk = table["pid"].astype("string").eq("-1").fillna(False).astype(bool)
    counts = {
        "images": len(table),
        "persons": table["pid"][~junk].nunique(),
        "cameras": table["camera"].nunique(),
        "images without a person": int(table["pid"].isna().sum()),
        **({"junk images": int(junk.sum())} if junk.any() else {}),
    }
    yield ", ".join(f"{noun}: {count:,}" for noun, count in counts.items())
    times = table["time"].dropna() if "time" in table else table["path"][:0]
    if len(times):
        yield f"times: {times.min().isoformat()} to {times.max().isoformat()}"
    names = {"pid": "person"}
    for record in plain_records(table.head(rows)):
        path = sanitize(display_path(str(record.pop("path"))))
        known = {
            names.get(column, column): "unknown" if value is None else sanitize(str(value))
            for column, value in record.items()
            if value is not None or column in ("pid", "camera")
        }
        yield f"  {path}: {', '.join(f'{name} {value}' for name, value in known.items())}"
