"""Tracklets: one feature for all images of a track.

As in galleries, a track is identified by its camera and its number together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, check_choice
from rga_reid.evaluation.features import LabelledFeatures, split_by_count
from rga_reid.evaluation.grouping import find_tracks

Pooling = Literal["mean", "attention"]
TEMPERATURE = 0.1  #: of attention pooling

_FRAMES = 4096  # frames pooled at a time, in float64


def pool_tracks(frames: LabelledFeatures, pooling: Pooling = "mean") -> LabelledFeatures:
    """Return one feature for each track, and the features of images without a track as they are.

    Args:
        frames: features of images, with the column ``track``.
        pooling: ``mean``: the mean of the features, the usual rule (Gao and Nevatia, arXiv 1805.02104).
            ``attention``: dot-product attention with the mean as query and the frames as keys and values. The
            weight of a frame is the softmax of its cosine with the mean, divided by a temperature of 0.1, so
            frames that show something else, such as another person in front, count less. It has no
            parameters to learn.

    Returns:
        Features in the order of the tracks' first images, whose paths and other labels they have.

    Raises:
        InputError: no column ``track``, no known track, or a track of two identities.

    Example:
        >>> frames = LabelledFeatures(np.eye(3), [7, 7, 8], [1, 1, 1], columns={"track": [4, 4, None]})
        >>> pooled = pool_tracks(frames)
        >>> pooled.features.tolist(), pooled.pids.tolist()
        ([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [7, 8])
    """
    prefix = f"{frames.name}_" if frames.name else ""
    if "track" not in frames.columns or frames.columns["track"].isna().all():
        raise InputError(f"{prefix}track: expected the track of each image (a column track), found none")
    _check_identities(frames.table, f"{prefix}track")
    order, starts = order_tracks(frames.table)
    pooled = _pool(frames.features, order, starts, pooling)
    return replace(frames.select(order[starts[:-1]]), features=pooled)


def pool_batches(
    batches: Iterable[tuple[np.ndarray, pd.DataFrame]], pooling: Pooling = "mean"
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Pool the tracks in a stream of features, one track in memory at a time.

    Args:
        batches: features with unit rows and rows of a table sorted by ``sort_tracks``.
        pooling: see ``pool_tracks``.

    Yields:
        Features, float32 with unit rows, and the rows of the tracks' first images.
    """
    held: list[tuple[np.ndarray, pd.DataFrame]] = []
    for features, rows in batches:
        held.append((features, rows))
        table = pd.concat([part for _, part in held], ignore_index=True)
        order, starts = order_tracks(table)
        if len(starts) > 2:  # the last track may go on
            joined = np.concatenate([part for part, _ in held])
            last = int(starts[-2])
            yield _unit_tracks(joined, table, order, starts[:-1], pooling)
            held = [(joined[last:], table.iloc[last:])]
    if held:
        table = pd.concat([part for _, part in held], ignore_index=True)
        order, starts = order_tracks(table)
        yield _unit_tracks(np.concatenate([part for part, _ in held]), table, order, starts, pooling)


def sort_tracks(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which the images of each track follow each other, in the order of their first images.

    A split of a data set is sorted separately: a track may be a query and in the gallery.

    Raises:
        InputError: no column ``track``, no known track, or a track of two identities.
    """
    if "track" not in table or table["track"].isna().all():
        raise InputError(
            "--pool-tracks, or the protocol mars: expected images with tracks (a column track), found none"
        )
    _check_identities(table, "--pool-tracks")
    splits = table["split"] if "split" in table else pd.Series("", index=table.index)
    parts = [part.reset_index(drop=True) for _, part in table.groupby(splits, sort=False)]
    return pd.concat([part.iloc[order_tracks(part)[0]] for part in parts], ignore_index=True)


def order_tracks(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of images by tracks, and where each track begins in this order, and the number of images.

    An image of unknown track or camera is a track by itself.
    """
    camera = _camera_column(table)
    code = find_tracks(len(table), None if camera is None else table[camera], table["track"], None).track
    if "split" in table:
        code = np.where(code < 0, -1, code + pd.factorize(table["split"])[0] * (code.max(initial=0) + 1))
    alone = np.flatnonzero(code < 0)
    code[alone] = code.max(initial=-1) + 1 + np.arange(len(alone))
    number = pd.factorize(code)[0]
    starts = np.concatenate([[0], np.cumsum(np.bincount(number))])
    return np.argsort(number, kind="stable"), starts


def _camera_column(table: pd.DataFrame) -> str | None:
    """Return the column of cameras, if any camera is known."""
    known = [column for column in ("camid", "camera") if column in table and table[column].notna().any()]
    return known[0] if known else None


def _check_identities(table: pd.DataFrame, name: str) -> None:
    camera = _camera_column(table)
    keys = ["track"] if camera is None else [camera, "track"]
    known = table.dropna(subset=[*keys, "pid"])
    several = known.groupby(keys)["pid"].transform("nunique") > 1
    if several.any():
        row = known[several].iloc[0]
        where = "" if camera is None else f" of camera {row[camera]}"
        raise InputError(f"{name}: the track {row['track']}{where} has images of two identities")


def _unit_tracks(
    features: np.ndarray, table: pd.DataFrame, order: np.ndarray, starts: np.ndarray, pooling: Pooling
) -> tuple[np.ndarray, pd.DataFrame]:
    pooled = _pool(features, order, starts, pooling)
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
    rows = table.iloc[order[starts[:-1]]].reset_index(drop=True)
    if not lengths.all():
        where = rows["path"].iloc[int(np.argmin(lengths))]
        raise InputError(f"{where}: the features of this track cancel out: their mean is zero")
    return (pooled / lengths).astype(np.float32), rows


def _pool(features: np.ndarray, order: np.ndarray, starts: np.ndarray, pooling: Pooling) -> np.ndarray:
    """Return a feature for each track, float64 for float64 features, otherwise float32."""
    check_choice("pooling", pooling, get_args(Pooling))
    sizes = np.diff(starts)
    kind = np.float64 if features.dtype == np.float64 else np.float32
    pooled = np.empty((len(sizes), features.shape[1]), kind)
    for part in split_by_count(sizes, _FRAMES):
        first = starts[part.start]
        rows = order[first : starts[part.stop]]
        frames = np.asarray(features[rows], np.float64)
        begins, track = starts[part] - first, np.repeat(np.arange(part.stop - part.start), sizes[part])
        mean = np.add.reduceat(frames, begins) / sizes[part, None]
        if pooling == "attention":
            weight = np.exp(_cosine(frames, mean[track]) / TEMPERATURE)
            total = np.add.reduceat(weight, begins)
            mean = np.add.reduceat(frames * weight[:, None], begins) / total[:, None]
        pooled[part] = mean
    return pooled


def _cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of rows; 0 for a row of zeros."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = (one * other).sum(axis=1)
    return np.divide(products, lengths, out=np.zeros(len(one)), where=lengths > 0)
