"""Quantise an ONNX file to 8 bits, through onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

#: operators that static quantisation rounds; softmax, gates and norms remain float
_STATIC = ("Add", "Conv", "Gemm", "MatMul", "MaxPool", "Relu")


def quantize_static(source: Path, target: Path, name: str, batches: Iterable[np.ndarray]) -> None:
    """Quantise weights, by channel, and activations to INT8 (QuantizeLinear and DequantizeLinear pairs).

    Args:
        source: ONNX file to read.
        target: file to write.
        name: input of the graph.
        batches: values of the input; the ranges of activations are those that they give.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    with _prepare(source) as prepared:
        quantize(
            prepared,
            target,
            Reader(),
            nodes_to_exclude=_biased_by_activations(prepared),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_STATIC),
            per_channel=True,
            reduce_range=True,  # 7-bit weights: sums of 8-bit products saturate on CPUs without VNNI
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def _biased_by_activations(file: Path) -> list[str]:
    """Return the names of Gemm nodes whose bias is computed, which onnxruntime does not quantise."""
    import onnx

    graph = onnx.load(file).graph
    constants = {constant.name for constant in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Gemm" and not constants.issuperset(node.input[2:])
    ]


def quantize_dynamic(source: Path, target: Path) -> None:
    """Quantise weights to 8 bits; each batch gives the ranges of its activations.

    Args:
        source: ONNX file to read.
        target: file to write.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    with _prepare(source) as prepared:
        quantize(prepared, target, weight_type=QuantType.QUInt8)  # onnxruntime has no signed ConvInteger


@contextmanager
def _prepare(source: Path) -> Iterator[Path]:
    """Yield a file of the graph with batch norms fused and shapes inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # onnxruntime's symbolic shape inference does not know all operators; onnx's is enough here
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        yield prepared
