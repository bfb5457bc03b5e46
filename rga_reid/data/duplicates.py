"""Find identical image files that would falsify a result."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from rga_reid.data.images import map_in_threads


def group_identical_files(paths: Sequence[str], threads: int = 2) -> list[list[str]]:
    """Return groups of two or more paths whose files have the same content, in the order of ``paths``.

    Copies, links and other spellings of one file belong to the same group. Files that are empty or cannot be
    read are left out.
    """
    by_size = defaultdict[int, list[str]](list)
    for path in dict.fromkeys(paths):
        try:
            size = os.path.getsize(path)
        except OSError:
            continue
        if size:
            by_size[size].append(path)
    candidates = [path for same in by_size.values() if len(same) > 1 for path in same]
    by_content = defaultdict[str, list[str]](list)
    for path, digest in zip(
        candidates, map_in_threads(_digest, candidates, threads, "comparing"), strict=True
    ):
        if digest is not None:
            by_content[digest].append(path)
    return [same for same in by_content.values() if len(same) > 1]


def find_duplicates(table: pd.DataFrame, threads: int = 2) -> list[pd.DataFrame]:
    """Return groups of rows that show the same file in two splits or under two pids.

    Args:
        table: columns ``path, pid, camid, split``, without junk.
        threads: number of files read at the same time.
    """
    identical = group_identical_files(table.path.tolist(), threads)
    group_of = {path: number for number, paths in enumerate(identical) for path in paths}
    numbers = table.path.map(lambda path: group_of.get(path, path))
    repeated = table[numbers.duplicated(keep=False)]
    groups = [rows for _, rows in repeated.groupby(numbers, sort=False)]
    return [rows for rows in groups if rows.pid.nunique() > 1 or rows.split.nunique() > 1]


def is_never_ranked(rows: pd.DataFrame) -> bool:
    """Return whether evaluation leaves out the matches of a group of ``find_duplicates``.

    It never ranks an image for itself, or a gallery image of the query's person and camera.
    """
    if rows.pid.nunique() > 1 or "train" in set(rows.split):
        return False
    return rows.path.nunique() == 1 or (rows.camid.notna().all() and rows.camid.nunique() == 1)


def describe_duplicate(rows: pd.DataFrame) -> str:
    """Return what a group of ``find_duplicates`` shows, such as ``the same image as b.jpg: in query, gallery``."""
    others = rows.path.unique()[1:]
    more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
    same = f"the same image as {others[0]}{more}" if len(others) else "the same image twice"
    pids = sorted(rows.pid.dropna().unique())
    persons = f"person{'s' * (len(pids) > 1)} {', '.join(map(str, pids)) or 'unknown'}"
    return f"{same}: in {', '.join(rows.split.unique())}, {persons}"


def _digest(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read()).hexdigest()
    except OSError:
        return None
