"""Export a trained model as one file to deploy."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_import_option, new_parser
from rga_reid.commands._output import check_outputs


def parser() -> ArgumentParser:
    """Options of ``export``."""
    options = new_parser(
        "export",
        "Write a model as one file that maps batches of uint8 RGB images of the model's size to L2-normalised "
        "embeddings, run it and compare the result. See docs/export.md.",
    )
    options.add_argument("--checkpoint", metavar="FILE", required=True, help="trained model")
    options.add_argument(
        "--format", choices=["onnx", "torchscript", "safetensors"], required=True, help="file format"
    )
    options.add_argument(
        "--out", metavar="FILE", required=True, help="file to write: .onnx, .pt, .safetensors"
    )
    options.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """Load, export, and report how closely the file matches the model."""
    from rga_reid.files import require_new
    from rga_reid.models import load_model
    from rga_reid.models.export import export_model

    check_outputs(options, {"out": ()})
    require_new(options.out, overwrite=options.overwrite)
    model = load_model(options.checkpoint)
    cosine = export_model(model, options.out, options.format)
    height, width = model.size
    print(f"{options.out}: uint8 images (n, 3, {height}, {width}) to embeddings (n, {model.dimension})")
    print(f"smallest cosine to the model, for batches of 1 and 3: {cosine:.7f}")
