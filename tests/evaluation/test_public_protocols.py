"""Protocols of public data sets against loops that follow the papers and the evaluation code of their authors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.evaluation import (
    PROTOCOLS,
    ClothesChange,
    CrossModality,
    LabelledFeatures,
    MatchRule,
    RankingResult,
    RepeatedResult,
    ReRanking,
    SingleShot,
    Tracklets,
    evaluate_protocol,
    evaluate_ranking,
    pool_tracks,
    top_matches,
)
from rga_reid.evaluation.tracklets import pool_batches, sort_tracks
from tests.oracles import float64_distance, walk

Case = dict[str, Any]


def draw(seed: int, queries: int, items: int, **columns: tuple[Any, ...]) -> Case:
    """Draw arguments of ``evaluate_protocol``; ``columns`` are values to draw from, by name."""
    rng = np.random.default_rng(seed)
    case: Case = {}
    centres = rng.standard_normal((8, 12))
    for side, count in (("query", queries), ("gallery", items)):
        pids = rng.integers(-1, 7, count)
        case[f"{side}_pids"] = pids
        case[f"{side}_features"] = (centres[pids] + rng.standard_normal((count, 12))).astype(np.float32)
        drawn = {name: rng.choice(np.array(values, object), count) for name, values in columns.items()}
        case[f"{side}_camids"] = drawn.pop("camids", rng.integers(1, 4, count))
        case[f"{side}_columns"] = drawn
    return case


def rows(case: Case, side: str) -> Iterator[dict[str, Any]]:
    """Iterate over the images of a side, each with its labels."""
    for row, pid in enumerate(case[f"{side}_pids"]):
        extra = {name: values[row] for name, values in case[f"{side}_columns"].items()}
        yield {"row": row, "pid": pid, "camid": case[f"{side}_camids"][row], **extra}


def rank_by_hand(
    case: Case,
    skips: Callable[[Any, Any], bool],
    gallery: list[int] | None = None,
    metric: str = "cosine",
) -> pd.DataFrame:
    """Walk down the sorted gallery of each query, passing over what ``skips`` names.

    Returns:
        A row for each query with a match: ``query``, ``AP``, ``first`` (rank of the first match) and ``first_person``
        (the same if each person is listed once, by the best image).
    """
    distance = float64_distance(case["query_features"], case["gallery_features"], metric)
    offered = [item for item in rows(case, "gallery") if gallery is None or item["row"] in gallery]
    found = []
    for query in rows(case, "query"):
        if query["pid"] == -1:
            continue
        order = sorted(offered, key=lambda item: (distance[query["row"], item["row"]], item["row"]))
        listed = [item["pid"] for item in order if item["pid"] != -1 and not skips(query, item)]
        hits = [pid == query["pid"] for pid in listed]
        if any(hits):
            metrics = walk(hits, 5)
            persons = list(dict.fromkeys(listed))
            place = persons.index(query["pid"]) + 1
            found.append((query["row"], metrics["step"], metrics["first"], place))
    return pd.DataFrame(found, columns=["query", "AP", "first", "first_person"])


def compare(found: RankingResult, expected: pd.DataFrame, first: str = "first") -> None:
    table = found.to_frame()
    valid = table[table["matches"] > 0]
    assert valid["query"].tolist() == expected["query"].tolist()
    np.testing.assert_allclose(valid["AP_step"], expected["AP"], atol=1e-12)
    assert valid["first_match"].tolist() == expected[first].tolist()
    assert found.mAP == pytest.approx(expected["AP"].mean(), abs=1e-12)
    assert found.rank(1) == pytest.approx((expected[first] == 1).mean())


def single(protocol: Any, case: Case, **options: Any) -> RankingResult:
    result = evaluate_protocol(protocol, **case, **options)
    assert isinstance(result, RankingResult)
    return result


def repeated(protocol: Any, case: Case, **options: Any) -> tuple[RankingResult, ...]:
    result = evaluate_protocol(protocol, **case, **options)
    assert isinstance(result, RepeatedResult)
    return result.repeats


# Clothes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_clothes_changing(seed: int) -> None:
    case = draw(seed, 30, 80, clothes=(1, 2, 3))

    def skips(query: Any, item: Any) -> bool:
        same_person = query["pid"] == item["pid"]
        return same_person and (query["camid"] == item["camid"] or query["clothes"] == item["clothes"])

    compare(single(ClothesChange(), case), rank_by_hand(case, skips))


@pytest.mark.parametrize("seed", range(3))
def test_same_clothes(seed: int) -> None:
    case = draw(seed, 30, 80, clothes=("a", "b"))

    def skips(query: Any, item: Any) -> bool:
        same_person = query["pid"] == item["pid"]
        return same_person and (query["camid"] == item["camid"] or query["clothes"] != item["clothes"])

    compare(single(ClothesChange(same=True), case), rank_by_hand(case, skips))


def test_queries_who_never_change_are_skipped() -> None:
    case = draw(0, 20, 60, clothes=(1, 2))
    case["query_columns"]["clothes"] = case["query_pids"] * 10
    case["gallery_columns"]["clothes"] = np.where(case["gallery_pids"] == 3, 77, case["gallery_pids"] * 10)
    result = single(ClothesChange(), case)
    assert set(result.to_frame()["pid"][result.to_frame()["matches"] > 0]) == {3}
    case["gallery_columns"]["clothes"] = case["gallery_pids"] * 10
    with pytest.raises(InputError, match="clothes: no query has a correct match"):
        single(ClothesChange(), case)


def test_lists_follow_the_rule() -> None:
    case = draw(1, 10, 40, clothes=(1, 2))
    sides = [
        LabelledFeatures(
            *(case[f"{side}_{name}"] for name in ("features", "pids", "camids")),
            columns=case[f"{side}_columns"],
        )
        for side in ("query", "gallery")
    ]
    lists = top_matches(*sides, top_k=40, rule=MatchRule(differ=("camid", "clothes")))
    gallery = list(rows(case, "gallery"))
    for query, found in zip(rows(case, "query"), lists, strict=True):
        for item in (gallery[row] for row in found.rows):
            if query["pid"] == item["pid"]:
                assert query["clothes"] != item["clothes"]
                assert query["camid"] != item["camid"]


def prcc(seed: int, images: int) -> Case:
    """Draw a set like PRCC: the gallery from camera A, queries from B (same clothes) and C (others)."""
    case = draw(seed, 24, 7 * images)
    case["query_camids"] = np.array(list("BC") * 12, object)
    case["gallery_camids"] = np.array(["A"] * 7 * images, object)
    case["gallery_pids"] = np.arange(7 * images) % 7
    case["query_columns"] = {"clothes": np.array([1, 2] * 12)}
    case["gallery_columns"] = {"clothes": np.ones(7 * images, int)}
    return case


@pytest.mark.parametrize(("name", "camera"), [("prcc", "C"), ("prcc_same_clothes", "B")])
def test_prcc_with_one_image_of_each_person(name: str, camera: str) -> None:
    case = prcc(4, 1)
    expected = rank_by_hand(
        case, lambda query, item: query["camid"] != camera and query["pid"] == item["pid"]
    )
    results = repeated(PROTOCOLS[name], case)
    assert len(results) == 10
    for result in results:
        compare(result, expected)


def test_prcc_draws_all_galleries() -> None:
    case = prcc(5, 2)
    choices = [np.flatnonzero(case["gallery_pids"] == pid).tolist() for pid in range(7)]
    galleries = [list(chosen) for chosen in itertools.product(*choices)]
    possible = {
        round(
            rank_by_hand(
                case, lambda query, item: query["camid"] == "B" and query["pid"] == item["pid"], one
            )["AP"].mean(),
            9,
        )
        for one in galleries
    }
    found = {round(result.mAP, 9) for result in repeated(SingleShot(15, clothes="other"), case)}
    assert found <= possible
    assert len(found) > 5


# Splits ----------------------------------------------------------------------------------------------------


def two_cameras(seed: int, people: int, others: int = 0) -> Case:
    """Draw an image of each person in both cameras, on both sides; the gallery has other people, too."""
    rng = np.random.default_rng(seed)
    pids, camids = np.tile(np.arange(people), 2), np.repeat([1, 2], people)
    features = rng.standard_normal((people + others, 8))
    known = (features[pids] + rng.standard_normal((2 * people, 8))).astype(np.float32)
    return {
        "query_features": known,
        "query_pids": pids,
        "query_camids": camids,
        "gallery_features": np.concatenate([known, features[people:].astype(np.float32)]),
        "gallery_pids": np.concatenate([pids, people + np.arange(others)]),
        "gallery_camids": np.concatenate([camids, np.full(others, 2)]),
        "query_columns": {},
        "gallery_columns": {},
    }


def halves(case: Case, people: int, count: int) -> dict[float, int]:
    """Return the mAP of each choice of people: queries of both cameras against the other camera."""
    found: dict[float, int] = {}
    for chosen in itertools.combinations(range(people), count):
        asked = np.isin(case["query_pids"], chosen)
        one = case | {"query_pids": np.where(asked, case["query_pids"], -1)}
        left_out = set(range(people)) - set(chosen)
        table = rank_by_hand(
            one, lambda query, item, out=left_out: query["camid"] == item["camid"] or item["pid"] in out
        )
        key = round(table["AP"].mean(), 9)
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("others", [0, 3])
def test_random_splits_draw_people_equally_often(others: int) -> None:
    """As VIPeR, and as PRID 2011, whose gallery has people whom nobody asks for."""
    case = two_cameras(1, 5, others)
    possible = halves(case, 5, 2)
    results = repeated(SingleShot(40, identities=2), case)
    found = [round(result.mAP, 9) for result in results]
    assert set(found) <= set(possible)
    for value, ways in possible.items():  # 10 choices, each 4 times, within 3.5 standard deviations
        mean = 4 * ways
        assert abs(found.count(value) - mean) < 3.5 * np.sqrt(mean * (1 - ways / 10))
    assert {result.valid_queries for result in results} == {4}
    assert {result.gallery for result in results} == {2 + others}


def test_a_split_that_is_drawn_already_is_taken_whole() -> None:
    case = two_cameras(2, 6)
    expected = rank_by_hand(case, lambda query, item: query["camid"] == item["camid"])
    results = repeated(PROTOCOLS["viper"], case)
    assert len(results) == 10
    for result in results:
        compare(result, expected)


# Modalities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("ties", [False, True])
def test_cross_modality(ties: bool, metric: Any) -> None:
    case = draw(3, 30, 80, camids=(1, 2, 3, 4), modality=("rgb", "infrared"))
    if ties:
        for side in ("query", "gallery"):
            few = case[f"{side}_features"][:6]
            case[f"{side}_features"] = few[np.arange(len(case[f"{side}_pids"])) % 6]
    expected = rank_by_hand(
        case,
        lambda query, item: query["modality"] == item["modality"] or query["camid"] == item["camid"],
        metric=metric,
    )
    (result,) = repeated(CrossModality(), case, metric=metric)
    compare(result, expected)
    (result,) = repeated(CrossModality(counts_persons=True), case, metric=metric)
    compare(result, expected, "first_person")


def sysu(seed: int, images: int) -> Case:
    """Draw a set like SYSU-MM01: infrared queries of cameras 3 and 6, some people missing in some cameras."""
    rng = np.random.default_rng(seed)
    seen = [(pid, camera) for pid in range(7) for camera in (1, 2, 4, 5) if rng.random() < 0.8]
    case = draw(seed, 40, images * len(seen), camids=(3, 6), modality=("infrared",))
    pids, cameras = np.array(seen * images).T
    shuffled = rng.permutation(len(pids))
    centres = np.random.default_rng(seed).standard_normal((8, 12))
    noise = rng.standard_normal((len(pids), 12))
    case |= {
        "gallery_pids": pids[shuffled],
        "gallery_camids": cameras[shuffled],
        "gallery_features": (centres[pids[shuffled]] + noise).astype(np.float32),
        "gallery_columns": {"modality": ["rgb"] * len(pids)},
    }
    return case


def skips_sysu(cameras: tuple[int, ...]) -> Callable[[Any, Any], bool]:
    """Return the rule of its evaluation code: cameras 2 and 3 are in the same room."""
    room = {1: 1, 2: 2, 3: 2, 4: 4, 5: 5, 6: 6}
    return lambda query, item: item["camid"] not in cameras or room[query["camid"]] == room[item["camid"]]


@pytest.mark.parametrize(
    ("name", "cameras"),
    [
        ("sysu_mm01", (1, 2, 4, 5)),
        ("sysu_mm01_indoor", (1, 2)),
        ("sysu_mm01_multi_shot", (1, 2, 4, 5)),
        ("sysu_mm01_indoor_multi_shot", (1, 2)),
    ],
)
def test_sysu_mm01_where_nothing_is_left_to_draw(name: str, cameras: tuple[int, ...]) -> None:
    case = sysu(6, 10 if "multi" in name else 1)
    expected = rank_by_hand(case, skips_sysu(cameras))
    assert (expected["first"] != expected["first_person"]).any()
    results = repeated(PROTOCOLS[name], case)
    assert len(results) == 10
    for result in results:
        compare(result, expected, "first_person")
    without = {f"{side}_columns": {} for side in ("query", "gallery")}  # the camera implies the modality
    compare(repeated(PROTOCOLS[name], case | without)[0], expected, "first_person")


@pytest.mark.parametrize("shots", [1, 2])
def test_images_are_drawn_for_each_person_and_camera(shots: int) -> None:
    case = sysu(7, 3)
    case["gallery_features"] = np.eye(len(case["gallery_pids"]), dtype=np.float32)
    case["query_features"] = (
        np.random.default_rng(0).random((40, len(case["gallery_pids"]))).astype(np.float32)
    )
    groups = pd.DataFrame({"pid": case["gallery_pids"], "camid": case["gallery_camids"]}).groupby(
        ["pid", "camid"]
    )
    results = repeated(CrossModality((1, 2, 4, 5), ((2, 3),), shots, repeats=10), case)
    possible = set()
    choices = [list(itertools.combinations(part.index, shots)) for _, part in groups]
    rng = np.random.default_rng(1)
    for result in results:
        assert result.gallery == shots * len(choices)  # for camera 6, which sees all
    # the matches of a query are the drawn images of its person, in each camera that it may see
    for query in rows(case, "query"):
        mine = [key for key in groups.groups if key[0] == query["pid"] and (query["camid"], key[1]) != (3, 2)]
        counts = {result.to_frame()["matches"][query["row"]] for result in results}
        assert counts == {shots * len(mine)} if query["pid"] >= 0 else {0}
    for _ in range(3):
        gallery = [row for one in choices for row in one[rng.integers(len(one))]]
        possible.add(round(rank_by_hand(case, skips_sysu((1, 2, 4, 5)), gallery)["AP"].mean(), 2))
    assert abs(np.mean([result.mAP for result in results]) - np.mean(list(possible))) < 0.1
    assert len({result.mAP for result in results}) > 7


def test_a_drawn_gallery_is_one_of_the_possible_ones() -> None:
    case = sysu(8, 1)
    keep = np.isin(case["gallery_pids"], (0, 1))
    case |= {
        key: np.asarray(case[key])[keep] for key in ("gallery_pids", "gallery_camids", "gallery_features")
    }
    twice = {key: np.concatenate([case[key]] * 2) for key in ("gallery_pids", "gallery_camids")}
    noise = np.random.default_rng(2).standard_normal(case["gallery_features"].shape)
    other = (case["gallery_features"] + noise).astype(np.float32)
    case |= twice | {
        "gallery_features": np.concatenate([case["gallery_features"], other]),
        "gallery_columns": {},
    }
    count = keep.sum()
    possible = [
        round(
            rank_by_hand(case, skips_sysu((1, 2, 4, 5)), list(np.arange(count) + count * np.array(second)))[
                "AP"
            ].mean(),
            9,
        )
        for second in itertools.product((0, 1), repeat=int(count))
    ]
    found = [
        round(result.mAP, 9)
        for result in repeated(CrossModality((1, 2, 4, 5), ((2, 3),), 1, repeats=25), case)
    ]
    assert set(found) <= set(possible)
    assert len(set(found)) > len(set(possible)) / 8
    assert np.mean(found) == pytest.approx(np.mean(possible), abs=0.03)


# Tracks ----------------------------------------------------------------------------------------------------


def tracked(seed: int, frames: int) -> Case:
    """Draw frames of tracks; the queries are some of the gallery's tracks, as in MARS."""
    case = draw(seed, 1, frames)
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 12, frames)
    pids = rng.integers(-1, 4, 36)
    camids = case["gallery_camids"]
    case["gallery_columns"] = {"track": number}
    case["gallery_pids"] = pids[12 * (camids - 1) + number]  # a track is named by camera and number
    keep = np.isin(number, (2, 5, 7))
    case["query_columns"] = {"track": number[keep]}
    for name in ("features", "pids", "camids"):
        case[f"query_{name}"] = case[f"gallery_{name}"][keep]
    return case


def pool_by_hand(case: Case, side: str, pooling: str) -> Case:
    """Return one mean, or weighted mean, for each track, in the order of their first frames."""
    tracks: dict[tuple[int, int], list[int]] = {}
    for item in rows(case, side):
        tracks.setdefault((item["camid"], item["track"]), []).append(item["row"])
    features = []
    for frames in tracks.values():
        x = case[f"{side}_features"][frames].astype(np.float64)
        mean = x.mean(axis=0)
        if pooling == "attention":
            cosines = x @ mean / np.linalg.norm(x, axis=1) / np.linalg.norm(mean)
            weights = np.exp(cosines / 0.1)
            mean = (weights[:, None] * x).sum(axis=0) / weights.sum()
        features.append(mean.astype(np.float32))
    first = [frames[0] for frames in tracks.values()]
    return {
        f"{side}_features": np.stack(features),
        f"{side}_pids": case[f"{side}_pids"][first],
        f"{side}_camids": case[f"{side}_camids"][first],
        f"{side}_columns": {},
    }


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_mars(pooling: Any) -> None:
    case = tracked(9, 150)
    pooled = pool_by_hand(case, "query", pooling) | pool_by_hand(case, "gallery", pooling)
    assert len(pooled["gallery_pids"]) == 35
    expected = rank_by_hand(
        pooled, lambda query, item: query["pid"] == item["pid"] and query["camid"] == item["camid"]
    )
    result = single(Tracklets(pooling), case)
    table = result.to_frame()
    valid = table[table["matches"] > 0]
    assert valid["query"].tolist() == expected["query"].tolist()
    np.testing.assert_allclose(valid["AP_step"], expected["AP"], atol=1e-6)


def test_attention_leaves_out_a_frame_that_shows_something_else() -> None:
    rng = np.random.default_rng(0)
    person = rng.standard_normal(16)
    frames = person + 0.1 * rng.standard_normal((9, 16))
    frames[4] = -person[::-1]
    sides = LabelledFeatures(frames, [1] * 9, columns={"track": [5] * 9})
    cosines = [
        float(pooled @ person / np.linalg.norm(pooled) / np.linalg.norm(person))
        for pooling in ("mean", "attention")
        for pooled in pool_tracks(sides, pooling).features
    ]
    assert cosines[0] < cosines[1]
    assert cosines[1] > 0.999


@pytest.mark.parametrize("batch", [1, 4, 50])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_pooling_of_a_stream(batch: int, pooling: Any) -> None:
    case = tracked(10, 50)
    table = pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(50)],
            "pid": case["gallery_pids"],
            "camid": case["gallery_camids"],
            "track": pd.Series(case["gallery_columns"]["track"], dtype="Int64").mask(np.arange(50) % 7 == 0),
        }
    )
    features = case["gallery_features"] / np.linalg.norm(case["gallery_features"], axis=1, keepdims=True)
    expected = pool_tracks(LabelledFeatures.from_table(features, table), pooling)
    ordered = sort_tracks(table.assign(row=range(50)))
    parts = [ordered.iloc[start : start + batch] for start in range(0, 50, batch)]
    stream = ((features[part["row"]], part.drop(columns="row")) for part in parts)
    vectors, labels = zip(*pool_batches(stream, pooling), strict=True)
    found = np.concatenate(vectors)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(expected.features, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected.features / lengths, atol=1e-6)
    assert expected.paths is not None
    assert pd.concat(labels)["path"].tolist() == expected.paths.tolist()


def test_a_track_belongs_to_its_split() -> None:
    table = pd.DataFrame({"path": list("abcd"), "pid": [1] * 4, "camid": [1] * 4, "track": [1, 1, 1, 1]})
    table = table.assign(split=["query", "gallery", "query", "gallery"])
    ordered = sort_tracks(table)
    assert ordered["path"].tolist() == list("acbd")
    batches = list(pool_batches([(np.eye(4, dtype=np.float32), ordered)]))
    assert pd.concat([rows for _, rows in batches])["path"].tolist() == ["a", "b"]


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "changes", "words"),
    [
        (ClothesChange(), {"query_columns": {}}, "query_clothes: .*row"),
        (ClothesChange(), {"gallery_columns": {"clothes": [None] * 80}}, "gallery_clothes: .*row"),
        (SingleShot(2, clothes="same"), {"query_columns": {}}, "query_clothes"),
        (CrossModality(), {"query_columns": {}}, "query_modality: .*row"),
        (Tracklets(), {}, "query_track: expected"),
        (Tracklets(), {"query_columns": {"track": [1] * 30}}, "query_track: .*two identities"),
        (Tracklets("max"), {"query_columns": {"track": range(30)}}, "pooling: "),  # type: ignore[arg-type]
        (CrossModality((9,)), {}, "no query has its person"),
        (ClothesChange(), {"query_columns": {"clothes": [1]}}, "query_clothes: expected 30"),
    ],
)
def test_bad_input_is_named(protocol: Any, changes: Case, words: str) -> None:
    case = draw(0, 30, 80, clothes=(1, 2)) | changes
    with pytest.raises(InputError, match=words):
        evaluate_protocol(protocol, **case)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SingleShot(identities=0), "identities"),
        (lambda: SingleShot(clothes="others"), "clothes"),  # type: ignore[arg-type]
        (lambda: CrossModality(shots=0), "shots"),
        (lambda: CrossModality(repeats=0), "repeats"),
        (lambda: CrossModality(seed=-1), "seed"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_galleries_drawn_at_random_are_not_re_ranked() -> None:
    case = draw(0, 30, 80, modality=("a", "b"))
    with pytest.raises(InputError, match="rerank"):
        evaluate_protocol(CrossModality(), **case, rerank=ReRanking())
    plain = {key: values for key, values in case.items() if "columns" not in key}
    assert single(PROTOCOLS["market1501"], case).mAP == evaluate_ranking(**plain).mAP
