"""The relation explorer inside a notebook."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.experiments.explain import explain
from rga_reid.files import write_text
from rga_reid.models import EmbeddingModel
from rga_reid.reports.explorer import explorer_page

HEIGHT = 900  #: pixels of the page inside a notebook
_FILES = (".ckpt", ".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Explorer:
    """A page of the relation explorer. Notebooks display it.

    Args:
        page: HTML.
        height: pixels inside a notebook.
    """

    page: str
    height: int = HEIGHT

    def __repr__(self) -> str:
        return f"Explorer({len(self.page) / 1e6:.1f} MB of HTML; save(path) writes it)"

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.page)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page as an HTML file."""
        write_text(path, self.page)


def show(
    model: EmbeddingModel | str | os.PathLike[str] | Sequence[str] | Mapping[str, EmbeddingModel],
    image: str | os.PathLike[str] | Image.Image | np.ndarray,
    *,
    seed: int = 0,
    lang: str | None = None,
    height: int = HEIGHT,
) -> Explorer:
    """Show what attention modules compute for a picture: the relation explorer, inline in a notebook.

    Args:
        model: a trained model, a checkpoint, or several models by name; or the names or class paths of attention
            modules, each of which is shown in an untrained ResNet-50.
        image: a file, a PIL image, or a uint8 RGB array ``(H, W, 3)``.
        seed: random seed of untrained weights.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.
        height: pixels inside the notebook.

    Returns:
        The explorer. The last expression of a notebook cell is displayed; elsewhere, use ``save``.

    Raises:
        InputError: an unreadable image, an unknown module, or a model without attention.

    >>> show("rga", "person.jpg")  # doctest: +SKIP
    """
    chosen: dict[str, Any]
    if isinstance(model, EmbeddingModel):
        chosen = {"checkpoints": {"model": model}}
    elif isinstance(model, Mapping):
        chosen = {"checkpoints": model}
    else:
        names = [model] if isinstance(model, str | os.PathLike) else list(model)
        are_files = all(Path(name).suffix in _FILES for name in names)
        chosen = {"checkpoints" if are_files else "attention": names}
    with tempfile.TemporaryDirectory() as folder:
        file: str | os.PathLike[str]
        if isinstance(image, str | os.PathLike):
            file = image
        else:
            file = Path(folder) / "image.png"
            (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file)
        exhibits = explain([file], seed=seed, named=isinstance(model, Mapping), **chosen)
    return Explorer(explorer_page(exhibits, lang=lang), height)
