"""Galleries: build one from features, save it, open it, ask who is nearest."""

from __future__ import annotations

import operator
import os
from typing import Any

import faiss
import numpy as np
import pandas as pd

from rga_reid.errors import InputError
from rga_reid.retrieval.arrays import gallery_table, unit_rows
from rga_reid.retrieval.exact import nearest_rows
from rga_reid.retrieval.gallery_folder import METRIC, Contents, read_gallery, write_gallery
from rga_reid.retrieval.model_record import ModelRecord

_BLOCK = 4096  # rows normalised at a time, in float64


class Gallery:
    """Images of people, searchable by appearance. Made by ``Gallery.build`` or ``Gallery.open``."""

    def __init__(self, contents: Contents) -> None:
        self._index, self._table, self.model = contents.index, contents.table, contents.model

    @classmethod
    def build(
        cls, features: Any, table: pd.DataFrame, *, index: str = "flat", model: ModelRecord | None = None
    ) -> Gallery:
        """A gallery in memory.

        Args:
            features: numbers ``(n, d)``, of any length: they are L2-normalised.
            table: n rows in the same order: ``path`` (the files need not exist), optionally ``pid`` and
                ``camid``, whole numbers, null where unknown.
            index: ``flat``, which searches exactly.
            model: what embedded the images, see ``ModelRecord.of``; None if unknown.

        Raises:
            InputError: no rows, features and table that do not fit together, a row without a direction.
        """
        if index != "flat":
            raise InputError(f"index: expected flat, got {index!r}")
        matrix, kept = np.asarray(features), gallery_table(table)
        if matrix.ndim != 2:
            raise InputError(f"features: expected a matrix (n, d), got {matrix.ndim} dimensions")
        if len(matrix) != len(kept):
            raise InputError(f"features: {len(matrix)} rows, but the table has {len(kept)}")
        if len(matrix) == 0:
            raise InputError("features: expected at least one row, got an empty gallery")
        flat = faiss.IndexFlatIP(matrix.shape[1])
        for start in range(0, len(matrix), _BLOCK):
            flat.add(unit_rows(matrix[start : start + _BLOCK], first_row=start))
        return cls(Contents(flat, kept, model))

    @classmethod
    def open(cls, location: str | os.PathLike[str]) -> Gallery:
        """The gallery in a folder that ``save`` wrote.

        Raises:
            InputError: no gallery there, one of a newer version, or a file that is missing, damaged or
                foreign: the message names it.
        """
        return cls(read_gallery(location))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the gallery to a folder: whole, or not at all.

        Args:
            path: a folder that does not exist, or is empty.
            overwrite: replace the gallery that is there.

        Raises:
            InputError: the folder exists, or holds other things than a gallery (they are never deleted), or
                cannot be written. An old gallery stays as it was.
        """
        write_gallery(Contents(self._index, self._table, self.model), path, overwrite=overwrite)

    def search(self, features: Any, top_k: int = 10, *, exclude_camera: int | None = None) -> pd.DataFrame:
        """The nearest images to each query.

        The score is the cosine: the float64 dot product of the two float32 rows, L2-normalised. Ties go to
        the earlier gallery row. The answer depends on no other query, thread count or machine.

        Args:
            features: numbers ``(q, d)``, one row per query.
            top_k: matches per query; where the gallery has fewer, all of them.
            exclude_camera: leave out the images of this camera. An image of an unknown camera stays.

        Returns:
            Columns ``query`` (from 0), ``rank`` (from 1), ``score``, ``path``, ``pid``, ``camid``, sorted by
            ``query``, then ``rank``.

        Raises:
            InputError: features of another dimension, a row without a direction, ``top_k`` below 1, a camera
                to leave out of a gallery without any known camera.
        """
        try:
            wanted = operator.index(top_k)
        except TypeError:
            wanted = 0
        if wanted < 1:
            raise InputError(f"top_k: expected a whole number of at least 1, got {top_k!r}")
        queries = unit_rows(features, name="query features")
        if queries.shape[1] != self.dimension:
            raise InputError(
                f"query features: of dimension {queries.shape[1]}, but the gallery's have {self.dimension}: "
                "another model made them"
            )
        found = list(nearest_rows(self._index, queries, wanted, self._without_camera(exclude_camera)))
        lengths = [len(rows) for rows, _ in found]
        rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
        matches = self._table.take(rows).reset_index(drop=True)
        matches.insert(0, "query", np.repeat(np.arange(len(found)), lengths))
        matches.insert(1, "rank", matches.groupby("query").cumcount() + 1)
        matches.insert(2, "score", np.concatenate([np.empty(0), *(scores for _, scores in found)]))
        return matches

    def _without_camera(self, camera: int | None) -> np.ndarray | None:
        if camera is None:
            return None
        camids = self._table["camid"]
        if camids.isna().all():
            raise InputError(f"exclude_camera {camera}: this gallery knows the camera of no image")
        return (camids != camera).fillna(True).to_numpy(dtype=bool)

    def __len__(self) -> int:
        """Number of images."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of a feature."""
        return int(self._index.d)

    @property
    def table(self) -> pd.DataFrame:
        """A copy of the table ``path, pid, camid``, one row per image."""
        return self._table.copy()

    def describe(self) -> dict[str, Any]:
        """What the gallery holds, as a JSON object.

        ``identities`` counts distinct pids without junk (−1), ``unlabelled`` the images of unknown pid;
        ``cameras`` lists the known ones.
        """
        pids, camids = self._table["pid"], self._table["camid"]
        return {
            "index": "flat",
            "metric": METRIC,
            "count": len(self),
            "dimension": self.dimension,
            "identities": int(pids[pids >= 0].nunique()),
            "unlabelled": int(pids.isna().sum()),
            "cameras": sorted(int(camera) for camera in camids.dropna().unique()),
            "model": None if self.model is None else self.model.to_json(),
        }
