"""The public ranking functions: published figures, exactness, memory, labels, bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import (
    ReRanking,
    evaluate_distances,
    evaluate_protocol,
    evaluate_ranking,
    expand_queries,
    pair_scores,
)
from rga_reid.evaluation.protocols import SingleShot
from tests.evaluation.conftest import same
from tests.memory import measured


def close_calls(queries: int = 30, items: int = 300, columns: int = 1100) -> dict[str, np.ndarray]:
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


# Published figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["step", "trapezoid"])
def test_equals_the_published_evaluators(
    reference: dict[str, Any], figures: dict[str, Any], rule: Any
) -> None:
    result = evaluate_ranking(**reference, average_precision=rule)
    assert result.mAP_step == pytest.approx(figures["mAP"], abs=1e-6)
    assert result.mAP_trapezoid == pytest.approx(figures["mAP_trapezoid"], abs=1e-6)
    assert result.mINP == pytest.approx(figures["mINP"], abs=1e-6)
    assert result.cmc.dtype == np.float64
    np.testing.assert_allclose(result.cmc, figures["cmc"], atol=1e-6)
    assert (result.valid_queries, result.skipped_queries) == (figures["valid_queries"], 7)
    assert result.gallery == int((reference["gallery_pids"] != -1).sum())
    assert result.settings["cameras"] == "given"
    assert result.mAP == getattr(result, f"mAP_{rule}") == pytest.approx(result.average_precisions.mean())
    assert result.to_dict()["mAP"] == result.mAP_step


def test_distances_give_the_same(reference: dict[str, Any]) -> None:
    query, gallery = (
        torch.from_numpy(reference[name]).double() for name in ("query_features", "gallery_features")
    )
    cosine = torch.nn.functional.normalize(query) @ torch.nn.functional.normalize(gallery).T
    labels = {name: values for name, values in reference.items() if "features" not in name}
    result = evaluate_distances(1 - cosine, **labels)
    assert result.to_dict() == evaluate_ranking(**reference).to_dict()
    assert result.settings["metric"] == "distances"


# Exactness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_no_bit_depends_on_blocks_or_threads(metric: Any, vary: Callable[[], Iterator[int]]) -> None:
    case = close_calls()
    expected = evaluate_ranking(**case, metric=metric)
    for block_size in vary():
        assert same(evaluate_ranking(**case, metric=metric, block_size=block_size), expected)


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
    gallery = case["gallery_features"]
    np.save(tmp_path / "gallery.npy", gallery)
    wide = np.zeros((len(gallery), 128), np.float32)
    wide[:, ::2] = gallery
    expected = evaluate_ranking(**case, metric=metric)
    for form in (
        np.load(tmp_path / "gallery.npy", mmap_mode="r"),
        np.asfortranarray(gallery),
        wide[:, ::2],
        gallery.astype(np.float64),
        gallery.astype(">f4"),
        torch.from_numpy(gallery).requires_grad_(),
    ):
        assert same(evaluate_ranking(**case | {"gallery_features": form}, metric=metric), expected)
    half = torch.from_numpy(gallery).to(torch.bfloat16)
    rounded = evaluate_ranking(**case | {"gallery_features": half.float()}, metric=metric)
    assert same(evaluate_ranking(**case | {"gallery_features": half}, metric=metric), rounded)


def test_every_form_of_distances_gives_the_same(reference: dict[str, Any], tmp_path: Path) -> None:
    labels = {name: values for name, values in reference.items() if "features" not in name}
    distances = np.random.default_rng(0).integers(0, 200, (120, 1500)).astype(np.float32)
    expected = evaluate_distances(distances, **labels)
    np.save(tmp_path / "distances.npy", distances)
    for form in (
        np.load(tmp_path / "distances.npy", mmap_mode="r"),
        distances.astype(np.float64) / 7,
        distances.astype(np.uint8),
        torch.from_numpy(distances).to(torch.bfloat16),
        torch.from_numpy(np.asfortranarray(distances)),
    ):
        assert same(evaluate_distances(form, **labels, block_size=100), expected)


@pytest.mark.parametrize("kind", ["equal features", "one identity"])
def test_degenerate_data_takes_bounded_memory(kind: str, limit_memory: Callable[[int, int], None]) -> None:
    limit_memory(2**13, 32)
    rng = np.random.default_rng(0)
    if kind == "equal features":
        query, gallery = np.full((150, 8), 0.1, np.float32), np.full((3000, 8), 0.1, np.float32)
        pids = rng.integers(0, 20, 150), rng.integers(0, 20, 3000)
    else:
        query, gallery = rng.standard_normal((150, 8), np.float32), rng.standard_normal((3000, 8), np.float32)
        pids = np.ones(150), np.ones(3000)
    with measured() as memory:
        result = evaluate_ranking(query, gallery, *pids, block_size=256)
    if kind == "equal features":  # they rank in gallery order
        assert same(result, evaluate_distances(np.zeros((150, 3000), np.float32), *pids))
    else:
        assert result.mAP == result.mINP == 1
    assert memory.peak < 8e6  # a list of all 450,000 pairs would take 10.8 MB
    assert 0 < memory.largest_tensor < 4 * 450_000 / 4  # a quarter of one float32 matrix


# Labels ----------------------------------------------------------------------------------------------------

LINE = np.array([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]], np.float32)  # in rank order for LINE[:1]


def first_match(**labels: Any) -> Any:
    return evaluate_ranking(LINE[:1], LINE, **labels).to_frame()["first_match"].tolist()[0]


def test_unknown_and_junk_identities() -> None:
    assert first_match(query_pids=[7], gallery_pids=[None, 8, 7, 9, 7]) == 3  # a wrong answer
    junk = {"query_pids": [7], "gallery_pids": [-1, 8, 7, 9, 7]}
    assert first_match(**junk) == 2
    assert first_match(**junk, junk_pids=()) == 3
    assert first_match(**junk, junk_pids=[-1, 8]) == 1
    result = evaluate_ranking(LINE[:4], LINE, [None, -1, 7, 6], [7, 8, 7, 9, 7])
    assert (result.valid_queries, result.skipped_queries) == (1, 3)
    assert result.to_frame()["matches"].tolist() == [0, 0, 3, 0]


def test_large_identities_beside_unknown_ones_stay_apart() -> None:
    """Both are 2**60 as floating-point numbers."""
    features = np.eye(4, dtype=np.float32)
    pids = [2**60 + 1, 2**60 + 2, None, 2**60 + 1]
    assert evaluate_ranking(features[:1], features[1:], pids[:1], pids[1:]).mAP == 1 / 3


@pytest.mark.parametrize("cameras", [None, [3]])
def test_the_query_itself_is_removed(cameras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0.jpg").touch()
    Path("link.jpg").symlink_to("0.jpg")
    pids: dict[str, Any] = {"query_pids": [7], "gallery_pids": [7, 8, 7, 9, 7]}
    if cameras:
        pids |= {"query_camids": cameras, "gallery_camids": [4] * 5}
    for own in ("0.jpg", "./0.jpg", tmp_path / "0.jpg", "link.jpg"):
        paths = {"query_paths": ["0.jpg"], "gallery_paths": [own, "a/0.jpg", None, "3.jpg", "4.jpg"]}
        assert first_match(**pids, **paths) == 2
        assert first_match(**{**pids, "gallery_pids": [9, 7, 7, 9, 7]}, **paths) == 1  # with any label
    missing = {"query_paths": ["a/0.jpg"], "gallery_paths": ["a//0.jpg", "0.jpg", None, "3.jpg", "4.jpg"]}
    assert first_match(**pids, **missing) == 2
    result = evaluate_ranking(LINE[:1], LINE, **pids, **missing)
    assert result.to_frame()["path"].tolist() == ["a/0.jpg"]


@pytest.mark.parametrize(
    ("function", "options", "least"),
    [
        (evaluate_ranking, {}, 5),
        (evaluate_ranking, {"rerank": ReRanking(5, 2)}, 10),
        (partial(evaluate_protocol, SingleShot(4)), {}, 4),
        (pair_scores, {}, 1),
        (expand_queries, {}, 1),
    ],
)
def test_progress_ends_at_one(function: Callable[..., Any], options: dict[str, Any], least: int) -> None:
    case, calls = close_calls(columns=16), []
    if function is expand_queries:
        case = {name: values for name, values in case.items() if "features" in name}
    function(**case, **options, block_size=40, progress=calls.append)
    assert len(calls) >= least
    assert calls == sorted(calls)
    assert calls[-1] == 1


# Bad input -------------------------------------------------------------------------------------------------


def spoil(row: int, value: float) -> np.ndarray:
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
        ({"gallery_features": spoil(3, np.nan)}, r"gallery_features: row 3 .* NaN"),
        ({"gallery_features": spoil(4, -np.inf)}, r"gallery_features: row 4 .* infinity"),
        ({"gallery_features": LINE.astype(np.float64) * 1e300}, r"row 0 \(and 4 more rows\) .* infinity"),
        ({"query_features": spoil(0, 0)[:2]}, r"query_features: row 0 .* zeros"),
        ({"gallery_features": LINE[:, :1]}, r"query_features, gallery_features: .* 2 and 1"),
        ({"gallery_features": LINE[0]}, r"gallery_features: expected a matrix"),
        ({"query_pids": [7]}, r"query_pids: expected 2"),
        ({"query_camids": [1, 2]}, r"gallery_camids: not given"),
        ({"gallery_camids": [1, 2, 3, 4, 5]}, r"query_camids: not given"),
        ({"metric": "manhattan"}, r"metric: .* 'manhattan'"),
        ({"average_precision": "area"}, r"average_precision: .* 'area'"),
        ({"max_rank": 0}, r"max_rank: .* 0$"),
        ({"max_rank": 10**7}, r"max_rank: .* 10000000$"),
        ({"block_size": 0}, r"block_size: .* 0$"),
        ({"device": "nowhere"}, r"device 'nowhere'"),
        ({"device": "meta"}, r"device 'meta'"),
        ({"query_pids": [-1, None]}, r"query_pids: every query is junk"),
        ({"gallery_pids": [-1] * 5}, r"gallery_pids: every item is junk"),
        ({"query_pids": [1, 2]}, r"query_pids, gallery_pids: .* 2 of the queries is among the 3"),
        (
            {"query_camids": [1, 1], "gallery_camids": [1] * 5},
            r"cameras: .*own camera.*--protocol no_cameras",
        ),
        ({"query_camids": [1, 2], "gallery_camids": [1, 2, 1, 3, 2]}, r"the query's own camera"),
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
        (np.ones(4), r"distances: expected a matrix \(q, g\) .* \(4,\)"),
        (np.ones((2, 0)), r"distances: expected a matrix"),
        (np.ones((2, 4)) * 1j, r"distances: .* complex128"),
        (np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]]), r"distances: row 1 .* NaN"),
        (np.array([[1, 2, 3, 4], [1, np.finfo(np.float32).max, 3, 4]], np.float32), r"row 1 .* beyond"),
        (np.ones((3, 4)), r"query_pids: expected 3"),
        (np.ones((2, 5)), r"gallery_pids: expected 5"),
    ],
)
def test_bad_distances_are_named(distances: Any, message: str) -> None:
    assert evaluate_distances(np.ones((2, 4)), [1, 2], [1, 2, 3, 4]).valid_queries == 2
    with pytest.raises(InputError, match=message):
        evaluate_distances(distances, [1, 2], [1, 2, 3, 4])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_scores_stay_on_the_device(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    to_host = torch.Tensor.cpu

    def count(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.numel())
        return to_host(tensor)

    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((40, 16)), rng.standard_normal((60_000, 16))
    pids = np.arange(40), rng.integers(0, 20_000, 60_000)
    cameras = np.zeros(40, int), np.ones(60_000, int)
    monkeypatch.setattr(torch.Tensor, "cpu", count)
    evaluate_ranking(query, gallery, *pids, *cameras, metric=metric)
    assert 0 < sum(copied) < 0.05 * len(query) * len(gallery)
