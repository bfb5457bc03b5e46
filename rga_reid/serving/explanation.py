"""Explain the similarity of two pictures by the places that raise it."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rga_reid.models import EmbeddingModel
from rga_reid.serving.problems import Problem


class Explainer:
    """Computes maps over pictures.

    Args:
        embedder: model of the server; only an ``EmbeddingModel`` can be explained, whatever engine runs it.
    """

    def __init__(self, embedder: Any) -> None:
        source = getattr(embedder, "source", None)  # what another engine runs
        self._embedder, self._lock = source or embedder, threading.Lock()
        self._copy: EmbeddingModel | None = None

    @property
    def is_able(self) -> bool:
        """Return whether the model can be explained."""
        return isinstance(self._embedder, EmbeddingModel)

    def explain(self, images: Sequence[bytes], names: Sequence[str]) -> dict[str, Any]:
        """Return both pictures with their maps, as values of JSON.

        Args:
            images: content of two image files.
            names: their names for the reader.

        Raises:
            Problem: the model cannot be explained.
            InputError: two pictures with one embedding.
        """
        from rga_reid.reports.heat_maps import english, map_card
        from rga_reid.reports.language import Text

        maps = self._maps(images, names)
        title, reading = english(Text("view_gradcam")), english(Text("view_gradcam_help"))
        score = next(float(note.values["value"]) for note in maps[0].notes if isinstance(note, Text))
        cards = [{"name": name, **map_card(one)} for name, one in zip(names, maps, strict=True)]
        return {"score": score, "title": title, "reading": reading, "maps": cards}

    def page(self, images: Sequence[bytes], names: Sequence[str]) -> str:
        """Return the same as a page; arguments and errors as for ``explain``."""
        from rga_reid.reports.heat_maps import heat_map_page
        from rga_reid.reports.language import Text

        pair = Text("score_pair", {"one": names[0], "two": names[1]})
        return heat_map_page(self._maps(images, names), "gradcam", score=pair)

    def _maps(self, images: Sequence[bytes], names: Sequence[str]) -> list[Any]:
        from rga_reid.experiments.heat_maps import heat_maps

        if not self.is_able:
            raise Problem(422, "only models of rga-reid can be explained")
        with self._lock, tempfile.TemporaryDirectory() as folder:
            if self._copy is None:  # gradients and hooks must not disturb the model that embeds
                self._copy = copy.deepcopy(self._embedder).cpu()
            files = [Path(folder) / name for name in names]
            for file, content in zip(files, images, strict=True):
                file.write_bytes(content)
            return heat_maps(files[:1], "gradcam", checkpoints={"model": self._copy}, similar_to=files[1])
