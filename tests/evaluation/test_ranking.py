"""The public functions: published figures, forms of input, unknown labels, sameness, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import RankingResult, evaluate_distances, evaluate_ranking
from rga_reid.evaluation import match_ranks as counting
from tests.memory import measured

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAMES = ("query_features", "gallery_features", "query_pids", "gallery_pids", "query_camids", "gallery_camids")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "ranking.npz") as file:
        return {name: file[name] for name in NAMES}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads((FIXTURES / "ranking.json").read_text())


def close_calls(queries: int = 40, items: int = 500, columns: int = 1100) -> dict[str, np.ndarray]:
    """Groups of rows that differ in their last bits only, and repeat."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal((30, columns))
    rows = base[rng.integers(0, 30, items)] + 3e-7 * rng.standard_normal((items, columns))
    rows[items // 2 :] = rows[rng.integers(0, items // 2, items - items // 2)]
    return {
        "query_features": rng.standard_normal((queries, columns)).astype(np.float32),
        "gallery_features": rows.astype(np.float32),
        "query_pids": rng.integers(0, 9, queries),
        "gallery_pids": rng.integers(0, 12, items),
        "query_camids": rng.integers(0, 3, queries),
        "gallery_camids": rng.integers(0, 3, items),
    }


def same(a: RankingResult, b: RankingResult) -> bool:
    """To the last bit."""
    return a.to_frame().equals(b.to_frame()) and a.to_dict() == b.to_dict()


# Published figures -----------------------------------------------------------------------------------------


def test_equals_the_published_evaluators(reference: dict[str, Any], figures: dict[str, Any]) -> None:
    result = evaluate_ranking(**reference)
    assert result.mAP == result.mAP_step == pytest.approx(figures["mAP"], abs=1e-6)
    assert result.mAP_trapezoid == pytest.approx(figures["mAP_trapezoid"], abs=1e-6)
    assert result.mINP == pytest.approx(figures["mINP"], abs=1e-6)
    assert result.cmc.dtype == np.float64
    np.testing.assert_allclose(result.cmc, figures["cmc"], atol=1e-6)
    assert (result.valid_queries, result.skipped_queries) == (figures["valid_queries"], 7)
    assert result.gallery == int((reference["gallery_pids"] != -1).sum())
    assert result.settings["cameras"] == "given"


def test_distances_give_the_same(reference: dict[str, Any]) -> None:
    query, gallery = (torch.from_numpy(reference[name]).double() for name in NAMES[:2])
    cosine = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T
    labels = {name: reference[name] for name in NAMES[2:]}
    result = evaluate_distances(1 - cosine, **labels)
    assert result.to_dict() == evaluate_ranking(**reference).to_dict()
    assert result.settings["metric"] == "distances"


def test_the_chosen_rule_is_the_one_reported(reference: dict[str, Any]) -> None:
    result = evaluate_ranking(**reference, average_precision="trapezoid")
    assert result.mAP == result.mAP_trapezoid != result.mAP_step
    assert result.average_precisions.mean() == pytest.approx(result.mAP)
    assert len(result.average_precisions) == result.valid_queries
    assert result.to_dict()["mAP"] == result.mAP_step


# Sameness --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_bit_depends_on_blocks_or_threads(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = close_calls()
    expected = evaluate_ranking(**case, metric=metric)
    threads = torch.get_num_threads()
    try:
        for block_size, count, queries, tile in ((3, 1, 7, 50), (17, 2, 40, 999), (1000, 3, 1, 2**19)):
            torch.set_num_threads(count)
            monkeypatch.setattr(counting, "_QUERIES", queries)
            monkeypatch.setattr(counting, "_TILE", tile)
            assert same(evaluate_ranking(**case, metric=metric, block_size=block_size), expected)
    finally:
        torch.set_num_threads(threads)


def test_no_bit_depends_on_settings_of_torch() -> None:
    case = close_calls()
    expected = evaluate_ranking(**case)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            assert same(evaluate_ranking(**case), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_every_form_of_features_gives_the_same(metric: Any, tmp_path: Path) -> None:
    case = close_calls(columns=64)
    expected = evaluate_ranking(**case, metric=metric)
    gallery = case["gallery_features"]
    np.save(tmp_path / "gallery.npy", gallery)
    wide = np.zeros((len(gallery), 128), np.float32)
    wide[:, ::2] = gallery
    forms = [
        np.load(tmp_path / "gallery.npy", mmap_mode="r"),
        np.asfortranarray(gallery),
        wide[:, ::2],
        gallery.astype(np.float64),
        gallery.astype(">f4"),
        torch.from_numpy(gallery).requires_grad_(),
    ]
    for form in forms:
        assert same(evaluate_ranking(**case | {"gallery_features": form}, metric=metric), expected)


def test_half_precision_features_are_read_as_they_are() -> None:
    case = close_calls(columns=64)
    for half in (torch.float16, torch.bfloat16):
        gallery = torch.from_numpy(case["gallery_features"]).to(half)
        rounded = evaluate_ranking(**case | {"gallery_features": gallery})
        assert same(rounded, evaluate_ranking(**case | {"gallery_features": gallery.float()}))


def test_every_form_of_distances_gives_the_same(reference: dict[str, Any], tmp_path: Path) -> None:
    labels = {name: reference[name] for name in NAMES[2:]}
    distances = np.random.default_rng(0).integers(0, 200, (120, 1500)).astype(np.float32)
    expected = evaluate_distances(distances, **labels)
    np.save(tmp_path / "distances.npy", distances)
    for form in (
        np.load(tmp_path / "distances.npy", mmap_mode="r"),
        distances.astype(np.float64) / 7,
        distances.astype(np.float16),
        distances.astype(np.uint8),
        torch.from_numpy(distances).to(torch.bfloat16),
        torch.from_numpy(np.asfortranarray(distances)),
    ):
        assert same(evaluate_distances(form, **labels, block_size=100), expected)


def test_equal_features_rank_in_gallery_order_within_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_TILE", 2**14)
    monkeypatch.setattr(counting, "_QUERIES", 64)
    rng = np.random.default_rng(0)
    pids = rng.integers(0, 20, 300), rng.integers(0, 20, 3000)
    features = np.full((300, 8), 0.1, np.float32), np.full((3000, 8), 0.1, np.float32)
    expected = evaluate_distances(np.zeros((300, 3000), np.float32), *pids)
    with measured() as memory:
        result = evaluate_ranking(*features, *pids, block_size=256)
    assert same(result, expected)
    assert memory.peak < 12e6  # a list of all 900,000 tied pairs alone would take 22 MB
    assert 0 < memory.largest_tensor < 4 * 900_000 / 4  # a quarter of one float32 matrix


def test_one_identity_everywhere_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_TILE", 2**14)
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((300, 8), np.float32), rng.standard_normal((3000, 8), np.float32)
    with measured() as memory:
        result = evaluate_ranking(query, gallery, np.ones(300), np.ones(3000), block_size=256)
    assert result.mAP == result.mINP == 1
    assert memory.peak < 12e6
    assert 0 < memory.largest_tensor < 4 * 900_000 / 4  # a quarter of one float32 matrix


# Labels ----------------------------------------------------------------------------------------------------

LINE = np.array(
    [[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]], np.float32
)  # in this order for query LINE[:1]


def first_match(**labels: Any) -> Any:
    return evaluate_ranking(LINE[:1], LINE, **labels).to_frame()["first_match"].tolist()[0]


def test_items_of_the_same_person_and_camera_are_removed() -> None:
    pids = {"query_pids": [7], "gallery_pids": [7, 8, 7, 9, 7]}
    assert first_match(**pids) == 1
    assert first_match(**pids, query_camids=[1], gallery_camids=[1, 1, 2, 1, 2]) == 2


def test_an_unknown_camera_equals_none() -> None:
    pids = {"query_pids": [7], "gallery_pids": [7, 8, 7, 9, 7]}
    assert first_match(**pids, query_camids=[1], gallery_camids=[None, 1, 1, 1, 1]) == 1
    assert first_match(**pids, query_camids=[None], gallery_camids=[1, 1, 1, 1, 1]) == 1
    assert first_match(**pids, query_camids=[pd.NA], gallery_camids=[pd.NA] * 5) == 1


def test_minus_one_is_a_camera_like_any_other() -> None:
    pids = {"query_pids": [7], "gallery_pids": [7, 8, 7, 9, 7]}
    assert first_match(**pids, query_camids=[-1], gallery_camids=[-1, 2, 2, 2, 2]) == 2


def test_an_unknown_person_in_the_gallery_is_a_wrong_answer() -> None:
    assert first_match(query_pids=[7], gallery_pids=[None, 8, 7, 9, 7]) == 3


def test_junk_is_left_out() -> None:
    labels = {"query_pids": [7], "gallery_pids": [-1, 8, 7, 9, 7]}
    assert first_match(**labels) == 2
    assert first_match(**labels, junk_pids=()) == 3
    assert first_match(**labels, junk_pids=[-1, 8]) == 1


def test_a_query_of_unknown_or_junk_identity_is_skipped() -> None:
    result = evaluate_ranking(LINE[:4], LINE, [None, -1, 7, 6], [7, 8, 7, 9, 7])
    assert (result.valid_queries, result.skipped_queries) == (1, 3)
    assert result.to_frame()["matches"].tolist() == [0, 0, 3, 0]
    assert result.to_dict()["queries"] == 4


def test_without_cameras_only_the_query_itself_is_removed() -> None:
    pids = {"query_pids": [7], "gallery_pids": [7, 8, 7, 9, 7]}
    paths = {
        "query_paths": ["a/0.jpg"],
        "gallery_paths": [Path("a/0.jpg"), "a/1.jpg", None, "a/3.jpg", "0.jpg"],
    }
    assert first_match(**pids, **paths) == 2
    assert first_match(**{**pids, "gallery_pids": [9, 7, 7, 9, 7]}, **paths) == 1  # whatever its label
    result = evaluate_ranking(LINE[:1], LINE, **pids, **paths)
    assert result.settings["cameras"] == "none"
    assert result.to_frame()["path"].tolist() == ["a/0.jpg"]


def test_every_form_of_labels_gives_the_same() -> None:
    expected = evaluate_ranking(LINE[:2], LINE, [7, None], [7, 8, None, 9, 7])
    masked = np.ma.MaskedArray([7, 8, 7, 9, 7], mask=[0, 0, 1, 0, 0])
    for query, gallery in (
        (np.array([7, np.nan]), np.array([7, 8, np.nan, 9, 7])),
        (
            pd.array([7, None], dtype="Int64"),
            pd.Series([7, 8, None, 9, 7], dtype="Int64", index=[9, 8, 7, 6, 5]),
        ),
        (torch.tensor([7.0, torch.nan]), masked),
        (np.array([7, None], dtype=object), [7.0, 8, float("nan"), 9, 7]),
    ):
        assert same(evaluate_ranking(LINE[:2], LINE, query, gallery), expected)


# Results ---------------------------------------------------------------------------------------------------


def test_the_cmc_of_a_short_gallery_continues() -> None:
    result = evaluate_ranking(LINE[:2], LINE, [7, 8], [7, 9, 9, 8, 9])
    np.testing.assert_array_equal(result.cmc, [0.5, 0.5, 0.5] + 47 * [1.0])


def test_rank_k() -> None:
    result = evaluate_ranking(LINE[:2], LINE, [7, 8], [7, 9, 9, 8, 9], max_rank=4)
    assert [result.rank(k) for k in (1, 2, 3, 4)] == [0.5, 0.5, 0.5, 1.0]
    for k in (0, 5):
        with pytest.raises(InputError, match=f"rank {k}: expected 1 to 4"):
            result.rank(k)
    assert result.to_dict()["rank-20"] == 1.0
    assert result.to_dict()["cmc"] == [0.5, 0.5, 0.5, 1.0]


def test_to_dict_is_what_the_command_promises(reference: dict[str, Any]) -> None:
    result = evaluate_ranking(**reference)
    values = json.loads(json.dumps(result.to_dict()))
    assert list(values) == [
        *("mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20"),
        *("cmc", "queries", "valid_queries", "gallery", "reranked"),
    ]
    assert values["rank-10"] == result.rank(10)
    assert values["reranked"] is False


def test_to_frame_explains_the_means(reference: dict[str, Any]) -> None:
    result = evaluate_ranking(**reference)
    frame = result.to_frame()
    assert list(frame.columns) == [
        *("query", "pid", "camid", "AP_step", "AP_trapezoid", "INP", "first_match", "matches")
    ]
    assert frame["query"].tolist() == list(range(120))
    assert frame["pid"].tolist() == reference["query_pids"].tolist()
    for column, value in (("AP_step", result.mAP_step), ("AP_trapezoid", result.mAP_trapezoid)):
        assert frame[column].mean() == pytest.approx(value)
    assert frame["INP"].mean() == pytest.approx(result.mINP)
    assert (frame["first_match"] == 1).sum() / result.valid_queries == result.rank(1)
    np.testing.assert_array_equal(frame["AP_step"].dropna(), result.average_precisions)
    frame["pid"] = 0
    assert (result.to_frame()["pid"] != 0).any()


def test_a_result_is_frozen(reference: dict[str, Any]) -> None:
    with pytest.raises(AttributeError):
        evaluate_ranking(**reference).mAP = 1.0  # type: ignore[misc]


def test_progress_ends_at_one(reference: dict[str, Any]) -> None:
    told: list[float] = []
    evaluate_ranking(**reference, block_size=200, progress=told.append)
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == 1


# Bad input -------------------------------------------------------------------------------------------------


def spoiled(row: int, value: float) -> np.ndarray:
    features = LINE.copy()
    features[row] = value
    return features


GOOD: dict[str, Any] = {
    "query_features": LINE[:2],
    "gallery_features": LINE,
    "query_pids": [7, 8],
    "gallery_pids": [7, 8, 7, 9, 8],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_features": spoiled(3, np.nan)}, r"gallery_features: row 3 holds NaN or infinity"),
        ({"gallery_features": spoiled(4, -np.inf)}, r"gallery_features: row 4 holds NaN or infinity"),
        (
            {"gallery_features": LINE.astype(np.float64) * 1e300},
            r"row 0 \(and 4 more rows\) holds .* infinity",
        ),
        ({"query_features": spoiled(0, 0)[:2]}, r"query_features: row 0 holds only zeros"),
        ({"gallery_features": LINE[:, :1]}, r"expected rows of one length, found 2 and 1"),
        ({"gallery_features": LINE[0]}, r"gallery_features: expected a matrix .* got float32 \(2,\)"),
        ({"gallery_features": LINE[:0]}, r"gallery_features: expected a matrix .* got float32 \(0, 2\)"),
        ({"query_features": LINE[:2].astype(int)}, r"query_features: .* floating-point numbers, got int64"),
        ({"query_features": LINE[:2].astype(str)}, r"query_features: .* floating-point numbers, got <U"),
        ({"query_features": LINE[:2] + 1j}, r"query_features: .* floating-point numbers, got complex64"),
        ({"query_features": torch.ones(2, 2, dtype=torch.bool)}, r"query_features: .* got bool"),
        ({"query_pids": [7]}, r"query_pids: expected 2 values.* found 1"),
        ({"query_pids": None}, r"query_pids: expected 2 identities, found none"),
        ({"gallery_pids": [[7, 8, 7, 9, 8]] * 5}, r"gallery_pids: expected"),
        ({"gallery_pids": [7, 8, 7.5, 9, 8]}, r"gallery_pids: expected whole numbers"),
        ({"gallery_pids": list("78798")}, r"gallery_pids: expected whole numbers.* found string"),
        ({"query_pids": [True, False]}, r"query_pids: expected whole numbers.* found boolean"),
        (
            {"query_pids": np.array([2**64 - 1, 1], np.uint64)},
            r"query_pids: expected whole numbers of 64 bits",
        ),
        ({"query_camids": [1, 2]}, r"gallery_camids: not given, but query_camids are"),
        ({"gallery_camids": [1, 2, 3, 4, 5]}, r"query_camids: not given, but gallery_camids are"),
        ({"query_camids": [1, 2], "gallery_camids": [1]}, r"gallery_camids: expected 5 values.* found 1"),
        ({"query_paths": ["a"]}, r"query_paths: expected 2 values.* found 1"),
        ({"query_paths": ["a", 5]}, r"query_paths: row 1: expected a path, got 5"),
        ({"metric": "manhattan"}, r"metric: expected cosine or euclidean, got 'manhattan'"),
        ({"average_precision": "area"}, r"average_precision: expected step or trapezoid, got 'area'"),
        ({"max_rank": 0}, r"max_rank: expected a whole number of at least 1, got 0"),
        ({"block_size": 0}, r"block_size: expected a whole number of at least 1, got 0"),
        ({"device": "nowhere"}, r"device 'nowhere': not available"),
        ({"device": "meta"}, r"device 'meta': not available"),
        ({"query_pids": [-1, None]}, r"every query is junk or of unknown identity"),
        ({"query_pids": [1, 2]}, r"identities do not overlap: none of the 2 of the queries is among the 3"),
        ({"query_camids": [1, 1], "gallery_camids": [1] * 5}, r"there is one camera only"),
        ({"query_camids": [1, 2], "gallery_camids": [1, 2, 1, 3, 2]}, r"from the query's own camera"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    assert evaluate_ranking(**GOOD).valid_queries == 2
    with pytest.raises(InputError, match=message) as caught:
        evaluate_ranking(**GOOD | change)
    assert "\n" not in str(caught.value)


def test_zero_rows_have_a_euclidean_distance() -> None:
    features = LINE * 0
    result = evaluate_ranking(features[:2], features, [7, 8], [7, 8, 7, 9, 8], metric="euclidean")
    assert result.to_frame()["first_match"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.ones(4), r"distances: expected a matrix \(q, g\) of numbers, got float64 \(4,\)"),
        (np.ones((2, 0)), r"distances: expected a matrix"),
        (np.ones((2, 4), bool), r"distances: expected a matrix .* got bool"),
        (np.ones((2, 4)) * 1j, r"distances: expected a matrix .* got complex128"),
        (np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]]), r"distances: row 1 holds NaN or infinity"),
        (torch.tensor([[1, 2, 3, torch.inf]] * 2), r"distances: row 0 \(and 1 more rows\) holds NaN"),
        (np.ones((3, 4)), r"query_pids: expected 3 values"),
        (np.ones((2, 5)), r"gallery_pids: expected 5 values"),
    ],
)
def test_bad_distances_are_named(distances: Any, message: str) -> None:
    assert evaluate_distances(np.ones((2, 4)), [1, 2], [1, 2, 3, 4]).valid_queries == 2
    with pytest.raises(InputError, match=message):
        evaluate_distances(distances, [1, 2], [1, 2, 3, 4])


def test_large_whole_numbers_with_unknown_ones_among_them_stay_apart() -> None:
    """Both are 2**60 as floating-point numbers."""
    features = np.eye(4, dtype=np.float32)
    pids = [2**60 + 1, 2**60 + 2, None, 2**60 + 1]
    result = evaluate_ranking(features[:1], features[1:], pids[:1], pids[1:])
    assert result.mAP == 1 / 3


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_numbers_that_stand_for_infinity_are_refused(real: type[np.floating]) -> None:
    distances = np.ones((2, 3), real)
    distances[1, 2] = np.finfo(real).max
    with pytest.raises(InputError, match=r"distances: row 1 .*a number beyond"):
        evaluate_distances(distances, [1, 2], [1, 2, 1])
