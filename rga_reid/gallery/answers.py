"""Answers to queries as JSON: what ``query --json`` writes and a server returns.

A match is an object with ``rank, score, id, path, pid, camera, camid, time, track`` and the gallery's other columns.
Unknown values are null; times are ISO 8601 in UTC; ``camid`` is another name of ``camera``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rga_reid.data.columns import plain_records
from rga_reid.gallery.grouped_search import group_columns

#: columns of every match, in their order; those of the gallery's own follow
MATCH_COLUMNS = ("rank", "score", "id", "path", "pid", "camera", "camid", "time", "track")


def match_table(matches: pd.DataFrame, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return matches with the columns of an answer in their order: ``query``, those of a match, then others.

    Args:
        matches: result of ``Gallery.search(..., with_ids=True)``.
        columns: the gallery's own columns to keep, in this order; all by default.
    """
    return matches[_answer_columns(matches, columns)]


def _answer_columns(matches: pd.DataFrame, columns: Sequence[str] | None) -> list[str]:
    own = [column for column in matches.columns if column not in ("query", *MATCH_COLUMNS)]
    if columns is not None:
        own = [column for column in columns if column in own]
    return ["query", *(column for column in MATCH_COLUMNS if column in matches.columns), *own]


def answers_to_json(
    matches: pd.DataFrame,
    queries: int,
    *,
    group_by: str | None = None,
    threshold: float | None = None,
    columns: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Return one object for each query, with its ``matches``, best first.

    With ``group_by`` it also has ``groups``, best first: objects with ``rank``, ``score`` (of the best match), the
    values that the group shares, such as ``camera`` and ``track``, and its ``matches``. A match has the rank of its
    group.

    With a threshold, matches of lower scores are left out, and the object also has ``threshold``, ``best_score`` (the
    highest score found, null without any match) and ``nobody``, true if no match reaches the threshold.

    Args:
        matches: result of ``Gallery.search(..., with_ids=True)`` for these queries.
        queries: number of queries.
        group_by: column by which the matches were grouped.
        threshold: least score of a match.
        columns: the gallery's own columns to show; all by default.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in range(queries)]
    for match in plain_records(matches, _answer_columns(matches, columns)):
        found[match.pop("query")].append(match)
    return [_answer(list_, group_by, threshold) for list_ in found]


def _answer(matches: list[dict[str, Any]], group_by: str | None, threshold: float | None) -> dict[str, Any]:
    best = max((match["score"] for match in matches), default=None)
    if threshold is not None:
        matches = [match for match in matches if match["score"] >= threshold]
    answer: dict[str, Any] = {"matches": matches}
    if group_by is not None:
        answer["groups"] = _groups(matches, group_by)
    if threshold is not None:
        answer |= {"threshold": threshold, "best_score": best, "nobody": not matches}
    return answer


def _groups(matches: Sequence[dict[str, Any]], group_by: str) -> list[dict[str, Any]]:
    """Return the groups of one query; matches of one group follow each other and share its rank."""
    groups: dict[int, dict[str, Any]] = {}
    for match in matches:
        if match["rank"] not in groups:
            shared = {column: match[column] for column in group_columns(group_by) if column in match}
            groups[match["rank"]] = {"rank": match["rank"], "score": match["score"], **shared, "matches": []}
        group = groups[match["rank"]]
        group["score"] = max(group["score"], match["score"])  # a re-ranked group may not begin with it
        group["matches"].append(match)
    return list(groups.values())
