"""A person's surfaces: the texture of each part of the figure, made once and used in every pose."""

from __future__ import annotations

from math import pi

import numpy as np

from rga_reid.data.synthetic.people import THIGH_SHARE, UPPER_ARM_SHARE, Garment, Person
from rga_reid.data.synthetic.textures import (
    ACROSS,
    ALONG,
    AROUND,
    IN_FRONT,
    ROWS,
    Colour,
    Texture,
    fabric,
    paint,
    pattern,
    plain,
)

DARK = (24, 22, 24)
LIPS_SHADE = 0.72
SEAM_SHADE = 0.6
BOOT_TOP = 0.45  # along the shank


def dress(person: Person) -> dict[str, Texture]:
    """The textures by part: ``torso``, ``thigh``, ``head``, ..."""
    rng = np.random.default_rng(person.cloth_seed)
    sleeve = fabric(rng, _sleeve_cloth(person))
    leg = fabric(rng, _cloth(person.cloth))
    covered = 0.0 if person.bottom == "skirt" else person.bottom_length
    return {
        "torso": fabric(rng, _torso(person)),
        "upper arm": _partly_covered(sleeve, person.skin, person.sleeve / UPPER_ARM_SHARE),
        "forearm": _partly_covered(
            sleeve, person.skin, (person.sleeve - UPPER_ARM_SHARE) / (1 - UPPER_ARM_SHARE)
        ),
        "skin": plain(person.skin),
        "pelvis": leg,
        "thigh": _partly_covered(_stretched(leg, 0, 1), person.skin, covered / THIGH_SHARE),
        "shank": _boots(
            person,
            _partly_covered(
                _stretched(leg, 0.5, 1), person.skin, (covered - THIGH_SHARE) / (1 - THIGH_SHARE)
            ),
        ),
        "skirt": leg,
        "shoe": plain(person.shoes),
        "head": _head(person),
        "hair": fabric(rng, plain(person.hair)),
        "hat": fabric(rng, plain(person.hat_colour)),
        "bag": fabric(rng, _bag(person.bag_colour)),
    }


def _cloth(garment: Garment) -> Texture:
    return paint(plain(garment.colour), pattern(garment.pattern, garment.repeats), garment.second)


def _torso(person: Person) -> Texture:
    texture = _cloth(person.top)
    if person.shirt is not None:
        texture = paint(texture, (np.abs(AROUND) < 0.45) & (ALONG > 0.02), person.shirt)
    elif person.sleeve == 1:
        texture = paint(texture, (np.abs(AROUND) < 0.05) * 0.7, DARK)  # a zip
    neckline = (np.abs(ACROSS) < 0.34 - 2.2 * ALONG) & IN_FRONT
    texture = paint(texture, neckline, person.skin)
    if person.bag == "backpack":
        straps = (np.abs(np.abs(ACROSS) - 0.52) < 0.1) & IN_FRONT & (ALONG < 0.6)
        texture = paint(texture, straps, person.bag_colour)
    elif person.bag == "shoulder bag":
        # from one shoulder to the other hip, in front and at the back
        line = np.interp(person.bag_side * ACROSS, [-0.45, 1], [0.02, 0.85])
        texture = paint(texture, np.abs(ALONG - line) < 0.05, person.bag_colour)
    return texture


def _sleeve_cloth(person: Person) -> Texture:
    top = person.top
    if person.contrast_sleeves and person.shirt is None:
        return plain(top.second)
    if top.pattern in ("bands", "pinstripes", "checks", "dots"):
        return _cloth(Garment(top.colour, top.second, top.pattern, max(2, top.repeats // 2)))
    return plain(top.second if top.pattern == "yoke" else top.colour)


def _partly_covered(cloth: Texture, skin: Colour, share: float) -> Texture:
    """``cloth`` from the start to ``share`` of the part, a darker seam at its end, then skin."""
    texture = paint(cloth, share < ALONG, skin)
    if 0 < share < 1:
        texture *= 1 - (1 - SEAM_SHADE) * (np.abs(ALONG - share) < 0.04)[:, :, None]
    return texture


def _stretched(texture: Texture, start: float, end: float) -> Texture:
    """The rows of ``texture`` between two shares of its length, as a whole texture."""
    rows = (np.linspace(start, end, ROWS, endpoint=False) * ROWS).astype(int)
    return texture[rows]


def _boots(person: Person, texture: Texture) -> Texture:
    return paint(texture, ALONG > BOOT_TOP, person.shoes) if person.boots else texture


def _head(person: Person) -> Texture:
    texture = plain(person.skin)
    eyes = (np.abs(np.abs(AROUND) - 0.42) < 0.16) & (np.abs(ALONG - 0.5) < 0.03)
    brows = (np.abs(np.abs(AROUND) - 0.42) < 0.24) & (np.abs(ALONG - 0.43) < 0.018)
    mouth = (np.abs(AROUND) < 0.26) & (np.abs(ALONG - 0.79) < 0.022)
    nose = (np.abs(AROUND) < 0.09) & (np.abs(ALONG - 0.62) < 0.05)
    texture = paint(texture, eyes | (brows & (person.hair_style != "bald")), DARK)
    red, green, blue = person.skin
    texture = paint(
        texture, mouth, (int(red * 0.8), int(green * LIPS_SHADE * 0.8), int(blue * LIPS_SHADE * 0.8))
    )
    texture = paint(texture, nose * 0.25, DARK)
    if person.glasses:
        frame = (np.abs(AROUND) < 0.85) & (np.abs(ALONG - 0.5) < 0.05)
        texture = paint(texture, frame * 0.85, DARK)
    if person.hair_style == "bald":
        return texture
    sides = 0.5 if person.hair_style in ("short", "bun", "ponytail") else 1.0
    hairline = np.interp(
        np.abs(AROUND), [0, 0.8, 1.15, 1.9, 2.3, pi], [0.27, 0.3, sides * 0.9, sides, 0.85, 0.9]
    )
    return paint(texture, hairline > ALONG, person.hair)


def _bag(colour: Colour) -> Texture:
    texture = plain(colour)
    pocket = (np.abs(ALONG - 0.7) < 0.2) & (np.abs(ACROSS) < 0.7)
    edge = (np.abs(ALONG - 0.5) < 0.02) & (np.abs(ACROSS) < 0.7)
    texture *= (1 + 0.25 * pocket - 0.35 * edge)[:, :, None]
    return texture
