"""A person in a pose as a few dozen tubes: tapered, textured solids around the bones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rga_reid.data.synthetic.anatomy import Point, Pose, skeleton
from rga_reid.data.synthetic.people import Person
from rga_reid.data.synthetic.textures import Texture

STATIONS = 32  # where a tube's radius is given, equally spaced from start to end
REFERENCE_HEIGHT = 1.72  # widths below are metres for this height

Profile = NDArray[np.float64]


@dataclass(frozen=True)
class Tube:
    """A solid of elliptic cross-section around the line from ``start`` to ``end``.

    Args:
        radius: half width at ``STATIONS`` places, metres.
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


def figure(person: Person, textures: dict[str, Texture], pose: Pose) -> list[Tube]:
    """The tubes of a person, in person coordinates (see ``anatomy``), in no order."""
    joints = skeleton(person.body, pose)
    scale = person.body.height / REFERENCE_HEIGHT
    builder = _Builder(person, textures, joints, scale)
    return [*builder.legs(), *builder.trunk(), *builder.arms(), *builder.head(), *builder.bag()]


def _profile(places: Sequence[float], radii: Sequence[float]) -> Profile:
    return np.interp(np.linspace(0, 1, STATIONS), places, radii)


def _ball(power: float = 0.5) -> Profile:
    """An ellipsoid of half width 1; a smaller ``power`` is boxier."""
    return (1 - np.linspace(-1, 1, STATIONS) ** 2) ** power


@dataclass(frozen=True)
class _Builder:
    person: Person
    textures: dict[str, Texture]
    joints: dict[str, Point]
    scale: float

    def _at(self, joint: str, offset: ArrayLike = (0, 0, 0)) -> Point:
        return self.joints[joint] + self.scale * np.asarray(offset, dtype=float)

    def _between(self, start: str, end: str, share: float) -> Point:
        return self.joints[start] + share * (self.joints[end] - self.joints[start])

    def legs(self) -> Iterator[Tube]:
        person, build = self.person, self.person.body.build * self.scale
        bare = person.bottom != "trousers"
        behind = 0.4 if person.bottom == "skirt" or person.hem > 1.2 else 0.25
        loose = 0.9 if bare else person.wide
        thigh = build * _profile([0, 0.5, 1], [0.088, 0.076, 0.056 * loose])
        shank = build * _profile([0, 0.28, 1], [0.053 * loose, 0.06 * loose, 0.036 if bare else 0.05 * loose])
        if person.bottom == "shorts":
            hem = np.linspace(0, 1, STATIONS) < 2 * person.bottom_length
            thigh = np.where(hem, thigh * (1 + 0.25 * person.wide * np.linspace(0.4, 1, STATIONS)), thigh)
        for side in ("left", "right"):
            hip, knee = self._at(f"{side}_hip"), self._at(f"{side}_knee")
            ankle = self._at(f"{side}_ankle")
            yield Tube(hip, knee, thigh, self.textures["thigh"], round_ends=True, behind=behind)
            yield Tube(knee, ankle, shank, self.textures["shank"], round_ends=True, behind=behind + 0.01)
            yield Tube(
                self._at(f"{side}_heel", (0, 0.035, 0.03)),
                self._at(f"{side}_toe", (0, 0.024, -0.03)),
                self.scale * _profile([0, 0.5, 1], [0.042, 0.038, 0.03]),
                self.textures["shoe"],
                depth=1.15,
                round_ends=True,
                behind=behind - 0.01,
            )

    def trunk(self) -> Iterator[Tube]:
        person, build = self.person, self.person.body.build * self.scale
        shoulders = person.body.shoulders * self.scale
        hip = 0.165 * build
        yield Tube(
            self._between("shoulders", "pelvis", 0.75),
            self._at("pelvis", (0, -0.07, 0)),
            _profile([0, 0.6, 1], [0.14 * build, hip, 0.95 * hip]),
            self.textures["pelvis"],
            depth=0.7,
            behind=0.2,
        )
        if person.bottom == "skirt":
            hem = self._between("shoulders", "pelvis", 0.75)
            length = person.bottom_length * (self.joints["pelvis"][1] - self.joints["left_ankle"][1])
            flare = hip * (0.85 + 0.4 * person.wide * person.bottom_length + 0.1)
            yield Tube(
                hem,
                self._at("pelvis") - [0, max(length, 0.28 * self.scale), 0],
                _profile([0, 0.3, 1], [0.135 * build, hip, flare]),
                self.textures["skirt"],
                depth=0.85,
                behind=0.06,
            )
        waist = 0.14 if person.sleeve < 1 else 0.15
        yield Tube(
            self._at("shoulders", (0, 0.045, 0)),
            self._between("shoulders", "pelvis", person.hem),
            _profile(
                [0, 0.05, 0.13, 0.3, 0.62, 0.95, person.hem],
                [0.055, 0.1 * shoulders, 0.16 * shoulders, 0.165 * build, waist * build, 1.05 * hip, 1.12 * hip],
            )
            if person.hem <= 1.2
            else _profile(
                [0, 0.035, 0.09, 0.2, 0.42, 0.64, 1],
                [0.055, 0.1 * shoulders, 0.16 * shoulders, 0.17 * build, 0.15 * build, 1.08 * hip, 1.25 * hip],
            ),
            self.textures["torso"],
            depth=0.66,
        )

    def arms(self) -> Iterator[Tube]:
        covered = 1.12 if self.person.sleeve == 1 else 1.0
        build = self.scale * (0.5 + 0.5 * self.person.body.build)
        for side, aside in (("left", 0.25), ("right", -0.25)):
            shoulder, elbow = self._at(f"{side}_shoulder"), self._at(f"{side}_elbow")
            wrist, fingers = self._at(f"{side}_wrist"), self._at(f"{side}_fingers")
            upper = covered * build * _profile([0, 0.3, 1], [0.05, 0.052, 0.043])
            if self.person.sleeve < 0.5:  # a short sleeve stands off the arm
                upper *= 1 + 0.18 * (np.linspace(0, 1, STATIONS) < self.person.sleeve / 0.56)
            fore = covered * build * _profile([0, 0.3, 1], [0.043, 0.042, 0.031])
            hand = self.scale * _profile([0, 0.5, 1], [0.028, 0.036, 0.022])
            yield Tube(shoulder, elbow, upper, self.textures["upper arm"], round_ends=True, aside=aside)
            yield Tube(elbow, wrist, fore, self.textures["forearm"], round_ends=True, behind=-0.01, aside=aside)
            yield Tube(wrist, fingers, hand, self.textures["skin"], round_ends=True, behind=0.01, aside=aside)

    def head(self) -> Iterator[Tube]:
        size = self.scale * self.person.body.head
        crown, chin = self._at("crown", (0, 0.012, 0)), self._at("chin", (0, -0.012, 0))
        along = np.linspace(0, 1, STATIONS)
        skull = 0.082 * size * _ball(0.42) * (1.02 - 0.16 * along**2)
        yield Tube(
            self._at("chin", (0, 0.05, -0.02)),
            self._at("shoulders", (0, 0.0, 0)),
            self.scale * _profile([0, 0.6, 1], [0.052, 0.055, 0.07]),
            self.textures["skin"],
            behind=-0.005,
        )
        yield Tube(crown, chin, skull, self.textures["head"], depth=1.2, behind=-0.04)
        yield from self._hair(crown, chin, size)
        yield from self._hat(crown, chin, size)

    def _hair(self, crown: Point, chin: Point, size: float) -> Iterator[Tube]:
        style, texture = self.person.hair_style, self.textures["hair"]
        back = np.array([0, 0, -1.0])
        down = (chin - crown) / np.linalg.norm(chin - crown)
        if style in ("bob", "long"):
            length = 0.26 if style == "bob" else 0.42
            radius = 0.1 * size * _profile([0, 0.08, 0.25, 0.7, 1], [0.3, 0.72, 1, 1, 0.75])
            start = crown - 0.015 * size * down + 0.035 * size * back
            end = start + length * size * down + (0.03 * size * back if style == "long" else 0)
            yield Tube(start, end, radius, texture, depth=0.85)
        elif style == "ponytail":
            start = crown + 0.07 * size * down + 0.1 * size * back
            end = start + 0.3 * size * down + 0.05 * size * back
            yield Tube(start, end, 0.042 * size * _ball(0.4), texture, round_ends=True)
        elif style == "bun":
            start = crown - 0.05 * size * down + 0.06 * size * back
            yield Tube(start, start + 0.1 * size * down, 0.05 * size * _ball(), texture)
        elif style == "short":
            start = crown - 0.012 * size * down + 0.012 * size * back
            radius = 0.087 * size * _profile([0, 0.15, 0.5, 1], [0.45, 0.8, 1, 1])
            yield Tube(start, start + 0.1 * size * down, radius, texture, depth=1.15, behind=0.02)

    def _hat(self, crown: Point, chin: Point, size: float) -> Iterator[Tube]:
        if self.person.hat == "none":
            return
        texture = self.textures["hat"]
        down = (chin - crown) / np.linalg.norm(chin - crown)
        start = crown - 0.025 * size * down
        depth = 0.095 if self.person.hat == "cap" else 0.115
        dome = 0.092 * size * _profile([0, 0.1, 0.3, 0.6, 1], [0.3, 0.62, 0.86, 1, 1.02])
        yield Tube(start, start + depth * size * down, dome, texture, depth=1.15, behind=-0.08)
        if self.person.hat == "cap":
            brim = start + depth * size * down + size * np.array([0, 0, 0.085])
            yield Tube(
                brim, brim + 0.02 * size * down, 0.08 * size * _ball(0.3), texture, behind=-0.09
            )

    def bag(self) -> Iterator[Tube]:
        person, texture = self.person, self.textures["bag"]
        if person.bag == "backpack":
            centre = (0, -0.02, -0.15 * person.body.build)
            yield Tube(
                self._at("shoulders", centre),
                self._at("shoulders", np.add(centre, (0, -0.42, 0))),
                0.15 * self.scale * _ball(0.2),
                texture,
                depth=0.62,
            )
        elif person.bag == "shoulder bag":
            centre = (0.17 * person.bag_side * person.body.build, -0.1, 0.03)
            yield Tube(
                self._at("pelvis", np.add(centre, (0, 0.13, 0))),
                self._at("pelvis", np.add(centre, (0, -0.1, 0))),
                0.075 * self.scale * _ball(0.15),
                texture,
                depth=2.0,
                behind=-0.1,
            )
        elif person.carries_in_hand:
            hand = self._at(("right_" if person.bag_side < 0 else "left_") + "fingers")
            top = hand - self.scale * np.array([0, 0.1, 0])
            strap = np.full(STATIONS, 0.008 * self.scale)
            yield Tube(hand, top, strap, texture, depth=5)
            bottom = top - self.scale * np.array([0, 0.2, 0])
            yield Tube(top, bottom, 0.055 * self.scale * _ball(0.15), texture, depth=2.6)
