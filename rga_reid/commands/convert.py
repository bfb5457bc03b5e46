"""Published weights to a model file of this package."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands.output import check_output_file
from rga_reid.commands.parsing import new_parser
from rga_reid.errors import InputError


def parser() -> ArgumentParser:
    """Options of ``convert``."""
    options = new_parser(
        "convert",
        "Read a checkpoint of the released RGA code (RGA-S, RGA-C or RGA-SC on ResNet-50) and write a model "
        "that every other command takes as --checkpoint. Nothing in the file is unpickled.",
    )
    options.add_argument("source", metavar="IN", help="checkpoint of the released code")
    options.add_argument("target", metavar="OUT.safetensors", help="file to write")
    options.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="pixels of the images it was trained on, if not twice as high as wide",
    )
    options.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return options


def run(options: Namespace) -> None:
    """Check the output, read, write, tell what it was."""
    from rga_reid.files import require_new
    from rga_reid.models import read_official_rga, save_model

    if not options.target.endswith(".safetensors"):
        raise InputError(f"OUT {options.target}: expected a name that ends in .safetensors")
    check_output_file("OUT", options.target)
    require_new(options.target, overwrite=options.overwrite)
    model = read_official_rga(options.source, size=options.size)
    save_model(model, options.target)
    height, width = model.size
    attention = (model.config or {}).get("attention")
    print(f"{options.target}: ResNet-50 with {attention} for {height}x{width} images")
