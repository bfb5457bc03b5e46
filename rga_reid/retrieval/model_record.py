"""Which model a gallery's features come from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rga_reid.errors import InputError
from rga_reid.models import fingerprint


@dataclass(frozen=True)
class ModelRecord:
    """The checkpoint that embedded a gallery, and how it prepares an image.

    Args:
        checkpoint: absolute path of the checkpoint.
        sha256: of the checkpoint file, in hex.
        size: (H, W) of the model's input in pixels.
        mean, std: of the RGB channels, on the scale 0 to 1; None for a model that does not normalise.
    """

    checkpoint: str
    sha256: str
    size: tuple[int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, model: Any, checkpoint: str | os.PathLike[str]) -> ModelRecord:
        """The record of a model that was loaded from ``checkpoint``.

        Args:
            model: has ``size``, and ``mean`` and ``std`` if it normalises.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        mean, std = getattr(model, "mean", None), getattr(model, "std", None)
        return cls(
            checkpoint=os.path.abspath(checkpoint),
            sha256=_fingerprint(checkpoint),
            size=(int(model.size[0]), int(model.size[1])),
            mean=None if mean is None else tuple(map(float, mean)),
            std=None if std is None else tuple(map(float, std)),
        )

    @classmethod
    def from_json(cls, value: Any) -> ModelRecord:
        """The record that ``to_json`` wrote.

        Raises:
            ValueError, TypeError, KeyError: a value of another form.
        """
        mean, std = (None if value[key] is None else tuple(map(float, value[key])) for key in ("mean", "std"))
        height, width = map(int, value["size"])
        return cls(str(value["checkpoint"]), str(value["sha256"]), (height, width), mean, std)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)

    def is_same(self, other: ModelRecord) -> bool:
        """Whether both have the same weights and preprocessing, wherever the files lie."""
        return replace(other, checkpoint=self.checkpoint) == self

    def find_checkpoint(self, given: str | os.PathLike[str] | None = None) -> Path:
        """The checkpoint to embed queries with: ``given``, or else the one that is remembered.

        Raises:
            InputError: it is missing, or not byte for byte the one that the gallery was built with.
        """
        file = Path(self.checkpoint if given is None else given)
        if not file.is_file():
            hint = (
                "; the gallery was built with it: if it has moved, give --checkpoint" if given is None else ""
            )
            raise InputError(f"{file}: no such checkpoint{hint}")
        if _fingerprint(file) != self.sha256:
            found = "has another content" if given is not None else "has changed since"
            raise InputError(
                f"{file}: the gallery was built with another model: "
                f"{self.checkpoint}, SHA-256 {self.sha256[:12]}...; this file {found}"
            )
        return file


def is_same_model(one: ModelRecord | None, other: ModelRecord | None) -> bool:
    """Whether two records, or two unknown models, are of one."""
    return one == other or (one is not None and other is not None and one.is_same(other))


def _fingerprint(file: str | os.PathLike[str]) -> str:
    try:
        return fingerprint(file)
    except OSError as error:
        raise InputError(f"{os.fspath(file)}: cannot read this checkpoint ({error.strerror})") from None
