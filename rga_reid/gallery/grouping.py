"""Group the images of a gallery into persons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

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
