"""Write a module as an ONNX file that onnxruntime, OpenVINO, OpenCV and TensorRT read.

The graph has no int64 arithmetic on shapes: of an input's shape only the batch can vary, and reshapes leave it open
as -1. Files have no paths or names of this machine, so equal models give equal files.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rga_reid.errors import InputError
from rga_reid.inputs import truncate

EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")  #: which ``write_onnx`` needs
INPUT, OUTPUT = "images", "embeddings"
MIN_OPSET, MAX_OPSET = 13, 23
DEFAULT_OPSET = 18  #: the lowest that torch exports without conversion, so that most programs read it
_TORCH_OPSET = 18  # lower ones are derived from it

#: operators whose definition differs between opsets 13 and 18 in attributes only, and these attributes
_NEW_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Add": (),
    "BatchNormalization": ("training_mode",),
    "Div": (),
    "Equal": (),
    "Identity": (),
    "Mul": (),
    "PRelu": (),
    "Pow": (),
    "ReduceL2": ("noop_with_empty_axes",),
    "ReduceMax": ("noop_with_empty_axes",),
    "ReduceMean": ("noop_with_empty_axes",),
    "ReduceMin": ("noop_with_empty_axes",),
    "Relu": (),
    "Reshape": ("allowzero",),
    "Split": ("num_outputs",),
    "Sub": (),
    "Where": (),
}
_AXES_AS_INPUT = ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin")  # since opset 18; before, an attribute


def find_missing(*names: str) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(*names: str, purpose: str = "export") -> None:
    """Check that packages of the extra ``export`` or ``openvino`` are installed.

    Args:
        names: packages.
        purpose: what needs them, at the beginning of the message.

    Raises:
        InputError: one is not.
    """
    for name in find_missing(*names):
        extra = "openvino" if name == "openvino" else "export"
        raise InputError(f"{purpose}: needs the package {name}: pip install 'rga-reid[{extra}]'")


def write_onnx(
    module: nn.Module,
    example: Tensor,
    file: Path,
    *,
    batch: int | None = None,
    opset: int | None = None,
    simplify: bool = False,
) -> None:
    """Export a module with one input and one output.

    Args:
        module: on the CPU.
        example: input, of two images or, with ``batch``, of so many.
        file: file to write.
        batch: fix the batch to the example's; by default any number of images can be run.
        opset: version of the operators; ``DEFAULT_OPSET`` by default.
        simplify: fuse and fold operators with onnxslim.

    Raises:
        InputError: a missing package, or an operator that the opset does not have.
    """
    require_packages(*EXPORT_PACKAGES, *(["onnxslim"] if simplify else []))
    opset = DEFAULT_OPSET if opset is None else opset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter itself
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=max(opset, _TORCH_OPSET),
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    _fold_constants(program.model)
    model = program.model_proto
    if opset < _TORCH_OPSET:
        _lower_opset(model, opset)
    if simplify:
        import onnxslim

        model = onnxslim.slim(model)
    _clean(model)
    _save(model, file)


def set_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Replace the key-value pairs of an ONNX file."""
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    _save(model, file)


def _save(model: Any, file: Path) -> None:
    file.write_bytes(model.SerializeToString(deterministic=True))


def _clean(model: Any) -> None:
    """Remove what the exporter notes about its sources, and the types of constants, which hinder quantisation."""
    import onnx

    graph = model.graph
    for item in (
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
        graph,
        model,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    constants = {constant.name for constant in graph.initializer}
    kept = [info for info in graph.value_info if info.name not in constants]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))


def _fold_constants(model: Any) -> None:
    """Compute what depends on constants only, such as weights that modules reshape or scale, of any size."""
    from onnxscript import optimizer

    optimizer.optimize_ir(model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    # onnxscript 0.7 loses a computed constant if another one has the same name: it renames but does not add it
    for node in model.graph:
        for value in node.inputs:
            is_known = value is None or value.producer() is not None or value.name in model.graph.initializers
            if not is_known and value.const_value is not None:
                model.graph.register_initializer(value)


def _lower_opset(model: Any, opset: int) -> None:
    """Rewrite a model of opset 18 to an opset from 13 on.

    onnx's own converter has no adapters for Split and writes ReduceMean with attributes that opset 17 refuses.
    """
    import onnx

    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    for node in model.graph.node:
        current, target = _schema_version(node.op_type, _TORCH_OPSET), _schema_version(node.op_type, opset)
        if current == target:
            continue
        if target is None or node.op_type not in _NEW_ATTRIBUTES:
            raise InputError(f"--opset {opset}: this model needs {node.op_type} of opset {current}")
        kept = [item for item in node.attribute if item.name not in _NEW_ATTRIBUTES[node.op_type]]
        del node.attribute[:]
        node.attribute.extend(kept)
        if node.op_type in _AXES_AS_INPUT and len(node.input) == 2:
            node.attribute.append(onnx.helper.make_attribute("axes", constants[node.input.pop()].tolist()))
    used = {name for node in model.graph.node for name in node.input}
    unused = [constant for constant in model.graph.initializer if constant.name not in used]
    for constant in unused:
        model.graph.initializer.remove(constant)
    model.opset_import[0].version = opset
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(f"--opset {opset}: not possible for this model ({truncate(error)})") from None


def _schema_version(operator: str, opset: int) -> int | None:
    """Return the version that last changed an operator, up to ``opset``; None if it is newer."""
    import onnx

    try:
        return int(onnx.defs.get_schema(operator, opset).since_version)
    except onnx.defs.SchemaError:
        return None
