"""Answers to queries as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.gallery import Gallery
from rga_reid.gallery.answers import answers_to_json

ORDER = ["rank", "score", "id", "path", "pid", "camera", "camid", "time", "track"]


@pytest.fixture
def gallery() -> Gallery:
    """Scores of a query along the first axis: 1, 0.8, 0.6, 0."""
    angles = np.arccos([1, 0.8, 0.6, 0])
    table = pd.DataFrame(
        {
            "path": list("abcd"),
            "pid": pd.array([7, None, 7, 9], dtype="Int64"),
            "camera": ["cam1", "cam1", "cam2", None],
            "time": pd.to_datetime(
                ["2026-11-20T10:15:00+01:00", None, "2026-11-20T09:15:00Z", None], utc=True
            ),
            "track": pd.array([1, 1, 1, 1], dtype="Int64"),
            "speed": [1.5, None, 2.0, 0.0],
            "night": pd.array([True, None, False, False], dtype="boolean"),
        }
    )
    return Gallery.build(np.stack([np.cos(angles), np.sin(angles)], axis=1), table)


def search(gallery: Gallery, **options: Any) -> pd.DataFrame:
    return gallery.search([[1.0, 0.0], [0.0, 1.0]], 3, with_ids=True, **options)


def test_matches_have_all_columns_in_plain_values(gallery: Gallery) -> None:
    answers = answers_to_json(search(gallery), 2)
    first, second = answers[0]["matches"][:2]
    assert list(first) == [*ORDER, "speed", "night"]
    assert json.loads(json.dumps(first)) == {
        "rank": 1,
        "score": pytest.approx(1),
        "id": 0,
        "path": "a",
        "pid": 7,
        "camera": "cam1",
        "camid": "cam1",
        "time": "2026-11-20T09:15:00+00:00",
        "track": 1,
        "speed": 1.5,
        "night": True,
    }
    assert [second[name] for name in ("pid", "time", "speed", "night")] == [None] * 4
    assert [[match["path"] for match in answer["matches"]] for answer in answers] == [
        list("abc"),
        list("dcb"),
    ]
    assert list(answers[0]) == ["matches"]


def test_chosen_columns(gallery: Gallery) -> None:
    (answer, _) = answers_to_json(search(gallery), 2, columns=["night", "camera"])
    assert list(answer["matches"][0]) == [*ORDER, "night"]


def test_groups_share_their_rank_and_values(gallery: Gallery) -> None:
    (answer, _) = answers_to_json(search(gallery, group_by="track"), 2, group_by="track")
    assert [list(group) for group in answer["groups"]] == [
        ["rank", "score", "camera", "track", "matches"]
    ] * 3
    assert [
        (group["rank"], round(group["score"], 6), group["camera"], group["track"])
        for group in answer["groups"]
    ] == [(1, 1, "cam1", 1), (2, 0.6, "cam2", 1), (3, 0, None, 1)]
    assert [[match["path"] for match in group["matches"]] for group in answer["groups"]] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert answer["matches"] == [match for group in answer["groups"] for match in group["matches"]]
    assert [match["rank"] for match in answer["matches"]] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("threshold", "kept", "groups"), [(0.7, "ab", ["ab"]), (0.9, "a", ["a"]), (-1, "abcd", ["ab", "c", "d"])]
)
def test_a_threshold_leaves_out_matches_and_groups(
    gallery: Gallery, threshold: float, kept: str, groups: list[str]
) -> None:
    matches = search(gallery, group_by="camera")
    answer = answers_to_json(matches, 2, group_by="camera", threshold=threshold)[0]
    assert [match["path"] for match in answer["matches"]] == list(kept)
    assert ["".join(match["path"] for match in group["matches"]) for group in answer["groups"]] == groups
    assert answer["threshold"] == threshold
    assert answer["best_score"] == pytest.approx(1)
    assert answer["nobody"] is False


def test_nobody_reaches_the_threshold(gallery: Gallery) -> None:
    matches = search(gallery, where="path != 'a'")
    first, second = answers_to_json(matches, 2, threshold=0.81)
    assert first == {"matches": [], "threshold": 0.81, "best_score": pytest.approx(0.8), "nobody": True}
    assert second["nobody"] is False
    none = answers_to_json(search(gallery, where="pid = 1"), 2, threshold=0.5, group_by="pid")
    assert none == [{"matches": [], "groups": [], "threshold": 0.5, "best_score": None, "nobody": True}] * 2


def test_the_score_of_a_group_is_its_best(gallery: Gallery) -> None:
    """Re-ranked images are not in the order of their scores."""
    matches = search(gallery, group_by="camera").iloc[[1, 0]]
    (group,) = answers_to_json(matches, 1, group_by="camera")[0]["groups"]
    assert group["score"] == pytest.approx(1)
