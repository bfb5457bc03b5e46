"""A data set described by one CSV file: ``path,pid,camid,split``, one row per image."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path

from rga_reid.data.cards import SPLITS
from rga_reid.data.survey import Survey
from rga_reid.errors import InputError, quoted
from rga_reid.inputs import opened_text

COLUMNS = ("path", "pid", "camid", "split")

# "3.0" is what a spreadsheet or a data frame writes for 3 in a column with empty cells
WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")


def survey_csv(file: Path) -> Survey:
    """Read a CSV file; relative paths are relative to its folder.

    Raises:
        InputError: the file is missing, is not UTF-8 CSV, lacks a column, or has no row. What is wrong with
            single rows is gathered in the survey.
    """
    survey = Survey()
    seen: set[tuple[str, str]] = set()
    try:
        with opened_text(file) as lines:
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


def _read_row(survey: Survey, seen: set[tuple[str, str]], row: dict[str, str], file: Path, line: int) -> None:
    where = f"{file}, line {line}"
    if None in row or None in row.values():
        survey.add_problem("line", where, "the number of cells differs from the header's")
        return
    name, split = row["path"].strip(), row["split"].strip()
    pid, camid = (WHOLE_NUMBER.fullmatch(row[column].strip()) for column in ("pid", "camid"))
    path = os.path.join(file.parent, name)
    if pid is None:
        survey.add_problem("line", where, f"pid: expected a whole number, got {quoted(row['pid'])}")
    elif camid is None and row["camid"].strip():
        found = quoted(row["camid"])
        survey.add_problem("line", where, f"camid: expected a whole number or nothing, got {found}")
    elif split not in SPLITS:
        survey.add_problem("line", where, f"split: expected {', '.join(SPLITS)}, got {quoted(row['split'])}")
    elif (split, name) in seen:
        survey.add_problem("line", where, f"path: {quoted(name)} is in the split {split} already")
    elif not os.path.isfile(path):
        survey.add_problem("missing", where, f"path: no such image file: {path}")
    else:
        seen.add((split, name))
        survey.add(split, name, path, int(pid[1]), None if camid is None else int(camid[1]))
