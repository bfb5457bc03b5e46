"""The one kind of solid that everything is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rga_reid.data.synthetic.anatomy import Point
from rga_reid.data.synthetic.textures import Texture

Profile = np.ndarray  #: (STATIONS,), half widths

STATIONS = 32  # where a tube's half width is given, equally spaced from start to end
PLACES = np.linspace(0, 1, STATIONS)


@dataclass(frozen=True)
class Tube:
    """A solid of elliptic cross-section around the line from ``start`` to ``end``.

    Args:
        radius: half width at each station, metres.
        depth: front-to-back size relative to the width.
        round_ends: ends are half spheres; otherwise cut straight.
        behind: metres by which the tube is drawn as if it were further away (trousers under a coat).
        aside: metres by which it is drawn as if it were further towards positive x (an arm).
    """

    start: Point
    end: Point
    radius: Profile
    texture: Texture
    depth: float = 1.0
    round_ends: bool = False
    behind: float = 0.0
    aside: float = 0.0


def outline(*points: tuple[float, float]) -> Profile:
    """The half widths of a shape drawn by ``(share of the length, half width)``, straight between them."""
    places, widths = zip(*points, strict=True)
    return np.interp(PLACES, places, widths)


def oval(roundness: float) -> Profile:
    """Half width 1 in the middle, 0 at both ends: 0.5 an ellipsoid, less a rounded box."""
    return np.maximum(0, 1 - (2 * PLACES - 1) ** 2) ** roundness
