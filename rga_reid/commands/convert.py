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
        "Read a checkpoint of the released RGA code, torchvision, torchreid (ResNet, OSNet, OSNet-AIN), fast-reid "
        "(BoT, AGW, SBS, MGN), strong-baseline, layumi, TransReID (plain ViT) or CLIP-ReID, and write a model that "
        "every other command takes as --checkpoint. Unused tensors are listed; a model with parts that this package "
        "does not have is refused. Nothing in the file is unpickled. See docs/training.md.",
    )
    options.add_argument("source", metavar="IN", help="published checkpoint")
    options.add_argument("target", metavar="OUT.safetensors", help="file to write")
    options.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="size of the training images in pixels (default: as in fast-reid's config.yaml beside the file, or "
        "256 128; for RGA determined by the weights)",
    )
    options.add_argument(
        "--last-stride",
        type=int,
        choices=[1, 2],
        help="stride of the last stage of a ResNet, not stored in files (default: as in config.yaml or opts.yaml "
        "beside the file; otherwise 1 for fast-reid, strong-baseline and resnet50_fc512, 2 for the others)",
    )
    options.add_argument(
        "--pooling",
        choices=["avg", "gem"],
        help="pooling of the last map, which fast-reid's files contain only if the exponent of GeM was trained "
        "(default: as in config.yaml beside the file, for other programs avg)",
    )
    options.add_argument(
        "--neck-feat",
        choices=["after", "before"],
        help="feature after or before the batch norm (default: after for strong-baseline, before for TransReID "
        "and CLIP-ReID)",
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
    converted = read_published(
        options.source,
        size=options.size,
        last_stride=options.last_stride,
        pooling=options.pooling,
        neck_feat=options.neck_feat,
    )
    model = converted.model
    save_model(model, options.target)
    height, width = model.size
    attention = (model.config or {}).get("attention") or "no attention"
    print(
        f"{options.target}: {model.backbone.title} with {attention} for {height}x{width} images, "
        f"from {converted.source}"
    )
    stride = model.backbone.last_stride
    print(
        f"embedding: {model.dimension} features, {(model.config or {}).get('pooling', 'avg')} pooling"
        f"{'' if stride is None else f', last stride {stride}'}"
    )
    print(sanitize(f"not used: {', '.join(converted.unused) or 'nothing'}"))
