"""Relation explorer: one interactive HTML page that shows what attention modules compute for a picture."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports.glossary import lookup
from rga_reid.reports.html import jpeg_uri
from rga_reid.reports.language import LANGUAGES, Text, load_strings, render_page
from rga_reid.reports.relation_views import MAX_WHOLE, Calculation, MatrixView, StageView, to_halves

#: scripts of the page, concatenated in this order
SCRIPTS = (
    "explorer_numbers.js",
    "explorer_view.js",
    "explorer_flow.js",
    "explorer_tour.js",
    "explorer_controls.js",
)
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
        model: the network, such as "ResNet-50".
        source: distinguishes exhibits of the same module, such as the name of the checkpoint.
        name: shown to the reader in place of ``mechanism``, such as that of a variant of an ablation.
    """

    mechanism: str
    trained: bool
    image: str
    pixels: np.ndarray
    stages: Sequence[StageView]
    model: str
    source: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError(f"exhibit {self.mechanism}: expected at least one stage, got none")

    @property
    def label(self) -> str:
        """Name for the reader, such as ``rga, trained``."""
        name = f"{self.name or self.mechanism}, {'trained' if self.trained else 'untrained'}"
        return f"{name} ({self.source})" if self.source else name

    def stage(self, number: int | None = None) -> StageView:
        """Return a stage by its number; by default the finest whose position matrices are complete.

        Without such a stage, it is the last.
        """
        if number is None:
            for view in self.stages:
                positions = [matrix for matrix in view.matrices if matrix.kind == "positions"]
                if positions and all(matrix.whole for matrix in positions):
                    return view
            return self.stages[-1]
        for view in self.stages:
            if view.stage == number:
                return view
        known = ", ".join(str(view.stage) for view in self.stages)
        raise InputError(f"stage {number}: expected a stage with {self.mechanism}: {known}")


def explorer_page(
    exhibits: Sequence[Exhibit],
    *,
    title: str = "",
    note: str = "",
    trained: Sequence[str] = (),
    drawn: bool = False,
    lang: str | None = None,
) -> str:
    """Return one self-contained HTML page.

    Args:
        exhibits: to be shown; exhibits of one image are compared with each other.
        title: heading of the page; by default "Relation explorer" in the language of the page.
        note: a sentence below the heading, above the names of the networks.
        trained: names of the checkpoints, to be listed below the heading.
        drawn: whether the people are those of the synthetic data set, which the page then says.
        lang: ``en`` or ``zh``, in which the page opens; by default the language of the reader's browser.

    Raises:
        InputError: no exhibits, or an unknown language.
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
        # English texts are their own keys
        "flow": {one: load_strings(one).get("flow", {}) for one in LANGUAGES},
        "formula": {one: load_strings(one).get("formula", {}) for one in LANGUAGES},
        "modules": [
            {
                "words": {one: asdict(lookup(name, one)) for one in LANGUAGES},
                "asymmetry": asymmetry,
                "related": related,
            }
            for name in dict.fromkeys(exhibit.mechanism for exhibit in exhibits)
            for asymmetry, related in [_asymmetries([one for one in exhibits if one.mechanism == name])]
        ],
    }
    data["blobs"] = pack.blobs
    return render_page(
        "explorer.html",
        ["explorer"],
        data=data,
        scripts=SCRIPTS,
        lang=lang,
        title=title or Text("title"),
        note=note,
        networks=[
            {"name": name, "height": height, "width": width}
            for name, (height, width) in dict.fromkeys((one.model, one.pixels.shape[:2]) for one in exhibits)
        ],
        trained=", ".join(trained),
        drawn=drawn,
        untrained=not any(exhibit.trained for exhibit in exhibits),
        max_whole=MAX_WHOLE,
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
        "source": exhibit.source,
        "name": exhibit.name or exhibit.mechanism,
        "start": list(exhibit.stages).index(exhibit.stage()),
        "words": {one: asdict(lookup(exhibit.mechanism, one)) for one in LANGUAGES},
        "stages": [_stage(view, pack) for view in exhibit.stages],
    }


def _stage(view: StageView, pack: Pack) -> dict[str, Any]:
    return {
        "stage": view.stage,
        "channels": view.channels,
        "grid": view.grid,
        "flow": [
            {**asdict(step), "picture": None if one is None else {"kind": one.kind, **pack.add(one.values)}}
            for step, one in zip(view.flow, view.pictures, strict=True)
        ],
        "matrices": [_matrix(matrix, pack) for matrix in view.matrices],
        # exact, as the page shows the range in digits, which those of other pages should equal
        "attention": None if view.attention is None else pack.add_exact(view.attention),
        "channel_attention": None
        if view.channel_attention is None
        else pack.add_exact(view.channel_attention),
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
        "activity": np.abs(matrix.maps).mean(axis=(1, 2)).round(6).tolist(),
        "live": matrix.live.tolist(),
        "calculation": None if matrix.calculation is None else _calculation(matrix.calculation, pack),
    }


def _calculation(calculation: Calculation, pack: Pack) -> dict[str, Any]:
    nodes, keys = calculation.nodes, calculation.keys
    return {
        **{name: getattr(calculation, name) for name in ("form", "step", "left", "right")},
        "lefts": pack.add_exact(calculation.lefts),
        "rights": pack.add_exact(calculation.rights),
        "nodes": None if nodes is None else nodes.tolist(),
        "keys": None if keys is None else keys.tolist(),
        "logsumexp": pack.add_exact(calculation.logsumexp),
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


@dataclass
class Pack:
    """Compressed arrays of the page; ``blobs`` are their contents in base64."""

    blobs: list[str] = field(default_factory=list)
    _places: dict[bytes, int] = field(default_factory=dict)

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Add an array in half precision; return a reference with its blob, shape and scale."""
        halves, exponent = to_halves(array)
        pairs = np.frombuffer(halves.tobytes(), np.uint8).reshape(-1, 2)
        planes = pairs[:, 1].tobytes() + pairs[:, 0].tobytes()  # high bytes, then low ones: compresses better
        return {"blob": self._keep(planes), "shape": list(array.shape), "scale": 2.0**exponent}

    def add_exact(self, array: np.ndarray) -> dict[str, Any]:
        """Add an array in single precision."""
        return {"blob": self._keep(array.astype("<f4").tobytes()), "shape": list(array.shape), "exact": True}

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
