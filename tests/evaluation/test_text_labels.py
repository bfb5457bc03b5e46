"""Identities and cameras as text give the results of the numbers that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.evaluation import (
    PROTOCOLS,
    LabelledFeatures,
    RankingResult,
    RepeatedResult,
    ReRanking,
    calibrate_open_set,
    evaluate_distances,
    evaluate_protocol,
    evaluate_ranking,
    score_pairs,
    top_matches,
)
from tests.evaluation.conftest import draw_people
from tests.oracles import float64_distance


def name(labels: np.ndarray, prefix: str) -> list[str]:
    """Name numbers so that the text sorts as they do; junk stays."""
    return [str(label) if label < 0 else f"{prefix}{label:04}" for label in labels]


@pytest.fixture
def people() -> dict[str, Any]:
    return draw_people(4, 40, 160, columns=16, people=9, junk=True)


def add_columns(case: dict[str, Any]) -> dict[str, Any]:
    """Add the columns that some protocols need."""
    added = dict(case)
    for side, modality in (("query", "infrared"), ("gallery", "rgb")):
        pids = np.asarray(case[f"{side}_pids"])
        rows = np.arange(len(pids))
        added[f"{side}_columns"] = {"clothes": rows % 2, "modality": [modality] * len(pids), "track": rows}
    return added


@pytest.fixture
def named(people: dict[str, Any]) -> dict[str, Any]:
    prefixes = {"pids": "Zoë ", "camids": "cam"}
    return {
        key: name(values, prefixes[kind]) if (kind := key.partition("_")[2]) in prefixes else values
        for key, values in people.items()
    }


def without_labels(result: RankingResult | RepeatedResult) -> list[pd.DataFrame]:
    results = result.repeats if isinstance(result, RepeatedResult) else (result,)
    return [one.to_frame().drop(columns=["pid", "camid"]) for one in results]


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if "sysu" not in name])  # it numbers cameras
def test_every_protocol(people: dict[str, Any], named: dict[str, Any], protocol: str) -> None:
    expected = evaluate_protocol(PROTOCOLS[protocol], **add_columns(people))
    found = evaluate_protocol(PROTOCOLS[protocol], **add_columns(named))
    for one, other in zip(without_labels(found), without_labels(expected), strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert found.to_dict() == expected.to_dict()


def test_other_rankings(people: dict[str, Any], named: dict[str, Any]) -> None:
    found, expected = (evaluate_ranking(**case, rerank=ReRanking(5, 2)) for case in (named, people))
    assert found.to_dict() == expected.to_dict()
    assert found.to_frame()["pid"].tolist() == named["query_pids"]
    assert found.to_frame()["camid"].tolist() == named["query_camids"]
    distances = float64_distance(people["query_features"], people["gallery_features"], "cosine")
    results = [
        evaluate_distances(
            distances, *(case[f"{side}_{kind}"] for kind in ("pids", "camids") for side in sides)
        )
        for case in (named, people)
        if (sides := ("query", "gallery"))
    ]
    assert results[0].to_dict() == results[1].to_dict()


def sides(case: dict[str, Any]) -> list[LabelledFeatures]:
    return [
        LabelledFeatures(*(case[f"{side}_{kind}"] for kind in ("features", "pids", "camids")), name=side)
        for side in ("query", "gallery")
    ]


def test_calibration_and_lists(people: dict[str, Any], named: dict[str, Any]) -> None:
    pairs, expected = (score_pairs(*sides(case)) for case in (named, people))
    np.testing.assert_array_equal(pairs.genuine, expected.genuine)
    assert pairs.impostor.total == expected.impostor.total
    rates = [calibrate_open_set(*sides(case)).to_dict(0.2) for case in (named, people)]
    assert rates[0] == rates[1]
    for one, other in zip(*(top_matches(*sides(case)) for case in (named, people)), strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize("other", [["07", "8", "Anna"], ["007", "8.0", "Anna"]])
@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_on_one_side_and_text_on_the_other(other: list[str], swapped: bool) -> None:
    eye = np.eye(3, dtype=np.float32)
    numbers, texts = (
        LabelledFeatures(eye, [7, 8, 9], ["1", "02", "3"]),
        LabelledFeatures(eye, other, [1, "a", "b"]),
    )
    result = evaluate_ranking(
        *((eye, eye, texts.pids, numbers.pids) if swapped else (eye, eye, numbers.pids, texts.pids))
    )
    assert result.to_frame()["matches"].tolist() == [1, 1, 0]
    assert numbers.camids is not None
    assert numbers.camids.tolist() == [1, 2, 3]
    # the camera 1 is the camera "1": the pair is removed
    result = evaluate_ranking(eye, eye, numbers.pids, texts.pids, numbers.camids, texts.camids)
    assert result.to_frame()["matches"].tolist() == [0, 1, 0]


def test_text_is_kept_as_it_is() -> None:
    eye = np.eye(3, dtype=np.float32)
    labelled = LabelledFeatures(eye, np.array(["007", "7", "Anna"]), ["", None, "x"])
    assert labelled.pids.tolist() == ["007", "7", "Anna"]
    assert labelled.camids is not None
    assert labelled.camids.isna().tolist() == [True, True, False]
    assert labelled.select([0, 1]).pids.tolist() == ["007", "7"]
    result = evaluate_ranking(eye[:2], eye, ["007", "Anna"], labelled.pids)
    assert result.to_frame()["matches"].tolist() == [1, 1]


def test_junk_may_have_a_name() -> None:
    eye = np.eye(3, dtype=np.float32)
    result = evaluate_ranking(eye[:2], eye, ["Anna", "crowd"], ["Anna", "crowd", "Zoë"], junk_pids=("crowd",))
    assert (result.gallery, result.to_frame()["matches"].tolist()) == (2, [1, 0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_with_text_on_one_side(people: dict[str, Any], protocol: str) -> None:
    text = {
        key: pd.Series(
            [str(label) for label in people[key]], dtype="string"
        )  # stays text, as in a larger table
        for key in ("query_pids", "query_camids")
    }
    people = add_columns(people)
    expected = evaluate_protocol(PROTOCOLS[protocol], **people)
    assert evaluate_protocol(PROTOCOLS[protocol], **(people | text)).to_dict() == expected.to_dict()
