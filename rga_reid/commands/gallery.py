"""``gallery``: build one of images or features, add, watch, label, remove, merge, export, look at it, check it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from rga_reid.commands import _group, _watch
from rga_reid.commands._embedder import (
    read_embedder,
    read_gallery_embedder,
    require_same_model,
    suggest_engine,
)
from rga_reid.commands._inputs import (
    embed_table,
    read_gallery_features,
    read_image_table,
    shards_folder,
    warn_of_missing_labels,
    warn_of_unknown_places,
)
from rga_reid.commands._milvus import add_milvus_options
from rga_reid.commands._options import (
    LOCATION,
    OWN_MODEL,
    add_import_option,
    add_same_features_option,
    add_source_options,
    add_wait_option,
    check_source,
    check_wait,
    label_files,
    new_parser,
)
from rga_reid.commands._output import check_outputs, print_labels
from rga_reid.data.columns import CAMERA, RESERVED, UNKNOWN, conform
from rga_reid.errors import InputError, sanitize
from rga_reid.runtime import progress_bar

if TYPE_CHECKING:
    import pandas as pd

    from rga_reid.gallery import Gallery

#: Settings of the approximate indexes; their names are those of ``rga_reid.gallery.index``.
SETTINGS = {
    "hnsw_m": "hnsw: links per image in the graph (default: 32)",
    "ef_construction": "hnsw: candidates considered when an image is added (default: 128)",
    "ef_search": "hnsw: candidates considered in a search (default: 128)",
    "nlist": "ivf, ivfpq: number of lists (default: by the number of images)",
    "nprobe": "ivf, ivfpq: lists visited by a search (default: an eighth, at least 16)",
    "pq_m": "ivfpq: bytes of a compressed vector, a divisor of the dimension (default: at most 64)",
    "pq_bits": "ivfpq: bits of each codebook, 4 to 8 (default: 8 with enough images)",
    "refine": "ivfpq: candidates per match that are compared exactly (default: 16)",
}

_OUTPUTS: dict[str, tuple[str, ...]] = {"json": ()}
_OLD = "time < now - 30d"
_PREVIEWED = 10  # rows, cameras
_FILES_REMAIN = (
    "image files are not deleted: `gallery add --skip-known` and `gallery watch` add again those that exist"
)


def parser() -> ArgumentParser:
    """Options of ``gallery`` and of its actions."""
    build = _action(
        "build",
        "Build a gallery from a folder of images, from the gallery images of a data set, or from features "
        "computed elsewhere. Person, camera, time and any other columns are read from a table, or from the paths by "
        "a pattern; without either, person and camera are read from names such as 0002_c1s1_000451_03.jpg.",
    )
    add_source_options(build, "; embeds the images, and the gallery remembers it")
    add_wait_option(build)
    build.add_argument(
        "--index",
        default="flat",
        help="flat (exact, default), hnsw, ivf or ivfpq; see docs/gallery_storage.md",
    )
    for name, meaning in SETTINGS.items():
        build.add_argument(f"--{name.replace('_', '-')}", metavar="N", type=int, help=meaning)
    build.add_argument("--overwrite", action="store_true", help="replace an existing gallery")
    build.add_argument("--resume", action="store_true", help="continue an interrupted build from images")

    add = _action(
        "add", "Add images or features to a gallery. Images are embedded by the model of the gallery."
    )
    add_source_options(add, OWN_MODEL)
    add_wait_option(add)
    add_same_features_option(add)
    add.add_argument(
        "--skip-known", action="store_true", help="leave out images whose paths are already in the gallery"
    )

    remove = _action(
        "remove",
        "Erase images, without asking: afterwards no file of the gallery contains their vectors or rows. "
        "Image files and feature files are not touched.",
        "; with --dry-run, its key `paths` has the paths of the images that would be removed",
    )
    remove.add_argument("--pid", metavar="PID", type=str, nargs="+", help="remove all images of these people")
    remove.add_argument("--path", metavar="PATH", nargs="+", help="remove the images with these paths")
    remove.add_argument("--where", metavar="FILTER", help=f"remove the images that match, such as {_OLD!r}")
    remove.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be removed, and remove nothing; --json writes the paths",
    )
    add_wait_option(remove)

    label = _action(
        "label",
        "Set, correct or take off the person of images. The log of the gallery records time, old and new pid, and "
        "number of images.",
    )
    label.add_argument(
        "--where",
        metavar="FILTER",
        required=True,
        help="images to label, such as 'camera = 3 and track = 12'",
    )
    label.add_argument(
        "--pid",
        metavar="PID",
        type=str,
        required=True,
        help="person: a whole number or text; '' (or NA, null, ...) takes the label off",
    )
    add_wait_option(label)

    merge = new_parser(
        "gallery merge", "Add all images of gallery B to gallery A, which must have the same model."
    )
    merge.add_argument("gallery", metavar="A", help=f"target {LOCATION}")
    merge.add_argument("other", metavar="B", help="gallery whose images are added; it does not change")
    merge.add_argument("--json", metavar="FILE", help="write the description of the gallery as JSON")
    add_import_option(merge)
    add_milvus_options(merge)
    merge.add_argument(
        "--skip-known",
        action="store_true",
        help="leave out images whose paths are already in gallery A",
    )
    merge.add_argument(
        "--same-features",
        action="store_true",
        help="skip the check that both galleries have the same model, if one was built from features",
    )
    add_wait_option(merge)

    export = _action(
        "export",
        "Write features and all columns to a feature file, from which `gallery build --features` can build the "
        "gallery again.",
    )
    export.add_argument("--out", metavar="FILE.npz", required=True, help="file to write")

    command = new_parser("gallery", "Build, change and inspect galleries.")
    info = _action("info", "Describe a gallery; check sizes and headers of its files.")
    check = _action("check", "Check every byte of a gallery's files.")
    verify = _action("verify", "Old name of `gallery check`.")
    compact = _action("compact", "Join the segments that adding and removing left, and rebuild the index.")
    add_wait_option(compact)
    actions = command.add_subcommands(dest="action")
    for name, action, summary in (
        ("build", build, "build a gallery from images, a table, a data set or features"),
        ("add", add, "add images or features"),
        ("watch", _watch.parser(), "follow a folder, and add its images as they appear"),
        ("remove", remove, "erase images"),
        ("label", label, "set or correct the person of images"),
        ("merge", merge, "add all images of another gallery"),
        ("export", export, "write features and columns to a feature file"),
        ("info", info, "describe a gallery"),
        ("check", check, "check every byte of a gallery's files"),
        ("verify", verify, "old name of check"),
        ("compact", compact, "join the segments that adding and removing left"),
        ("group", _group.parser(), "group images into persons"),
    ):
        actions.add_subcommand(name, action, help=summary)
    return command


def _action(name: str, description: str, more: str = "") -> ArgumentParser:
    action = new_parser(f"gallery {name}", description)
    action.add_argument("--gallery", metavar="LOCATION", required=True, help=LOCATION)
    action.add_argument("--json", metavar="FILE", help=f"write the description of the gallery as JSON{more}")
    add_import_option(action)
    add_milvus_options(action)
    return action


def run(options: Namespace) -> None:
    """Run the action; write and print the description of the gallery."""
    messages: list[str] = []  # printed after all files are written
    facts: dict[str, Any] = {}  # written as JSON, with the description
    actions: dict[str, Callable[[Namespace], Gallery | None]] = {
        "build": _build,
        "add": partial(_add, messages),
        "watch": partial(_watch.watch, messages),
        "remove": partial(_remove, messages, facts),
        "label": partial(_label, messages),
        "merge": partial(_merge, messages),
        "export": partial(_export, messages),
        "info": _info,
        "check": partial(_check, messages),
        "verify": partial(_check, messages),
        "compact": partial(_compact, messages),
    }
    inner = options[options.action]
    if options.action == "group":
        _group.group(inner)
        return
    check_wait(inner)
    labels = label_files(inner, "features") if "features" in inner else {}
    check_outputs(inner, _OUTPUTS | ({"out": (".npz",)} if "out" in inner else {}), labels)
    gallery = actions[options.action](inner)
    if gallery is not None:
        _report(inner.gallery, gallery, inner.json, messages, facts)


def _build(options: Namespace) -> Gallery | None:
    """Build a gallery; return None in a process that only computes features for another one."""
    check_source(options, "gallery build")
    if options.preview:
        _preview(options)
        return None
    if options.features is None and options.checkpoint is None:
        raise InputError("gallery build: images need --checkpoint, the model that embeds them")
    if options.features is not None and options.resume:
        raise InputError("gallery build: --resume is for builds from images, but --features was given")
    if options.resume and options.overwrite:
        raise InputError(
            "gallery build: expected one of --resume, which continues, and --overwrite, which starts over"
        )
    from rga_reid.devices import choose_device
    from rga_reid.gallery import GalleryBuilder
    from rga_reid.gallery.build import save_features
    from rga_reid.gallery.index import IndexConfig
    from rga_reid.gallery.location import create_store
    from rga_reid.inference.distributed import Batches, process_group
    from rga_reid.inference.feature_files import read_fingerprint

    settings = {name: options[name] for name in SETTINGS if options[name] is not None}
    IndexConfig(options.index, settings)
    with process_group() as workers:
        if options.features is not None:
            if workers.rank > 0:  # there is nothing to share
                return None
            create_store(options.gallery, overwrite=options.overwrite)  # refused before features are read
            found = read_gallery_features(options.features)
            record = read_fingerprint(options.features)
            return save_features(
                options.gallery,
                *found,
                index=options.index,
                model=record,
                overwrite=options.overwrite,
                wait=options.wait,
                **settings,
            )
        if workers.size > 1 and options.resume:
            raise InputError("gallery build: --resume does not go with torchrun; --overwrite starts over")
        if workers.rank == 0:
            create_store(options.gallery, overwrite=options.overwrite, resume=options.resume)
        device, (table, columns) = choose_device(options.device), read_image_table(options)
        if workers.rank == 0:
            print_labels(table)
        model = read_embedder(options, device)
        IndexConfig(options.index, settings).check_dimension(model.dimension)  # before embedding
        if workers.rank == 0:
            warn_of_unknown_places(table, options)

        def gathered(rows: pd.DataFrame) -> Batches:
            shards, embed = shards_folder(options.gallery), partial(embed_table, model, options, device)
            return workers.gather(shards, rows, options.batch_size, embed)

        if workers.rank > 0:
            deque(gathered(table), maxlen=0)
            return None
        with GalleryBuilder(
            options.gallery,
            index=options.index,
            model=model.fingerprint,
            overwrite=options.overwrite,
            resume=options.resume,
            columns=columns,
            wait=options.wait,
            **settings,
        ) as builder:
            known = builder.paths
            gone = sorted(known - set(table["path"]))
            if gone:
                raise InputError(
                    f"{gone[0]}: in the unfinished build, but gone since; --overwrite starts over"
                )
            table = table[~table["path"].isin(known)]
            if workers.size == 1:
                suggest_engine(model, options, device, len(table))
            for features, rows in gathered(table):
                builder.add(features, rows)
            return builder.finish()


def _preview(options: Namespace, gallery: Gallery | None = None) -> None:
    """Print the first rows that would be added, and the number of images of each camera."""
    if options.features is not None:
        table, _ = conform(read_gallery_features(options.features)[1])
    else:
        table, _ = read_image_table(options, None if gallery is None else gallery.columns)
    new = None if gallery is None else _unknown(gallery, table, options)
    if new is not None and not new.all():
        print(f"{new.sum():,} new, {(~new).sum():,} known")
        table = table[new]
    print_labels(table, rows=_PREVIEWED)
    if gallery is None:
        warn_of_unknown_places(table, options)
    else:
        warn_of_missing_labels(gallery, table, options)
    images = table[CAMERA].value_counts().sort_index()
    if len(images):
        print(
            f"images of each camera: {_list_first([f'{name}: {count:,}' for name, count in images.items()])}"
        )


def _add(messages: list[str], options: Namespace) -> Gallery | None:
    check_source(options, "gallery add")
    from rga_reid.devices import choose_device
    from rga_reid.inference.distributed import iter_blocks
    from rga_reid.inference.feature_files import read_fingerprint

    gallery = _info(options)
    if options.preview:
        _preview(options, gallery)
        return None
    if options.features is not None:
        features, table = read_gallery_features(options.features)
        new = _unknown(gallery, table, options)
        model_of_file = None if options.same_features else read_fingerprint(options.features)
        require_same_model(gallery, model_of_file, options, f"--features {options.features}")
        gallery.add(features[new], table[new], model=model_of_file)
        warn_of_missing_labels(gallery, table[new], options)
        messages.append(_added(int(new.sum()), int((~new).sum())))
        _maintain(messages, gallery, int(new.sum()))
        return gallery
    device, (table, columns) = choose_device(options.device), read_image_table(options, gallery.columns)
    new = _unknown(gallery, table, options)
    known, table = int((~new).sum()), table[new]
    print_labels(table)
    if len(table):
        _watch.wait_for_lock(options)
    model = read_gallery_embedder(gallery, options, device)
    record = None if options.same_features else model.fingerprint
    warn_of_missing_labels(gallery, table, options)
    added = 0
    for features, rows in iter_blocks(embed_table(model, options, device, table)):
        gallery.add(features, rows, model=record, columns=columns)
        added += len(rows)
    messages.append(_added(added, known))
    _maintain(messages, gallery, added)
    return gallery


def _maintain(messages: list[str], gallery: Gallery, added: int) -> None:
    """Join small segments after an addition of many images, which has succeeded whatever happens here."""
    from rga_reid.gallery.segments import MAINTAINED_ROWS

    if added >= MAINTAINED_ROWS:
        try:
            gallery.maintain()
        except InputError as error:
            messages.append(f"not compacted: {error}")


def _added(new: int, known: int) -> str:
    return f"{new:,} added" + (f", {known:,} known" if known else "")


def _unknown(gallery: Gallery, table: Any, options: Namespace) -> Any:
    """Mask of the rows of a table whose paths are not in the gallery."""
    known = table["path"].isin(gallery.known_paths(table["path"])).to_numpy()
    if known.any() and not options.skip_known:
        first, others = table["path"][known].iloc[0], known.sum() - 1
        more = f" (and {others:,} more)" if others else ""
        raise InputError(f"{first}: already in the gallery{more}; leave out known images with --skip-known")
    return ~known


def _remove(messages: list[str], facts: dict[str, Any], options: Namespace) -> Gallery:
    if bool(options.pid or options.path) == (options.where is not None):
        raise InputError("gallery remove: expected --pid N, --path P, or --where FILTER alone")
    from rga_reid.serving.uploads import COLUMN as UPLOAD_COLUMN

    gallery = _info(options)
    known = gallery.known_paths(options.path or ())
    # paths of a gallery built from images are absolute, paths on the command line may be relative
    paths = [path if path in known else os.path.abspath(path) for path in options.path or ()]
    started = time.monotonic()
    pids = options.pid or ()
    if options.dry_run:
        found = gallery.find(pids=pids, paths=paths, where=options.where)
        more = (
            f", of which {_PREVIEWED} are shown (--json FILE writes all paths)"
            if len(found) > _PREVIEWED
            else ""
        )
        messages += [f"would remove {_count(len(found), 'image')}{more}; nothing was removed", _FILES_REMAIN]
        messages += _uploads_remain(found)
        facts["paths"] = found["path"].tolist()
        print_labels(found.drop(columns=["id", "camid"]), rows=_PREVIEWED)
        return gallery
    uploaded = []
    if UPLOAD_COLUMN in gallery.columns:
        uploaded = _uploads_remain(gallery.find(pids=pids, paths=paths, where=options.where))
    done = gallery.remove(pids=pids, paths=paths, where=options.where)
    messages.append(f"removed {_count(done.images, 'image')} ({time.monotonic() - started:.1f} s)")
    if done.rewritten:
        kept = _count(done.rewritten, "other image")
        messages.append(f"rewritten: {_count(done.segments, 'segment')} with {kept}")
    if done.indexes:
        messages.append(f"rebuilt: {_count(done.indexes, 'index', 'indexes')}")
    messages += [_FILES_REMAIN, *uploaded]
    return gallery


def _uploads_remain(found: pd.DataFrame) -> list[str]:
    """Return a message on pictures that clients of ``serve`` have uploaded; empty without these."""
    from rga_reid.serving.uploads import COLUMN as UPLOAD_COLUMN

    names = sorted({name for name in found[UPLOAD_COLUMN].dropna() if name}) if UPLOAD_COLUMN in found else []
    if not names:
        return []
    return [
        f"{_count(len(names), 'picture')} uploaded to a server: only the server deletes these (DELETE /v1/images); "
        f"otherwise delete them in its folder uploads: {_list_first(names)}"
    ]


def _label(messages: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    pid = None if options.pid in UNKNOWN else options.pid  # as tables write it
    changed = _count(gallery.label(options.where, pid), "image")
    messages.append(f"took the label off {changed}" if pid is None else f"labelled {changed}")
    return gallery


def _merge(messages: list[str], options: Namespace) -> Gallery:
    from rga_reid.gallery import Gallery

    gallery, other = _info(options), Gallery.open(options.other)
    added = gallery.merge(other, skip_known=options.skip_known, same_features=options.same_features)
    messages.append(_added(added, len(other) - added))
    return gallery


def _export(messages: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    gallery.export(options.out)
    messages.append(f"{options.out}: {_count(len(gallery), 'image')}, {gallery.dimension} features each")
    return gallery


def _info(options: Namespace) -> Gallery:
    from rga_reid.gallery import Gallery

    gallery = Gallery.open(options.gallery, **({"wait": options.wait} if "wait" in options else {}))
    if gallery.model is not None:
        check_outputs(options, {"json": ()}, {"--gallery (its model)": [gallery.model.checkpoint]})
    return gallery


def _check(messages: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    with progress_bar("checking") as moved:
        checked = gallery.check(moved)
    if gallery.describe()["segments"] is None:
        messages.append(f"checked: {_count(checked, 'image')} read back")
    else:
        messages.append(f"checked: every byte of {_count(checked, 'file')} is unchanged")
    return gallery


def _compact(messages: list[str], options: Namespace) -> Gallery:
    gallery = _info(options)
    before = gallery.describe()["segments"]
    gallery.compact()
    if before is None:
        messages.append("compacted")
    else:
        messages.append(
            f"compacted: {_count(before, 'segment')} before, {gallery.describe()['segments']:,} now"
        )
    return gallery


def _list_first(names: Sequence[object]) -> str:
    shown = ", ".join(sanitize(str(name)) for name in names[:_PREVIEWED])
    return shown + (f" and {len(names) - _PREVIEWED:,} more" if len(names) > _PREVIEWED else "")


def _without(images: int) -> str:
    return f", {_count(images, 'image')} without" if images else ""


def _count(number: int, one: str, more: str | None = None) -> str:
    """Format a count with its noun."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _report(
    location: str, gallery: Gallery, json_file: str | None, messages: list[str], more: dict[str, Any]
) -> None:
    """Write the description of a gallery and more facts as JSON; print messages and description."""
    from rga_reid.files import write_json
    from rga_reid.gallery.location import parse_location

    facts = {"location": str(parse_location(location)), **gallery.describe(), "bytes": gallery.size_on_disk()}
    if json_file is not None:
        write_json(json_file, facts | more)
    for line in messages:
        print(line)
    _print(facts)


def _print(facts: dict[str, Any]) -> None:
    model, cameras, unlabelled = facts["model"], facts["cameras"], facts["unlabelled"]
    others = [f"{name} ({kind})" for name, kind in facts["columns"].items() if name not in RESERVED]
    lines = {
        "gallery": facts["location"],
        "images": f"{facts['count']:,}"
        + ("" if facts["segments"] is None else f" in {_count(facts['segments'], 'segment')}"),
        "persons": f"{facts['identities']:,}"
        + (f" ({unlabelled:,} images unlabelled)" if unlabelled else ""),
        "cameras": f"{len(cameras)} ({_list_first(cameras)}){_without(facts['without_camera'])}"
        if cameras
        else "unknown",
        **(
            {"times": " to ".join(facts["times"]) + _without(facts["without_time"])} if facts["times"] else {}
        ),
        **({"columns": ", ".join(others)} if others else {}),
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
        lines["engine"] = model["engine"]
        lines["SHA-256"] = model["sha256"]
        lines["input"] = "{} x {} pixels (height x width)".format(*model["size"])
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {sanitize(value)}")
