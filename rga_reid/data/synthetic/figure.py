"""Build a person in a pose from about twenty tubes around the bones.

Outlines are in metres for a person of average build.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rga_reid.data.synthetic.people import (
    LONGEST_SHIRT,
    SHORT_SLEEVE,
    UPPER_ARM_SHARE,
    Person,
    Point,
    Pose,
    skeleton,
)
from rga_reid.data.synthetic.rendering import PLACES, Profile, Texture, Tube, outline, oval

DRAWN_HEIGHT = 1.72  # metres, of the person that the outlines fit
HIP_WIDTH = 0.165
TORSO_DEPTH = 0.66
WAIST = 0.75  # place between the shoulders (0) and the hips (1)
LEGS_BEHIND, LEGS_BEHIND_SKIRT = 0.25, 0.4
ARM_ASIDE = 0.25

SIDES = (("left", 1), ("right", -1))


def build_figure(person: Person, textures: Mapping[str, Texture], pose: Pose) -> list[Tube]:
    """Return the tubes of a person, in the coordinates of ``skeleton``, in no order.

    Args:
        textures: result of ``dress`` for this person.
    """
    joints = skeleton(person.body, pose)
    drawing = _Drawing(person, textures, joints, person.body.height / DRAWN_HEIGHT)
    parts = [drawing.legs(), drawing.trunk(), drawing.arms(), drawing.bag()]
    tubes = [tube for part in parts for tube in part]
    return tubes + build_head(person, textures, joints, drawing.scale * person.body.head)


@dataclass(frozen=True)
class _Drawing:
    person: Person
    textures: Mapping[str, Texture]
    joints: Mapping[str, Point]
    scale: float

    @property
    def stout(self) -> float:
        """Scale of widths: metres of this body for one metre of the outlines."""
        return self.scale * self.person.body.build

    def at(self, joint: str, offset: ArrayLike = (0, 0, 0)) -> Point:
        """Return the point at an offset from a joint, in metres of the outlines."""
        return self.joints[joint] + self.scale * np.asarray(offset)

    def below_shoulders(self, trunks: float) -> Point:
        """Return the point on the line of the spine that many trunk lengths below the shoulders."""
        return self.joints["shoulders"] + trunks * (self.joints["pelvis"] - self.joints["shoulders"])

    def legs(self) -> Iterator[Tube]:
        hidden = self.person.bottom == "skirt" or self.person.hem > LONGEST_SHIRT
        behind = LEGS_BEHIND_SKIRT if hidden else LEGS_BEHIND
        thigh, shank = self._leg_outlines()
        shoe = self.scale * outline((0, 0.042), (0.5, 0.038), (1, 0.03))
        for side, _ in SIDES:
            hip, knee, ankle = (self.at(f"{side}_{joint}") for joint in ("hip", "knee", "ankle"))
            heel, toe = self.at(f"{side}_heel", (0, 0.035, 0.03)), self.at(f"{side}_toe", (0, 0.024, -0.03))
            yield Tube(hip, knee, thigh, self.textures["thigh"], round_ends=True, behind=behind)
            yield Tube(knee, ankle, shank, self.textures["shank"], round_ends=True, behind=behind + 0.01)
            yield Tube(heel, toe, shoe, self.textures["shoe"], 1.15, round_ends=True, behind=behind - 0.01)

    def _leg_outlines(self) -> tuple[Profile, Profile]:
        """Return the outlines of thigh and shank."""
        wide = self.person.wide if self.person.bottom == "trousers" else 0.9
        ankle = 0.05 * wide if self.person.bottom == "trousers" else 0.036
        thigh = outline((0, 0.088), (0.5, 0.076), (1, 0.056 * wide))
        shank = outline((0, 0.053 * wide), (0.28, 0.06 * wide), (1, ankle))
        if self.person.bottom == "shorts":  # wider than the leg
            covered = 2 * self.person.bottom_length > PLACES
            thigh *= 1 + covered * self.person.wide * outline((0, 0.1), (1, 0.25))
        return self.stout * thigh, self.stout * shank

    def trunk(self) -> Iterator[Tube]:
        person, hip = self.person, HIP_WIDTH
        seat = self.stout * outline((0, 0.14), (0.6, hip), (1, 0.95 * hip))
        crotch = self.at("pelvis", (0, -0.07, 0))
        yield Tube(self.below_shoulders(WAIST), crotch, seat, self.textures["pelvis"], 0.7, behind=0.2)
        if person.bottom == "skirt":
            flare = hip * (0.95 + 0.4 * person.wide * person.bottom_length)
            skirt = self.stout * outline((0, 0.135), (0.3, hip), (1, flare))
            leg = self.joints["pelvis"][1] - self.joints["left_ankle"][1]
            hem = self.at("pelvis") - np.array([0, person.bottom_length * leg, 0])
            yield Tube(self.below_shoulders(WAIST), hem, skirt, self.textures["skirt"], 0.85, behind=0.06)

        # from the shoulders down to the hem; shoulders widen with their bones
        broad = person.body.shoulders / person.body.build
        torso = outline(
            (0, 0.055 / person.body.build),
            (0.05 / person.hem, 0.1 * broad),
            (0.13 / person.hem, 0.16 * broad),
            (0.3 / person.hem, 0.165),
            (0.62 / person.hem, 0.15),
            (0.95 / person.hem, 1.05 * hip),
            (1, (0.67 + 0.4 * person.hem) * hip),
        )
        top, hem = self.at("shoulders", (0, 0.045, 0)), self.below_shoulders(person.hem)
        yield Tube(top, hem, self.stout * torso, self.textures["torso"], TORSO_DEPTH)

    def arms(self) -> Iterator[Tube]:
        person = self.person
        stout = (self.scale + self.stout) / 2 * (1.12 if person.sleeve == 1 else 1)
        upper = stout * outline((0, 0.05), (0.3, 0.052), (1, 0.043))
        if person.sleeve <= SHORT_SLEEVE:  # wider than the arm
            upper *= 1 + 0.18 * (person.sleeve > PLACES * UPPER_ARM_SHARE)
        fore = stout * outline((0, 0.043), (0.3, 0.042), (1, 0.031))
        hand = self.scale * outline((0, 0.028), (0.5, 0.036), (1, 0.022))
        for side, out in SIDES:
            aside = ARM_ASIDE * out
            shoulder, elbow = self.at(f"{side}_shoulder"), self.at(f"{side}_elbow")
            wrist, fingers = self.at(f"{side}_wrist"), self.at(f"{side}_fingers")
            cloth, cuff, skin = (self.textures[part] for part in ("upper arm", "forearm", "skin"))
            yield Tube(shoulder, elbow, upper, cloth, round_ends=True, aside=aside)
            yield Tube(elbow, wrist, fore, cuff, round_ends=True, behind=-0.01, aside=aside)
            yield Tube(wrist, fingers, hand, skin, round_ends=True, behind=0.01, aside=aside)

    def bag(self) -> Iterator[Tube]:
        person, texture = self.person, self.textures["bag"]
        build = person.body.build
        if person.bag == "backpack":
            top = self.at("shoulders", (0, -0.02, -0.15 * build))
            bottom = self.at("shoulders", (0, -0.44, -0.15 * build))
            yield Tube(top, bottom, 0.15 * self.scale * oval(0.2), texture, depth=0.62)
        elif person.bag == "shoulder bag":
            x = 0.17 * build * person.bag_side
            top, bottom = self.at("pelvis", (x, 0.03, 0.03)), self.at("pelvis", (x, -0.2, 0.03))
            yield Tube(top, bottom, 0.075 * self.scale * oval(0.15), texture, depth=2.0, behind=-0.1)
        elif person.bag == "handbag":
            hand = self.at(("left" if person.bag_side > 0 else "right") + "_fingers")
            top, bottom = hand - [0, 0.1 * self.scale, 0], hand - [0, 0.3 * self.scale, 0]
            yield Tube(hand, top, self.scale * outline((0, 0.008), (1, 0.008)), texture, depth=5)
            yield Tube(top, bottom, 0.055 * self.scale * oval(0.15), texture, depth=2.6)


HEAD_WIDTH, HEAD_DEPTH = 0.082, 1.2
HAT_DEPTHS = {"cap": 0.095, "beanie": 0.115}


def build_head(
    person: Person, textures: Mapping[str, Texture], joints: Mapping[str, Point], size: float
) -> list[Tube]:
    """Return neck, head, hair and hat.

    Args:
        size: metres of this head for one metre of the outlines.
    """
    up = joints["crown"] - joints["chin"]
    up = up / np.linalg.norm(up)
    back = np.array([0.0, 0.0, -1.0])
    crown, chin = joints["crown"] + 0.012 * size * up, joints["chin"] - 0.012 * size * up

    def at(down: float, backward: float = 0.0) -> Point:
        """Return the point that far below the crown, and behind it."""
        return crown + size * (backward * back - down * up)

    neck = size * outline((0, 0.052), (0.6, 0.055), (1, 0.07))
    skull = size * HEAD_WIDTH * oval(0.42) * (1.02 - 0.16 * PLACES**2)  # narrower towards the chin
    tubes = [
        Tube(chin + size * (0.06 * up + 0.02 * back), joints["shoulders"], neck, textures["skin"]),
        Tube(crown, chin, skull, textures["head"], HEAD_DEPTH, behind=-0.04),
    ]
    for place, end, radius, depth, behind in _hair_tubes(person.hair_style):
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


def _hair_tubes(style: str) -> Iterator[tuple[Place, Place, np.ndarray, float, float]]:
    """Yield start, end, outline, depth and ``Tube.behind`` of the hair that is not on the skull."""
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
