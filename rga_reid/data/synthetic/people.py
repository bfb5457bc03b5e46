"""Random people: bodies, poses, hair, clothes and bags.

Colours come from short lists on purpose: many people share the colours of their clothes and differ in
patterns, cuts and bags, so that colour alone does not identify them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import TypeVar

import numpy as np

from rga_reid.data.synthetic.rendering import (
    ACROSS,
    ALONG,
    AROUND,
    IN_FRONT,
    ROWS,
    Colour,
    Point,
    Texture,
    fabric,
    paint,
    pattern,
    plain,
)

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
    """A piece of cloth with a pattern (see ``PATTERNS``) in a second colour."""

    colour: Colour
    second: Colour
    pattern: str
    repeats: int


@dataclass(frozen=True)
class Person:
    """Everything about a person that is the same for all cameras."""

    body: Body
    skin: Colour
    hair: Colour
    hair_style: str
    glasses: bool
    hat: str
    hat_colour: Colour
    top: Garment
    sleeve: float  #: covered share of the arm, to the wrist
    contrast_sleeves: bool  #: sleeves in the second colour
    hem: float  #: length of the top below the shoulders, in trunk lengths
    shirt: Colour | None  #: colour of the shirt under an open jacket
    bottom: str  #: one of BOTTOMS
    cloth: Garment  #: cloth of the bottom
    bottom_length: float  #: covered share of the leg, to the ankle
    wide: float  #: width of the bottom, relative to the mean
    shoes: Colour
    boots: bool
    bag: str
    bag_colour: Colour
    bag_side: int  #: +1 left, -1 right
    cloth_seed: int  #: random seed of the folds


def random_person(rng: np.random.Generator) -> Person:
    """Return a random person."""
    bottom = _choose(rng, BOTTOMS)
    open_jacket, long_coat = rng.random() < OPEN_JACKETS, rng.random() < LONG_COATS
    return Person(
        body=_random_body(rng),
        skin=_choose(rng, SKIN_COLOURS),
        hair=_choose(rng, HAIR_COLOURS),
        hair_style=_choose(rng, HAIR_STYLES),
        glasses=bool(rng.random() < GLASSES),
        hat=_choose(rng, HATS),
        hat_colour=_choose(rng, HAT_COLOURS),
        top=_random_garment(rng, TOP_COLOURS, ("plain",) if open_jacket else TOP_PATTERNS),
        sleeve=1.0 if open_jacket or long_coat else _choose(rng, SLEEVES),
        contrast_sleeves=bool(rng.random() < CONTRAST_SLEEVES),
        hem=COAT_HEM if long_coat else _choose(rng, SHIRT_HEMS),
        shirt=_choose(rng, TOP_COLOURS) if open_jacket else None,
        bottom=bottom,
        cloth=_random_garment(rng, BOTTOM_COLOURS, BOTTOM_PATTERNS),
        bottom_length={
            "trousers": 1.0,
            "shorts": rng.uniform(0.3, 0.5),
            "skirt": rng.uniform(0.35, 0.75),
        }[bottom],
        wide=rng.uniform(0.85, 1.25),
        shoes=_choose(rng, SHOE_COLOURS),
        boots=bool(rng.random() < BOOTS),
        bag=_choose(rng, BAGS),
        bag_colour=_choose(rng, BAG_COLOURS),
        bag_side=_choose(rng, (-1, 1)),
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
    colour = _choose(rng, colours)
    return Garment(
        colour=colour,
        second=_choose(rng, [other for other in colours if other != colour]),
        pattern=_choose(rng, patterns),
        repeats=int(rng.integers(3, 7)),
    )


def _choose(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


HEAD, NECK, TORSO = 0.130, 0.052, 0.288
UPPER_ARM, FOREARM, HAND = 0.186, 0.146, 0.108
THIGH, SHANK, FOOT, ANKLE = 0.245, 0.246, 0.152, 0.039
SHOULDER, HIP = 0.1, 0.050  # joint centres, from the middle
HEEL = 0.25  # share of the foot behind the ankle

KNEE_REST = 0.06
KNEE_SWING = 1.9  # bend of the swinging leg's knee, in strides
KNEE_LEAD = 0.5  # the knee bends most this much before the leg passes under the body
FOOT_FOLLOWS_SHANK = 0.65
ARMS_OUT = 0.10
SHOULDER_SLOPE = 0.32  # of the joints below the base of the neck, in half widths
TWIST = 0.25  # of the shoulders against the stride
HEAD_FORWARD = 0.012


@dataclass(frozen=True)
class Body:
    """The height of a body in metres, and its other proportions relative to the average."""

    height: float = 1.72
    build: float = 1.0
    leg_length: float = 1.0
    shoulders: float = 1.0
    head: float = 1.0


@dataclass(frozen=True)
class Pose:
    """One moment of a gait; ``stride`` 0 is standing."""

    phase: float = 0.0
    stride: float = 0.4
    arm_swing: float = 0.4
    elbows: tuple[float, float] = (0.3, 0.3)
    lean: float = 0.03


def skeleton(body: Body, pose: Pose) -> dict[str, Point]:
    """Return the joints by name (``left_knee``, ``chin``, ...), each ``(x, y, z)``; the lower foot is at y = 0.

    x points to the person's left, y up and z forward, in metres.
    """
    points = {"pelvis": np.zeros(3)}
    for side, out in (("left", 1), ("right", -1)):
        points |= _leg(body, pose, side, out)
    ground = min(points[f"{side}_{part}"][1] for side in ("left", "right") for part in ("heel", "toe"))
    points |= _trunk(body, pose)
    for elbow, side, out in zip(pose.elbows, ("left", "right"), (1, -1), strict=True):
        points |= _arm(body, pose, side, out, elbow)
    return {name: point - (0, ground, 0) for name, point in points.items()}


def _limb_direction(angle: float, out: float = 0.0) -> Point:
    """Return the direction of a hanging limb, swung forward by ``angle`` and sideways by ``out``."""
    return np.array([sin(out), -cos(angle) * cos(out), sin(angle) * cos(out)])


def _leg(body: Body, pose: Pose, side: str, out: int) -> dict[str, Point]:
    unit = body.height * body.leg_length
    phase = _phase(pose, out)
    thigh = pose.stride * sin(phase)
    shank = thigh - KNEE_REST - KNEE_SWING * pose.stride * max(0.0, cos(phase + KNEE_LEAD))
    foot = FOOT_FOLLOWS_SHANK * shank
    forward, down = np.array([0.15 * out, sin(foot), cos(foot)]), _limb_direction(foot)

    hip = np.array([out * HIP * body.height * body.build, 0.0, 0.0])
    knee = hip + THIGH * unit * _limb_direction(thigh)
    ankle = knee + SHANK * unit * _limb_direction(shank)
    sole = ankle + ANKLE * body.height * down
    return {
        f"{side}_hip": hip,
        f"{side}_knee": knee,
        f"{side}_ankle": ankle,
        f"{side}_heel": sole - HEEL * FOOT * body.height * forward,
        f"{side}_toe": sole + (1 - HEEL) * FOOT * body.height * forward,
    }


def _trunk(body: Body, pose: Pose) -> dict[str, Point]:
    up = np.array([0.0, cos(pose.lean), sin(pose.lean)])
    torso = TORSO + (1 - body.leg_length) * (THIGH + SHANK)  # short legs go with a long trunk
    shoulders = torso * body.height * up
    chin = shoulders + (NECK * up + [0, 0, HEAD_FORWARD]) * body.height
    return {
        "shoulders": shoulders,
        "chin": chin,
        "crown": chin + HEAD * body.height * body.head * up,
    }


def _arm(body: Body, pose: Pose, side: str, out: int, elbow_bend: float) -> dict[str, Point]:
    swing = -pose.arm_swing * sin(_phase(pose, out))
    half_width = SHOULDER * body.height * body.shoulders
    twist = TWIST * swing
    shoulder = _trunk(body, pose)["shoulders"] + half_width * np.array(
        [out * cos(twist), -SHOULDER_SLOPE, sin(twist)]
    )
    elbow = shoulder + UPPER_ARM * body.height * _limb_direction(swing, out * ARMS_OUT)
    wrist = elbow + FOREARM * body.height * _limb_direction(swing + elbow_bend, out * ARMS_OUT / 2)
    fingers = wrist + 0.75 * HAND * body.height * _limb_direction(swing + elbow_bend + 0.1)
    return {
        f"{side}_shoulder": shoulder,
        f"{side}_elbow": elbow,
        f"{side}_wrist": wrist,
        f"{side}_fingers": fingers,
    }


def _phase(pose: Pose, out: int) -> float:
    return pose.phase if out > 0 else pose.phase + pi


DARK = (24, 22, 24)
LIPS = (0.8, 0.58, 0.58)  # relative to the skin
SEAM = 0.4  # darkness
BOOT_TOP = 0.45  # along the shank


def dress(person: Person) -> dict[str, Texture]:
    """Return the textures by part: ``torso``, ``thigh``, ``head``, ..."""
    rng = np.random.default_rng(person.cloth_seed)
    sleeve, leg = fabric(rng, _sleeve_texture(person)), fabric(rng, _garment_texture(person.cloth))
    upper_arm, forearm = _limb_textures(sleeve, person.skin, person.sleeve, UPPER_ARM_SHARE)
    covered = 0.0 if person.bottom == "skirt" else person.bottom_length
    thigh, shank = _limb_textures(leg, person.skin, covered, THIGH_SHARE)
    return {
        "torso": fabric(rng, _torso_texture(person)),
        "upper arm": upper_arm,
        "forearm": forearm,
        "skin": plain(person.skin),
        "pelvis": leg,
        "thigh": thigh,
        "shank": paint(shank, ALONG > BOOT_TOP, person.shoes) if person.boots else shank,
        "skirt": leg,
        "shoe": plain(person.shoes),
        "head": _head_texture(person),
        "hair": fabric(rng, plain(person.hair)),
        "hat": fabric(rng, plain(person.hat_colour)),
        "bag": fabric(rng, _bag_texture(person.bag_colour)),
    }


def _garment_texture(garment: Garment) -> Texture:
    return paint(plain(garment.colour), pattern(garment.pattern, garment.repeats), garment.second)


def _torso_texture(person: Person) -> Texture:
    texture = _garment_texture(person.top)
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


def _sleeve_texture(person: Person) -> Texture:
    top = person.top
    if person.contrast_sleeves and person.shirt is None:
        return plain(top.second)
    if top.pattern in ("bands", "pinstripes", "checks", "dots"):
        return _garment_texture(Garment(top.colour, top.second, top.pattern, max(2, top.repeats // 2)))
    return plain(top.second if top.pattern == "yoke" else top.colour)


def _limb_textures(cloth: Texture, skin: Colour, covered: float, joint: float) -> tuple[Texture, Texture]:
    """Return the textures of a limb above and below the joint; cloth covers a share and ends in a seam."""
    upper = np.minimum(np.arange(ROWS) * joint, ROWS - 1).astype(int)
    lower = np.minimum(np.arange(ROWS) * (1 - joint) + joint * ROWS, ROWS - 1).astype(int)
    if covered < 1:
        cloth = paint(cloth, covered < ALONG, skin)
        if covered > 0:
            cloth = paint(cloth, SEAM * (np.abs(ALONG - covered) < 0.02), DARK)
    return cloth[upper], cloth[lower]


def _head_texture(person: Person) -> Texture:
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


def _bag_texture(colour: Colour) -> Texture:
    texture = plain(colour)
    pocket = (np.abs(ALONG - 0.7) < 0.2) & (np.abs(ACROSS) < 0.7)
    edge = (np.abs(ALONG - 0.5) < 0.02) & (np.abs(ACROSS) < 0.7)
    texture *= (1 + 0.25 * pocket - 0.35 * edge)[:, :, None]
    return texture
