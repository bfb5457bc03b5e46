"""Embed image files; the next batch is decoded while the model works on the current one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch

from rga_reid.data import ImageError, decode
from rga_reid.errors import InputError, check_int
from rga_reid.inference.embedder import Embedder
from rga_reid.runtime import keep_freed_memory, track

PathLike = str | os.PathLike[str]


def extract_features(
    model: Embedder,
    table_or_paths: pd.DataFrame | PathLike | Sequence[PathLike],
    batch_size: int = 64,
    device: str | torch.device | None = None,
    *,
    refused: list[ImageError] | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Embed image files, holding at most two batches of pixels in memory.

    Args:
        model: see ``Embedder``.
        table_or_paths: a table with a column ``path``, an image file, or a list of n image files.
        batch_size: images in one forward pass.
        device: device to run on; by default the model's current one.
        refused: collects the errors of unreadable images, which are then left out.

    Returns:
        Features, float32 ``(n, d)`` with L2-normalised rows, and the table with its rows numbered from 0 (for
        files, a table with the column ``path`` only).

    Raises:
        InputError: a file is not an image (the message names it), unless ``refused`` is given; its feature is NaN or
            infinite; an item that is not a path; the table has no column ``path``; the batch size is below 1.
    """
    table = _to_table(table_or_paths)
    batches = stream_features(model, table, batch_size, device, refused=refused)
    return collect(batches, table, model.dimension)


def collect(
    batches: Iterable[tuple[np.ndarray, pd.DataFrame]], table: pd.DataFrame, dimension: int
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return features and rows of all batches, in one matrix and one table with its rows numbered from 0.

    Args:
        batches: rows of ``table`` in its order, some of which may be missing.
        table: all rows.
        dimension: length of a feature.
    """
    features, parts, done = np.empty((len(table), dimension), np.float32), [table.head(0)], 0
    for batch, rows in batches:
        features[done : done + len(batch)] = batch
        parts.append(rows)
        done += len(batch)
    return features[:done], pd.concat(parts, ignore_index=True)


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
                features = np.asarray(
                    model.embed(torch.from_numpy(images), batch_size=batch_size, device=device)
                )
                _require_finite(features, rows)
                yield features, rows


def _require_finite(features: np.ndarray, rows: pd.DataFrame) -> None:
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        path = rows["path"].iloc[int(np.argmin(finite))]
        raise InputError(f"{path}: the model gives a feature with NaN or infinite values")


def _to_table(table_or_paths: pd.DataFrame | PathLike | Sequence[PathLike]) -> pd.DataFrame:
    if isinstance(table_or_paths, str | bytes | os.PathLike):
        table_or_paths = [table_or_paths]
    if not isinstance(table_or_paths, pd.DataFrame):
        for number, path in enumerate(table_or_paths):
            if not isinstance(path, str | os.PathLike):
                found = type(path).__name__
                raise InputError(f"images[{number}]: expected the path of an image file, got {found}")
        return pd.DataFrame({"path": pd.Series([os.fspath(path) for path in table_or_paths], dtype="str")})
    if "path" not in table_or_paths.columns:
        found = ", ".join(map(str, table_or_paths.columns)) or "none"
        raise InputError(f"table: expected a column 'path', found {found}")
    return table_or_paths.reset_index(drop=True)
