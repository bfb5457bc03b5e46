"""Embed image files; the next batch is decoded while the model works on the current one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rga_reid.data import ImageError, decode
from rga_reid.errors import InputError, check_int
from rga_reid.runtime import keep_freed_memory, track

PathLike = str | os.PathLike[str]


class Embedder(Protocol):
    """An ``EmbeddingModel``, a ``ColourHistogram`` or any class with the same interface."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input images in pixels."""

    @property
    def dimension(self) -> int:
        """Length d of a feature."""

    def embed(
        self, images: Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> Tensor:
        """Embed uint8 ``(n, 3, H, W)`` as float32 ``(n, d)`` on the CPU, rows L2-normalised."""


def extract_features(
    model: Embedder,
    table_or_paths: pd.DataFrame | PathLike | Sequence[PathLike],
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Embed image files, holding at most two batches of pixels in memory.

    Args:
        model: see ``Embedder``.
        table_or_paths: a table with a column ``path``, an image file, or a list of n image files.
        batch_size: images in one forward pass.
        device: device to run on; by default the model's current one.

    Returns:
        Features, float32 ``(n, d)`` with L2-normalised rows, and the table with its rows numbered from 0 (for
        files, a table with the column ``path`` only).

    Raises:
        InputError: a file is not an image (the message names it) or its feature is NaN or infinite; the table
            has no column ``path``; the batch size is below 1.
    """
    table = _to_table(table_or_paths)
    batches = stream_features(model, table, batch_size, device)
    return collect(batches, len(table), model.dimension), table


def collect(batches: Iterable[tuple[np.ndarray, pd.DataFrame]], count: int, dimension: int) -> np.ndarray:
    """Return the features of up to ``count`` images as one matrix; remaining rows are arbitrary."""
    features, done = np.empty((count, dimension), np.float32), 0
    for batch, _ in batches:
        features[done : done + len(batch)] = batch
        done += len(batch)
    return features


def stream_features(
    model: Embedder,
    table: pd.DataFrame,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    *,
    refused: list[ImageError] | None = None,
) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Embed image files batch by batch, in the order of the table.

    Args:
        model, batch_size, device: see ``extract_features``.
        table: n rows with a column ``path``.
        refused: collects the errors of unreadable images, whose rows are then skipped.

    Yields:
        Features of a batch, float32 ``(b, d)`` with L2-normalised rows, and the b rows of the table.

    Raises:
        InputError: see ``extract_features``; an unreadable image, unless ``refused`` is given.
    """
    check_int("batch_size", batch_size)
    table = _to_table(table)
    starts = range(0, len(table), batch_size)

    def read(start: int) -> tuple[np.ndarray, pd.DataFrame]:
        rows = table.iloc[start : start + batch_size]
        errors: dict[int, ImageError] | None = None if refused is None else {}
        images = decode(rows["path"].tolist(), model.size, refused=errors)
        if refused is None or not errors:
            return images, rows
        refused.extend(errors[row] for row in sorted(errors))
        readable = np.array([row not in errors for row in range(len(rows))])
        return images[readable], rows[readable]

    with keep_freed_memory(), ThreadPoolExecutor(max_workers=1) as reader:
        upcoming = reader.submit(read, 0)
        for start in track(starts, "embedding", len(starts)):
            images, rows = upcoming.result()
            upcoming = reader.submit(read, start + batch_size)
            if len(rows):
                features = model.embed(torch.from_numpy(images), batch_size=batch_size, device=device).numpy()
                _require_finite(features, rows)
                yield features, rows


def _require_finite(features: np.ndarray, rows: pd.DataFrame) -> None:
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        path = rows["path"].iloc[int(np.argmin(finite))]
        raise InputError(f"{path}: the model gives a feature with NaN or infinite values")


def _to_table(table_or_paths: pd.DataFrame | PathLike | Sequence[PathLike]) -> pd.DataFrame:
    if isinstance(table_or_paths, str | os.PathLike):
        table_or_paths = [table_or_paths]
    if not isinstance(table_or_paths, pd.DataFrame):
        return pd.DataFrame({"path": pd.Series([os.fspath(path) for path in table_or_paths], dtype="str")})
    if "path" not in table_or_paths.columns:
        found = ", ".join(map(str, table_or_paths.columns)) or "none"
        raise InputError(f"table: expected a column 'path', found {found}")
    return table_or_paths.reset_index(drop=True)
