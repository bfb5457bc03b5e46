"""Export a trained model as a file to deploy."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_dataset_option, add_import_option, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError, short_repr

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.models import EmbeddingModel
    from rga_reid.models.export import ExportSettings

_FORMATS = ["onnx", "torchscript", "safetensors", "openvino"]


def parser() -> ArgumentParser:
    """Options of ``export``."""
    options = new_parser(
        "export",
        "Write a model to a file that maps batches of RGB images of the model's size to embeddings, then run the file "
        "and compare it with the model. See docs/export.md.",
    )
    options.add_argument("--checkpoint", metavar="FILE", required=True, help="trained model")
    options.add_argument(
        "--format",
        choices=_FORMATS,
        help="file format (default: that of the suffix of --out, which must fit it)",
    )
    options.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="file to write: .onnx, .pt or .torchscript, .safetensors, .xml (OpenVINO, with a .bin)",
    )
    options.add_argument(
        "--input",
        choices=("uint8", "float"),
        help="what the file takes: pixels from 0 to 255, or normalised pixels as trackers feed them (default: uint8; "
        "float for boxmot)",
    )
    options.add_argument(
        "--batch", metavar="N", default="dynamic", help="images in every batch; dynamic accepts any number"
    )
    options.add_argument("--opset", type=int, help="version of the ONNX operators (default: 18)")
    options.add_argument(
        "--half", action="store_true", help="store weights in float16; a float input becomes float16 too"
    )
    options.add_argument("--simplify", action="store_true", help="simplify the ONNX graph with onnxslim")
    options.add_argument(
        "--l2", action=BooleanOptionalAction, default=True, help="scale embeddings to length 1 (default)"
    )
    options.add_argument(
        "--target",
        choices=("boxmot", "triton"),
        help="write a file, and what it needs beside it, for boxmot's trackers or a Triton server",
    )
    options.add_argument(
        "--quantize",
        choices=("int8", "dynamic"),
        help="8-bit ONNX: int8 takes the ranges of activations from --calibration-images, dynamic from each batch",
    )
    options.add_argument(
        "--calibration-images",
        metavar="DIR",
        help="with --quantize int8: folder of a few hundred typical images",
    )
    options.add_argument(
        "--data.root", metavar="DIR", help="with --quantize: data set to measure the loss of mAP on"
    )
    add_dataset_option(options)
    options.add_argument(
        "--calibration",
        metavar="FILE",
        help="JSON file of calibrate, whose threshold is stored in the metadata",
    )
    options.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """Load, export, and report how the file is fed and how closely it matches the model."""
    for option, given in (
        ("--calibration-images", options.calibration_images),
        ("--data.root", options.data.root),
    ):
        if given is not None and options.quantize is None:
            raise InputError(f"{option}: goes with --quantize")
    from rga_reid.data import list_images, read_table
    from rga_reid.files import require_new
    from rga_reid.inference.verify import read_calibration
    from rga_reid.models import load_model
    from rga_reid.models.export import FORMATS, ExportSettings, companion, export_model

    check_outputs(options, {"out": ()})
    kind = options.format or next(
        (kind for kind, suffixes in FORMATS.items() if Path(options.out).suffix in suffixes), None
    )
    if kind is None:
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise InputError(f"--out {options.out}: expected a file name that ends in one of {known}")
    settings = ExportSettings(
        input=options.input or ("float" if options.target == "boxmot" else "uint8"),
        batch=_parse_batch(options.batch),
        opset=options.opset,
        half=options.half,
        simplify=options.simplify,
        l2=options.l2,
        target=options.target,
        quantize=options.quantize,
    )
    settings.check_format(kind)
    beside = [companion(options.out, settings)]
    if kind == "openvino":
        beside.append(Path(options.out).with_suffix(".bin"))
    for file in (Path(options.out), *beside):
        if file is not None:
            require_new(file, overwrite=options.overwrite)
    images = [] if options.calibration_images is None else list_images(options.calibration_images)
    threshold = None if options.calibration is None else read_calibration(options.calibration).value
    table = None if options.data.root is None else read_table(options.data.root, options.data.dataset)
    model = load_model(options.checkpoint)
    cosine = export_model(model, options.out, kind, settings, calibration_images=images, threshold=threshold)
    print(f"{options.out}: {_describe_input(model, settings, kind)}")
    measured = (
        f"on {len(images):,} calibration images"
        if settings.quantize and images
        else "for random images in batches of "
        + ("1 and 3" if settings.batch is None else str(settings.batch))
    )
    print(f"smallest cosine to the model, {measured}: {cosine:.7f}")
    print(*(file for file in beside if file is not None), sep="\n", end="\n" if any(beside) else "")
    if table is not None:
        _print_loss(model, options, table)


def _parse_batch(text: str) -> int | None:
    """Return the number of ``--batch``, or None for ``dynamic``."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--batch: expected dynamic or a positive integer, got {short_repr(text)}")
    return int(text)


def _describe_input(model: EmbeddingModel, settings: ExportSettings, kind: str) -> str:
    """Return how a file is fed, and what it gives, in one line."""
    from rga_reid.models.embedding import IMAGENET_MEAN, IMAGENET_STD

    height, width = model.size
    batch = "n" if settings.batch is None else settings.batch
    images = f"images ({batch}, 3, {height}, {width}), RGB"
    if settings.input == "uint8":
        fed = f"uint8 {images}, pixels from 0 to 255"
    else:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if settings.target == "boxmot" else (model.mean, model.std)
        values = (" ".join(map(str, numbers)) for numbers in (mean, std))
        dtype = "float16" if settings.half and kind != "openvino" else "float32"
        fed = f"{dtype} {images}, (pixels / 255 - mean) / std, mean {next(values)}, std {next(values)}"
    length = "of length 1" if settings.l2 else "of any length"
    return f"{fed}, to embeddings ({batch}, {model.dimension}) {length}"


def _print_loss(model: EmbeddingModel, options: Namespace, table: pd.DataFrame) -> None:
    """Evaluate the model and the file on a data set, in the protocol of its card, and print both."""
    from rga_reid.data import load_card
    from rga_reid.experiments.evaluate_model import card_protocol, evaluate_model, find_protocol
    from rga_reid.inference import load_embedder

    junk = load_card(options.data.dataset).junk_pids
    protocol = find_protocol(card_protocol(options.data.root, options.data.dataset))
    before, after = (
        evaluate_model(embedder, table, junk_pids=junk, protocol=protocol)
        for embedder in (model, load_embedder(options.out))
    )
    print(
        f"{options.data.root}: mAP {100 * before.mAP:.2f} % of the model, {100 * after.mAP:.2f} % of the file, "
        f"a loss of {100 * (before.mAP - after.mAP):.2f}"
    )
