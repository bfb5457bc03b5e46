"""Images to features: files are decoded while the model works on the batch before."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from rga_reid.data import decode
from rga_reid.errors import InputError


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
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    paths = table["path"].tolist()
    features = np.empty((len(paths), model.dimension), np.float32)
    starts = track(
        range(0, len(paths), batch_size),
        "embedding",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(decode, paths[:batch_size], model.size)
        for start in starts:
            images = coming.result()
            stop = start + batch_size
            coming = reader.submit(decode, paths[stop : stop + batch_size], model.size)
            embedded = model.embed(torch.from_numpy(images), batch_size=batch_size, device=device)
            features[start:stop] = embedded.numpy()
    return features, table


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; by default the GPU if there is one.

    Raises:
        InputError: no such device on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"device {name!r}: not available on this machine ({reason})") from None
    return device


def _as_table(table_or_paths: pd.DataFrame | Sequence[str | os.PathLike[str]]) -> pd.DataFrame:
    if not isinstance(table_or_paths, pd.DataFrame):
        return pd.DataFrame({"path": pd.Series([os.fspath(path) for path in table_or_paths], dtype="str")})
    if "path" not in table_or_paths.columns:
        found = ", ".join(map(str, table_or_paths.columns)) or "none"
        raise InputError(f"table: expected a column 'path', found {found}")
    return table_or_paths.reset_index(drop=True)
