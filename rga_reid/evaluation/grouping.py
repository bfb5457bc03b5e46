"""Group unlabelled images into persons by their features, and measure a grouping against known identities.

Two images are compared by the Jaccard distance of their k-reciprocal neighbours (Zhun Zhong, Liang Zheng,
Donglin Cao, Shaozi Li: Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017), and
grouped by DBSCAN (Martin Ester, Hans-Peter Kriegel, Jörg Sander, Xiaowei Xu: A Density-Based Algorithm for
Discovering Clusters in Large Spatial Databases with Noise, KDD 1996). Only distances up to ``eps`` are kept,
in a sparse graph, so memory does not grow with n².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from rga_reid.devices import EXACT_TYPES, choose_device
from rga_reid.errors import InputError, check_int
from rga_reid.evaluation.features import feature_matrix, row_norms, to_float32
from rga_reid.evaluation.rerank import EncodedItems, ReRanking, SparseVectors, jaccard_similarity
from rga_reid.evaluation.similarity import BLOCK_SIZE, CosineScores, group_equal_rows, use_full_precision

NO_PERSON = -1  #: group of an image that is like no other, as in scikit-learn

_CELLS = 2**21  # distances computed at a time
_ROWS = 1024  # rows averaged at a time


@dataclass(frozen=True)
class Grouping:
    """Settings of a grouping.

    Args:
        eps: largest Jaccard distance of two neighbours, above 0 and below 1. A larger one joins more.
        min_samples: images within ``eps`` (the image itself included) that make an image the core of a group.
            Groups of fewer images are dissolved.
        min_score: least cosine of two neighbours, such as a calibrated threshold. Jaccard distances are
            relative: without a limit, two people who are each other's nearest may be joined, above all in a
            small gallery where people occur once.
        k1: reciprocal neighbours, about as many as there are images of a person; at most a sixth of the
            items, because a neighbour of all items distinguishes none.
        k2: neighbours whose vectors are averaged, see ``ReRanking``. With 2, an image without any
            reciprocal neighbour is at a distance of 2/3 or more from all others; with the 6 of re-ranking it
            would be taken for the person of its nearest images.

    Raises:
        InputError: a value outside its range.
    """

    eps: float = 0.55
    min_samples: int = 4
    min_score: float = -1.0
    k1: int = 20
    k2: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise InputError(f"eps: expected above 0 and below 1, found {self.eps!r}")
        if not -1 <= self.min_score <= 1:
            raise InputError(f"min_score: expected a cosine from -1 to 1, found {self.min_score!r}")
        for name in ("min_samples", "k1", "k2"):
            check_int(name, getattr(self, name))

    def neighbours(self, items: int) -> ReRanking:
        """Return k1 and k2 for a number of items, 2 or more."""
        k1 = max(1, min(self.k1, items // 6))
        return ReRanking(k1, min(self.k2, k1 + 1))


def group_images(
    features: Any,
    *,
    cameras: Any = None,
    tracks: Any = None,
    times: Any = None,
    settings: Grouping | None = None,
    device: str | torch.device = "cpu",
    block_size: int = BLOCK_SIZE,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Group images into persons.

    A track, which is identified by its camera and its track number together, is one person: it is compared
    with other tracks and images by the mean of its features, and all its images get one group. Two tracks of
    one camera that overlap in time are two persons: a group with such tracks is split by joining its most
    similar members first, and never two of these.

    Args:
        features: floating-point numbers ``(n, d)``, an array (memory maps too) or a tensor.
        cameras, tracks: labels ``(n,)``, numbers or texts, null where unknown. An image without one of them
            is in no track; without ``cameras``, a track is identified by its number alone.
        times: times ``(n,)``, numbers or timestamps, null where unknown. A track lasts from the first to the
            last time of its images.
        settings: by default those of ``Grouping()``.
        device: device of the products, such as "cuda".
        block_size: rows held on the device at a time; changes no result.
        progress: called with the fraction of the search for neighbours that is done.

    Returns:
        int64 ``(n,)``: the person of each image, numbered from 0 in the order of their first images, or −1:
        like no other image (fewer than ``min_samples`` images would form the group).

    Raises:
        InputError: features that are not a matrix; a row with NaN, infinity or only zeros; labels of another
            length.

    Example:
        >>> features = np.float32([[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 1, 0.1], [0, 0, 1]])
        >>> group_images(features, tracks=[4, 5, 4, None, None], settings=Grouping(min_samples=2)).tolist()
        [0, 1, 0, 1, -1]
    """
    settings = Grouping() if settings is None else settings
    check_int("block_size", block_size)
    where = choose_device(device, types=EXACT_TYPES)
    matrix = feature_matrix(features, "features")
    lengths = row_norms(matrix, "features", allow_zero=False)
    tracked = find_tracks(len(matrix), cameras, tracks, times)
    item = _items(matrix, tracked.track)
    count = int(item.max()) + 1
    rows = matrix if count == len(matrix) else _mean_rows(matrix, lengths, item, count)
    if count == 1:
        group = np.zeros(1, np.int64)
    else:
        graph = _neighbour_graph(rows, settings, where, block_size, progress)
        group = cluster(graph, settings.min_samples, np.bincount(item))
        group = split_overlapping(group, graph, tracked.of_items(item, count))
    return _number(group[item], settings.min_samples)


# ---------- tracks ----------


class Tracks(NamedTuple):
    """Tracks, numbered from 0."""

    track: np.ndarray  #: int64 (n,): track of each image, −1 for none
    camera: np.ndarray  #: int64 (tracks,): number of the camera, the same for all without cameras
    start: np.ndarray  #: float64 (tracks,): time of the first image, NaN if unknown
    stop: np.ndarray  #: float64 (tracks,): time of the last image, NaN if unknown

    def of_items(self, item: np.ndarray, items: int) -> Tracks:
        """Return the tracks of items, each of which is a whole track or has none."""
        first = np.full(items, -1)
        first[item] = self.track
        known = first >= 0
        values = [np.full(items, -1), np.full(items, np.nan), np.full(items, np.nan)]
        for target, source in zip(values, self[1:], strict=True):
            target[known] = source[first[known]]
        return Tracks(first, *values)


def find_tracks(images: int, cameras: Any, tracks: Any, times: Any) -> Tracks:
    """Return the tracks of images, see ``group_images``.

    Raises:
        InputError: labels of another length.
    """
    track = _codes(tracks, images, "tracks")
    camera = np.zeros(images, np.int64) if cameras is None else _codes(cameras, images, "cameras")
    known = (track >= 0) & (camera >= 0)
    code = np.full(images, -1)
    code[known] = pd.factorize(camera[known] * (track.max(initial=0) + 1) + track[known])[0]
    time = pd.Series(_seconds(times, images)[known])
    spans = time.groupby(code[known]).agg(["min", "max"])
    of_track = pd.Series(camera[known]).groupby(code[known]).first()
    return Tracks(code, of_track.to_numpy(), spans["min"].to_numpy(), spans["max"].to_numpy())


def _codes(values: Any, images: int, name: str) -> np.ndarray:
    """Number labels; −1 for null."""
    if values is None:
        return np.full(images, -1)
    series = _column(values, images, name)
    return pd.factorize(series)[0].astype(np.int64)


def _seconds(times: Any, images: int) -> np.ndarray:
    """Return times as numbers, NaN where unknown; the unit does not matter."""
    if times is None:
        return np.full(images, np.nan)
    series = _column(times, images, "times")
    if isinstance(series.dtype, pd.DatetimeTZDtype) or series.dtype.kind == "M":
        return np.where(series.isna(), np.nan, series.astype("int64", copy=False).to_numpy(np.float64))
    try:
        return series.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise InputError("times: expected numbers or timestamps, null where unknown") from None


def _column(values: Any, images: int, name: str) -> pd.Series:
    series = pd.Series(values).reset_index(drop=True)
    if len(series) != images:
        raise InputError(f"{name}: expected {images} values, one per row of features, found {len(series)}")
    return series


# ---------- items: tracks, and images without a track ----------


def _items(features: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Number the items by their first images: a track, or all copies of an image without a track."""
    free = np.flatnonzero(track < 0)
    key = track.copy()
    key[free] = track.max(initial=-1) + 1 + group_equal_rows(features, free)
    return pd.factorize(key)[0].astype(np.int64)


def _mean_rows(features: np.ndarray, lengths: np.ndarray, item: np.ndarray, items: int) -> np.ndarray:
    """Return the mean of each item's rows, scaled to length 1 before."""
    sums = np.zeros((items, features.shape[1]), np.float32)
    for start in range(0, len(features), _ROWS):
        part = slice(start, start + _ROWS)
        rows = to_float32(features, part) / lengths[part, None].astype(np.float32)
        np.add.at(sums, item[part], rows)
    sums /= np.bincount(item)[:, None].astype(np.float32)
    return sums


# ---------- the graph and its groups ----------


def _neighbour_graph(
    rows: np.ndarray,
    settings: Grouping,
    device: torch.device,
    block_size: int,
    progress: Callable[[float], None] | None,
) -> csr_matrix:
    """Return the Jaccard distances of neighbours: those up to ``eps`` of pairs that reach ``min_score``."""
    scores = CosineScores(rows, rows, device)
    with use_full_precision(device):
        encoded = EncodedItems(
            scores, rows, settings.neighbours(len(rows)), block_size=block_size, progress=progress
        )
    graph = jaccard_graph(encoded.vectors, settings.eps)
    if settings.min_score == -1:
        return graph
    row, column = np.repeat(np.arange(len(rows)), np.diff(graph.indptr)), graph.indices
    kept = (row == column) | (scores.exact(row, column) >= settings.min_score)
    ends = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=len(rows)))])
    return csr_matrix((graph.data[kept], column[kept], ends), shape=graph.shape)


def jaccard_graph(vectors: SparseVectors, eps: float) -> csr_matrix:
    """Return the Jaccard distances up to ``eps`` of all pairs of vectors, each pair in both directions.

    Returns:
        Sparse float64 ``(n, n)`` with a stored 0 for a distance of 0, also on the diagonal.
    """
    items = vectors.items
    inverted = vectors.invert(np.arange(items))
    step = max(1, _CELLS // items)
    counts, columns, distances = [np.zeros(1, np.int64)], [], []
    for start in range(0, items, step):
        rows = np.arange(start, min(start + step, items))
        place, overlap = inverted.overlaps(vectors, rows)
        row, column = np.divmod(place, items)
        distance = np.maximum(1 - jaccard_similarity(overlap), 0)
        distance[row + start == column] = 0  # also for vectors of a smaller sum than 1
        near = distance <= eps
        counts.append(np.bincount(row[near], minlength=len(rows)))
        columns.append(column[near])
        distances.append(distance[near])
    ends = np.cumsum(np.concatenate(counts))
    return csr_matrix((np.concatenate(distances), np.concatenate(columns), ends), shape=(items, items))


def cluster(graph: csr_matrix, min_samples: int, images: np.ndarray) -> np.ndarray:
    """Cluster items by DBSCAN.

    Args:
        graph: distances, see ``jaccard_graph``.
        min_samples: see ``Grouping``.
        images: number of images of each item, ``(items,)``.

    Returns:
        int64 ``(items,)``: number of each item's group. An item that is like no other is a group by itself.
    """
    from sklearn.cluster import DBSCAN

    dbscan = DBSCAN(eps=1.0, min_samples=min_samples, metric="precomputed")  # all are near
    label = dbscan.fit(graph, sample_weight=images).labels_.astype(np.int64)
    alone = label == NO_PERSON
    label[alone] = label.max(initial=-1) + 1 + np.arange(alone.sum())
    return label


def split_overlapping(group: np.ndarray, graph: csr_matrix, tracks: Tracks) -> np.ndarray:
    """Split groups with tracks of one camera that overlap in time, so that no group has two of them.

    Within such a group, items are joined in the order of their distances in the graph, as in single-linkage
    clustering, unless that would join two tracks that overlap.

    Args:
        group: group of each item, ``(items,)``.
        graph: distances, see ``jaccard_graph``.
        tracks: one for each item.

    Returns:
        int64 ``(items,)``.
    """
    timed = np.flatnonzero(~np.isnan(tracks.start))
    split = np.isin(group, _overlapping_groups(group[timed], tracks, timed))
    if not split.any():
        return group
    spans = {item: _Spans(tracks, item) for item in np.flatnonzero(split).tolist()}
    parent = list(range(len(group)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    row = np.repeat(np.arange(len(group)), np.diff(graph.indptr))
    column = graph.indices
    edge = np.flatnonzero(split[row] & (group[row] == group[column]) & (row < column))
    edge = edge[np.lexsort((column[edge], row[edge], graph.data[edge]))]
    for first, second in zip(row[edge].tolist(), column[edge].tolist(), strict=True):
        one, other = root(first), root(second)
        if one != other and spans[one].join(spans[other]):
            parent[other] = one
    parts = np.array([root(item) for item in spans])
    found = group.copy()
    found[split] = group.max() + 1 + parts
    return found


def _overlapping_groups(group: np.ndarray, tracks: Tracks, timed: np.ndarray) -> np.ndarray:
    """Return the groups that have two tracks of one camera that overlap. ``group`` is that of ``timed``."""
    camera, start, stop = (values[timed] for values in tracks[1:])
    order = np.lexsort((start, camera, group))
    group, camera, start, stop = group[order], camera[order], start[order], stop[order]
    # sorted by their starts, some two overlap exactly if some neighbours do
    same = (group[1:] == group[:-1]) & (camera[1:] == camera[:-1])
    return np.unique(group[1:][same & (start[1:] <= stop[:-1])])


class _Spans:
    """Times of tracks by camera, none of which overlap in one camera."""

    def __init__(self, tracks: Tracks, item: int) -> None:
        span = (tracks.start[item], tracks.stop[item])
        self.spans = {} if np.isnan(span[0]) else {int(tracks.camera[item]): [span]}

    def join(self, other: _Spans) -> bool:
        """Take over all spans of the other, unless one overlaps with one of these; return whether it did."""
        joined = dict(self.spans)
        for camera, spans in other.spans.items():
            both = sorted(self.spans.get(camera, []) + spans)
            if any(later[0] <= sooner[1] for sooner, later in pairwise(both)):
                return False
            joined[camera] = both
        self.spans = joined
        return True


def _number(group: np.ndarray, min_samples: int) -> np.ndarray:
    """Number groups in the order of their first images; dissolve those of too few images."""
    code = pd.factorize(group)[0]
    code[np.bincount(code)[code] < min_samples] = -1
    kept = code >= 0
    person = np.full(len(code), NO_PERSON, np.int64)
    person[kept] = pd.factorize(code[kept])[0]
    return person


# ---------- measures ----------


class Agreement(NamedTuple):
    """Agreement of groups with known identities, from 0 to 1."""

    precision: float
    recall: float
    f1: float


def pairwise_agreement(groups: Any, pids: Any) -> Agreement:
    """Return precision, recall and F1 over all pairs of images.

    A pair is found if both images are in one group, and correct if they show one person. Precision is the
    share of the found pairs that are correct, recall the share of the correct pairs that are found. An image
    of group −1 is in no pair of one group. Without a found pair precision is 1, without a correct one recall.

    Args:
        groups: group of each image, ``(n,)``, −1 for none.
        pids: identity of each image, ``(n,)``.

    Example:
        >>> pairwise_agreement([0, 0, 0, 1, 1], ["a", "a", "b", "b", "b"])
        Agreement(precision=0.5, recall=0.5, f1=0.5)
    """
    table = _contingency(groups, pids)

    def pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1) // 2).sum())

    correct, found, wanted = pairs(table.both), pairs(table.group), pairs(table.person)
    total = found + wanted
    return Agreement(
        correct / found if found else 1.0,
        correct / wanted if wanted else 1.0,
        2 * correct / total if total else 1.0,
    )


def bcubed_agreement(groups: Any, pids: Any) -> Agreement:
    """Return B-cubed precision, recall and their harmonic mean (Bagga and Baldwin, 1998).

    For each image, precision is the share of its group that shows its person, recall the share of the
    person's images that are in its group, itself included; both are averaged over images. Large persons do
    not dominate as they do among pairs. An image of group −1 is a group by itself.

    Amit Bagga, Breck Baldwin: Entity-Based Cross-Document Coreferencing Using the Vector Space Model, COLING
    1998.

    Args:
        groups, pids: as for ``pairwise_agreement``.

    Example:
        >>> bcubed_agreement([0, 0, 0, 0], ["a", "a", "b", "b"])
        Agreement(precision=0.5, recall=1.0, f1=0.6666666666666666)
    """
    table = _contingency(groups, pids)
    squares = table.both.astype(np.float64) ** 2
    images = table.both.sum()
    precision = float((squares / table.group[table.group_of]).sum() / images)
    recall = float((squares / table.person[table.person_of]).sum() / images)
    return Agreement(precision, recall, 2 * precision * recall / (precision + recall))


class _Contingency(NamedTuple):
    both: np.ndarray  # images of a group and a person, for each such pair that occurs
    group_of: np.ndarray  # the group of each pair
    person_of: np.ndarray  # the person of each pair
    group: np.ndarray  # images of each group
    person: np.ndarray  # images of each person


def _contingency(groups: Any, pids: Any) -> _Contingency:
    group, person = np.asarray(groups).astype(np.int64), pd.factorize(np.asarray(pids))[0]
    if group.ndim != 1 or len(group) != len(person) or not len(group) or (person < 0).any():
        raise InputError(
            f"groups, pids: expected as many of each, at least one, none null; found {group.shape} and "
            f"{person.shape}"
        )
    alone = group == NO_PERSON
    group[alone] = group.max() + 1 + np.arange(alone.sum())
    group = pd.factorize(group)[0]
    pair, both = np.unique(group * (person.max() + 1) + person, return_counts=True)
    group_of, person_of = np.divmod(pair, person.max() + 1)
    return _Contingency(both, group_of, person_of, np.bincount(group), np.bincount(person))
