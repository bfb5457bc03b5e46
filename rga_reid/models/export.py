"""A model as one file that runs without this package: uint8 pixels in, L2-normalised embeddings out."""

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

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}  #: and their file suffixes
MIN_COSINE = 0.99999  #: between the embeddings of an exported model and its original

_INPUT, _OUTPUT = "images", "embeddings"


class Deployed(nn.Module):
    """uint8 ``(n, 3, H, W)`` of the model's size, RGB, to float32 ``(n, d)``, rows L2-normalised."""

    def __init__(self, model: EmbeddingModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.model(self.model.normalise(images)))


def export_model(model: EmbeddingModel, path: str | os.PathLike[str], kind: str) -> float:
    """Write a model as ``onnx``, ``torchscript`` or ``safetensors``, preprocessing inside, and try the file.

    Resizing is not inside: the file takes images of the model's size, any number at a time.

    Args:
        model: in any mode, on any device; left as it is.
        path: file to write, whose name ends as the format wants: ``.onnx``, ``.pt`` or ``.safetensors``.
        kind: the format.

    Returns:
        The least cosine between embeddings of the file and of the model, for batches of several sizes.

    Raises:
        InputError: an unknown format, a suffix of another one, a package that is not installed, or a model
            whose exported form does not embed as it does.
    """
    file = Path(path)
    check_choice("format", kind, tuple(FORMATS))
    if file.suffix != FORMATS[kind]:
        raise InputError(f"{file}: expected a name that ends in {FORMATS[kind]} for the format {kind}")
    write, read = {
        "onnx": (_write_onnx, _read_onnx),
        "torchscript": (_write_torchscript, _read_torchscript),
        "safetensors": (_write_safetensors, _read_safetensors),
    }[kind]
    deployed = Deployed(model)
    with torch.no_grad(), atomic_file(file) as temporary:
        write(deployed, temporary)
        run = read(temporary)
        least = min(_agreement(deployed, run, batch) for batch in (1, 3))
        if not least >= MIN_COSINE:  # NaN as well
            raise InputError(f"{file}: the exported model embeds otherwise (cosine {least:.6f}); not written")
    return least


def _agreement(deployed: Deployed, run: Callable[[Tensor], Tensor], batch: int) -> float:
    images = _pixels(deployed, batch)
    expected, found = deployed(images).double(), run(images).double()
    if found.shape != expected.shape:
        return float("nan")
    return float(F.cosine_similarity(expected, found).min())


def _pixels(deployed: Deployed, batch: int) -> Tensor:
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
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.onnx.export(
            deployed,
            (_pixels(deployed, 2),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
    assert program is not None
    _forget_sources(program.model)
    program.save(str(file), external_data=False)


def _forget_sources(model: Any) -> None:
    """Take out the exporter's notes on where its Python lies: a model gives the same file elsewhere."""
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
        warnings.simplefilter("ignore")  # the tracer's, about checks of shapes, which hold for every batch
        traced = torch.jit.trace(deployed, _pixels(deployed, 2), check_trace=False)
        with open(file, "wb") as opened:  # torch would put the temporary file's name into it
            torch.jit.save(traced, opened)


def _read_torchscript(file: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(file))


def _write_safetensors(deployed: Deployed, file: Path) -> None:
    save_model(deployed.model, file)


def _read_safetensors(file: Path) -> Callable[[Tensor], Tensor]:
    return load_model(file).embed
