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
LIPS = (0.8, 0.58, 0.58)  # relative to the skin
SEAM = 0.4  # how dark
BOOT_TOP = 0.45  # along the shank


def dress(person: Person) -> dict[str, Texture]:
    """The textures by part: ``torso``, ``thigh``, ``head``, ..."""
    rng = np.random.default_rng(person.cloth_seed)
    sleeve, leg = fabric(rng, _sleeve(person)), fabric(rng, _cloth(person.cloth))
    upper_arm, forearm = _limb(sleeve, person.skin, person.sleeve, UPPER_ARM_SHARE)
    covered = 0.0 if person.bottom == "skirt" else person.bottom_length
    thigh, shank = _limb(leg, person.skin, covered, THIGH_SHARE)
    return {
        "torso": fabric(rng, _torso(person)),
        "upper arm": upper_arm,
        "forearm": forearm,
        "skin": plain(person.skin),
        "pelvis": leg,
        "thigh": thigh,
        "shank": paint(shank, ALONG > BOOT_TOP, person.shoes) if person.boots else shank,
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


def _sleeve(person: Person) -> Texture:
    top = person.top
    if person.contrast_sleeves and person.shirt is None:
        return plain(top.second)
    if top.pattern in ("bands", "pinstripes", "checks", "dots"):
        return _cloth(Garment(top.colour, top.second, top.pattern, max(2, top.repeats // 2)))
    return plain(top.second if top.pattern == "yoke" else top.colour)


def _limb(cloth: Texture, skin: Colour, covered: float, joint: float) -> tuple[Texture, Texture]:
    """The two halves of an arm or a leg.

    Args:
        cloth: of the whole limb.
        covered: share of the limb under cloth; a darker seam ends it.
        joint: where the elbow or knee is, as a share of the limb.
    """
    upper = np.minimum(np.arange(ROWS) * joint, ROWS - 1).astype(int)
    lower = np.minimum(np.arange(ROWS) * (1 - joint) + joint * ROWS, ROWS - 1).astype(int)
    if covered < 1:
        cloth = paint(cloth, covered < ALONG, skin)
        if covered > 0:
            cloth = paint(cloth, SEAM * (np.abs(ALONG - covered) < 0.02), DARK)
    return cloth[upper], cloth[lower]


def _head(person: Person) -> Texture:
    texture = plain(person.skin)
    eyes = (np.abs(np.abs(AROUND) - 0.42) < 0.16) & (np.abs(ALONG - 0.5) < 0.03)
    brows = (np.abs(np.abs(AROUND) - 0.42) < 0.24) & (np.abs(ALONG - 0.43) < 0.018)
    mouth = (np.abs(AROUND) < 0.26) & (np.abs(ALONG - 0.79) < 0.022)
    nose = (np.abs(AROUND) < 0.09) & (np.abs(ALONG - 0.62) < 0.05)
    texture = paint(texture, eyes | (brows & (person.hair_style != "bald")), DARK)
    texture = np.where(mouth[:, :, None], texture * np.array(LIPS, np.float32), texture)
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
