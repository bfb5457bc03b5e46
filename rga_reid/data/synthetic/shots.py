"""Photographs: a person somewhere before a camera, cropped as a pedestrian detector would crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, exp, pi, sin

import numpy as np
from PIL import Image

from rga_reid.data.synthetic.anatomy import Pose
from rga_reid.data.synthetic.cameras import SUPERSAMPLING, Camera
from rga_reid.data.synthetic.figure import figure
from rga_reid.data.synthetic.people import Person
from rga_reid.data.synthetic.rendering import Box, Canvas, Projection, View, draw, project
from rga_reid.data.synthetic.scenery import SCENE_WIDTH, Scene, bicycle
from rga_reid.data.synthetic.textures import plain
from rga_reid.data.synthetic.tubes import Tube, outline
from rga_reid.data.synthetic.wardrobe import dress

# a detector's boxes, in heights of the person: size, then standard deviations of place and (log) size
BOX_HEIGHT, BOX_SHIFT, BOX_ZOOM = 1.04, 0.035, 0.05

# how often
STANDING, TELEPHONE, COMPANY = 0.12, 0.12, 0.15
HIDDEN_BY_PERSON, HIDDEN_BY_POLE, HIDDEN_BY_BICYCLE = 0.06, 0.06, 0.05
BICYCLE_ALONE = 0.4  # of the boxes around nobody

# standard deviations; turns in radians, places in metres, light as the logarithm of a gain
TURN_BY_SIGHTING, TURN_BY_SHOT = 0.45, 0.2
STEP_BY_SHOT = 0.5
TILT_BY_SIGHTING = 0.03
LIGHT_BY_SIGHTING = 0.13

COMPANY_DISTANCE = -1.5  # metres towards the camera
SHADOW, SHADOW_SIZE = 0.45, (0.38, 0.12)  # share of the light taken; metres on the image plane
POLE_COLOUR = (96, 98, 96)
WARDROBES = 4  # whose textures are kept, besides those of the passers-by


@dataclass(frozen=True)
class Sighting:
    """Somebody passing a camera: what the shots have in common."""

    view: View
    place: float  #: metres from the left end of the scene
    stride: float  #: see ``Pose``
    exposure: float  #: gain

    @classmethod
    def random(cls, rng: np.random.Generator, camera: Camera) -> Sighting:
        """Somebody walking in one of the camera's usual directions."""
        heading = camera.headings[rng.integers(len(camera.headings))]
        view = View(
            yaw=heading + rng.normal(0, TURN_BY_SIGHTING),
            pitch=camera.pitch + rng.normal(0, TILT_BY_SIGHTING),
            distance=camera.distance,
            light=camera.light,
            ambient=camera.ambient,
        )
        stride = 0.05 if rng.random() < STANDING else rng.uniform(0.24, 0.4)
        return cls(view, rng.uniform(1, SCENE_WIDTH - 1), stride, exp(rng.normal(0, LIGHT_BY_SIGHTING)))


class Studio:
    """Takes photographs of one size.

    Args:
        scenes: background by camera.
        size: (height, width) of the images.
        passers_by: people who may get into the picture.
    """

    def __init__(
        self, scenes: Mapping[Camera, Scene], size: tuple[int, int], passers_by: Sequence[Person]
    ) -> None:
        self.scenes = scenes
        self.height, self.width = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]
        self.passers_by = passers_by
        self._dress = lru_cache(maxsize=WARDROBES + len(passers_by))(dress)

    def portrait(
        self,
        rng: np.random.Generator,
        camera: Camera,
        person: Person,
        sighting: Sighting,
        misplaced: float = 0.0,
    ) -> Image.Image:
        """One image of a person; ``misplaced`` shifts the box by that many box heights, whichever way."""
        view = replace(sighting.view, yaw=sighting.view.yaw + rng.normal(0, TURN_BY_SHOT))
        seen = project(self._posing(rng, person, sighting.stride), view)
        box = self._detected(rng, seen.extent(), misplaced)
        canvas = self._background(camera, box, sighting.place + rng.normal(0, STEP_BY_SHOT))
        self._cast_shadow(canvas, box)
        if rng.random() < COMPANY:
            self._passer_by(rng, canvas, box, view, aside=(0.35, 0.75), nearer=COMPANY_DISTANCE)
        self._draw(canvas, seen, box, view)
        self._hide(rng, canvas, box, view)
        return camera.develop(rng, canvas, sighting.exposure)

    def false_alarm(self, rng: np.random.Generator, camera: Camera) -> Image.Image:
        """A box around nobody."""
        height = rng.uniform(0.9, 2.2)
        width = height * self.width / self.height
        top = rng.uniform(-2.2, 0.4 - 0.6 * height)
        canvas = self._background(camera, (0, top, width, top + height), rng.uniform(0, SCENE_WIDTH - width))
        if rng.random() < BICYCLE_ALONE:
            self._bicycle(rng, canvas)
        return camera.develop(rng, canvas)

    def _posing(self, rng: np.random.Generator, person: Person, stride: float) -> list[Tube]:
        return figure(person, self._dress(person), _random_pose(rng, person, stride))

    def _detected(self, rng: np.random.Generator, person: Box, misplaced: float) -> Box:
        left, top, right, bottom = person
        height = (bottom - top) * BOX_HEIGHT * exp(rng.normal(0, BOX_ZOOM))
        width = height * self.width / self.height
        direction = rng.uniform(0, 2 * pi)
        x = (left + right) / 2 + width * (rng.normal(0, BOX_SHIFT) + misplaced * cos(direction))
        y = (top + bottom) / 2 + height * (rng.normal(0, BOX_SHIFT) + misplaced * sin(direction))
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    def _background(self, camera: Camera, box: Box, place: float) -> Canvas:
        left, top, right, bottom = box
        picture = self.scenes[camera].crop(
            (left + place, top, right + place, bottom), (self.width, self.height)
        )
        return np.asarray(picture).astype(np.float32)

    def _pixels(self, box: Box) -> float:
        """Pixels of the canvas per metre."""
        return self.height / (box[3] - box[1])

    def _draw(
        self, canvas: Canvas, seen: Projection, box: Box, view: View, x: float = 0.0, y: float = 0.0
    ) -> None:
        """Draw what stands at the place (x, y) of the image plane."""
        pixels = self._pixels(box)
        draw(canvas, seen.placed(pixels, (x - box[0]) * pixels, (y - box[1]) * pixels), view)

    def _cast_shadow(self, canvas: Canvas, box: Box) -> None:
        """A soft dark patch on the ground where somebody stands."""
        pixels = self._pixels(box)
        x = (np.arange(self.width, dtype=np.float32) / pixels + box[0]) / SHADOW_SIZE[0]
        y = (np.arange(self.height, dtype=np.float32) / pixels + box[1]) / SHADOW_SIZE[1]
        rows = np.abs(y) < 3
        canvas[rows] *= (1 - SHADOW * np.exp(-(x**2) - y[rows, None] ** 2))[:, :, None]

    def _passer_by(
        self,
        rng: np.random.Generator,
        canvas: Canvas,
        box: Box,
        view: View,
        aside: tuple[float, float],
        nearer: float,
    ) -> None:
        """Somebody else, ``nearer`` metres towards the camera and to the left or right."""
        person = self.passers_by[int(rng.integers(len(self.passers_by)))]
        x = rng.choice((-1, 1)) * rng.uniform(*aside)
        scale = view.distance / (view.distance - nearer)
        view = replace(view, yaw=rng.uniform(0, 2 * pi))
        seen = project(self._posing(rng, person, rng.uniform(0.2, 0.4)), view).placed(scale, 0, 0)
        self._draw(canvas, seen, box, view, x, scale * nearer * sin(view.pitch))

    def _hide(self, rng: np.random.Generator, canvas: Canvas, box: Box, view: View) -> None:
        """Sometimes, put something before the person."""
        chance = rng.random()
        if chance < HIDDEN_BY_PERSON:
            self._passer_by(rng, canvas, box, view, aside=(0.35, 0.6), nearer=rng.uniform(0.5, 1))
        elif chance < HIDDEN_BY_PERSON + HIDDEN_BY_POLE:
            x, radius = rng.uniform(box[0], box[2]), rng.uniform(0.03, 0.07)
            top, foot = np.array([x, 3, 0.5]), np.array([x, -0.2, 0.5])
            pole = Tube(top, foot, radius * outline((0, 1), (1, 1)), plain(POLE_COLOUR))
            facing = replace(view, yaw=0.0)
            self._draw(canvas, project([pole], facing), box, facing)
        elif chance < HIDDEN_BY_PERSON + HIDDEN_BY_POLE + HIDDEN_BY_BICYCLE:
            self._bicycle(rng, canvas)

    def _bicycle(self, rng: np.random.Generator, canvas: Canvas) -> None:
        """A bicycle at the lower edge, often cut by the sides."""
        sprite = bicycle(rng, self.height / 2)
        left = round(rng.uniform(-0.75, 0.75) * self.width)
        top = round(rng.uniform(1, 1.1) * self.height) - sprite.height
        picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        picture.paste(sprite, (left, top), sprite)
        canvas[:] = np.asarray(picture)


def _random_pose(rng: np.random.Generator, person: Person, stride: float) -> Pose:
    left, right = rng.uniform(0.15, 0.6, 2)
    if rng.random() < TELEPHONE:
        right = 2.1
    if person.bag == "handbag":  # carried with a straight arm
        left, right = (0.08, right) if person.bag_side > 0 else (left, 0.08)
    return Pose(
        phase=rng.uniform(0, 2 * pi),
        stride=stride,
        arm_swing=stride * rng.uniform(0.6, 1.1),
        elbows=(left, right),
        lean=rng.normal(0.04, 0.02),
    )
