"""Displayed matrices against plain loops."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.attention.trace import asymmetry
from rga_reid.models.analysis import StageCapture
from rga_reid.reports.explorer import RELATIVE_ERROR, Exhibit, Pack
from rga_reid.reports.relation_views import FlowStep, as_stored, find_related, pool, stage_view


def captured(name: str, channels: int, size: tuple[int, int]) -> StageCapture:
    torch.manual_seed(0)
    module = ATTENTION_MODULES[name](channels, size).eval()
    with torch.no_grad():
        relations = module.relations(torch.rand(1, channels, *size))
        trace, output = relations.trace()
    return StageCapture(1, name, relations.matrices, trace.weights, trace.flow, output)


def test_asymmetry_by_hand() -> None:
    assert asymmetry(torch.tensor([[5.0, 2.0], [2.0, 1.0]])) == 0
    assert asymmetry(torch.tensor([[5.0, 2.0], [0.0, 1.0]])) == 1
    assert asymmetry(torch.tensor([[5.0, 3.0], [1.0, 1.0]])) == pytest.approx(0.5)
    assert asymmetry(torch.zeros(3, 3)) == 0


def test_a_pooled_entry_is_the_mean_over_a_block() -> None:
    grid = (16, 16)  # 256 positions, pooled to 8 × 8
    matrix = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    picture = pool(matrix, grid, grid)
    assert picture.shape == (64, 64)
    inside = [
        [r * 16 + c for r in (2 * y, 2 * y + 1) for c in (2 * x, 2 * x + 1)] for y, x in ((3, 5), (0, 7))
    ]
    expected = np.mean([[matrix[i, j] for j in inside[1]] for i in inside[0]])
    assert float(picture[3 * 8 + 5, 7]) == pytest.approx(expected, rel=1e-5)


def test_small_matrices_are_whole_and_large_ones_exact_at_chosen_points() -> None:
    small = stage_view(captured("rga_s", 16, (16, 8))).matrices[0]
    assert small.whole
    assert small.row(5).tolist() == small.picture[5].tolist()
    assert small.column(5).tolist() == small.picture[:, 5].tolist()
    capture = captured("rga_s", 16, (32, 24))
    large = stage_view(capture).matrices[0]
    assert not large.whole
    assert large.size == (768, 768)
    assert max(large.picture.shape) <= 128 * 2
    for place, node in enumerate(large.chosen):
        assert large.nearest(int(node)) == place
        np.testing.assert_array_equal(large.row(place), capture.matrices["spatial"][0, node])
        np.testing.assert_array_equal(large.column(place), capture.matrices["spatial"][0, :, node])


def test_large_channel_matrices_have_the_maps_they_name() -> None:
    capture = captured("cam", 600, (8, 4))
    view = stage_view(capture).matrices[0]
    assert not view.whole
    active = capture.x[0].flatten(1).mean(1).argsort(descending=True)[: len(view.chosen)]
    assert set(view.chosen.tolist()) == set(active.tolist())
    for place, node in enumerate(view.chosen):
        most, least = find_related(view.row(place), int(node))
        assert {int(node), *most, *least} <= set(view.map_channels.tolist())
    np.testing.assert_allclose(view.maps[0], capture.x[0, view.map_channels[0]], rtol=1e-6)


def test_channels_of_dual_attention_are_those_of_its_input() -> None:
    """In PAM(x) + CAM(x) − x, CAM gets x, not the output of PAM; RGA-C gets the output of RGA-S."""
    torch.manual_seed(0)
    module = ATTENTION_MODULES["dual"](16, (8, 4)).eval()
    module.sa.gamma.data.fill_(2.0)
    x = torch.rand(1, 16, 8, 4)
    with torch.no_grad():
        relations = module.relations(x)
        trace, output = relations.trace()
        alone = module.sc.relations(x).matrices["channels"]
    torch.testing.assert_close(relations.matrices["channels"], alone)
    view = stage_view(StageCapture(1, "dual", relations.matrices, trace.weights, trace.flow, output))
    np.testing.assert_allclose(view.matrices[1].maps, x[0], rtol=1e-6)

    capture = captured("rga", 16, (8, 4))
    weighed = capture.x * capture.weights["spatial"]
    np.testing.assert_allclose(stage_view(capture).matrices[1].maps, weighed[0], rtol=1e-6)


def test_both_passes_of_criss_cross_reach_everything() -> None:
    capture = captured("criss_cross", 16, (6, 4))
    one, two, both = stage_view(capture).matrices
    assert one.reach == two.reach == pytest.approx((6 + 4 - 1) / 24)
    assert both.reach == 1
    first, second = (capture.matrices[f"pass_{n}"][0].double() for n in (1, 2))
    expected = [[sum(second[i, k] * first[k, j] for k in range(24)) for j in range(24)] for i in range(3)]
    np.testing.assert_allclose(both.picture[:3], np.array(expected, float), rtol=1e-5)


def test_the_finest_stage_with_whole_matrices_is_shown_first() -> None:
    views = [stage_view(captured("rga_s", 16, size)) for size in ((32, 24), (16, 8), (8, 4))]
    pixels = np.zeros((64, 32, 3), np.uint8)
    exhibit = Exhibit("rga_s", True, "a.jpg", pixels, views, "a model")
    assert exhibit.stage() is views[1]
    assert Exhibit("rga_s", True, "a.jpg", pixels, views[:1], "a model").stage() is views[0]


@pytest.mark.parametrize("name", ["rga", "pam", "cam", "dual", "nonlocal", "criss_cross"])
def test_entries_follow_from_their_vectors(name: str) -> None:
    capture = captured(name, 16, (6, 4))
    for matrix in stage_view(capture).matrices:
        if matrix.name == "both_passes":
            assert matrix.calculation is None
            continue
        calculation = matrix.calculation
        assert calculation is not None
        values = calculation.lefts.astype(float) @ calculation.rights.astype(float).T
        if calculation.form in ("softmax", "softmin"):
            sign = 1 if calculation.form == "softmax" else -1
            values = np.exp(sign * values - calculation.logsumexp[:, None]) * (matrix.picture != 0)
        np.testing.assert_allclose(values, matrix.picture, rtol=1e-4, atol=1e-6)


def test_vectors_of_large_tensors_are_kept_at_some_nodes() -> None:
    calculation = stage_view(captured("pam", 512, (24, 16))).matrices[0].calculation  # 64 · 384 values
    assert calculation is not None
    assert calculation.nodes is not None
    assert calculation.lefts.shape == (len(calculation.nodes), 64)


def test_the_vectors_of_the_most_related_channels_are_kept() -> None:
    view = stage_view(captured("cam", 300, (16, 8))).matrices[0]  # 300 · 128 values
    calculation = view.calculation
    assert calculation is not None
    assert calculation.nodes is not None
    assert calculation.keys is not None
    assert calculation.lefts.shape == (32, 128)
    shown = as_stored(view.picture)
    for own in calculation.nodes:
        best = max((node for node in range(300) if node != own), key=lambda node: (shown[own, node], -node))
        assert best in calculation.keys


def test_nodes_are_channels_if_there_are_as_many() -> None:
    capture = captured("cam", 20, (8, 4))
    named = replace(capture, matrices={"relations": capture.matrices["channels"]})
    (view,) = stage_view(named).matrices
    assert (view.kind, view.grid) == ("channels", (20, 1))
    np.testing.assert_allclose(view.maps, capture.x[0], rtol=1e-6)


def test_entries_that_the_page_shows_as_zero_are_not_counted() -> None:
    capture = captured("pam", 16, (6, 4))
    matrix = capture.matrices["positions"]
    matrix.copy_(torch.eye(24) * 3 + 1e-13 * torch.ones(24, 24))
    matrix[0, 0, :6] = 1e-3
    (view,) = stage_view(capture).matrices
    assert view.reach == pytest.approx((23 + 6) / 24**2)
    assert (as_stored(view.picture) != 0).mean() == view.reach


def test_calculations_name_rows_and_columns() -> None:
    named = {}
    for name in ("rga_s", "pam", "cam", "nonlocal"):
        calculation = stage_view(captured(name, 16, (6, 4))).matrices[0].calculation
        assert calculation is not None
        named[name] = (calculation.left, calculation.right)
    assert named["cam"] == ("X[i, :]", "X[j, :]")  # E = X Xᵀ
    assert named["pam"] == ("Q[:, i]", "K[:, j]")
    assert named["rga_s"] == ("θ_s[:, i]", "φ_s[:, j]")
    assert named["nonlocal"] == ("θ[:, i]", "φ[:, j]")


def test_channels_are_not_drawn_as_positions() -> None:
    """There may be as many channels as positions."""
    view = stage_view(captured("rga", 128, (16, 8)))
    kinds = {step.symbol: one and one.kind for step, one in zip(view.flow, view.pictures, strict=True)}
    assert [kinds[symbol] for symbol in ("θ_s", "φ_s", "G_s", "x_s")] == ["map", "map", "matrix", "map"]
    assert [kinds[symbol] for symbol in ("θ_c", "φ_c", "G_c", "x_c")] == ["strip", "strip", "matrix", "map"]
    embedded = stage_view(captured("nonlocal", 256, (16, 8)))  # θ is (128, 128)
    kinds = {
        step.symbol: one and one.kind for step, one in zip(embedded.flow, embedded.pictures, strict=True)
    }
    assert (kinds["θ"], kinds["f"]) == ("map", "matrix")


def test_related_nodes_of_equal_values() -> None:
    assert find_related(np.array([3.0, 0.0, 5.0, 0.0, 0.0, 5.0]), 0, 2) == ([2, 5], [1, 3])


def test_flow_and_change() -> None:
    capture = captured("pam", 16, (6, 4))
    view = stage_view(capture)
    assert view.flow[0] == FlowStep("x", "input map", "", (1, 16, 6, 4), (), "between", 0)
    steps = {step.symbol: step for step in view.flow}
    assert steps["A"].shape == (1, 24, 24)
    assert steps["A"].kind == "matrix"
    assert [steps[name].level for name in "QKVEAY"] == [1, 1, 1, 2, 3, 4]
    assert steps["Y"].inputs == ("V", "A")
    assert view.attention is None
    assert (view.change == 0).all()  # γ = 0: the identity


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_packed_numbers_come_back(scale: float) -> None:
    array = (np.random.default_rng(0).normal(size=(7, 9)) * scale).astype(np.float32)
    pack = Pack()
    reference = pack.add(array)
    assert pack.add(array.copy()) == reference  # kept once
    assert len(pack.blobs) == 1
    planes = np.frombuffer(zlib.decompress(base64.b64decode(pack.blobs[reference["blob"]])), np.uint8)
    halves = (planes[: planes.size // 2].astype(np.uint16) << 8) | planes[planes.size // 2 :]
    back = halves.view(np.float16).astype(float).reshape(reference["shape"]) * reference["scale"]
    np.testing.assert_allclose(back, array, rtol=RELATIVE_ERROR)
