"""Head, hair and hat. Sizes are metres for a head of average size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from rga_reid.data.synthetic.anatomy import Point
from rga_reid.data.synthetic.people import Person
from rga_reid.data.synthetic.textures import Texture
from rga_reid.data.synthetic.tubes import PLACES, Tube, outline, oval

HEAD_WIDTH, HEAD_DEPTH = 0.082, 1.2
HAT_DEPTHS = {"cap": 0.095, "beanie": 0.115}


def head(
    person: Person, textures: Mapping[str, Texture], joints: Mapping[str, Point], size: float
) -> list[Tube]:
    """Neck, head, hair and hat; ``size`` is the metres of this head for one metre drawn."""
    up = joints["crown"] - joints["chin"]
    up = up / np.linalg.norm(up)
    back = np.array([0.0, 0.0, -1.0])
    crown, chin = joints["crown"] + 0.012 * size * up, joints["chin"] - 0.012 * size * up

    def at(down: float, backward: float = 0.0) -> Point:
        """The place so far below the crown, and behind it."""
        return crown + size * (backward * back - down * up)

    neck = size * outline((0, 0.052), (0.6, 0.055), (1, 0.07))
    skull = size * HEAD_WIDTH * oval(0.42) * (1.02 - 0.16 * PLACES**2)  # narrower towards the chin
    tubes = [
        Tube(chin + size * (0.06 * up + 0.02 * back), joints["shoulders"], neck, textures["skin"]),
        Tube(crown, chin, skull, textures["head"], HEAD_DEPTH, behind=-0.04),
    ]
    for place, end, radius, depth, behind in _hair(person.hair_style):
        tubes.append(Tube(at(*place), at(*end), size * radius, textures["hair"], depth, behind=behind))
    if person.hat != "none":
        brow = HAT_DEPTHS[person.hat] - 0.025
        dome = outline((0, 0.027), (0.1, 0.057), (0.3, 0.079), (0.6, 0.092), (1, 0.094))
        tubes.append(Tube(at(-0.025), at(brow), size * dome, textures["hat"], 1.15, behind=-0.08))
    if person.hat == "cap":
        brim = size * 0.08 * oval(0.3)
        tubes.append(Tube(at(brow, -0.085), at(brow + 0.02, -0.085), brim, textures["hat"], behind=-0.09))
    return tubes


Place = tuple[float, float]  #: metres below the crown and behind it


def _hair(style: str) -> Iterator[tuple[Place, Place, np.ndarray, float, float]]:
    """Start, end, outline, depth, and how far behind it is drawn, of the hair that is not on the skull."""
    hanging = outline((0, 0.03), (0.08, 0.072), (0.25, 0.1), (0.7, 0.1), (1, 0.075))
    if style == "short":
        cropped = outline((0, 0.039), (0.15, 0.07), (0.5, 0.087), (1, 0.087))
        yield (-0.012, 0.012), (0.088, 0.012), cropped, 1.15, 0.02
    elif style == "bob":
        yield (-0.015, 0.035), (0.245, 0.035), hanging, 0.85, 0.0
    elif style == "long":
        yield (-0.015, 0.035), (0.405, 0.065), hanging, 0.85, 0.0
    elif style == "ponytail":
        yield (0.07, 0.1), (0.37, 0.15), 0.042 * oval(0.4), 1.0, 0.0
    elif style == "bun":
        yield (-0.05, 0.06), (0.05, 0.06), 0.05 * oval(0.5), 1.0, 0.0
