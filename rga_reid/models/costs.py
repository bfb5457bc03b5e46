"""What a model costs: parameters and multiply-accumulate operations, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rga_reid.models.modes import in_evaluation
from rga_reid.models.resnet import STAGES, ResNet, Size, count_parameters

_STEM = ("conv1", "bn1")


def count_costs(backbone: ResNet, size: Size | None = None) -> pd.DataFrame:
    """Parameters and multiply-accumulates of a backbone for one image.

    Counted are the convolutions and matrix products that ``forward`` really does in evaluation, by torch's
    own counter, on tensors without memory. Element-wise work and sums are not counted, as is the custom.

    Args:
        backbone: in any mode, on any device; left as it is.
        size: (H, W) of the image in pixels; the backbone's own by default. Attention tied to a map size is
            interpolated to another one, as ``set_input_size`` does.

    Returns:
        Columns ``part``, ``parameters``, ``macs``: a row each for ``stem``, ``stage 1``, ``attention 1``
        (where there is one) to ``attention 4``, and ``total``.
    """
    height, width = size or backbone.size
    before = backbone.input_size
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    backbone.set_input_size((height, width))
    try:
        with in_evaluation(backbone), fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, height, width, device=next(backbone.parameters()).device))
    finally:
        backbone.set_input_size(before)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    parts: list[tuple[str, Sequence[str]]] = [("stem", _STEM)]
    for stage in STAGES:
        parts.append((f"stage {stage}", [f"layer{stage}"]))
        if stage in backbone.attention_stages():
            parts.append((f"attention {stage}", [f"attention{stage}"]))
    rows = [
        {
            "part": part,
            "parameters": sum(count_parameters(getattr(backbone, name)) for name in names),
            "macs": sum(flops.get(f"{type(backbone).__name__}.{name}", 0) for name in names) // 2,
        }
        for part, names in parts
    ]
    total = {"part": "total", "parameters": count_parameters(backbone), "macs": flops["Global"] // 2}
    return pd.DataFrame([*rows, total])


def total_costs(backbone: ResNet) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a whole backbone for one image, see ``count_costs``."""
    total = count_costs(backbone).iloc[-1]
    return int(total["parameters"]), int(total["macs"])
