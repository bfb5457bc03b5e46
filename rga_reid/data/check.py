"""Check a data set: count it against its card, decode its images, and find duplicates."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from rga_reid.data.cards import SPLITS, Card, load_card
from rga_reid.data.columns import is_whole
from rga_reid.data.duplicates import describe_duplicate, find_duplicates, is_never_ranked
from rga_reid.data.images import ImageError, describe_skipped, display_path, map_in_threads, read_image
from rga_reid.data.labels import is_label
from rga_reid.data.readers import DEFAULT_CARD, is_csv, scan_data, to_table
from rga_reid.data.records import Problem
from rga_reid.errors import short_repr


@dataclass(frozen=True)
class Counts:
    """Counts of a split."""

    images: int  #: files of every kind
    identities: int  #: without junk and distractors
    junk: int  #: files with a junk pid
    distractors: int  #: files with a distractor pid
    tracks: int | None = None  #: None without a column ``track``


@dataclass(frozen=True)
class DataReport:
    """The result of ``check_data``.

    Args:
        root: as given.
        title: title of the data set.
        counts: split -> counts.
        expected: split -> counts of the card; keys as in ``Counts``, where the card gives them.
        cameras: columns ``split, camid, images, identities``; ``camid`` null where unknown.
        sizes: (height, width) -> images; empty if nothing was decoded.
        matched_queries: queries with a gallery image of the same identity from another camera, or where
            cameras are unknown, any other gallery image.
        problems: everything that is wrong, each with its file.
        notes: remarks that are not problems, such as skipped files.
        decoded: whether the images were decoded and compared, not only counted.
    """

    root: str
    title: str
    counts: dict[str, Counts]
    expected: dict[str, dict[str, int]]
    cameras: pd.DataFrame
    sizes: dict[tuple[int, int], int]
    matched_queries: int
    problems: list[Problem]
    notes: list[str]
    decoded: bool

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        cameras = self.cameras.astype({"camid": object}).where(self.cameras.notna(), None)
        return {
            "root": self.root,
            "title": self.title,
            "clean": not self.problems,
            "decoded": self.decoded,
            "splits": {
                split: {key: count for key, count in asdict(counts).items() if count is not None}
                for split, counts in self.counts.items()
            },
            "expected": self.expected,
            "cameras": cameras.to_dict("records"),
            "sizes": [
                {"height": height, "width": width, "images": images}
                for (height, width), images in self.sizes.items()
            ],
            "matched_queries": self.matched_queries,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }


def check_data(
    root: str | os.PathLike[str],
    card: str | os.PathLike[str] | Card | None = None,
    *,
    fast: bool = False,
    threads: int = 2,
) -> DataReport:
    """Count a data set against its card, decode every image, and find identical files.

    Args:
        root: folder of the data set, or a CSV file (see ``read_table``).
        card: a card or its name; by default ``market1501`` for a folder, and none for a CSV file.
        fast: do not read the images; empty files are found all the same.
        threads: number of images decoded at the same time.

    Raises:
        InputError: there is nothing to count: the root is missing or of another layout.
    """
    card = None if card is None and is_csv(root) else load_card(card or DEFAULT_CARD)
    scan = scan_data(root, card or DEFAULT_CARD)
    table = to_table(scan)
    table["junk"] = is_label(table.pid, card.junk_pids if card else (-1,))
    table["distractor"] = is_label(table.pid, card.distractor_pids if card else ())
    table["person"] = ~(table.junk | table.distractor) & table.pid.notna()
    counts = {split: _count(table[table.split == split]) for split in SPLITS if (table.split == split).any()}
    matched = _matched_queries(table[table.person])
    expected = _expected_counts(card) if card else {}
    sizes, faults = _inspect_images(table.path.unique().tolist(), fast, threads)

    name = os.fspath(root)
    problems = scan.problems + faults
    notes = [describe_skipped(scan.skipped)] if scan.skipped else []
    notes += [note for column in ("pid", "camid") if (note := _describe_text(table[column], column))]
    if not fast:
        duplicates = find_duplicates(table[~table.junk], threads)
        harmful = [rows for rows in duplicates if not is_never_ranked(rows)]
        problems += [
            Problem("duplicate", display_path(rows.path.iloc[0]), describe_duplicate(rows))
            for rows in harmful
        ]
        if harmless := len(duplicates) - len(harmful):
            notes.append(
                f"{harmless:,} query images are in the gallery too, by the same path or of the same person and "
                "camera: evaluation does not rank them"
            )
    if {"query", "gallery"} <= counts.keys() and not matched:
        other = "another gallery image" if table.camid.isna().all() else "a gallery image from another camera"
        problems.append(Problem("match", name, f"no query has {other} of the same identity"))
    for split, numbers in expected.items():
        found = asdict(counts.get(split, Counts(0, 0, 0, 0)))
        problems += [
            Problem("count", name, f"{split}: {found[key]:,} {key}, expected {number:,}")
            for key, number in numbers.items()
            if found[key] != number
        ]
    if card and card.cameras not in (None, table.camid.nunique()):
        problems.append(Problem("count", name, f"{table.camid.nunique()} cameras, expected {card.cameras}"))
    return DataReport(
        root=name,
        title=card.title if card else "own data (CSV)",
        counts=counts,
        expected=expected,
        cameras=_count_cameras(table),
        sizes=dict(sizes.most_common()),
        matched_queries=matched,
        problems=problems,
        notes=notes,
        decoded=not fast,
    )


def _describe_text(labels: pd.Series, column: str) -> str | None:
    """Return which label makes a column text, if most of them are whole numbers."""
    if not pd.api.types.is_string_dtype(labels):
        return None
    known = labels.dropna().drop_duplicates()
    words = known[~known.map(is_whole)]
    if 2 * len(words) >= len(known):
        return None
    return f"{column}: all are text, as {short_repr(words.iloc[0])} is not a whole number"


def _count(rows: pd.DataFrame) -> Counts:
    identities = rows.pid[rows.person].nunique()
    tracks = None
    if "track" in rows:
        tracks = len(rows.loc[rows.track.notna(), ["camid", "track"]].drop_duplicates())
    return Counts(len(rows), int(identities), int(rows.junk.sum()), int(rows.distractor.sum()), tracks)


def _count_cameras(table: pd.DataFrame) -> pd.DataFrame:
    """Count images of every kind, and identities without junk and distractors, per split and camera."""
    pids = table.pid.where(table.person)
    groups = table.assign(pid=pids).groupby(["split", "camid"], dropna=False, sort=True)
    counted = groups.agg(images=("path", "size"), identities=("pid", "nunique")).reset_index()
    return counted.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable")


def _matched_queries(people: pd.DataFrame) -> int:
    query, gallery = (people[people.split == split] for split in ("query", "gallery"))
    shown = gallery.groupby(["pid", "camid"], dropna=False).path.agg(["size", "first"]).reset_index()
    pairs = query[["path", "pid", "camid"]].merge(shown, on="pid", suffixes=("", "_shown"))
    known = pairs.camid.notna() & pairs.camid_shown.notna()
    others = (pairs["size"] > 1) | (pairs["first"] != pairs.path)  # not the file itself
    matched = (pairs.camid != pairs.camid_shown).where(known, others)
    return int(pairs.path[matched.astype(bool)].nunique())


def _expected_counts(card: Card) -> dict[str, dict[str, int]]:
    if card.random_split is not None and card.random_split.number is None:
        return {}  # the counts are those of a split
    keys = ("images", "identities", "junk", "distractors", "tracks")
    expected = {}
    for name, split in card.splits.items():
        values = {key: getattr(split, key) for key in keys if getattr(split, key) is not None}
        if values:
            expected[name] = values
    return expected


def _inspect_images(
    paths: list[str], fast: bool, threads: int
) -> tuple[Counter[tuple[int, int]], list[Problem]]:
    """Return how many images have each size, and what is wrong with the others."""

    def inspect(path: str) -> tuple[int, int] | Problem | None:
        try:
            if fast and os.path.isfile(path) and os.path.getsize(path):
                return None
            image = read_image(path)
        except ImageError as error:
            return Problem(error.fault, path, error.detail)
        return image.height, image.width

    found = list(map_in_threads(inspect, paths, threads, "decoding"))
    sizes = Counter(value for value in found if isinstance(value, tuple))
    return sizes, [value for value in found if isinstance(value, Problem)]
