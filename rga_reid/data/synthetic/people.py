"""Who walks by: bodies, hair, clothes and bags, drawn at random.

Colours come from short lists on purpose: many people share the colours of their clothes and differ in
patterns, cuts and what they carry, so that colour alone does not tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rga_reid.data.synthetic.anatomy import Body
from rga_reid.data.synthetic.textures import Colour

T = TypeVar("T")

BLACK, GREY, WHITE = (34, 34, 38), (98, 98, 102), (228, 227, 222)
NAVY, RED, BEIGE, DENIM = (38, 48, 92), (158, 40, 44), (188, 164, 128), (82, 104, 146)
GREEN, SKY = (66, 98, 70), (128, 158, 192)

TOP_COLOURS = (BLACK, GREY, WHITE, NAVY, RED, BEIGE, GREEN, SKY)
BOTTOM_COLOURS = (BLACK, GREY, NAVY, DENIM, BEIGE)
SHOE_COLOURS = (BLACK, WHITE, GREY, RED)
BAG_COLOURS = (BLACK, NAVY, RED, BEIGE)
HAT_COLOURS = (BLACK, WHITE, RED)
SKIN_COLOURS = ((232, 192, 166), (214, 170, 140), (178, 130, 98), (118, 82, 62))
HAIR_COLOURS = ((28, 24, 24), (72, 48, 34), (150, 112, 70), (150, 148, 146))

TOP_PATTERNS = (
    "plain",
    "bands",
    "pinstripes",
    "checks",
    "dots",
    "yoke",
    "lower half",
    "chest band",
    "print",
    "back print",
)
BOTTOM_PATTERNS = ("plain", "plain", "plain", "side stripes", "checks")
UPPER_ARM_SHARE = 0.56  # of the arm, from the shoulder to the wrist
THIGH_SHARE = 0.5  # of the leg, from the hip to the ankle
SHORT_SLEEVE = 0.4
SLEEVES = (0.0, 0.32, 0.32, SHORT_SLEEVE, 1.0, 1.0)  # share of the arm, to the wrist
SHIRT_HEMS, COAT_HEM = (0.98, 1.06, 1.14), 1.5  # below the shoulders, in trunk lengths
LONGEST_SHIRT = max(SHIRT_HEMS)

HAIR_STYLES = ("bald", "short", "short", "short", "bob", "long", "long", "ponytail", "bun")
HATS = ("none", "none", "none", "none", "cap", "beanie")
BAGS = ("none", "none", "backpack", "backpack", "shoulder bag", "handbag")
BOTTOMS = ("trousers", "trousers", "trousers", "shorts", "skirt")

# shares of the people
OPEN_JACKETS, LONG_COATS, CONTRAST_SLEEVES, BOOTS, GLASSES = 0.2, 0.15, 0.2, 0.15, 0.25


@dataclass(frozen=True)
class Garment:
    """A piece of cloth; a pattern (see ``textures``) in a second colour."""

    colour: Colour
    second: Colour
    pattern: str
    repeats: int


@dataclass(frozen=True)
class Person:
    """All that stays the same from camera to camera."""

    body: Body
    skin: Colour
    hair: Colour
    hair_style: str
    glasses: bool
    hat: str
    hat_colour: Colour
    top: Garment
    sleeve: float  #: share of the arm that is covered, to the wrist
    contrast_sleeves: bool  #: sleeves in the second colour
    hem: float  #: the top's length below the shoulders, in trunk lengths
    shirt: Colour | None  #: what an open jacket shows
    bottom: str  #: one of BOTTOMS
    cloth: Garment  #: of the bottom
    bottom_length: float  #: share of the leg that is covered, to the ankle
    wide: float  #: how loose the bottom is, relative to the mean
    shoes: Colour
    boots: bool
    bag: str
    bag_colour: Colour
    bag_side: int  #: +1 left, -1 right
    cloth_seed: int  #: of the folds


def random_person(rng: np.random.Generator) -> Person:
    """Somebody."""
    bottom = _one_of(rng, BOTTOMS)
    open_jacket, long_coat = rng.random() < OPEN_JACKETS, rng.random() < LONG_COATS
    return Person(
        body=_random_body(rng),
        skin=_one_of(rng, SKIN_COLOURS),
        hair=_one_of(rng, HAIR_COLOURS),
        hair_style=_one_of(rng, HAIR_STYLES),
        glasses=bool(rng.random() < GLASSES),
        hat=_one_of(rng, HATS),
        hat_colour=_one_of(rng, HAT_COLOURS),
        top=_random_garment(rng, TOP_COLOURS, ("plain",) if open_jacket else TOP_PATTERNS),
        sleeve=1.0 if open_jacket or long_coat else _one_of(rng, SLEEVES),
        contrast_sleeves=bool(rng.random() < CONTRAST_SLEEVES),
        hem=COAT_HEM if long_coat else _one_of(rng, SHIRT_HEMS),
        shirt=_one_of(rng, TOP_COLOURS) if open_jacket else None,
        bottom=bottom,
        cloth=_random_garment(rng, BOTTOM_COLOURS, BOTTOM_PATTERNS),
        bottom_length={
            "trousers": 1.0,
            "shorts": rng.uniform(0.3, 0.5),
            "skirt": rng.uniform(0.35, 0.75),
        }[bottom],
        wide=rng.uniform(0.85, 1.25),
        shoes=_one_of(rng, SHOE_COLOURS),
        boots=bool(rng.random() < BOOTS),
        bag=_one_of(rng, BAGS),
        bag_colour=_one_of(rng, BAG_COLOURS),
        bag_side=_one_of(rng, (-1, 1)),
        cloth_seed=int(rng.integers(2**31)),
    )


def _random_body(rng: np.random.Generator) -> Body:
    return Body(
        height=rng.uniform(1.55, 1.9),
        build=rng.uniform(0.95, 1.35),
        leg_length=rng.uniform(0.95, 1.05),
        shoulders=rng.uniform(0.93, 1.08),
        head=rng.uniform(0.95, 1.1),
    )


def _random_garment(rng: np.random.Generator, colours: Sequence[Colour], patterns: Sequence[str]) -> Garment:
    colour = _one_of(rng, colours)
    return Garment(
        colour=colour,
        second=_one_of(rng, [other for other in colours if other != colour]),
        pattern=_one_of(rng, patterns),
        repeats=int(rng.integers(3, 7)),
    )


def _one_of(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]
