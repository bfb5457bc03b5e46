"""Galleries: build one from features, save it, open it, ask who is nearest, add and forget."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rga_reid.errors import InputError, check_int
from rga_reid.evaluation import ReRanking, re_ranked_distances
from rga_reid.gallery.index import IndexConfig
from rga_reid.gallery.location import MilvusURI, parse_location
from rga_reid.gallery.segments import DeletionRecord, Snapshot
from rga_reid.gallery.validation import match_rows, non_finite_error, normalize_rows, require_nonempty
from rga_reid.models.checkpoints import ModelFingerprint

SHORTLIST = 100  #: images of each query that are re-ranked


@dataclass(frozen=True)
class RemovalResult:
    """What a removal did."""

    images: int  #: removed
    segments: int  #: made again without them
    indexes: int  #: of those segments, made anew
    rewritten: int  #: other images in those segments


class Gallery(ABC):
    """Images of people, searchable by appearance. Made by ``Gallery.build`` or ``Gallery.open``.

    A gallery that was built is in memory, and ``save`` writes a copy. One that was opened is on disk, in a
    folder (FAISS) or in Milvus: what ``add``, ``remove`` and ``compact`` do is on disk when they return. One
    in a folder searches the state that it opened or last wrote, whatever other programs write meanwhile.
    """

    @classmethod
    def build(
        cls,
        features: Any,
        table: pd.DataFrame,
        *,
        index: str = "flat",
        model: ModelFingerprint | None = None,
        **settings: int,
    ) -> Gallery:
        """A gallery in memory.

        Args:
            features: numbers ``(n, d)``, of any length: they are L2-normalised.
            table: n rows in the same order: ``path`` (the files need not exist), optionally ``pid`` and
                ``camid``, whole numbers, null where unknown.
            index: ``flat``, which searches exactly, or an approximate one: ``hnsw``, ``ivf``, ``ivfpq``. With
                fewer than 1,024 images all search exactly.
            model: what embedded the images, see ``ModelFingerprint.of``; None if unknown.
            settings: of the index, in place of those chosen by its size: ``hnsw_m``, ``ef_construction``,
                ``ef_search``; ``nlist``, ``nprobe``; ``pq_m``, ``pq_bits``, ``refine``: see
                docs/galleries.md.

        Raises:
            InputError: no rows, features and table that do not fit together, a row without a direction, an
                unknown index or setting.
        """
        from rga_reid.gallery.folder import FolderGallery

        plan = IndexConfig(index, settings)
        vectors, kept = match_rows(features, table)
        require_nonempty(len(vectors))
        plan.check_dimension(vectors.shape[1])
        return FolderGallery.of_rows(Snapshot(vectors.shape[1], plan, model), vectors, kept)

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Gallery:
        """The gallery at a location: a folder, ``NAME.db`` or ``milvus://HOST:PORT/COLLECTION``.

        Of a folder, the manifest, the sizes and the headers of all files are checked, not every byte: see
        ``verify``.

        Raises:
            InputError: no gallery there, one of another version, or a file that is missing, damaged or
                foreign: the message names it; Milvus is not installed or does not answer.
        """
        place = parse_location(location)
        if isinstance(place, MilvusURI):
            from rga_reid.gallery.milvus import MilvusGallery

            return MilvusGallery.of(place)
        from rga_reid.gallery.folder import FolderGallery

        return FolderGallery.of(place)

    @abstractmethod
    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a copy of the gallery: whole, or not at all.

        What was removed from a gallery in memory is logged there; the log of an opened one stays with it.

        Args:
            path: a folder that does not exist, or is empty; or a location in Milvus.
            overwrite: replace the gallery that is there; its log of removals is kept.

        Raises:
            InputError: the folder exists, or holds other things than a gallery (they are never deleted), is
                being written by another program, or cannot be written. An old gallery stays as it was.
        """

    @abstractmethod
    def add(self, features: Any, table: pd.DataFrame, *, model: ModelFingerprint | None = None) -> None:
        """Add images at the end.

        In a folder their segment is new; what is there is not written again, except small segments at the
        end, which are joined with it (up to 4,096 images; up to 65,536 if 4,096 or more are added).

        Args:
            features: numbers ``(n, d)``, as for ``build``.
            table: n rows, as for ``build``. A path may occur more than once.
            model: what embedded them; None is taken on trust.

        Raises:
            InputError: another dimension, another model, and as for ``build``; for an opened gallery also as
                for ``save``.
        """

    @abstractmethod
    def remove(self, *, pids: int | Iterable[int] = (), paths: str | Iterable[str] = ()) -> RemovalResult:
        """Erase all images of some persons, and those of some paths.

        When it returns, their vectors and rows are in no file of a gallery on this machine; for a cluster see
        docs/milvus.md. The segments that held them are made again, and their indexes too: no index can
        forget. The log of removals gets a line for each person: time, pid and number of images.

        Args:
            pids: one or more.
            paths: one or more, as in ``table``.

        Returns:
            What was removed, and how much was written again for it.

        Raises:
            InputError: nothing given; a pid or path without an image (nothing is removed then); for an opened
                gallery also as for ``save``.
        """

    @abstractmethod
    def compact(self) -> None:
        """Join the segments that ``add`` and ``remove`` left, and make their indexes anew.

        Raises:
            InputError: for an opened gallery as for ``save``.
        """

    @abstractmethod
    def verify(self, progress: Callable[[float], None] = lambda share: None) -> int:
        """Check what is on disk now: every byte of every file of a folder, every row of a gallery in Milvus.

        Args:
            progress: told the share that is done.

        Returns:
            Number of files, or rows, checked; 0 for a gallery in memory.

        Raises:
            InputError: files that are damaged or missing, by name; or a writer changed the gallery meanwhile.
        """

    def search(
        self,
        features: Any,
        top_k: int = 10,
        *,
        exclude_camera: int | None = None,
        where: str | None = None,
        rerank: ReRanking | None = None,
        shortlist: int = SHORTLIST,
        with_ids: bool = False,
    ) -> pd.DataFrame:
        """The nearest images to each query.

        The score is the cosine: the float64 dot product of the two float32 rows, L2-normalised. Ties go to
        the earlier gallery row. With a flat index the answer depends on no other query, thread count or
        machine; an approximate index may miss a match (``describe`` tells its recall), never its score.

        Args:
            features: numbers ``(q, d)``, one row per query.
            top_k: matches per query; where the gallery has fewer, all of them.
            exclude_camera: leave out the images of this camera. An image of an unknown camera stays.
            where: search only the images that this filter keeps, such as ``camid == 3 and pid in (1, 2)``,
                over ``pid``, ``camid`` and ``path``: see docs/galleries.md.
            rerank: put each query's shortlist in the order of k-reciprocal re-ranking among the query and the
                shortlist. Scores stay cosines, so they no longer fall from rank to rank.
            shortlist: how many of the nearest images are re-ranked; at least ``top_k``.
            with_ids: give the ids of the images in a last column ``id``.

        Returns:
            Columns ``query`` (from 0), ``rank`` (from 1), ``score``, ``path``, ``pid``, ``camid``, sorted by
            ``query``, then ``rank``.

        Raises:
            InputError: features of another dimension, a row without a direction, ``top_k`` below 1, a
                shortlist shorter than it, a camera to leave out of a gallery without any known camera, a
                filter that cannot be understood.
        """
        wanted, camera = check_int("top_k", top_k), camera_number(exclude_camera)
        queries = normalize_rows(features, name="query features")
        self._require_dimension("query features", queries)
        if rerank is None:
            return self._find(queries, wanted, camera, where).to_frame(with_ids=with_ids)
        hits = self._find(queries, check_int("shortlist", shortlist, wanted), camera, where)
        return hits.re_ranked(queries, rerank, wanted).to_frame(with_ids=with_ids)

    def require_model(self, model: ModelFingerprint) -> None:
        """Refuse features of another model, or of another preprocessing.

        Raises:
            InputError: ``model`` is not the one that this gallery remembers, if it remembers one.
        """
        own = self.model
        if own is not None and not own.is_same(model):
            raise InputError(
                f"model {model.checkpoint}: the gallery was built with another model: {own.checkpoint}, "
                f"SHA-256 {own.sha256[:12]}..., or with other preprocessing"
            )

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of a feature."""

    @property
    @abstractmethod
    def model(self) -> ModelFingerprint | None:
        """What embedded the images; None if unknown."""

    @property
    @abstractmethod
    def table(self) -> pd.DataFrame:
        """A copy of the table ``path, pid, camid``, one row per image."""

    @property
    @abstractmethod
    def ids(self) -> np.ndarray:
        """A number for each row of ``table``, int64 ``(n,)``: in the order of adding, never given again."""

    @property
    @abstractmethod
    def removals(self) -> tuple[DeletionRecord, ...]:
        """The log of removals: time, pid and number of images of each."""

    @abstractmethod
    def known_paths(self, paths: Iterable[str]) -> set[str]:
        """Those of some paths of which the gallery has an image."""

    @abstractmethod
    def count(self, *, exclude_camera: int | None = None, where: str | None = None) -> int:
        """How many images a search with these limits looks at; ``InputError`` as for ``search``."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the gallery holds, as a JSON object.

        ``identities`` counts distinct pids without junk (−1), ``unlabelled`` the images of unknown pid;
        ``cameras`` lists the known ones. ``settings`` are those of the index of the largest segment, null
        if all are searched exactly; ``recall_at_10`` is the mean over images of what was measured against the
        exact search, see docs/galleries.md.
        """

    @abstractmethod
    def size_on_disk(self) -> int | None:
        """Bytes of its files; None in memory and on a cluster."""

    @abstractmethod
    def _find(
        self, queries: np.ndarray, top_k: int, exclude_camera: int | None, where: str | None
    ) -> SearchResults:
        """The nearest images to unit rows ``(q, d)``."""

    def _require_dimension(self, name: str, matrix: np.ndarray) -> None:
        if matrix.shape[1] != self.dimension:
            raise InputError(
                f"{name}: of dimension {matrix.shape[1]}, but the gallery's have {self.dimension}: "
                "another model made them"
            )


def camera_number(value: Any) -> int | None:
    """A camera to be left out, or None.

    Raises:
        InputError: something else.
    """
    return None if value is None else check_int("exclude_camera", value, -(2**63), 2**63 - 1)


def labels_of(table: pd.DataFrame) -> dict[str, Any]:
    """What ``describe`` says of persons and cameras."""
    pids, camids = table["pid"], table["camid"]
    return {
        "identities": int(pids[pids >= 0].nunique()),
        "unlabelled": int(pids.isna().sum()),
        "cameras": sorted(int(camera) for camera in camids.dropna().unique()),
    }


def parse_targets(pids: int | Iterable[int], paths: str | Iterable[str]) -> tuple[list[int], list[str]]:
    """What ``remove`` is given, as lists.

    Raises:
        InputError: both are empty.
    """
    persons = [pids] if isinstance(pids, int | np.integer) else list(pids)
    files = [paths] if isinstance(paths, str) else list(paths)
    if not persons and not files:
        raise InputError("remove: expected pids or paths")
    return persons, files


@dataclass(frozen=True)
class SearchResults:
    """Images found for some queries, one query after the other, best first.

    Args:
        counts: int64 ``(q,)``, how many for each query; n in all.
        scores: float64 ``(n,)``.
        ids: int64 ``(n,)``.
        table: n rows ``path, pid, camid``, numbered from 0.
        vectors: gives those of some of the n rows, by number: float32 ``(len(rows), d)``.

    Raises:
        InputError: a score that is not finite: the gallery's vectors are not.
    """

    counts: np.ndarray
    scores: np.ndarray
    ids: np.ndarray
    table: pd.DataFrame
    vectors: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        if not np.isfinite(self.scores).all():
            raise non_finite_error()

    def re_ranked(self, queries: np.ndarray, settings: ReRanking, top_k: int) -> SearchResults:
        """The best of each query's hits in the order of k-reciprocal re-ranking.

        Neighbours are those among the query and its own hits, whatever other queries there are. Hits of equal
        re-ranked distance stay in their order.

        Args:
            queries: unit rows, float32 ``(q, d)``.
            settings: where a query has fewer hits than neighbours are asked for, all of them are neighbours.
            top_k: hits to keep of each query.
        """
        chosen = []
        for query, stop, count in zip(queries, self.counts.cumsum(), self.counts, strict=True):
            if count:
                rows = np.arange(stop - count, stop)
                distances = re_ranked_distances(
                    query[None],
                    self.vectors(rows),
                    k1=min(settings.k1, int(count)),
                    k2=min(settings.k2, int(count) + 1),
                    lambda_value=settings.lambda_value,
                )
                chosen.append(rows[np.argsort(distances[0], kind="stable")[:top_k]])
        rows = np.concatenate([np.empty(0, np.int64), *chosen])
        return SearchResults(
            np.minimum(self.counts, top_k),
            self.scores[rows],
            self.ids[rows],
            self.table.take(rows).reset_index(drop=True),
            lambda some: self.vectors(rows[some]),
        )

    def to_frame(self, *, with_ids: bool = False) -> pd.DataFrame:
        """As ``Gallery.search`` gives it."""
        starts = self.counts.cumsum() - self.counts
        columns = {
            "query": np.repeat(np.arange(len(self.counts)), self.counts),
            "rank": np.arange(len(self.ids)) - np.repeat(starts, self.counts) + 1,
            "score": self.scores,
            **{name: self.table[name].array for name in self.table.columns},
        }
        return pd.DataFrame(columns | {"id": self.ids} if with_ids else columns)
