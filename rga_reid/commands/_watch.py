"""``gallery watch``: follow a folder, and add its images to a gallery."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._embedder import read_gallery_embedder
from rga_reid.commands._inputs import read_folder, warn_of_missing_labels
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    OWN_MODEL,
    add_checkpoint_options,
    add_device_option,
    add_import_option,
    add_pattern_option,
    add_same_features_option,
    add_timezone_option,
    add_wait_option,
    check_embedder,
    new_parser,
)
from rga_reid.errors import InputError, check_int, sanitize

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from rga_reid.data import ImageError
    from rga_reid.gallery import Gallery

LONGEST_CHANGE = 3600.0  #: seconds for which an addition waits for another program
_TRIED = 10  # images present at the start whose columns are read before anything is added


def parser() -> ArgumentParser:
    """Options of ``gallery watch``."""
    command = new_parser(
        "gallery watch",
        "Follow a folder until Ctrl-C or SIGTERM: add the images that are not in the gallery yet, then new ones as "
        "they appear. Print the path of each image once it is in the gallery on disk.",
    )
    command.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    command.add_argument(
        "--images", metavar="DIR", required=True, help="folder of images to follow, with its subfolders"
    )
    add_pattern_option(command)
    add_timezone_option(command)
    add_checkpoint_options(command, OWN_MODEL)
    add_same_features_option(command)
    command.add_argument("--batch-size", type=int, default=64, help="images per forward pass")
    add_device_option(command)
    add_wait_option(command)
    command.add_argument(
        "--json", metavar="FILE", help="at the end, write the description of the gallery as JSON"
    )
    add_import_option(command)
    add_milvus_options(command)
    return command


def watch(messages: list[str], options: Namespace) -> Gallery:
    """Add images until a signal stops the program; return the gallery."""
    folder = Path(os.path.abspath(options.images))
    if not folder.is_dir():
        raise InputError(f"--images {options.images}: no such folder")
    if options.timezone is not None and options.pattern is None:
        raise InputError("gallery watch: --timezone is for --pattern")
    check_int("--batch-size", options.batch_size)
    check_embedder(options)
    from rga_reid.devices import choose_device
    from rga_reid.gallery import Gallery
    from rga_reid.gallery.watch import Arrivals, watch_folder
    from rga_reid.inference import stream_features

    wait_for_lock(options)
    # from now on also for a `remove` or `compact` that rebuilds large indexes
    gallery = Gallery.open(options.gallery, wait=max(options.wait, LONGEST_CHANGE))
    device = choose_device(options.device)
    _check_present(options, folder, gallery.columns)
    model = read_gallery_embedder(gallery, options, device)
    record = None if options.same_features else model.fingerprint

    warned = False

    def describe(paths: Sequence[Path], schema: Mapping[str, str]) -> tuple[pd.DataFrame, Mapping[str, str]]:
        nonlocal warned
        table, columns, _ = read_folder(options, schema, paths)
        if not warned:
            warn_of_missing_labels(gallery, table, options)
            warned = True
        return table, columns

    def embed(table: pd.DataFrame, unreadable: list[ImageError]) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        return stream_features(model, table, options.batch_size, device, refused=unreadable)

    print(f"following {sanitize(str(folder))}: {len(gallery):,} images in the gallery", flush=True)
    added = refused = 0
    try:
        for batch in watch_folder(
            gallery, Arrivals(folder, gallery.known_paths), describe, embed, model=record
        ):
            for path in batch.added:
                print(f"added {sanitize(os.path.relpath(path, folder))}")
            sys.stdout.flush()
            for error in batch.refused:
                print(f"left out: {sanitize(error)}", file=sys.stderr)
            added, refused = added + len(batch.added), refused + len(batch.refused)
    except KeyboardInterrupt:  # Ctrl-C or SIGTERM: the usual end
        pass
    messages.append(f"stopped: {added:,} added" + (f", {refused:,} left out" if refused else ""))
    # others may have changed it since the last addition
    return Gallery.open(options.gallery, wait=options.wait)


def _check_present(options: Namespace, folder: Path, schema: Mapping[str, str]) -> None:
    """Refuse a pattern that matches no present image, or gives no image of a sample valid values."""
    from rga_reid.data.columns import find_zone
    from rga_reid.data.events import match_paths
    from rga_reid.data.images import find_images

    if options.pattern is None:
        return
    if options.timezone is not None:
        find_zone(options.timezone)
    present, _ = find_images(folder, allow_none=True)
    match_paths(folder, options.pattern, present, must_match=bool(present))
    errors = []
    sample = present[:: -(-len(present) // _TRIED) or 1]
    for path in sample:
        try:
            read_folder(options, schema, [path])
        except InputError as error:
            errors.append(error)
    if errors and len(errors) == len(sample):
        raise errors[0]


def wait_for_lock(options: Namespace) -> None:
    """Fail before images are embedded if a server keeps the gallery locked: its lock never gets free."""
    from rga_reid.gallery.location import open_store

    store = open_store(options.gallery)
    store.wait = options.wait
    with store.exclusive():
        pass  # others may add meanwhile; ``Gallery.add`` waits for them, or lets them add these images too
