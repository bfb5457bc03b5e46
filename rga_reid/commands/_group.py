"""``gallery group``: group the images of a gallery into persons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import load_threshold
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    add_lang_option,
    add_threshold_options,
    add_wait_option,
    check_threshold,
    check_wait,
    new_parser,
)
from rga_reid.commands._output import check_outputs
from rga_reid.errors import InputError
from rga_reid.files import atomic_file, write_json, write_text
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    import pandas as pd

OUTPUTS: dict[str, tuple[str, ...]] = {"out": (".html",), "csv": (), "json": ()}


def parser() -> ArgumentParser:
    """Options of ``gallery group``."""
    command = new_parser(
        "gallery group",
        "Group images into persons by their features; their pids are not used. Tracks, if the gallery knows "
        "them, are kept whole, and two tracks of one camera at the same time are two persons.",
    )
    command.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    command.add_argument("--out", metavar="FILE", help="write a page of persons to check, .html")
    command.add_argument("--csv", metavar="FILE", help="write the images and their persons as CSV")
    command.add_argument("--json", metavar="FILE", help="write the number of persons and images as JSON")
    command.add_argument(
        "--write", action="store_true", help="also store the persons in the gallery, in the column person"
    )
    command.add_argument(
        "--persons",
        metavar="FILE",
        help="instead of grouping, write the column person of this table, a corrected file of --csv, to the gallery",
    )
    command.add_argument(
        "--eps",
        type=float,
        default=0.55,
        help="largest Jaccard distance of neighbours; a larger value joins more images",
    )
    command.add_argument("--min-samples", type=int, default=4, help="least number of images of a person")
    add_threshold_options(command, "least score of neighbours (default: none)")
    add_lang_option(command)
    add_wait_option(command)
    add_milvus_options(command)
    return command


def group(options: Namespace) -> None:
    """Group, write the requested files and print a summary."""
    check_outputs(options, OUTPUTS)
    check_threshold(options)
    check_wait(options)
    if options.persons is not None:
        _import(options)
        return
    from rga_reid.evaluation import Grouping
    from rga_reid.gallery import Gallery
    from rga_reid.gallery.grouping import group_gallery

    threshold = load_threshold(options)
    limit = -1.0 if threshold is None else threshold.value
    settings = Grouping(options.eps, options.min_samples, limit)
    gallery = Gallery.open(options.gallery, wait=options.wait)
    with progress_bar("grouping") as moved:
        found = group_gallery(gallery, settings, moved)
    facts = _facts(found.table)
    if options.csv is not None:
        with atomic_file(options.csv) as temporary:
            found.table.assign(id=found.ids).to_csv(temporary, index=False)
    if options.out is not None:
        from rga_reid.reports.groups_page import groups_page

        name = Path(options.gallery).absolute().name
        write_text(options.out, groups_page(found.table, gallery=name, lang=options.lang))
    if options.json is not None:
        write_json(options.json, facts)
    if options.write:
        gallery.update(found.ids, found.table[["person"]])
    print(f"persons   {facts['persons']:,}")
    print(f"images    {facts['grouped']:,} of {facts['images']:,}; {facts['ungrouped']:,} are like no other")


def _import(options: Namespace) -> None:
    """Write the persons of ``--persons`` to the gallery."""
    given = [f"--{key}" for key in (*OUTPUTS, "write", "threshold", "calibration") if options[key]]
    if given:
        raise InputError(f"{given[0]}: goes with grouping, but --persons was given")
    from rga_reid.gallery import Gallery
    from rga_reid.gallery.grouping import import_persons

    changed, missing = import_persons(Gallery.open(options.gallery, wait=options.wait), options.persons)
    print(f"persons changed of {changed:,} images")
    if missing:
        print(f"{missing:,} rows name images that are not in the gallery")


def _facts(table: pd.DataFrame) -> dict[str, int]:
    grouped = int(table["person"].notna().sum())
    return {
        "persons": int(table["person"].nunique()),
        "images": len(table),
        "grouped": grouped,
        "ungrouped": len(table) - grouped,
    }
