"""Protocols: removed items, averaged queries and random galleries."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import (
    PROTOCOLS,
    RankingResult,
    RepeatedResult,
    ReRanking,
    evaluate_protocol,
    evaluate_ranking,
)
from rga_reid.evaluation.protocols import IgnoreCameras, MultiQuery, SingleQuery, SingleShot
from tests.evaluation.conftest import draw_people, same


def people(seed: int) -> dict[str, Any]:
    return draw_people(seed, 40, 160, columns=16, people=9, junk=True)


def single(protocol: Any, case: dict[str, Any], **options: Any) -> RankingResult:
    result = evaluate_protocol(protocol, **case, **options)
    assert isinstance(result, RankingResult)
    assert result.settings["protocol"] == type(protocol).__name__
    return result


def shots(protocol: Any, case: dict[str, Any], **options: Any) -> RepeatedResult:
    result = evaluate_protocol(protocol, **case, **options)
    assert isinstance(result, RepeatedResult)
    return result


# Single query ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["market1501", "cuhk03", "msmt17"])
def test_single_query_is_the_plain_ranking(name: str) -> None:
    case = people(0)
    assert same(single(PROTOCOLS[name], case), evaluate_ranking(**case))
    options: dict[str, Any] = {"metric": "euclidean", "max_rank": 7, "rerank": ReRanking(5, 2)}
    assert same(single(PROTOCOLS[name], case, **options), evaluate_ranking(**case, **options))


def test_no_cameras_removes_the_query_only() -> None:
    case = people(0)
    paths = {
        "query_paths": [f"{n}.jpg" for n in range(40)],
        "gallery_paths": [f"{n}.jpg" for n in range(160)],
    }
    result = single(IgnoreCameras(), case, **paths)
    without = {name: values for name, values in case.items() if "camids" not in name}
    assert same(result, evaluate_ranking(**without, **paths))
    assert result.settings["cameras"] == "none"
    assert same(single(IgnoreCameras(), without), evaluate_ranking(**without))


# Multiple queries ------------------------------------------------------------------------------------------


def test_multi_query_averages_each_person_in_each_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    case = people(1)
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for feature, pid, camid in zip(
        case["query_features"], case["query_pids"], case["query_camids"], strict=True
    ):
        if pid != -1:
            groups.setdefault((pid, camid), []).append(feature.astype(np.float64))
    means = np.stack([np.mean(features, axis=0) for features in groups.values()])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    pids, camids = zip(*groups, strict=True)
    expected = evaluate_ranking(
        means, case["gallery_features"], pids, case["gallery_pids"], camids, case["gallery_camids"]
    )
    for rows in (1, 5, 4096):
        monkeypatch.setattr("rga_reid.evaluation.protocols._AVERAGED", rows)
        result = single(MultiQuery(), case)
        assert result.to_frame().equals(expected.to_frame())
        assert result.mAP == pytest.approx(expected.mAP, abs=1e-12)
    assert len(result.to_frame()) == len(groups) < 40


def test_multi_query_takes_paths_for_granted() -> None:
    case = people(1)
    paths = {"query_paths": ["a.jpg"] * 40, "gallery_paths": ["a.jpg"] * 160}
    assert same(single(MultiQuery(), case, **paths), single(MultiQuery(), case))


# Single shot -----------------------------------------------------------------------------------------------


def test_single_shot_draws_all_galleries_equally_often() -> None:
    """The mean over random galleries is that over all possible galleries."""
    rng = np.random.default_rng(5)
    gallery_pids, gallery_camids = np.array([1, 1, 1, 2, 2, 3]), np.array([1, 1, 0, 1, 1, 1])
    case = {
        "query_features": rng.standard_normal((3, 4)).astype(np.float32),
        "gallery_features": rng.standard_normal((6, 4)).astype(np.float32),
        "query_pids": [1, 2, 3],
        "gallery_pids": gallery_pids,
        "query_camids": [0, 0, 0],
        "gallery_camids": gallery_camids,
    }
    rows = [np.flatnonzero((gallery_pids == pid) & (gallery_camids == 1)) for pid in (1, 2, 3)]
    galleries = [sorted(draw) for draw in itertools.product(*rows)]
    parts = ("features", "pids", "camids")
    exact = [
        evaluate_ranking(**case | {f"gallery_{part}": case[f"gallery_{part}"][draw] for part in parts}).mAP
        for draw in galleries
    ]
    assert len({round(mAP, 9) for mAP in exact}) == 4
    drawn = [round(one.mAP, 9) for one in shots(SingleShot(repeats=80, seed=1), case).repeats]
    for mAP in exact:  # each 20 times, within 3 standard deviations
        assert 20 - 3 * 3.9 < drawn.count(round(mAP, 9)) < 20 + 3 * 3.9


def test_single_shot_ranks_each_camera_against_the_others() -> None:
    case = people(2)
    result = shots(SingleShot(repeats=5), case)
    asked = case["query_pids"] >= 0
    assert (result.repeats[0].valid_queries, result.repeats[0].skipped_queries) == (
        asked.sum(),
        (~asked).sum(),
    )
    assert result.repeats[0].gallery == 9
    assert (result.repeats[0].to_frame()["matches"][asked] == 1).all()
    assert result.mAP == pytest.approx(np.mean([one.mAP for one in result.repeats]))
    assert result.mAP_deviation == pytest.approx(np.std([one.mAP for one in result.repeats], ddof=1))
    assert result.cmc_deviation.shape == result.cmc.shape == (50,)


def test_single_shot_is_reproducible() -> None:
    case = people(2)
    first, again, other = (shots(SingleShot(5, seed), case).to_dict() for seed in (1, 1, 2))
    assert first == again != other
    values = json.loads(json.dumps(first, allow_nan=False))
    assert values["repeats"] == 5
    assert set(values["deviation"]) == {"mAP", "mAP_trapezoid", "mINP", "cmc"} | {
        f"rank-{k}" for k in (1, 5, 10, 20)
    }
    assert values["rank-5"] == pytest.approx(values["cmc"][4])
    assert shots(SingleShot(1), case).mAP_deviation == 0


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [SingleQuery(), MultiQuery(), SingleShot(2)])
def test_cameras_are_needed(protocol: Any) -> None:
    case = people(0)
    without = {name: values for name, values in case.items() if "camids" not in name}
    with pytest.raises(InputError, match=rf"query_camids: .* {type(protocol).__name__} .* row"):
        evaluate_protocol(protocol, **without)
    cameras = case["gallery_camids"].astype(object)
    cameras[np.flatnonzero(case["gallery_pids"] == -1)] = None  # junk needs no camera
    evaluate_protocol(protocol, **case | {"gallery_camids": cameras})
    row = int(np.flatnonzero(case["gallery_pids"] == 3)[2])
    cameras[row] = None
    with pytest.raises(InputError, match=rf"gallery_camids: .* row {row} "):
        evaluate_protocol(protocol, **case | {"gallery_camids": cameras})


def test_bad_settings_are_named() -> None:
    assert PROTOCOLS["cuhk03_classic"] == SingleShot(repeats=100, seed=0)
    with pytest.raises(InputError, match=r"repeats: .* 0$"):
        SingleShot(repeats=0)
    with pytest.raises(InputError, match=r"seed: .* -1$"):
        SingleShot(seed=-1)
    for other in ("cuhk03_classic", SingleShot):  # the name and the class are not protocols
        with pytest.raises(InputError, match="PROTOCOLS"):
            evaluate_protocol(other, **people(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("protocol", "change", "message"),
    [
        (SingleShot(2), {"rerank": ReRanking()}, r"rerank: .*SingleShot"),
        (SingleShot(2), {"query_camids": [1] * 40, "gallery_camids": [1] * 160}, "gallery_camids: no query"),
        (MultiQuery(), {"query_pids": [-1] * 40}, "query_pids: every query is junk"),
        (MultiQuery(), {"query_pids": list(range(40))}, "query_pids: expected several queries of a person"),
        (MultiQuery(), {"metric": "euclidean"}, "metric: MultiQuery needs cosine"),
        (MultiQuery(), {"query_features": np.full((40, 16), np.nan)}, "query_features: row 0 .* NaN"),
    ],
)
def test_bad_input_is_named(protocol: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_protocol(protocol, **people(0) | change)


def test_features_that_cancel_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    case = people(0)
    case["query_pids"], case["query_camids"] = np.arange(40) // 2 + 100, np.full(40, 5)
    features = case["query_features"].copy()
    features[7] = -features[6]
    for rows in (2, 4096):
        monkeypatch.setattr("rga_reid.evaluation.protocols._AVERAGED", rows)
        with pytest.raises(InputError, match=r"query_features: .* pid 103 in camera 5"):
            evaluate_protocol(MultiQuery(), **case | {"query_features": features})
