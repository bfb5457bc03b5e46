"""Figures of relations between channels: which channel they choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from rga_reid.attention import RGA
from rga_reid.models.analysis import StageCapture
from rga_reid.reports.attention_figures import relation_figure
from rga_reid.reports.explorer import Exhibit
from rga_reid.reports.relation_views import stage_view


def test_a_channel_without_relations_is_not_chosen() -> None:
    module = RGA(16, (8, 4), spatial=False).eval()
    x = torch.rand(1, 16, 8, 4)
    x[0, 3] *= 9  # the most active channel
    x[0, 5] *= 5  # the next one
    with torch.no_grad():
        relations = module.relations(x)
        trace, output = relations.trace()
    view = stage_view(StageCapture(4, "rga_c", relations.matrices, trace.weights, trace.flow, output))

    def titles(picture: np.ndarray) -> list[str]:
        matrix = replace(view.matrices[0], picture=picture.astype(np.float32))
        pixels = np.zeros((64, 32, 3), np.uint8)
        exhibit = Exhibit("rga_c", True, "a.jpg", pixels, [replace(view, matrices=[matrix])], "ResNet-18")
        return [axes.get_title() for axes in relation_figure([exhibit]).axes[:5]]

    picture = np.arange(256.0).reshape(16, 16) + 1
    assert titles(picture)[0] == "channel 3"
    assert titles(picture)[4].startswith("least: 0\n")
    picture[3] = 0
    assert titles(picture)[0] == "channel 5"
    picture[5, 8:] = 0
    assert titles(picture)[4].startswith("least: 8\nand 7 more: ")
    assert titles(0 * picture)[0] == "channel 3"
