"""Convert a checkpoint of another program."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._options import add_import_option, new_parser
from rga_reid.commands._output import check_outputs
from rga_reid.errors import sanitize


def parser() -> ArgumentParser:
    """Options of ``convert``."""
    options = new_parser(
        "convert",
        "Read a checkpoint of the released RGA code (RGA-S, RGA-C or RGA-SC on ResNet-50), or a ResNet of "
        "torchvision, torchreid or fast-reid, and write a model that every other command takes as "
        "--checkpoint. Unused tensors are listed. Nothing in the file is unpickled.",
    )
    options.add_argument("source", metavar="IN", help="published checkpoint")
    options.add_argument("target", metavar="OUT.safetensors", help="file to write")
    options.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the training images in pixels (default: 256 128; for RGA determined by the weights)",
    )
    options.add_argument(
        "--last-stride",
        type=int,
        choices=[1, 2],
        help="stride of the last stage, not stored in files (default: fast-reid 1; torchvision, torchreid 2)",
    )
    options.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """Read, convert, write and report."""
    from rga_reid.files import require_new
    from rga_reid.models import read_published, save_model

    check_outputs(options, {"target": (".safetensors",)})
    require_new(options.target, overwrite=options.overwrite)
    converted = read_published(options.source, size=options.size, last_stride=options.last_stride)
    model = converted.model
    save_model(model, options.target)
    height, width = model.size
    attention = (model.config or {}).get("attention") or "no attention"
    print(
        f"{options.target}: {model.backbone.title} with {attention} for {height}x{width} images, "
        f"from {converted.source}"
    )
    print(sanitize(f"not used: {', '.join(converted.unused) or 'nothing'}"))
