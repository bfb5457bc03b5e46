"""Analyse models: the attention after each stage for one picture, and the cost of each part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rga_reid.attention import ATTENTION_MODULES, RGA, NonLocal, Step
from rga_reid.errors import InputError
from rga_reid.models.build import AttentionChoice, build_model
from rga_reid.models.embedding import EmbeddingModel, eval_mode, uint8_batch
from rga_reid.models.resnet import STAGES, ResNet, Size, count_parameters


@dataclass(frozen=True, eq=False)
class StageCapture:
    """The attention module after one stage, on one picture. Tensors keep their batch axis of length 1.

    Args:
        stage: from 1 to 4.
        mechanism: short name as in ``ATTENTION_MODULES``, or the class name of another module.
        matrices, weights, flow, output: as in ``Relations``; ``flow[0]`` is the input map.
    """

    stage: int
    mechanism: str
    matrices: dict[str, Tensor]
    weights: dict[str, Tensor]
    flow: list[Step]
    output: Tensor

    @property
    def x(self) -> Tensor:
        """The input map, (1, C, H, W)."""
        return self.flow[0].tensor


def attention_name(module: nn.Module) -> str:
    """Return the short name of an attention module.

    It includes options that change the meaning of the matrix: ``rga_s`` for an RGA without its channel part,
    ``nonlocal_dot_product`` for a non-local block of a mode other than the default.
    """
    if isinstance(module, RGA) and not (module.spatial and module.channel):
        return "rga_s" if module.spatial else "rga_c"
    if isinstance(module, NonLocal) and module.mode != "embedded_gaussian":
        return f"nonlocal_{module.mode}"
    names = [name for name, made_by in ATTENTION_MODULES.items() if made_by is type(module)]
    return names[0] if names else type(module).__name__


@torch.inference_mode()
def capture_stages(model: EmbeddingModel, pixels: Tensor) -> list[StageCapture]:
    """Run one picture through the model and capture the trace of each attention module.

    Args:
        model: put in evaluation mode during the run.
        pixels: uint8 ``(1, 3, h, w)``; resized to the model's size if necessary.

    Raises:
        InputError: the model has no attention, or attention without ``relations``.
    """
    modules = model.backbone.attention_stages()
    if not modules:
        raise InputError("model: expected attention after at least one stage, found none")
    for stage, module in modules.items():
        if not hasattr(module, "relations"):
            raise InputError(f"attention after stage {stage}: {type(module).__name__} has no relations(x)")
    inputs: dict[int, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, stage=stage: inputs.update({stage: given[0]}))
        for stage, module in modules.items()
    ]
    try:
        with eval_mode(model):
            device = next(model.parameters()).device
            model.backbone(model.normalise(uint8_batch(pixels, model.size, device)))
            return [_capture(stage, modules[stage], x) for stage, x in sorted(inputs.items())]
    finally:
        for handle in handles:
            handle.remove()


def _capture(stage: int, module: nn.Module, x: Tensor) -> StageCapture:
    relations = module.relations(x)  # type: ignore[operator]  # checked by the caller
    trace, output = relations.trace()
    return StageCapture(
        stage, attention_name(module), dict(relations.matrices), dict(trace.weights), list(trace.flow), output
    )


@torch.no_grad()
def untrained_model(
    attention: AttentionChoice,
    pixels: Tensor,
    *,
    seed: int = 0,
    **build: Any,
) -> EmbeddingModel:
    """Return a network with random weights whose batch norms take their statistics from ``pixels``.

    Without statistics, the activations of a random network grow from block to block until every softmax is
    a spike. Equal seeds give equal backbones whatever the attention. The global random state is not changed.

    Args:
        attention: as in ``build_model``.
        pixels: uint8 ``(n, 3, h, w)``.
        seed: seed of the weights, and of dropout while statistics are computed.
        build: other arguments of ``build_model``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(attention=attention, **build)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0  # statistics of this batch alone
        model.train()
        model.backbone(model.normalise(uint8_batch(pixels, model.size)))  # dropout uses the seed too
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


_STEM = ("conv1", "bn1")


def count_costs(backbone: ResNet, size: Size | None = None) -> pd.DataFrame:
    """Count parameters and multiply-accumulates of a backbone for one image.

    torch's counter sees the convolutions and matrix products that ``forward`` performs in evaluation, on tensors
    without memory. As usual, element-wise operations and sums are not counted.

    Args:
        backbone: in any mode, on any device; not changed.
        size: (H, W) of the image in pixels; by default the backbone's. Attention tied to a map size is
            interpolated as by ``set_input_size``.

    Returns:
        Columns ``part``, ``parameters``, ``macs``: a row each for ``stem``, ``stage 1``, ``attention 1``
        (where there is one) to ``attention 4``, and ``total``.
    """
    # these import much of torch's compiler, which nothing else here needs
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    height, width = size or backbone.size
    before = backbone.input_size
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    backbone.set_input_size((height, width))
    try:
        with eval_mode(backbone), fake, torch.no_grad(), FlopCounterMode(display=False) as counter:
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
    """Return parameters and multiply-accumulates of a whole backbone, see ``count_costs``."""
    total = count_costs(backbone).iloc[-1]
    return int(total["parameters"]), int(total["macs"])
