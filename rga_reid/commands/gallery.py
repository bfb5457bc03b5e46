"""``gallery``: build one of images or features, add to it, erase from it, look at it, check it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands._inputs import (
    embed_table,
    find_checkpoint,
    read_gallery_features,
    read_image_table,
    shards_folder,
)
from rga_reid.commands._options import LOCATION, add_source_options, check_source, label_files, new_parser
from rga_reid.commands._output import check_outputs, print_labels
from rga_reid.errors import InputError, sanitize
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.gallery import Gallery

#: Settings of the approximate indexes, as ``rga_reid.gallery.index`` knows them.
SETTINGS = {
    "hnsw_m": "hnsw: links of each image in the graph (32)",
    "ef_construction": "hnsw: candidates weighed when an image is linked (128)",
    "ef_search": "hnsw: candidates weighed in a search (128)",
    "nlist": "ivf, ivfpq: lists that the images are parted into (by their number)",
    "nprobe": "ivf, ivfpq: lists that a search looks through (an eighth, at least 16)",
    "pq_m": "ivfpq: bytes of a compressed vector; divides the dimension (at most 64)",
    "pq_bits": "ivfpq: bits of each part's codebook, 4 to 8 (8 if the images are enough)",
    "refine": "ivfpq: candidates for each match, compared exactly (16)",
}


def parser() -> ArgumentParser:
    """Options of ``gallery`` and what it does."""
    build = _action(
        "build",
        "Embed a folder of images or the gallery images of a data set, or take features made elsewhere, and "
        "save them as a gallery. Person and camera are taken from names like 0002_c1s1_000451_03.jpg; other "
        "names are welcome, unlabelled.",
    )
    add_source_options(build)
    build.add_argument(
        "--index", default="flat", help="flat (exact, default), hnsw, ivf or ivfpq; see docs/galleries.md"
    )
    for name, meaning in SETTINGS.items():
        build.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=int, help=meaning)
    build.add_argument("--overwrite", action="store_true", help="replace the gallery that is there")
    build.add_argument("--resume", action="store_true", help="go on with an interrupted build of images")

    add = _action("add", "Add images or features to a gallery. The gallery knows which model embeds them.")
    add_source_options(add)
    add.add_argument(
        "--skip-known", action="store_true", help="leave out images that the gallery has already, by path"
    )

    remove = _action(
        "remove",
        "Erase images: their vectors and rows are in no file of the gallery when this is done. It does not "
        "ask. Image files and feature files are left alone.",
    )
    remove.add_argument("--pid", metavar="N", type=int, nargs="+", help="all images of these persons")
    remove.add_argument("--path", metavar="P", nargs="+", help="the images of these paths")

    command = new_parser("gallery", "Build, change and inspect galleries.")
    actions = command.add_subcommands(dest="action")
    actions.add_subcommand("build", build)
    actions.add_subcommand("add", add)
    actions.add_subcommand("remove", remove)
    actions.add_subcommand("info", _action("info", "Tell what a gallery holds; check sizes and headers."))
    actions.add_subcommand("check", _action("check", "Check every byte of a gallery's files."))
    actions.add_subcommand("verify", _action("verify", "Old name of `gallery check`."))
    actions.add_subcommand(
        "compact", _action("compact", "Join the segments that adding and removing left, and index them anew.")
    )
    return command


def _action(name: str, description: str) -> ArgumentParser:
    action = new_parser(f"gallery {name}", description)
    action.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    action.add_argument("--json", metavar="FILE", help="write what the gallery holds there as JSON")
    return action


def run(options: Namespace) -> None:
    """Do what the action says, and tell what the gallery holds then."""
    news: list[str] = []  # printed when all files are written
    actions: dict[str, Callable[[Namespace], Gallery | None]] = {
        "build": _build,
        "add": _add,
        "remove": partial(_remove, news),
        "info": _info,
        "check": partial(_check, news),
        "verify": partial(_check, news),
        "compact": partial(_compact, news),
    }
    chosen = options[options.action]
    beside = label_files(chosen, "features") if "features" in chosen else {}
    check_outputs(chosen, {"json": ()}, beside)
    gallery = actions[options.action](chosen)
    if gallery is not None:
        _tell(chosen.gallery, gallery, chosen.json, news)


def _build(options: Namespace) -> Gallery | None:
    """The gallery; None in a process that only helps another one to build it."""
    check_source(options, "gallery build")
    if options.features is None and options.checkpoint is None:
        raise InputError("gallery build: images need --checkpoint, the model to embed them with")
    if options.features is not None and options.resume:
        raise InputError("gallery build: --resume goes with images; a build from features starts over")
    if options.resume and options.overwrite:
        raise InputError("gallery build: --resume goes on, --overwrite starts over; expected one of them")
    from rga_reid.devices import choose_device
    from rga_reid.gallery import GalleryBuilder
    from rga_reid.gallery.gallery import save_features
    from rga_reid.gallery.index import IndexConfig
    from rga_reid.gallery.location import create_store
    from rga_reid.inference import ModelFingerprint
    from rga_reid.inference.distributed import Batches, process_group
    from rga_reid.models import load_model

    settings = {name: options[name] for name in SETTINGS if options[name] is not None}
    IndexConfig(options.index, settings)
    with process_group() as workers:
        if options.features is not None:
            if workers.rank > 0:  # there is nothing to share
                return None
            create_store(options.gallery, overwrite=options.overwrite)  # refused before anything is read
            found = read_gallery_features(options.features)
            return save_features(
                options.gallery, *found, index=options.index, overwrite=options.overwrite, **settings
            )
        if workers.size > 1 and options.resume:
            raise InputError("gallery build: --resume does not go with torchrun; --overwrite starts over")
        if workers.rank == 0:
            create_store(options.gallery, overwrite=options.overwrite, resume=options.resume)
        device, table = choose_device(options.device), read_image_table(options)
        if workers.rank == 0:
            print_labels(table)
        model = load_model(options.checkpoint)
        record = ModelFingerprint.of(model, options.checkpoint)
        IndexConfig(options.index, settings).check_dimension(model.dimension)  # before embedding

        def gathered(rows: pd.DataFrame) -> Batches:
            shards, embed = shards_folder(options.gallery), partial(embed_table, model, options, device)
            return workers.gather(shards, rows, options.batch_size, embed)

        if workers.rank > 0:
            deque(gathered(table), maxlen=0)
            return None
        with GalleryBuilder(
            options.gallery,
            index=options.index,
            model=record,
            overwrite=options.overwrite,
            resume=options.resume,
            **settings,
        ) as builder:
            known = builder.paths
            gone = sorted(known - set(table["path"]))
            if gone:
                raise InputError(
                    f"{gone[0]}: in the unfinished build, but gone since; --overwrite starts over"
                )
            for features, rows in gathered(table[~table["path"].isin(known)]):
                builder.add(features, rows)
            return builder.finish()


def _add(options: Namespace) -> Gallery:
    check_source(options, "gallery add")
    from rga_reid.devices import choose_device
    from rga_reid.inference import ModelFingerprint
    from rga_reid.inference.distributed import iter_blocks
    from rga_reid.models import load_model

    gallery = _info(options)
    if options.features is not None:
        features, table = read_gallery_features(options.features)
        new = _unknown(gallery, table, options)
        gallery.add(features[new], table[new])
        return gallery
    device, table = choose_device(options.device), read_image_table(options)
    print_labels(table)
    table = table[_unknown(gallery, table, options)]
    checkpoint = find_checkpoint(gallery, options)
    model = load_model(checkpoint)
    record = ModelFingerprint.of(model, checkpoint)
    gallery.require_model(record)
    for features, rows in iter_blocks(embed_table(model, options, device, table)):
        gallery.add(features, rows, model=record)
    return gallery


def _unknown(gallery: Gallery, table: Any, options: Namespace) -> Any:
    """Which rows of a table the gallery does not have yet, by their paths."""
    known = table["path"].isin(gallery.known_paths(table["path"])).to_numpy()
    if known.any() and not options.skip_known:
        first, others = table["path"][known].iloc[0], known.sum() - 1
        more = f" (and {others:,} more)" if others else ""
        raise InputError(
            f"{first}: the gallery has this image already{more}; --skip-known leaves out what it has"
        )
    return ~known


def _remove(news: list[str], options: Namespace) -> Gallery:
    if not options.pid and not options.path:
        raise InputError("gallery remove: expected --pid N or --path P")
    gallery = _info(options)
    known = gallery.known_paths(options.path or ())
    # a path on the command line may be relative, one in a gallery of images never is
    paths = [path if path in known else os.path.abspath(path) for path in options.path or ()]
    started = time.monotonic()
    done = gallery.remove(pids=options.pid or (), paths=paths)
    news.append(f"removed {_count(done.images, 'image')} ({time.monotonic() - started:.1f} s)")
    if done.rewritten:
        kept = _count(done.rewritten, "other image")
        news.append(f"written again: {_count(done.segments, 'segment')} with {kept}")
    if done.indexes:
        news.append(f"built anew, as no index can forget: {_count(done.indexes, 'index', 'indexes')}")
    return gallery


def _info(options: Namespace) -> Gallery:
    from rga_reid.gallery import Gallery

    gallery = Gallery.open(options.gallery)
    if gallery.model is not None:
        check_outputs(options, {"json": ()}, {"--gallery (its model)": [gallery.model.checkpoint]})
    return gallery


def _check(news: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    with progress_bar("checking") as moved:
        checked = gallery.check(moved)
    if gallery.describe()["segments"] is None:
        news.append(f"checked: {_count(checked, 'image')} read back")
    else:
        news.append(f"checked: every byte of {_count(checked, 'file')} is as it was written")
    return gallery


def _compact(news: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    before = gallery.describe()["segments"]
    gallery.compact()
    if before is None:
        news.append("compacted")
    else:
        news.append(f"compacted: {_count(before, 'segment')} before, {gallery.describe()['segments']:,} now")
    return gallery


def _count(number: int, one: str, more: str | None = None) -> str:
    """A number of things, in words."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _tell(location: str, gallery: Gallery, json_file: str | None, news: list[str]) -> None:
    """Write what a saved gallery holds as JSON; print what was done, and what it holds."""
    from rga_reid.files import write_json
    from rga_reid.gallery.location import parse_location

    facts = {"location": str(parse_location(location)), **gallery.describe(), "bytes": gallery.size_on_disk()}
    if json_file is not None:
        write_json(json_file, facts)
    for line in news:
        print(line)
    _print(facts)


def _print(facts: dict[str, Any]) -> None:
    model, cameras, unlabelled = facts["model"], facts["cameras"], facts["unlabelled"]
    lines = {
        "gallery": facts["location"],
        "images": f"{facts['count']:,}"
        + ("" if facts["segments"] is None else f" in {_count(facts['segments'], 'segment')}"),
        "persons": f"{facts['identities']:,}"
        + (f" ({unlabelled:,} images unlabelled)" if unlabelled else ""),
        "cameras": f"{len(cameras)}" if cameras else "unknown",
        "index": f"{facts['index']}, {facts['dimension']} dimensions, {facts['metric']}",
    }
    if facts["settings"] is not None:
        lines["settings"] = ", ".join(f"{name} {value}" for name, value in facts["settings"].items())
        lines["recall@10"] = "not measured"
        if facts["recall_at_10"] is not None:
            lines["recall@10"] = f"{facts['recall_at_10']:.3f} against the exact search, on a sample"
    elif facts["index"] != "flat":
        lines["settings"] = "searched exactly: too few images for an index"
    lines["on disk"] = "not on this machine" if facts["bytes"] is None else f"{facts['bytes'] / 1e6:,.1f} MB"
    lines["model"] = "unknown (built from features)" if model is None else model["checkpoint"]
    if model is not None:
        lines["SHA-256"] = model["sha256"]
        lines["input"] = "{} x {} pixels (height x width)".format(*model["size"])
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {sanitize(value)}")
