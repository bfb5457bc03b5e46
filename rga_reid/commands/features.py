"""Embed a folder of images into an .npz file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import shards_folder
from rga_reid.commands._options import add_device_option, add_import_option, new_parser
from rga_reid.commands._output import check_outputs, print_labels
from rga_reid.errors import check_int

if TYPE_CHECKING:
    import pandas as pd


def parser() -> ArgumentParser:
    """Options of ``features``."""
    options = new_parser(
        "features",
        "Embed a folder of images; write features, paths, and the pids and camids that the names contain.",
    )
    options.add_argument("--checkpoint", metavar="FILE", required=True, help="trained model")
    options.add_argument("--images", metavar="DIR", required=True, help="folder of person crops")
    options.add_argument("--out", metavar="FILE.npz", required=True, help="file to write")
    options.add_argument("--batch-size", type=int, default=64, help="images in one forward pass")
    add_device_option(options)
    options.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """List the images, embed them, write the file."""
    from rga_reid.data import table_from_images
    from rga_reid.devices import choose_device
    from rga_reid.files import require_new
    from rga_reid.inference import stream_features
    from rga_reid.inference.distributed import Batches, process_group
    from rga_reid.inference.embed import collect
    from rga_reid.inference.feature_files import write_features
    from rga_reid.models import load_model

    check_outputs(options, {"out": (".npz",)})
    check_int("--batch-size", options.batch_size)
    require_new(options.out, overwrite=options.overwrite)
    table = table_from_images(options.images)
    with process_group() as workers:
        if workers.rank == 0:
            print_labels(table)
        device = choose_device(options.device)
        model = load_model(options.checkpoint, device)

        def embed(rows: pd.DataFrame) -> Batches:
            return stream_features(model, rows, options.batch_size, device)

        batches = workers.gather(shards_folder(options.out), table, options.batch_size, embed)
        features = collect(batches, len(table), model.dimension)
    if workers.rank == 0:
        write_features(options.out, features, table)
        print(f"{options.out}: {len(features)} images, {features.shape[1]} features each")
