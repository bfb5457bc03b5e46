"""Relation explorer: one interactive HTML page that shows what attention modules compute for a picture."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports.glossary import lookup
from rga_reid.reports.html import TEMPLATES, jpeg_uri, page_environment, script_hash
from rga_reid.reports.relation_views import MAX_WHOLE, MatrixView, StageView

SCRIPTS = ("explorer_numbers.js", "explorer_view.js")  #: of the page, concatenated in this order
COLOURS = {"sequential": "cividis", "diverging": "PuOr_r"}  #: colour maps suited to colour-blind readers


@dataclass(frozen=True, eq=False)
class Exhibit:
    """Trace of the attention of one model on one picture.

    Args:
        mechanism: short name of the attention module.
        trained: false for random weights.
        image: name of the picture, such as its file name.
        pixels: input of the model, uint8 ``(H, W, 3)``.
        stages: at least one, in order.
        model: the network, such as "ResNet-50, 256×128 pixels".
        source: distinguishes exhibits of the same module, such as the name of the checkpoint.
    """

    mechanism: str
    trained: bool
    image: str
    pixels: np.ndarray
    stages: Sequence[StageView]
    model: str
    source: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError(f"exhibit {self.mechanism}: expected at least one stage, got none")

    @property
    def label(self) -> str:
        """Name for the reader, such as ``rga, trained``."""
        name = f"{self.mechanism}, {'trained' if self.trained else 'untrained'}"
        return f"{name} ({self.source})" if self.source else name

    def stage(self, number: int | None = None) -> StageView:
        """Return a stage by its number; by default the last whose position matrices are complete."""
        if number is None:
            whole = [
                view
                for view in self.stages
                if all(matrix.whole for matrix in view.matrices if matrix.kind == "positions")
            ]
            return (whole or list(self.stages))[-1]
        for view in self.stages:
            if view.stage == number:
                return view
        known = ", ".join(str(view.stage) for view in self.stages)
        raise InputError(f"stage {number}: expected a stage with {self.mechanism}: {known}")


def explorer_page(exhibits: Sequence[Exhibit], *, title: str = "Relation explorer", note: str = "") -> str:
    """Return one self-contained HTML page.

    Args:
        exhibits: to be shown; exhibits of one image are compared with each other.
        title: heading of the page.
        note: a sentence below the heading.

    Raises:
        InputError: no exhibits.
    """
    if not exhibits:
        raise InputError("exhibits: expected at least one, got none")
    pack = Pack()
    photos = list({id(exhibit.pixels): exhibit for exhibit in exhibits}.values())
    places = {id(exhibit.pixels): place for place, exhibit in enumerate(photos)}
    data = {
        "photos": [
            {
                "name": _photo_name(exhibit, photos),
                "uri": jpeg_uri(Image.fromarray(exhibit.pixels), quality=90),
                "size": list(exhibit.pixels.shape[:2]),
            }
            for exhibit in photos
        ],
        "exhibits": [_exhibit(exhibit, places[id(exhibit.pixels)], pack) for exhibit in exhibits],
        "colours": {name: _colours(map_name) for name, map_name in COLOURS.items()},
    }
    data["blobs"] = pack.blobs
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    names = list(dict.fromkeys(exhibit.mechanism for exhibit in exhibits))
    return (
        page_environment()
        .get_template("explorer.html")
        .render(
            title=title,
            note=note,
            untrained=not any(exhibit.trained for exhibit in exhibits),
            modules=[
                (name, lookup(name), *_asymmetries([one for one in exhibits if one.mechanism == name]))
                for name in names
            ],
            max_whole=MAX_WHOLE,
            data=data,
            script=script,
            script_hash=script_hash(script),
        )
    )


def _photo_name(exhibit: Exhibit, photos: Sequence[Exhibit]) -> str:
    """Name of a photo, with its size if models of several input sizes are shown."""
    if sum(other.image == exhibit.image for other in photos) == 1:
        return exhibit.image
    return "{}, {}×{}".format(exhibit.image, *exhibit.pixels.shape[:2])


def _exhibit(exhibit: Exhibit, photo: int, pack: Pack) -> dict[str, Any]:
    return {
        "mechanism": exhibit.mechanism,
        "label": exhibit.label,
        "trained": exhibit.trained,
        "model": exhibit.model,
        "photo": photo,
        "words": asdict(lookup(exhibit.mechanism)),
        "stages": [_stage(view, pack) for view in exhibit.stages],
    }


def _stage(view: StageView, pack: Pack) -> dict[str, Any]:
    return {
        "stage": view.stage,
        "channels": view.channels,
        "grid": view.grid,
        "flow": [asdict(step) for step in view.flow],
        "matrices": [_matrix(matrix, pack) for matrix in view.matrices],
        "attention": None if view.attention is None else pack.add(view.attention),
        "channel_attention": None if view.channel_attention is None else pack.add(view.channel_attention),
        "change": pack.add(view.change),
    }


def _matrix(matrix: MatrixView, pack: Pack) -> dict[str, Any]:
    texts = ("name", "symbol", "formula", "meaning", "kind")
    numbers = ("size", "grid", "key_grid", "blocks", "key_blocks", "asymmetry", "reach", "whole")
    return {
        **{name: getattr(matrix, name) for name in (*texts, *numbers)},
        "picture": pack.add(matrix.picture),
        "chosen": [] if matrix.whole else matrix.chosen.tolist(),
        "rows": None if matrix.whole else pack.add(matrix.rows),
        "columns": None if matrix.whole else pack.add(matrix.columns),
        "maps": pack.add_pictures(matrix.maps) if len(matrix.maps) else None,
        "map_channels": matrix.map_channels.tolist(),
    }


def _asymmetries(exhibits: Sequence[Exhibit]) -> tuple[list[float], bool]:
    """Lowest and highest asymmetry of the square matrices, if any; whether there are matrices at all."""
    matrices = [matrix for exhibit in exhibits for view in exhibit.stages for matrix in view.matrices]
    found = [matrix.asymmetry for matrix in matrices if matrix.asymmetry is not None]
    return ([min(found), max(found)] if found else []), bool(matrices)


def _colours(name: str) -> list[list[int]]:
    """256 colours, from lowest to highest."""
    from matplotlib import colormaps

    return np.round(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(int).tolist()


RELATIVE_ERROR = 2.0**-11  #: of a packed value that is at least 2⁻³⁰ times the largest of its array
_MAX_EXPONENT = 15  # values are scaled below 2¹⁵, as half precision ends at 65504


@dataclass
class Pack:
    """Compressed arrays of the page; ``blobs`` are their contents in base64."""

    blobs: list[str] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Add an array in half precision; return a reference with its blob, shape and scale."""
        largest = float(np.abs(array).max(initial=0.0))
        exponent = math.frexp(largest)[1] - _MAX_EXPONENT if largest > 0 else 0
        halves = np.ldexp(array.astype(np.float64), -exponent).astype("<f2")
        pairs = np.frombuffer(halves.tobytes(), np.uint8).reshape(-1, 2)
        planes = pairs[:, 1].tobytes() + pairs[:, 0].tobytes()  # high bytes, then low ones: compresses better
        return {"blob": self._keep(planes), "shape": list(array.shape), "scale": 2.0**exponent}

    def add_pictures(self, maps: np.ndarray) -> dict[str, Any]:
        """Add maps ``(n, h, w)`` as pictures, each scaled from its minimum and maximum to 0 and 255."""
        low = maps.min(axis=(1, 2), keepdims=True)
        span = maps.max(axis=(1, 2), keepdims=True) - low
        scaled = np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)
        pixels = np.round(scaled * 255).astype(np.uint8)
        return {"blob": self._keep(pixels.tobytes()), "shape": list(maps.shape)}

    def _keep(self, content: bytes) -> int:
        if content not in self._places:
            self._places[content] = len(self.blobs)
            self.blobs.append(base64.b64encode(zlib.compress(content, 6)).decode("ascii"))
        return self._places[content]
