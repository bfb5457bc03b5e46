"""Read the inputs that shared options name: image tables, features, checkpoints, thresholds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from rga_reid.errors import InputError, sanitize

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from rga_reid.data import ImageError
    from rga_reid.evaluation import LabelledFeatures
    from rga_reid.gallery import Gallery
    from rga_reid.inference import Embedder
    from rga_reid.inference.verify import Threshold

_SHOWN = 3  # images that do not match a pattern


def read_image_table(
    options: Namespace, schema: Mapping[str, str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the images to embed and the types of their columns; see ``add_source_options``.

    Args:
        options: parsed options.
        schema: columns of the gallery to which they are added; none by default.

    Returns:
        The table, with absolute paths, which stay valid in any working folder, and ``schema`` with its new columns.
    """
    from rga_reid.data import read_table
    from rga_reid.data.columns import RESERVED, conform
    from rga_reid.data.events import read_events

    schema = RESERVED if schema is None else schema
    if options.table is not None:
        table, columns = read_events(
            options.table,
            images_root=options.images_root,
            timezone=options.timezone,
            schema=schema,
            must_exist=not options.skip_unreadable,
        )
        _print_unknown(table, "column")
        return table, columns
    if options.images is not None:
        table, columns, matching = read_folder(options, schema)
        if options.pattern is not None and matching.all():
            print(f"all {len(table):,} images match the pattern")
        elif not matching.all():
            others = table["path"][~matching]
            shown = [sanitize(os.path.relpath(path, options.images)) for path in others[:_SHOWN]]
            print(
                f"{len(others):,} of {len(table):,} images do not match the pattern, such as {', '.join(shown)}"
            )
        if options.pattern is not None:
            _print_unknown(table, "group")
        return table, columns
    table = read_table(os.path.abspath(options.data.root), options.data.dataset)
    # the types of labels are those of the whole data set, whichever split is chosen
    kept, columns = conform(table.drop(columns=["path", "split"]), schema)
    kept, split = kept.assign(path=table["path"]), options.data.get("split", "gallery")
    split = "train" if split == "val" else split  # held out of training
    if split is not None:
        kept = kept[table["split"] == split].reset_index(drop=True)
    if kept.empty:
        raise InputError(f"--data.root {options.data.root}: the split {split!r} has no images")
    return kept, columns


def _print_unknown(table: pd.DataFrame, source: str) -> None:
    """Say that no image has a camera or a time: the group of a pattern may have another name."""
    for column in ("camera", "time"):
        if table[column].isna().all():
            print(f"the {column} of all images is unknown: expected a {source} named {column}")


def warn_of_unknown_places(table: pd.DataFrame, options: Namespace) -> None:
    """Say on stderr that no image of ``--images`` has a camera or a time: ``--pattern`` may be forgotten."""
    if options.images is None or options.pattern is not None:
        return
    if table[["camera", "time"]].isna().all(axis=None):
        print(
            "warning: camera and time of all images are unknown; --pattern reads them from the paths",
            file=sys.stderr,
            flush=True,
        )


def warn_of_missing_labels(gallery: Gallery, table: pd.DataFrame, options: Namespace) -> None:
    """Say on stderr which labels images of a gallery have and the new ones lack: ``--pattern`` may be forgotten."""
    from rga_reid.gallery.filters import is_known

    if table.empty:
        return
    schema = gallery.columns
    unknown = [name for name in schema if name not in table or table[name].isna().all()]
    missing = [
        name
        for name in unknown
        if name not in ("path", "pid") and gallery.count(where=is_known(name, schema))
    ]
    if missing:
        by_pattern = options.get("images") is not None and options.pattern is None
        print(
            f"warning: the new images have no {', '.join(missing)}, which images of the gallery have"
            + ("; --pattern reads labels from the paths" if by_pattern else ""),
            file=sys.stderr,
            flush=True,
        )


def read_folder(
    options: Namespace, schema: Mapping[str, str], paths: Sequence[Path] | None = None
) -> tuple[pd.DataFrame, dict[str, str], pd.Series]:
    """Return images below ``--images``, the types of their columns, and which match ``--pattern``, if it is given.

    Args:
        options: parsed options.
        schema: columns of the gallery.
        paths: images below the folder; all by default.
    """
    import pandas as pd

    from rga_reid.data import table_from_images
    from rga_reid.data.columns import conform
    from rga_reid.data.events import table_from_pattern

    folder = os.path.abspath(options.images)
    if options.pattern is not None:
        return table_from_pattern(
            folder, options.pattern, timezone=options.timezone, schema=schema, paths=paths
        )
    table = table_from_images(folder, paths)
    kept, columns = conform(table.drop(columns="path"), schema)
    return kept.assign(path=table["path"]), columns, pd.Series(True, index=table.index)


def read_gallery_features(file: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Read features and their table from a file that has a path for each row.

    Raises:
        InputError: not a feature file, or one without paths.
    """
    from rga_reid.inference.feature_files import read_features

    features, table = read_features(file)
    if "path" not in table.columns:
        raise InputError(f"{file}: expected an array 'paths', or a column 'path' of its CSV file")
    return features, table


def read_query_and_gallery(query: str, gallery: str) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Read two labelled feature files.

    Raises:
        InputError: not a feature file, no identities, or cameras in one of the files only.
    """
    from rga_reid.evaluation import LabelledFeatures

    for option, path in (("--query", query), ("--gallery", gallery)):
        if not path:
            raise InputError(f"{option}: expected a file of features, got an empty name")
    sides = (
        LabelledFeatures.from_table(*_read_labelled(query), name="query"),
        LabelledFeatures.from_table(*_read_labelled(gallery), name="gallery"),
    )
    has_cameras = [side.camids is not None for side in sides]
    if len(set(has_cameras)) > 1:
        given, missing = (query, gallery) if has_cameras[0] else (gallery, query)
        raise InputError(
            f"{missing}: expected cameras (an array 'camids', or a column 'camid' of its CSV file), as {given} "
            "has them; give cameras in both files or in neither"
        )
    return sides


def _read_labelled(path: str) -> tuple[np.ndarray, pd.DataFrame]:
    from rga_reid.inference.feature_files import read_features

    features, table = read_features(path)
    if "pid" not in table:
        raise InputError(
            f"{path}: expected identities (an array 'pids', or a column 'pid' of its CSV file), one per feature row"
        )
    return features, table


def load_threshold(options: Namespace) -> Threshold | None:
    """Return the threshold given by ``--threshold`` or ``--calibration``, or None.

    Raises:
        InputError: the calibration file cannot be read.
    """
    from rga_reid.inference.verify import Threshold, read_calibration

    if options.calibration is not None:
        return read_calibration(options.calibration)
    return None if options.threshold is None else Threshold(options.threshold)


def warn_of_gallery_size(threshold: Threshold | None, images: int) -> None:
    """Say on stderr that the rate of a threshold does not hold for a search among so many images."""
    warning = None if threshold is None else threshold.gallery_warning(images)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def shards_folder(location: str | os.PathLike[str]) -> Path:
    """Return the folder, next to an output, where several processes write their shards of it."""
    output = os.fspath(location)
    if "://" in output:
        return Path.cwd() / f"{output.rpartition('/')[2]}.shards"
    return Path(f"{os.path.abspath(output)}.shards")


def embed_table(
    model: Embedder, options: Namespace, device: torch.device, table: pd.DataFrame
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Yield features of the images batch by batch; finally list on stderr what ``--skip-unreadable`` left out."""
    from rga_reid.data import ImageError
    from rga_reid.inference import stream_features

    unreadable: list[ImageError] = []
    refused = unreadable if options.skip_unreadable else None
    try:
        yield from stream_features(model, table, options.batch_size, device, refused=refused)
    except ImageError as error:
        raise InputError(f"{error}; --skip-unreadable leaves out such files") from None
    print_unreadable(unreadable)


def print_unreadable(unreadable: Sequence[ImageError]) -> None:
    """List on stderr the images that ``--skip-unreadable`` left out."""
    if unreadable:
        print(f"left out {len(unreadable):,} unreadable images:", file=sys.stderr)
    for error in unreadable:
        print(f"  {sanitize(str(error))}", file=sys.stderr)
