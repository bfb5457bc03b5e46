"""Analyse models: the attention after each stage for one picture, and the cost of each part."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rga_reid.attention import ATTENTION_MODULES, RGA, NonLocal, Step
from rga_reid.errors import InputError, short_repr
from rga_reid.models.backbone import Backbone, Size, count_parameters
from rga_reid.models.build import AttentionChoice, build_model
from rga_reid.models.embedding import EmbeddingModel, eval_mode, uint8_batch

#: largest accepted difference of ``relations`` from ``forward``, as a share of the largest value of the output
MAX_DIFFERENCE = 1e-2
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class StageCapture:
    """The attention module after one stage, on one picture. Tensors keep their batch axis of length 1.

    Args:
        stage: number of the stage, from 1.
        mechanism: short name as in ``ATTENTION_MODULES``, or the class name of another module.
        matrices, weights, flow, output: as in ``Relations``; ``flow[0]`` is the input map. A module without
            ``relations`` has no matrices, and its ``weights`` are its gates, see ``compute_gates``.
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


class Gate(NamedTuple):
    """Weights that multiply a map."""

    place: str  #: ``attention 3``, or the name of the module in the backbone
    name: str  #: such as ``spatial`` or ``channel``
    weights: Tensor  #: (1, 1, h, w) or (1, C, 1, 1)


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

    Of a module without ``relations``, input, gates and output are captured.

    Args:
        model: put in evaluation mode during the run.
        pixels: uint8 ``(1, 3, h, w)``; resized to the model's size if necessary.

    Raises:
        InputError: the model has no attention; gates of a wrong form; relations that differ from ``forward``.
    """
    modules = model.backbone.attention_stages()
    if not modules:
        raise InputError("model: expected attention after at least one stage, found none")
    with eval_mode(model):
        maps = _run_hooked(model, pixels, {id(module): module for module in modules.values()})
        return [_capture(n, module, *maps[id(module)]) for n, module in modules.items() if id(module) in maps]


@torch.inference_mode()
def capture_gates(model: EmbeddingModel, pixels: Tensor) -> list[Gate]:
    """Run one picture through the model and return the gates of its modules, in the order in which they run.

    Modules with gates are attention modules that have ``relations``, and all modules of the backbone that have
    ``gates``; see ``compute_gates``.

    Args:
        model, pixels: as for ``capture_stages``.

    Raises:
        InputError: gates of a wrong form.
    """
    stages = {id(module): number for number, module in model.backbone.attention_stages().items()}
    places = {
        id(module): f"attention {stages[id(module)]}" if id(module) in stages else name
        for name, module in model.backbone.named_modules()
        if _has_gates(module) or (id(module) in stages and hasattr(module, "relations"))
    }
    modules = {id(module): module for module in model.backbone.modules() if id(module) in places}
    with eval_mode(model):
        maps = _run_hooked(model, pixels, modules)
        return [
            Gate(places[key], name, weights)
            for key, (x, _) in maps.items()
            for name, weights in compute_gates(modules[key], x).items()
        ]


def compute_gates(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the weights by which a module multiplies a map: ``gates(x)``, otherwise ``relations(x).weights``.

    Args:
        module: with either method, or without gates.
        x: its input ``(n, C, H, W)``.

    Returns:
        By name, ``(n, 1, h, w)`` for positions or ``(n, C, 1, 1)`` for channels; empty without gates.

    Raises:
        InputError: ``gates`` returns anything else.
    """
    methods: Any = module
    if not _has_gates(module):
        return dict(methods.relations(x).weights) if hasattr(module, "relations") else {}
    gates = methods.gates(x)
    wrong = short_repr(type(gates).__name__) if not isinstance(gates, Mapping) else ""
    for name, weights in {} if wrong else gates.items():
        shape = tuple(weights.shape) if isinstance(weights, Tensor) else None
        if shape is None or len(shape) != 4 or (shape[1] != 1 and shape[2:] != (1, 1)):
            wrong = f"{short_repr(name)}: {type(weights).__name__ if shape is None else shape}"
    if wrong:
        raise InputError(
            f"{type(module).__name__}.gates: expected tensors (n, 1, h, w) or (n, C, 1, 1) by name, got {wrong}"
        )
    return dict(gates)


def _has_gates(module: nn.Module) -> bool:
    return inspect.ismethod(getattr(module, "gates", None))  # not a submodule of that name


def _run_hooked(
    model: EmbeddingModel, pixels: Tensor, modules: Mapping[int, nn.Module]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Run the backbone on one picture; return copies of each module's input and output, in order.

    Copies, because a module, or the one after it, may work in place.
    """
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for key, module in modules.items():
        keep_input = partial(lambda key, _, given: inputs.update({key: given[0].clone()}), key)
        keep_output = partial(lambda key, _, given, output: outputs.update({key: output.clone()}), key)
        handles += [module.register_forward_pre_hook(keep_input), module.register_forward_hook(keep_output)]
    try:
        device = next(model.parameters()).device
        model.backbone(model.normalise(uint8_batch(pixels, model.size, device)))
    finally:
        for handle in handles:
            handle.remove()
    return {key: (x, outputs[key]) for key, x in inputs.items()}


def _capture(stage: int, module: nn.Module, x: Tensor, output: Tensor) -> StageCapture:
    name = attention_name(module)
    if hasattr(module, "relations"):
        relations = module.relations(x)  # type: ignore[operator]
        trace, explicit = relations.trace()
        difference = float((explicit - output).abs().max() / output.abs().max().clamp(min=_TINY))
        if difference > MAX_DIFFERENCE:
            raise InputError(
                f"attention after stage {stage}: relations and forward of {type(module).__name__} differ by "
                f"{difference:.2g} of the largest value of the output; expected at most {MAX_DIFFERENCE:g}"
            )
        return StageCapture(
            stage, name, dict(relations.matrices), dict(trace.weights), list(trace.flow), explicit
        )
    gates = compute_gates(module, x)
    formula = f"{type(module).__name__}(x)"
    flow = [
        Step("x", "input map", "", x),
        *(Step(gate, "weights that multiply a map", "gates(x)", one, ("x",)) for gate, one in gates.items()),
        Step("out", "output map", formula, output, ("x", *gates)),
    ]
    return StageCapture(stage, name, {}, gates, flow, output)


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


def count_costs(backbone: Backbone, size: Size | None = None) -> pd.DataFrame:
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
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    height, width = size or backbone.size
    before = backbone.input_size
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    backbone.set_input_size((height, width))
    try:
        with (
            eval_mode(backbone),
            fake,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # the counter does not see the products of fused attention
            FlopCounterMode(display=False) as counter,
        ):
            images = torch.empty(1, 3, height, width, device=next(backbone.parameters()).device)
            # the counter asks an input that needs a gradient, as a class token does, for its history
            detached = {name: value.detach() for name, value in backbone.named_parameters()}
            functional_call(backbone, detached, (images,))
    finally:
        backbone.set_input_size(before)
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    attended = backbone.attention_stages()
    parts = []
    for part, names in backbone.parts():
        parts.append((part, names))
        parts += [(f"attention {n}", [f"attention{n}"]) for n in attended if part == f"stage {n}"]
    rows = [
        {
            "part": part,
            "parameters": sum(count_parameters(backbone.get_submodule(name)) for name in names),
            "macs": sum(_sum_flops(flops, backbone, name) for name in names) // 2,
        }
        for part, names in parts
    ]
    total = {"part": "total", "parameters": count_parameters(backbone), "macs": flops["Global"] // 2}
    return pd.DataFrame([*rows, total])


def _sum_flops(flops: dict[str, int], backbone: Backbone, name: str) -> int:
    """Return the operations of a submodule, or of those inside if its ``forward`` is not called itself."""
    path = f"{type(backbone).__name__}.{name}"
    if path in flops:
        return flops[path]
    children = backbone.get_submodule(name).named_children()
    return sum(_sum_flops(flops, backbone, f"{name}.{child}") for child, _ in children)


def total_costs(backbone: Backbone) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of a whole backbone, see ``count_costs``."""
    total = count_costs(backbone).iloc[-1]
    return int(total["parameters"]), int(total["macs"])
