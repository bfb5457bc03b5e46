"""Group the images of a gallery into persons."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rga_reid.data.events import read_columns
from rga_reid.errors import InputError, short_repr
from rga_reid.evaluation import Grouping, group_images
from rga_reid.gallery.gallery import Gallery
from rga_reid.gallery.store import Progress, ignore_progress, read_all_rows
from rga_reid.gallery.validation import require_nonempty


@dataclass(frozen=True, eq=False)
class GroupedImages:
    """Images of a gallery with their persons."""

    ids: np.ndarray  #: int64 (n,): ids of the images
    table: pd.DataFrame  #: the gallery's columns, and ``person`` and ``similarity``


def group_gallery(
    gallery: Gallery, settings: Grouping | None = None, progress: Progress = ignore_progress
) -> GroupedImages:
    """Group the images of a gallery into persons by ``group_images``, whatever their pids are.

    Tracks are taken from the columns ``track``, ``camera`` and ``time``.

    Args:
        gallery: not changed.
        settings: see ``Grouping``.
        progress: called with the fraction that is done.

    Returns:
        The column ``person`` (Int64) numbers persons from 0 in the order of their first images; it is null for
        an image that is like no other. ``similarity`` is the cosine of an image and the mean of its person,
        null without a person.

    Raises:
        InputError: an empty gallery.
    """
    rows = read_all_rows(gallery._store, vectors=True)
    require_nonempty(len(rows))
    table, features = rows.table, rows.vectors
    person = group_images(
        features,
        cameras=table["camera"],
        tracks=table["track"],
        times=table["time"],
        settings=settings,
        progress=progress,
    )
    known = person >= 0
    table["person"] = pd.Series(person, dtype="Int64").mask(~known)
    means = np.zeros((person.max() + 1, features.shape[1]))
    np.add.at(means, person[known], features[known])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(float).tiny)
    cosine = np.full(len(person), np.nan)
    cosine[known] = (features[known] * means[person[known]]).sum(axis=1)
    table["similarity"] = cosine
    return GroupedImages(rows.ids, table)


def import_persons(gallery: Gallery, file: str | os.PathLike[str]) -> tuple[int, int]:
    """Write the persons of a table, such as a corrected one of ``group_gallery``, to the column ``person``.

    Args:
        gallery: gallery to change; images that the table does not name keep their persons.
        file: ``.csv`` or ``.parquet`` file with the columns ``person`` and ``id``, or ``path`` instead of the latter.

    Returns:
        Number of images whose person has changed, and of rows whose images are not in the gallery (any more).

    Raises:
        InputError: not such a file, an image named twice, no image of the gallery, or persons of another type than
            in the gallery; see also ``Gallery.update``.
    """
    schema = {**gallery.columns, "id": "integer"}
    table, at = read_columns(file, schema=schema, only=("id", "path", "person"))
    key = "id" if "id" in table.columns else "path"
    if not {key, "person"} <= set(table.columns):
        found = ", ".join(map(str, table.columns)) or "none"
        raise InputError(f"{file}: expected the columns 'person' and 'id' (or 'path'), found {found}")
    twice = (table[key].isna() | table[key].duplicated()).to_numpy()
    if twice.any():
        row = int(twice.argmax())
        raise InputError(
            f"{at(row)}: {key}: expected each image once, found {short_repr(table[key].iloc[row])}"
        )
    rows = gallery.table.assign(id=gallery.ids)
    place = pd.Index(table[key]).get_indexer(rows[key])
    missing = len(table) - len(np.unique(place[place >= 0]))
    if missing == len(table):
        raise InputError(f"{file}: none of its {missing:,} images is in the gallery, by column '{key}'")
    rows, person = rows[place >= 0], table["person"].iloc[place[place >= 0]]
    if "person" in rows.columns:
        old, new = (values.astype("string").fillna("").to_numpy() for values in (rows["person"], person))
        rows, person = rows[old != new], person[old != new]
    gallery.update(rows["id"], person.to_frame())
    return len(rows), missing
