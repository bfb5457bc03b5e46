"""Open ONNX files in onnxruntime or OpenVINO, behind one interface."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rga_reid.errors import InputError, check_choice
from rga_reid.inputs import truncate
from rga_reid.models.onnx_graph import require_packages

#: engine that runs ONNX files -> its package
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(uint8)": np.uint8,  # as onnxruntime names them
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "u8": np.uint8,  # as OpenVINO names them
    "f32": np.float32,
    "f16": np.float16,
}
_FATAL = 4  # log level: errors are raised, so onnxruntime need not print them too


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph.

    Args:
        name: name in the file.
        kind: type, as the engine writes it.
        dtype: the same for NumPy; None for types that images do not have.
        shape: size of each dimension; other values than integers where any size is accepted.
    """

    name: str
    kind: str
    dtype: type[np.generic] | None
    shape: tuple[Any, ...]


@dataclass(frozen=True)
class Graph:
    """A network that is ready to run.

    Args:
        engine: name of the program that runs it.
        inputs: all inputs.
        output: name of the first output.
        metadata: key-value pairs of the file.
        run: maps the only input to the first output; may be called by several threads at once.
    """

    engine: str
    inputs: tuple[GraphInput, ...]
    output: str
    metadata: Mapping[str, str]
    run: Callable[[np.ndarray], Any]


def open_graph(file: Path, device: torch.device, engine: str = "onnx") -> Graph:
    """Open an ONNX file, to be run by as many threads as PyTorch uses.

    Args:
        file: file.
        device: ``cuda`` needs onnxruntime-gpu, without which the network runs on the CPU, as it does in OpenVINO.
        engine: ``onnx`` (onnxruntime) or ``openvino``.

    Raises:
        InputError: an unknown engine, a missing package, a missing file, or one that the engine cannot read.
    """
    check_choice("engine", engine, tuple(PACKAGES))
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    require_packages(PACKAGES[engine], purpose=str(file))
    try:
        return _open_onnxruntime(file, device) if engine == "onnx" else _open_openvino(file)
    except Exception as error:  # both raise many types
        raise InputError(f"{file}: {PACKAGES[engine]} cannot read it ({truncate(error)})") from None


def _open_onnxruntime(file: Path, device: torch.device) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    inputs = session.get_inputs()
    output = session.get_outputs()[0].name
    return Graph(
        engine="onnxruntime",
        inputs=tuple(
            GraphInput(item.name, item.type, _DTYPES.get(item.type), tuple(item.shape)) for item in inputs
        ),
        output=output,
        metadata=session.get_modelmeta().custom_metadata_map,
        run=lambda fed: session.run([output], {inputs[0].name: fed})[0],
    )


def _open_openvino(file: Path) -> Graph:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    # metadata of an ONNX file
    keys = model.get_rt_info("framework").value if model.has_rt_info("framework") else {}
    # f32: by default the CPU may compute in bfloat16
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(model, "CPU", settings)
    requests = threading.local()  # a request belongs to one thread

    def run(fed: np.ndarray) -> Any:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        return requests.own.infer([fed])[0]

    inputs = []
    for item in model.inputs:
        kind = item.element_type.get_type_name()
        shape = tuple(size.get_length() if size.is_static else str(size) for size in item.partial_shape)
        inputs.append(GraphInput(item.any_name, kind, _DTYPES.get(kind), shape))
    return Graph(
        engine="OpenVINO",
        inputs=tuple(inputs),
        output=model.output(0).any_name,
        metadata={key: model.get_rt_info(["framework", key]).astype(str) for key in keys},
        run=run,
    )
