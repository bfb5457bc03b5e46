"""Costs against figures counted from the layers' shapes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rga_reid.attention import ATTENTION_MODULES, RGA
from rga_reid.models import ResNet, count_costs
from rga_reid.models.resnet import AttentionFactory

WIDTHS, POSITIONS = (256, 512, 1024, 2048), (2048, 512, 128, 128)  # of ResNet-50 at 256x128


def rga_macs(channels: int, positions: int) -> np.ndarray:
    """Multiply-accumulates of RGA-SC on one map: of the projections θ, φ, g; of the relations; of W."""
    inner_c, inner_s = channels // 8, positions // 8
    macs = np.zeros(3, dtype=np.int64)
    for nodes, features, inner, out in (
        (positions, channels, inner_c, inner_s),
        (channels, positions, inner_s, inner_c),
    ):
        hidden = (1 + out) // 8
        macs += [
            3 * nodes * features * inner,
            2 * 2 * out * nodes * inner,  # W1 Φᵀ and W2 Θᵀ, then those times Θ and Φ
            nodes * (out * hidden + hidden),  # without the own feature, which is one product per row
        ]
    return macs


def test_resnet50_with_rga() -> None:
    with torch.device("meta"):
        plain, attended = count_costs(ResNet(50)), count_costs(ResNet(50, RGA))
    assert plain.part.tolist() == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "total"]
    # published figures of the trunk: 23,508,032 parameters; 4.053 G at last stride 1
    assert plain.set_index("part").loc["total"].tolist() == [23_508_032, 4_053_270_528]
    assert plain.parameters[:-1].sum() == 23_508_032
    assert plain.macs[:-1].sum() == 4_053_270_528
    costs = attended.set_index("part")
    assert costs.loc["total", "parameters"] == 23_508_032 + 6_314_096
    macs = [rga_macs(channels, positions) for channels, positions in zip(WIDTHS, POSITIONS, strict=True)]
    assert [costs.loc[f"attention {stage}", "macs"] for stage in (1, 2, 3, 4)] == [sum(m) for m in macs]
    projections, relations, _ = sum(macs) / 1e9
    assert round(projections, 3) == 0.824  # as counted for the released code
    assert round(relations, 3) == 0.137  # factorised, against 4.910 there


@pytest.mark.parametrize("name", ATTENTION_MODULES)
def test_every_module_costs_something(name: str) -> None:
    factory: AttentionFactory = ATTENTION_MODULES[name]
    with torch.device("meta"):
        model = ResNet(18, factory, stages=(2, 4), size=(64, 32))
    costs = count_costs(model).set_index("part")
    assert (costs.loc[["attention 2", "attention 4"], "macs"] > 0).all()
    assert costs.macs[:-1].sum() == costs.macs["total"]


def test_counting_changes_nothing() -> None:
    model = ResNet(18, RGA, stages=(2, 4), size=(64, 32)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_costs(model, size=(96, 48))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model(torch.rand(2, 3, 64, 32)).shape == (2, 512, 4, 2)
    model.set_input_size((32, 32))
    model.bn1.eval()  # frozen
    count_costs(model)
    assert (model.training, model.bn1.training, model.layer4[0].bn1.training) == (True, False, True)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 512, 2, 2)
