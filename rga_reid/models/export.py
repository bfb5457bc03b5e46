"""Export a model as a file that runs without this package: a batch of images in, embeddings out."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rga_reid.errors import InputError, check_choice, check_int
from rga_reid.files import atomic_file, write_json, write_text
from rga_reid.models.checkpoints import hash_weights, load_model, save_model
from rga_reid.models.embedding import IMAGENET_MEAN, IMAGENET_STD, EmbeddingModel, iter_batches
from rga_reid.models.onnx_graph import (
    INPUT,
    MAX_OPSET,
    MIN_OPSET,
    OUTPUT,
    require_packages,
    set_metadata,
    write_onnx,
)
from rga_reid.models.quantize import quantize_dynamic, quantize_static

#: format -> file suffixes
FORMATS = {
    "onnx": (".onnx",),
    "torchscript": (".pt", ".torchscript"),
    "safetensors": (".safetensors",),
    "openvino": (".xml",),
}
MIN_COSINE = 0.99999  #: between embeddings of an exported model and the original
MIN_COSINE_HALF = 0.999  #: the same with weights in float16
MAX_BATCH = 256  #: images that Triton joins to a batch

_BATCHES = (1, 3)  # sizes that are compared, where the batch is not fixed
_CALIBRATION_BATCH = 16


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an exported file: its input, its precision and who reads it.

    Args:
        input: ``uint8`` takes pixels from 0 to 255 and normalises them itself; ``float`` takes
            ``(pixels / 255 - mean) / std``. A batch of the other type is an error.
        batch: number of images of every batch; None for any number. ONNX and OpenVINO.
        opset: version of the ONNX operators; None for ``onnx_graph.DEFAULT_OPSET``.
        half: weights in float16, and with ``float`` also the input; in an OpenVINO file, the weights only.
        simplify: fuse and fold operators with onnxslim. ONNX and OpenVINO.
        l2: scale embeddings to length 1.
        target: ``boxmot`` makes a file that boxmot loads: a float input with ImageNet's normalisation, and for
            TorchScript and OpenVINO a JSON file with the size. ``triton`` writes a ``config.pbtxt``.
        quantize: ``int8`` quantises weights and activations, whose ranges calibration images give; ``dynamic``
            quantises weights, and activations by the range of each batch. ONNX.

    Raises:
        InputError: a value that is not listed, or options that exclude each other.
    """

    input: Literal["uint8", "float"] = "uint8"
    batch: int | None = None
    opset: int | None = None
    half: bool = False
    simplify: bool = False
    l2: bool = True
    target: Literal["boxmot", "triton"] | None = None
    quantize: Literal["int8", "dynamic"] | None = None

    def __post_init__(self) -> None:
        check_choice("input", self.input, ("uint8", "float"))
        check_choice("target", self.target, (None, "boxmot", "triton"))
        check_choice("quantize", self.quantize, (None, "int8", "dynamic"))
        if self.batch is not None:
            check_int("batch", self.batch)
        if self.opset is not None:
            check_int("--opset", self.opset, MIN_OPSET, MAX_OPSET)
        if self.target == "boxmot" and self.input != "float":
            raise InputError(
                "--target boxmot: needs --input float; boxmot normalises images before the model"
            )
        if self.quantize is not None and self.half:
            raise InputError("--half: does not go with --quantize, which stores weights in 8 bits")

    def check_format(self, kind: str) -> None:
        """Check that a format has what the settings ask for.

        Raises:
            InputError: it has not.
        """
        graph, scripted = ("onnx", "openvino"), ("onnx", "torchscript", "openvino")
        for option, given, formats in (
            ("input float", self.input == "float", scripted),
            ("no-l2", not self.l2, scripted),
            ("half", self.half, scripted),
            ("batch", self.batch is not None, graph),
            ("opset", self.opset is not None, ("onnx",)),
            ("simplify", self.simplify, graph),
            ("quantize", self.quantize is not None, ("onnx",)),
            ("target boxmot", self.target == "boxmot", scripted),
            ("target triton", self.target == "triton", ("onnx",)),
        ):
            if given and kind not in formats:
                raise InputError(f"--{option}: goes with the format {' or '.join(formats)}, not {kind}")


class Deployed(nn.Module):
    """The module that is exported: ``(n, 3, H, W)`` of the model's size, RGB, to float32 ``(n, d)``.

    Args:
        model: not changed.
        settings: see there.
        kind: format that it is exported to.
    """

    _scale: Tensor  # buffers, which move to a GPU with the module when it is traced
    _shift: Tensor

    def __init__(
        self, model: EmbeddingModel, settings: ExportSettings | None = None, kind: str = "onnx"
    ) -> None:
        super().__init__()
        self.settings = ExportSettings() if settings is None else settings
        self.model = copy.deepcopy(model).cpu().float().eval()
        self.dtype = torch.float32
        if self.settings.half and kind != "openvino":  # OpenVINO converts weights itself
            self.dtype = torch.float16
            self.model.half()
        own = (model.mean, model.std)
        #: normalisation of a float input
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if self.settings.target == "boxmot" else own
        own_mean, own_std, mean, std = (torch.tensor(v).view(3, 1, 1) for v in (*own, self.mean, self.std))
        if self.settings.input == "uint8":
            mean, std = torch.zeros(3, 1, 1), torch.tensor(1 / 255)
        self.register_buffer("_scale", own_std / std, persistent=False)
        self.register_buffer("_shift", (own_mean - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.settings.input == "uint8" or (self.mean, self.std) != (self.model.mean, self.model.std):
            images = ((images.float() - self._shift) / self._scale).to(self.dtype)
        embeddings: Tensor = self.model(images).float()
        if not self.settings.l2:
            return embeddings
        # F.normalize would be exported with an Expand of the norms to the shape of the batch
        return embeddings / embeddings.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def prepare(self, images: Tensor) -> Tensor:
        """Return uint8 images ``(n, 3, H, W)`` as ``forward`` takes them."""
        if self.settings.input == "uint8":
            return images
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return ((images.float() - mean) / std).to(self.dtype)


Run = Callable[[Tensor], Tensor]


def export_model(
    model: EmbeddingModel,
    path: str | os.PathLike[str],
    kind: str,
    settings: ExportSettings | None = None,
    *,
    calibration_images: Sequence[str | os.PathLike[str]] = (),
    threshold: float | None = None,
) -> float:
    """Export a model as ``onnx``, ``torchscript``, ``safetensors`` or ``openvino`` and compare the file with it.

    The file does not resize: it takes images of the model's size.

    Args:
        model: in any mode, on any device; not changed.
        path: file to write, with a suffix of ``FORMATS``. OpenVINO adds a ``.bin`` of the same name, and a target
            the file that ``companion`` names.
        kind: the format.
        settings: see ``ExportSettings``.
        calibration_images: image files, which ``quantize="int8"`` needs. A quantised file is compared on them.
        threshold: least score of the same person, for the metadata.

    Returns:
        The smallest cosine between embeddings of the file and of the model: of a quantised file on the calibration
        images, if there are any; else on random images in batches of several sizes.

    Raises:
        InputError: an unknown format, the suffix of another format, a missing package, settings that the format does
            not have, an unreadable calibration image, or a file whose embeddings differ from the model's and that
            is not quantised.
    """
    file, settings = Path(path), ExportSettings() if settings is None else settings
    check_choice("format", kind, tuple(FORMATS))
    settings.check_format(kind)
    suffixes, purpose = FORMATS[kind], f"the format {kind}"
    if (kind, settings.target) == ("torchscript", "boxmot"):
        suffixes, purpose = (".torchscript",), "--target boxmot"
    if file.suffix not in suffixes:
        raise InputError(f"{file}: expected the suffix {' or '.join(suffixes)} for {purpose}")
    if settings.quantize == "int8" and not calibration_images:
        raise InputError("--quantize int8: needs --calibration-images, a folder of typical images")
    deployed = Deployed(model, settings, kind)
    metadata = describe_export(model, deployed, threshold)
    if settings.quantize is not None and calibration_images:
        batches = iter_batches(calibration_images, model.size, settings.batch or _CALIBRATION_BATCH)
    else:
        sizes = _BATCHES if settings.batch is None else (settings.batch,)
        batches = (_random_images(model.size, batch) for batch in sizes)
    with torch.no_grad(), atomic_file(file) as temporary:
        weights = temporary.with_suffix(".bin")  # of OpenVINO
        try:
            run = _WRITERS[kind](deployed, temporary, metadata, calibration_images)
            cosine = min(_compare(Deployed(model), deployed, run, images) for images in batches)
            expected = MIN_COSINE_HALF if settings.half else MIN_COSINE
            if not cosine >= (-1 if settings.quantize else expected):  # NaN as well
                raise InputError(
                    f"{file}: embeddings of the exported model differ (cosine {cosine:.6f}); not written"
                )
            if weights.exists():
                os.replace(weights, file.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)
        _write_companion(file, deployed)
    return cosine


def _compare(original: Deployed, deployed: Deployed, run: Run, images: Tensor) -> float:
    """Return the smallest cosine between embeddings of the original and of a file, for uint8 images."""
    expected = original(images)
    found = run(deployed.prepare(_fill(images, deployed.settings.batch)))[: len(images)]
    if found.shape != expected.shape:
        return float("nan")
    return float(F.cosine_similarity(expected.double(), found.double()).min())


def _fill(images: Tensor, batch: int | None) -> Tensor:
    """Repeat the last image, as the last batch of images may be smaller than a fixed batch."""
    return (
        images if batch is None else torch.cat([images, images[-1:].expand(batch - len(images), -1, -1, -1)])
    )


def _random_images(size: Sequence[int], batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator)


def describe_export(
    model: EmbeddingModel, deployed: Deployed, threshold: float | None = None
) -> dict[str, str]:
    """Return the metadata of an exported file: how it is fed, what it gives, and which model it is.

    ``OnnxEmbedder`` reads them. Lists are JSON. The resizing is that of ``EmbeddingModel.embed``.
    """
    settings, weights = deployed.settings, hash_weights(model)
    if (
        settings.quantize is not None
    ):  # its features differ too much to be mixed with the model's in a gallery
        weights = hashlib.sha256(f"{weights} {settings.quantize}".encode()).hexdigest()
    terms = (model.trained_on or {}).get("terms") or "unknown; they may restrict the use of this model"
    metadata = {
        "input": settings.input,
        "size": json.dumps(list(model.size)),
        "layout": "NCHW",
        "channel_order": "rgb",
        "mean": json.dumps(list(deployed.mean)),
        "std": json.dumps(list(deployed.std)),
        "resize": "bilinear",
        "antialias": "true",
        "dimension": str(model.dimension),
        "l2_normalised": json.dumps(settings.l2),
        "weights": weights,
        "training_data_terms": str(terms),
    }
    return metadata if threshold is None else metadata | {"threshold": repr(threshold)}


def _write_onnx(
    deployed: Deployed, file: Path, metadata: Mapping[str, str], calibration: Sequence[Any] = ()
) -> Run:
    settings = deployed.settings
    example = deployed.prepare(_random_images(deployed.model.size, settings.batch or 2))
    write_onnx(
        deployed,
        example,
        file,
        batch=settings.batch,
        opset=settings.opset,
        simplify=settings.simplify,
    )
    if settings.quantize == "int8":
        images = iter_batches(calibration, deployed.model.size, settings.batch or _CALIBRATION_BATCH)
        fed = (deployed.prepare(_fill(batch, settings.batch)).numpy() for batch in images)
        quantize_static(file, file, INPUT, fed)
    elif settings.quantize == "dynamic":
        quantize_dynamic(file, file)
    set_metadata(file, metadata)
    return _read_onnx(file)


def _read_onnx(file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_torchscript(
    deployed: Deployed, file: Path, metadata: Mapping[str, str], _calibration: Sequence[Any] = ()
) -> Run:
    example = deployed.prepare(_random_images(deployed.model.size, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shape checks, which hold for every batch
        traced = torch.jit.trace(deployed, example, check_trace=False)
        checked = torch.jit.script(
            (_Uint8Input if deployed.settings.input == "uint8" else _FloatInput)(traced)
        )
        with open(file, "wb") as opened:  # given a path, torch would store its name
            torch.jit.save(checked.eval(), opened, _extra_files={"metadata.json": json.dumps(dict(metadata))})
        loaded = torch.jit.load(str(file))
    return cast(Run, loaded)


class _Uint8Input(nn.Module):
    """Refuses images of another type, which a traced module would take for pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise RuntimeError(
                "expected uint8 images (pixels from 0 to 255), which this model normalises itself"
            )
        embeddings: Tensor = self.model(images)
        return embeddings


class _FloatInput(nn.Module):
    """Refuses uint8 images: this model expects normalised ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise RuntimeError("expected float images, normalised: (pixels / 255 - mean) / std")
        embeddings: Tensor = self.model(images)
        return embeddings


def _write_openvino(
    deployed: Deployed, file: Path, metadata: Mapping[str, str], _calibration: Sequence[Any] = ()
) -> Run:
    require_packages("openvino")
    import openvino

    with TemporaryDirectory() as folder:
        _write_onnx(deployed, Path(folder) / "model.onnx", metadata)
        model = openvino.convert_model(Path(folder) / "model.onnx")
    for key, value in metadata.items():
        model.set_rt_info(value, ["rga_reid", key])
    openvino.save_model(model, file, compress_to_fp16=deployed.settings.half)
    # f32: by default the CPU may compute in bfloat16
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


def _write_safetensors(
    deployed: Deployed, file: Path, _metadata: Mapping[str, str], _calibration: Sequence[Any] = ()
) -> Run:
    save_model(deployed.model, file)
    return load_model(file).embed


Writer = Callable[[Deployed, Path, Mapping[str, str], Sequence[Any]], Run]
_WRITERS: dict[str, Writer] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "safetensors": _write_safetensors,
    "openvino": _write_openvino,
}


def companion(path: str | os.PathLike[str], settings: ExportSettings) -> Path | None:
    """Return the second file that a target needs; None without one.

    For boxmot it is ``NAME.metadata.json``; of an ONNX file boxmot reads all from the graph. Triton reads
    ``config.pbtxt`` in the folder of the model: above the ONNX file's if that is named by a version number.
    """
    file = Path(path)
    if settings.target == "boxmot" and file.suffix != ".onnx":
        return file.with_name(f"{file.name}.metadata.json")
    if settings.target == "triton":
        folder = file.absolute().parent
        return (folder.parent if folder.name.isdecimal() else folder) / "config.pbtxt"
    return None


def _write_companion(file: Path, deployed: Deployed) -> None:
    settings, size = deployed.settings, deployed.model.size
    second = companion(file, settings)
    if second is None:
        return
    if settings.target == "boxmot":
        content = {
            "schema_version": 1,
            "model_kwargs_schema_version": 1,
            "model_name": None,
            "preprocess": "resize",
            "model_kwargs": {"img_size": list(size)},
        }
        write_json(second, content)
    else:
        write_text(second, _triton_config(file, deployed))


def _triton_config(file: Path, deployed: Deployed) -> str:
    """Return the configuration of a model for Triton's onnxruntime backend, in protobuf's text format."""
    settings, (height, width) = deployed.settings, deployed.model.size
    images = "TYPE_UINT8" if settings.input == "uint8" else "TYPE_FP16" if settings.half else "TYPE_FP32"
    # a graph of a fixed batch is served as one without batching: its shape has the batch
    batch = "" if settings.batch is None else f"{settings.batch}, "
    lines = [
        'backend: "onnxruntime"',
        f'default_model_filename: "{file.name}"',
        f"max_batch_size: {MAX_BATCH if settings.batch is None else 0}",
        f'input [{{ name: "{INPUT}" data_type: {images} dims: [ {batch}3, {height}, {width} ] }}]',
        f'output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ {batch}{deployed.model.dimension} ] }}]',
    ]
    if settings.batch is None:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"
