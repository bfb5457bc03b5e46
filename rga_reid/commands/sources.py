"""Where the images of ``gallery build``, ``gallery add`` and ``query`` come from, and what embeds them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.checks import whole_number
from rga_reid.commands.parsing import add_device_option
from rga_reid.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from rga_reid.data import ImageError
    from rga_reid.retrieval import Gallery
    from rga_reid.retrieval.extraction import Embedder

LOCATION = "the gallery: a folder, or in Milvus FILE.db or milvus://HOST:PORT/COLLECTION"


def add_source_options(parser: ArgumentParser) -> None:
    """Options that name images, or features made elsewhere."""
    parser.add_argument("--images", metavar="DIR", help="folder of images, searched with its subfolders")
    parser.add_argument("--data.root", metavar="DIR", help="or a data set: its gallery images")
    parser.add_argument("--data.dataset", metavar="CARD", default="market1501", help="card of the data set")
    parser.add_argument("--features", metavar="FILE.npz", help="or features with paths")
    parser.add_argument("--checkpoint", metavar="FILE", help="model to embed the images with; remembered")
    parser.add_argument("--batch-size", type=int, default=64, help="images in one forward pass")
    add_device_option(parser)
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out files that are no images, and list them"
    )


def check_source(options: Namespace, command: str) -> None:
    """Refuse options that do not fit together, before anything heavy is imported."""
    if sum(source is not None for source in (options.images, options.data.root, options.features)) != 1:
        raise InputError(f"{command}: expected one of --images DIR, --data.root DIR and --features FILE.npz")
    if options.features is not None and options.checkpoint is not None:
        raise InputError(f"{command}: --checkpoint goes with images; features are taken as they are")
    whole_number("--batch-size", options.batch_size)
    if options.checkpoint is not None and not Path(options.checkpoint).is_file():
        raise InputError(f"--checkpoint {options.checkpoint}: no such file")


def check_images(option: str, *images: str) -> None:
    """Refuse what is no file, before a model is loaded.

    Raises:
        InputError: as ``read_image``, with the option's name.
    """
    for image in images:
        if Path(image).is_dir():
            raise InputError(f"{option} {image}: expected an image file, found a folder")
        if not Path(image).is_file():
            raise InputError(f"{option} {image}: no such image file")


def images_of(options: Namespace) -> pd.DataFrame:
    """The table of the images that the options name, by absolute paths: they hold in any folder."""
    from rga_reid.data import read_table, table_from_images

    if options.images is not None:
        return table_from_images(os.path.abspath(options.images))
    table = read_table(os.path.abspath(options.data.root), options.data.dataset)
    table = table[table["split"] == "gallery"].drop(columns="split").reset_index(drop=True)
    if table.empty:
        raise InputError(f"--data.root {options.data.root}: no images of the split 'gallery' there")
    return table


def features_of(file: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Features and their table, from files that tell paths."""
    from rga_reid.retrieval.feature_files import read_features

    features, table = read_features(file)
    if "path" not in table.columns:
        wanted = "an array 'paths'" if file.endswith(".npz") else "a column 'path' in the CSV file beside it"
        raise InputError(f"{file}: expected {wanted}: a gallery needs to say which image matched")
    return features, table


def checkpoint_for(gallery: Gallery, options: Namespace) -> Path:
    """The checkpoint that embeds images for a gallery: its own, which an option may say has moved."""
    if gallery.model is not None:
        return gallery.model.find_checkpoint(options.checkpoint)
    if options.checkpoint is None:
        raise InputError(
            f"{options.gallery}: built from features, so it remembers no model; give theirs with --checkpoint"
        )
    if not Path(options.checkpoint).is_file():
        raise InputError(f"--checkpoint {options.checkpoint}: no such file")
    return Path(options.checkpoint)


def shards_folder(output: str) -> Path:
    """Where several processes put their shards of an output: beside it."""
    if "://" in output:
        return Path.cwd() / f"{output.rpartition('/')[2]}.shards"
    return Path(f"{os.path.abspath(output)}.shards")


def embedded(
    model: Embedder, options: Namespace, device: torch.device, table: pd.DataFrame
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Features of the images, batch by batch; at the end, what ``--skip-unreadable`` left out, on stderr."""
    from rga_reid.retrieval import stream_features

    refused: list[ImageError] = []
    takes = refused if options.skip_unreadable else None
    yield from stream_features(model, table, options.batch_size, device, refused=takes)
    if refused:
        print(f"left out {len(refused):,} unreadable images:", file=sys.stderr)
    for error in refused:
        print(f"  {printable(str(error))}", file=sys.stderr)
