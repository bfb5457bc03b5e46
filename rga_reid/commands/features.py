"""Embed a folder, a table or a data set of images into an .npz file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_embedder, suggest_engine
from rga_reid.commands._inputs import embed_table, read_image_table, shards_folder
from rga_reid.commands._options import (
    add_checkpoint_options,
    add_device_option,
    add_engine_option,
    add_image_options,
    add_import_option,
    add_pooling_option,
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
        "Without --pattern, person and camera are read from the names of files and folders.",
    )
    add_checkpoint_options(options, required=True)
    add_engine_option(options)
    add_image_options(options)
    options.add_argument(
        "--data.split",
        choices=("train", "val", "query", "gallery"),
        help="with --data.root: embed only this split (default: all); val: the training identities that were held out "
        "to validate --checkpoint",
    )
    add_pooling_option(options, "write tracks")
    options.add_argument("--out", metavar="FILE.npz", required=True, help="file to write")
    options.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
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
    from rga_reid.evaluation.tracklets import pool_batches, sort_tracks
    from rga_reid.files import require_new
    from rga_reid.inference.distributed import process_group
    from rga_reid.inference.embed import collect
    from rga_reid.inference.feature_files import write_features

    require_new(options.out, overwrite=options.overwrite)
    table, _ = read_image_table(options)
    with process_group() as workers:
        device = choose_device(options.device)
        model = read_embedder(options, device)
        if options.data.split == "val":
            table = _held_out(table, options, getattr(model, "trained_on", None))
        if options.pool_tracks is not None:
            table = sort_tracks(table)
        if workers.rank == 0:
            print_labels(table)
        if workers.size == 1:
            suggest_engine(model, options, device, len(table))

        def embed(rows: pd.DataFrame) -> Batches:
            return embed_table(model, options, device, rows)

        batches = workers.gather(shards_folder(options.out), table, options.batch_size, embed)
        if options.pool_tracks is not None:
            batches = pool_batches(batches, options.pool_tracks)
        features, embedded = collect(batches, table, model.dimension)
    if workers.rank == 0:
        if not len(features):
            raise InputError(
                f"{options.images or options.table or options.data.root}: none of the images can be read"
            )
        write_features(options.out, features, embedded, model.fingerprint)
        noun = "images" if options.pool_tracks is None else "tracks"
        print(f"{options.out}: {len(features):,} {noun}, {features.shape[1]} features each")


def _held_out(table: pd.DataFrame, options: Namespace, trained_on: Any) -> pd.DataFrame:
    """Return the rows of a training split that show identities held out of the training of the checkpoint."""
    from rga_reid.data import read_training
    from rga_reid.data.readers import choose_held_out

    if not isinstance(trained_on, dict) or "val_fraction" not in trained_on:
        raise InputError(
            f"--data.split val: {options.checkpoint} does not say which identities were held out of its training; "
            "expected a checkpoint of train with --data.val_fraction"
        )
    training = read_training([os.path.abspath(options.data.root)], [options.data.dataset])
    held_out = choose_held_out(training, trained_on["val_fraction"], trained_on["val_seed"])
    if (identities := training.pid[~held_out].nunique()) != trained_on["identities"]:
        raise InputError(
            f"--data.split val: {options.checkpoint} was trained on {trained_on['identities']:,} identities, and "
            f"without those held out {options.data.root} has {identities:,}; expected the data set of its training"
        )
    return table[table["path"].isin(training.path[held_out])].reset_index(drop=True)
