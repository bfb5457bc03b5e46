"""Images to features: files are decoded while the model works on the batch before."""

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


class Embedder(Protocol):
    """What turns images into features: an ``EmbeddingModel``, a ``ColourHistogram`` or one's own."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images it works on, in pixels."""

    @property
    def dimension(self) -> int:
        """d, length of a feature."""

    def embed(
        self, images: Tensor, *, batch_size: int = 64, device: str | torch.device | None = None
    ) -> Tensor:
        """uint8 ``(n, 3, H, W)`` to float32 ``(n, d)`` on the CPU, rows L2-normalised."""


def extract_features(
    model: Embedder,
    table_or_paths: pd.DataFrame | Sequence[str | os.PathLike[str]],
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Embed image files, with no more than two batches of pixels in memory.

    Args:
        model: see ``Embedder``.
        table_or_paths: a table with a ``path`` column, or a list of n image files.
        batch_size: images in one forward pass.
        device: where the model runs; by default where it is.

    Returns:
        float32 ``(n, d)``, rows L2-normalised, and the table, its rows numbered from 0 (a table of one column
        ``path`` for a list of files).

    Raises:
        InputError: a file that is not an image (the message names it), a table without ``path``, a batch size
            below 1.
    """
    table = _as_table(table_or_paths)
    batches = stream_features(model, table, batch_size, device)
    return collect(batches, len(table), model.dimension), table


def collect(batches: Iterable[tuple[np.ndarray, pd.DataFrame]], count: int, dimension: int) -> np.ndarray:
    """The features of up to ``count`` images in one matrix; rows left over are arbitrary."""
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
        refused: takes the errors of files that are not images, whose rows are then left out.

    Yields:
        Features of a batch, float32 ``(b, d)``, rows L2-normalised, and their b rows of the table.

    Raises:
        InputError: see ``extract_features``; a file that is not an image, if ``refused`` does not take it.
    """
    check_int("batch_size", batch_size)
    table = _as_table(table)
    starts = range(0, len(table), batch_size)

    def read(start: int) -> tuple[np.ndarray, pd.DataFrame]:
        rows = table.iloc[start : start + batch_size]
        errors: dict[int, ImageError] | None = None if refused is None else {}
        images = decode(rows["path"].tolist(), model.size, refused=errors)
        if refused is None or not errors:
            return images, rows
        refused.extend(errors[row] for row in sorted(errors))
        whole = np.array([row not in errors for row in range(len(rows))])
        return images[whole], rows[whole]

    with keep_freed_memory(), ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, 0)
        for start in track(starts, "embedding", len(starts)):
            images, rows = coming.result()
            coming = reader.submit(read, start + batch_size)
            if len(rows):
                embedded = model.embed(torch.from_numpy(images), batch_size=batch_size, device=device)
                yield embedded.numpy(), rows


def _as_table(table_or_paths: pd.DataFrame | Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    if not isinstance(table_or_paths, pd.DataFrame):
        return pd.DataFrame({"path": pd.Series([os.fspath(path) for path in table_or_paths], dtype="str")})
    if "path" not in table_or_paths.columns:
        found = ", ".join(map(str, table_or_paths.columns)) or "none"
        raise InputError(f"table: expected a column 'path', found {found}")
    return table_or_paths.reset_index(drop=True)
