"""``gallery build`` and ``gallery info``: make a gallery of images, look at one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands.output import check_output_file
from rga_reid.commands.parsing import new_parser
from rga_reid.errors import InputError

if TYPE_CHECKING:
    from rga_reid.retrieval import Gallery


def parser() -> ArgumentParser:
    """Options of ``gallery build`` and ``gallery info``."""
    build = new_parser(
        "gallery build",
        "Embed a folder of images, or take features made elsewhere, and save them as a gallery. Person and "
        "camera are taken from names like 0002_c1s1_000451_03.jpg; other names are welcome, unlabelled.",
    )
    build.add_argument("--gallery", metavar="DIR", required=True, help="folder to save the gallery in")
    build.add_argument("--images", metavar="DIR", help="folder of images, searched with its subfolders")
    build.add_argument("--checkpoint", metavar="FILE", help="model to embed the images with; remembered")
    build.add_argument("--features", metavar="FILE.npz", help="features with paths, instead of images")
    build.add_argument("--batch-size", type=int, default=64, help="images in one forward pass")
    build.add_argument("--device", help="where the model runs, such as cpu (default: cuda if there is one)")
    build.add_argument("--overwrite", action="store_true", help="replace the gallery that is there")
    build.add_argument("--json", metavar="FILE", help="write what the gallery holds there as JSON")

    info = new_parser("gallery info", "Check a gallery's files and tell what it holds.")
    info.add_argument("--gallery", metavar="DIR", required=True, help="folder of the gallery")
    info.add_argument("--json", metavar="FILE", help="write it there as JSON too")

    command = new_parser("gallery", "Build and inspect galleries.")
    actions = command.add_subcommands(dest="action")
    actions.add_subcommand("build", build)
    actions.add_subcommand("info", info)
    return command


def run(options: Namespace) -> None:
    """Build a gallery, or describe one."""
    if options.action == "build":
        _build(options.build)
    else:
        _info(options.info)


def _build(options: Namespace) -> None:
    from rga_reid.retrieval.gallery_folder import require_replaceable

    _check_build(options)
    require_replaceable(options.gallery, overwrite=options.overwrite)
    gallery = _from_images(options) if options.images else _from_features(options.features)
    gallery.save(options.gallery, overwrite=options.overwrite)
    _tell(options.gallery, gallery, options.json)


def _check_build(options: Namespace) -> None:
    if (options.images is None) == (options.features is None):
        raise InputError("gallery build: expected --images DIR --checkpoint FILE, or --features FILE.npz")
    if options.images is not None and options.checkpoint is None:
        raise InputError("gallery build: --images needs --checkpoint, the model to embed them with")
    if options.features is not None and options.checkpoint is not None:
        raise InputError("gallery build: --checkpoint goes with --images; features are taken as they are")
    if options.batch_size < 1:
        raise InputError(f"--batch-size: expected at least 1, got {options.batch_size}")
    check_output_file("--json", options.json)
    if options.checkpoint is not None and not Path(options.checkpoint).is_file():
        raise InputError(f"--checkpoint {options.checkpoint}: no such file")


def _from_images(options: Namespace) -> Gallery:
    from rga_reid.data import table_from_images
    from rga_reid.models import load_model
    from rga_reid.retrieval import Gallery, ModelRecord, extract_features
    from rga_reid.retrieval.extraction import choose_device

    device = choose_device(options.device)
    # absolute paths: a query from another folder must find the pictures
    table = table_from_images(os.path.abspath(options.images))
    model = load_model(options.checkpoint)
    record = ModelRecord.of(model, options.checkpoint)
    features, table = extract_features(model, table, options.batch_size, device)
    return Gallery.build(features, table, model=record)


def _from_features(file: str) -> Gallery:
    from rga_reid.retrieval import Gallery
    from rga_reid.retrieval.feature_files import read_features

    features, table = read_features(file)
    if "path" not in table.columns:
        raise InputError(f"{file}: expected an array 'paths': a gallery needs to say which image matched")
    return Gallery.build(features, table)


def _info(options: Namespace) -> None:
    from rga_reid.retrieval import Gallery

    check_output_file("--json", options.json)
    _tell(options.gallery, Gallery.open(options.gallery), options.json)


def _tell(location: str, gallery: Gallery, json_file: str | None) -> None:
    """Print what a saved gallery holds, and write it as JSON."""
    from rga_reid.files import write_json

    size = sum(file.stat().st_size for file in Path(location).iterdir())
    facts = {"location": os.path.abspath(location), **gallery.describe(), "bytes": size}
    _print(facts)
    if json_file is not None:
        write_json(json_file, facts)


def _print(facts: dict[str, Any]) -> None:
    model, cameras, unlabelled = facts["model"], facts["cameras"], facts["unlabelled"]
    lines = {
        "gallery": facts["location"],
        "images": f"{facts['count']:,}",
        "persons": f"{facts['identities']:,}"
        + (f" ({unlabelled:,} images unlabelled)" if unlabelled else ""),
        "cameras": f"{len(cameras)}" if cameras else "unknown",
        "index": f"{facts['index']}, {facts['dimension']} dimensions, {facts['metric']}",
        "on disk": f"{facts['bytes'] / 1e6:,.1f} MB",
        "model": "unknown (built from features)" if model is None else model["checkpoint"],
    }
    if model is not None:
        lines["SHA-256"] = model["sha256"]
        lines["input"] = "{} x {} pixels (height x width)".format(*model["size"])
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")
