"""Embed a folder, a table or a data set of images into an .npz file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_embedder
from rga_reid.commands._inputs import embed_table, read_image_table, shards_folder
from rga_reid.commands._options import (
    add_checkpoint_options,
    add_device_option,
    add_image_options,
    add_import_option,
    add_skip_option,
    check_source,
    new_parser,
)
from rga_reid.commands._output import check_outputs, print_labels
from rga_reid.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.inference.distributed import Batches


def parser() -> ArgumentParser:
    """Options of ``features``."""
    options = new_parser(
        "features",
        "Embed a folder of images, a table of images or a data set; write features, paths and all other columns. "
        "Without --pattern, a folder's pids and camids are those that the names contain.",
    )
    add_checkpoint_options(options, required=True)
    add_image_options(options)
    options.add_argument(
        "--data.split", choices=("train", "query", "gallery"), help="embed this split only (default: all)"
    )
    options.add_argument("--out", metavar="FILE.npz", required=True, help="file to write")
    options.add_argument("--batch-size", type=int, default=64, help="images in one forward pass")
    add_device_option(options)
    add_skip_option(options)
    options.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_import_option(options)
    return options


def run(options: Namespace) -> None:
    """List the images, embed them, write the file."""
    check_source(options, "features")
    if options.data.split is not None and options.data.root is None:
        raise InputError("--data.split: goes with --data.root")
    check_outputs(options, {"out": (".npz",)})
    from rga_reid.devices import choose_device
    from rga_reid.files import require_new
    from rga_reid.inference.distributed import process_group
    from rga_reid.inference.embed import collect
    from rga_reid.inference.feature_files import write_features

    require_new(options.out, overwrite=options.overwrite)
    table, _ = read_image_table(options)
    with process_group() as workers:
        if workers.rank == 0:
            print_labels(table)
        device = choose_device(options.device)
        model = read_embedder(options, device)

        def embed(rows: pd.DataFrame) -> Batches:
            return embed_table(model, options, device, rows)

        batches = workers.gather(shards_folder(options.out), table, options.batch_size, embed)
        features, embedded = collect(batches, table, model.dimension)
    if workers.rank == 0:
        if not len(features):
            raise InputError(
                f"{options.images or options.table or options.data.root}: none of the images can be read"
            )
        write_features(options.out, features, embedded, model.fingerprint)
        print(f"{options.out}: {len(features):,} images, {features.shape[1]} features each")
