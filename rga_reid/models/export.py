"""Export a model as one file that runs without this package: uint8 pixels in, L2-normalised embeddings out."""

from __future__ import annotations

import copy
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid.errors import InputError, check_choice
from rga_reid.files import atomic_file
from rga_reid.models.checkpoints import load_model, save_model
from rga_reid.models.embedding import EmbeddingModel

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}  #: format -> file suffix
MIN_COSINE = 0.99999  #: between embeddings of an exported model and the original

_INPUT, _OUTPUT = "images", "embeddings"


class Deployed(nn.Module):
    """uint8 ``(n, 3, H, W)`` of the model's size, RGB, to float32 ``(n, d)``, rows L2-normalised."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.model(self.model.normalise(images)))


def export_model(model: EmbeddingModel, path: str | os.PathLike[str], kind: str) -> float:
    """Export a model as ``onnx``, ``torchscript`` or ``safetensors`` and compare the file with the model.

    The file includes the normalisation but not the resizing: it takes images of the model's size, in batches of
    any number.

    Args:
        model: in any mode, on any device; not changed.
        path: file to write, with the format's suffix: ``.onnx``, ``.pt`` or ``.safetensors``.
        kind: the format.

    Returns:
        The smallest cosine between embeddings of the file and of the model, for batches of several sizes.

    Raises:
        InputError: an unknown format, the suffix of another format, a missing package, or a file whose
            embeddings differ from the model's.
    """
    file = Path(path)
    check_choice("format", kind, tuple(FORMATS))
    if file.suffix != FORMATS[kind]:
        raise InputError(f"{file}: expected the suffix {FORMATS[kind]} for the format {kind}")
    write, read = {
        "onnx": (_write_onnx, _read_onnx),
        "torchscript": (_write_torchscript, _read_torchscript),
        "safetensors": (_write_safetensors, _read_safetensors),
    }[kind]
    deployed = Deployed(model)
    with torch.no_grad(), atomic_file(file) as temporary:
        write(deployed, temporary)
        run = read(temporary)
        least = min(_compare(deployed, run, batch) for batch in (1, 3))
        if not least >= MIN_COSINE:  # NaN as well
            raise InputError(
                f"{file}: embeddings of the exported model differ (cosine {least:.6f}); not written"
            )
    return least


def _compare(deployed: Deployed, run: Callable[[Tensor], Tensor], batch: int) -> float:
    images = _random_images(deployed, batch)
    expected, found = deployed(images).double(), run(images).double()
    if found.shape != expected.shape:
        return float("nan")
    return float(F.cosine_similarity(expected, found).min())


def _random_images(deployed: Deployed, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, 3, *deployed.model.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _write_onnx(deployed: Deployed, file: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"format onnx: needs the package {name}: pip install onnx onnxscript onnxruntime"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter itself
        program = torch.onnx.export(
            deployed,
            (_random_images(deployed, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
    assert program is not None
    _remove_stack_traces(program.model)
    program.save(str(file), external_data=False)


def _remove_stack_traces(model: Any) -> None:
    """Remove paths of this machine, so that a model gives the same file everywhere."""
    from onnxscript import ir

    for graph in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _read_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([_OUTPUT], {_INPUT: images.numpy()})[0])


def _write_torchscript(deployed: Deployed, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shape checks, which hold for every batch
        traced = torch.jit.trace(deployed, _random_images(deployed, 2), check_trace=False)
        with open(file, "wb") as opened:  # given a path, torch would store its name
            torch.jit.save(traced, opened)


def _read_torchscript(file: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(file))


def _write_safetensors(deployed: Deployed, file: Path) -> None:
    save_model(deployed.model, file)


def _read_safetensors(file: Path) -> Callable[[Tensor], Tensor]:
    return load_model(file).embed
