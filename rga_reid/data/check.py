"""What is in a data set, what its card expects, and what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from rga_reid.data.cards import SPLITS, Card, load_card
from rga_reid.data.images import ImageError, map_in_threads, read_image
from rga_reid.data.readers import DEFAULT_CARD, is_csv, scan_data, to_table
from rga_reid.data.records import Problem

Found = dict[str, tuple[int, int] | Problem]


@dataclass(frozen=True)
class Counts:
    """What a split holds."""

    images: int  #: files of every kind
    identities: int  #: without junk and distractors
    junk: int  #: files with a junk pid
    distractors: int  #: files with a distractor pid


@dataclass(frozen=True)
class DataReport:
    """The result of ``check_data``.

    Args:
        root: as given.
        title: of the data set.
        counts: split -> what was found.
        expected: split -> what the card expects; keys as in ``Counts``, where the card says.
        cameras: columns ``split, camid, images, identities``; ``camid`` null where unknown.
        sizes: (height, width) -> images; empty if nothing was decoded.
        matched_queries: queries whose identity another camera's gallery image shows (where cameras are not
            known: another gallery image).
        problems: everything wrong, each with its file.
        decoded: whether the images were decoded, not only counted.
    """

    root: str
    title: str
    counts: dict[str, Counts]
    expected: dict[str, dict[str, int]]
    cameras: pd.DataFrame
    sizes: dict[tuple[int, int], int]
    matched_queries: int
    problems: list[Problem]
    decoded: bool

    def to_json(self) -> dict[str, Any]:
        """The report in lists, dicts, texts and numbers."""
        cameras = self.cameras.astype({"camid": object}).where(self.cameras.notna(), None)
        return {
            "root": self.root,
            "title": self.title,
            "clean": not self.problems,
            "decoded": self.decoded,
            "splits": {split: asdict(counts) for split, counts in self.counts.items()},
            "expected": self.expected,
            "cameras": cameras.to_dict("records"),
            "sizes": [
                {"height": height, "width": width, "images": images}
                for (height, width), images in self.sizes.items()
            ],
            "matched_queries": self.matched_queries,
            "problems": [asdict(problem) for problem in self.problems],
        }


def check_data(
    root: str | os.PathLike[str],
    card: str | os.PathLike[str] | Card | None = None,
    *,
    fast: bool = False,
    threads: int = 2,
) -> DataReport:
    """Count a data set against its card and decode every image of it.

    Args:
        root: folder of the data set, or a CSV file (see ``read_table``).
        card: a card or its name; by default ``market1501`` for a folder, and none for a CSV file.
        fast: leave out decoding; a file of zero bytes is found all the same.
        threads: images decoded at the same time.

    Raises:
        InputError: there is nothing to count: the root is missing or of another layout.
    """
    described = None if card is None and is_csv(root) else load_card(card or DEFAULT_CARD)
    survey = scan_data(root, described or DEFAULT_CARD)
    table = to_table(survey)
    junk = table.pid.isin(described.junk_pids if described else (-1,))
    distractor = table.pid.isin(described.distractor_pids if described else ())
    table["junk"], table["distractor"], table["person"] = junk, distractor, ~(junk | distractor)
    counts = {split: _counts(table[table.split == split]) for split in SPLITS if (table.split == split).any()}
    found = _look_at(table.path.unique().tolist(), fast, threads)
    sizes = Counter(value for value in found.values() if isinstance(value, tuple))
    problems = survey.problems + [value for value in found.values() if isinstance(value, Problem)]
    matched = _matched_queries(table[table.person])
    if {"query", "gallery"} <= counts.keys() and not matched:
        detail = "no query has a gallery image of the same identity from another camera"
        problems.append(Problem("match", os.fspath(root), detail))
    expected = _expected(described) if described else {}
    problems += _miscounts(os.fspath(root), counts, expected)
    if described and described.cameras not in (None, table.camid.nunique()):
        detail = f"{table.camid.nunique()} cameras, expected {described.cameras}"
        problems.append(Problem("count", os.fspath(root), detail))
    return DataReport(
        root=os.fspath(root),
        title=described.title if described else "own data (CSV)",
        counts=counts,
        expected=expected,
        cameras=_cameras(table),
        sizes=dict(sizes.most_common()),
        matched_queries=matched,
        problems=problems,
        decoded=not fast,
    )


def _counts(rows: pd.DataFrame) -> Counts:
    people = rows.pid[rows.person].nunique()
    return Counts(len(rows), int(people), int(rows.junk.sum()), int(rows.distractor.sum()))


def _cameras(table: pd.DataFrame) -> pd.DataFrame:
    """Images of every kind, and identities without junk and distractors, per split and camera."""
    pids = table.pid.where(table.person)
    groups = table.assign(pid=pids).groupby(["split", "camid"], dropna=False, sort=True)
    counted = groups.agg(images=("path", "size"), identities=("pid", "nunique")).reset_index()
    return counted.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable")


def _matched_queries(people: pd.DataFrame) -> int:
    query, gallery = (people[people.split == split] for split in ("query", "gallery"))
    sightings = gallery.groupby(["pid", "camid"], dropna=False).path.agg(["size", "first"]).reset_index()
    pairs = query[["path", "pid", "camid"]].merge(sightings, on="pid", suffixes=("", "_shown"))
    known = pairs.camid.notna() & pairs.camid_shown.notna()
    others = (pairs["size"] > 1) | (pairs["first"] != pairs.path)  # all but the file itself
    matched = (pairs.camid != pairs.camid_shown).where(known, others)
    return int(pairs.path[matched.astype(bool)].nunique())


def _expected(card: Card) -> dict[str, dict[str, int]]:
    keys = ("images", "identities", "junk", "distractors")
    wanted = {
        name: {key: getattr(split, key) for key in keys if getattr(split, key) is not None}
        for name, split in card.splits.items()
    }
    return {name: values for name, values in wanted.items() if values}


def _miscounts(root: str, counts: dict[str, Counts], expected: dict[str, dict[str, int]]) -> list[Problem]:
    problems = []
    for split, wanted in expected.items():
        there = counts.get(split, Counts(0, 0, 0, 0))
        for key, number in wanted.items():
            if getattr(there, key) != number:
                detail = f"{split}: {getattr(there, key):,} {key}, expected {number:,}"
                problems.append(Problem("count", root, detail))
    return problems


def _look_at(paths: list[str], fast: bool, threads: int) -> Found:
    """Path -> its size in pixels, or what is wrong with it."""

    def look(path: str) -> tuple[int, int] | Problem | None:
        try:
            if fast and _has_content(path):
                return None
            image = read_image(path)
        except ImageError as error:
            return Problem(error.fault, path, error.detail)
        return image.height, image.width

    looks = map_in_threads(look, paths, threads, "decoding")
    return {path: value for path, value in zip(paths, looks, strict=True) if value is not None}


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:  # a link that leads nowhere: ``read_image`` says so
        return False
