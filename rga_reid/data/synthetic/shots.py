"""Photographs: a person somewhere before a camera, cropped as a pedestrian detector would crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import pi

import numpy as np
from PIL import Image

from rga_reid.data.synthetic.anatomy import Pose
from rga_reid.data.synthetic.cameras import SUPERSAMPLING, Camera
from rga_reid.data.synthetic.figure import STATIONS, Tube, figure
from rga_reid.data.synthetic.people import Person
from rga_reid.data.synthetic.rendering import Box, Canvas, Projection, View, draw, project
from rga_reid.data.synthetic.scenery import SCENE_WIDTH, Scene, bicycle
from rga_reid.data.synthetic.textures import plain
from rga_reid.data.synthetic.wardrobe import dress

MARGIN = 1.04  # height of a box, in heights of the person
SHIFT, ZOOM = 0.035, 0.05  # standard deviations of a detector's boxes, in box heights
POLE_COLOUR = (96, 98, 96)
SHADOW = 0.45
WARDROBES = 4  # textures kept, besides those of the passers-by


@dataclass(frozen=True)
class Sighting:
    """Somebody passing a camera: what its shots have in common."""

    view: View
    place: float  #: metres from the left end of the scene
    stride: float
    exposure: float

    @classmethod
    def random(cls, rng: np.random.Generator, camera: Camera) -> Sighting:
        heading = camera.headings[int(rng.integers(len(camera.headings)))]
        view = View(
            yaw=heading + rng.normal(0, 0.45),
            pitch=camera.pitch + rng.normal(0, 0.03),
            distance=camera.distance,
            light=camera.light,
            ambient=camera.ambient,
        )
        stride = 0.05 if rng.random() < 0.12 else rng.uniform(0.24, 0.4)
        return cls(view, rng.uniform(1, SCENE_WIDTH - 1), stride, float(np.exp(rng.normal(0, 0.13))))


class Studio:
    """Takes photographs of one size.

    Args:
        scenes: background by camera.
        size: (height, width) of the images.
        passers_by: people who may get into the picture.
    """

    def __init__(
        self, scenes: dict[Camera, Scene], size: tuple[int, int], passers_by: Sequence[Person]
    ) -> None:
        self.scenes = scenes
        self.height, self.width = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]
        self.passers_by = passers_by
        self._dress = lru_cache(maxsize=WARDROBES + len(passers_by))(dress)

    def shoot(
        self, rng: np.random.Generator, camera: Camera, person: Person, sighting: Sighting, misplaced: float = 0
    ) -> Image.Image:
        """One image of ``person``.

        Args:
            misplaced: shift of the box in box heights, in a random direction: a bad detection.
        """
        view = replace(sighting.view, yaw=sighting.view.yaw + rng.normal(0, 0.2))
        seen = project(self._figure(rng, person, sighting), view)
        box = self._detected(rng, seen.extent(), misplaced)
        place = sighting.place + rng.normal(0, 0.5)
        canvas = self._background(camera, box, place)
        self._shadow(canvas, box)
        if rng.random() < 0.15:
            self._passer_by(rng, canvas, box, sighting, rng.choice([-1, 1]) * rng.uniform(0.35, 0.75), -1.5)
        self._draw(canvas, seen, box, view)
        self._occlude(rng, canvas, box, sighting)
        return camera.develop(rng, canvas, sighting.exposure)

    def empty(self, rng: np.random.Generator, camera: Camera) -> Image.Image:
        """A false detection: only background."""
        height = rng.uniform(0.9, 2.2)
        top = rng.uniform(-2.2, 0.4 - height * 0.6)
        half = height * self.width / self.height / 2
        canvas = self._background(camera, (-half, top, half, top + height), rng.uniform(1, SCENE_WIDTH - 1))
        if rng.random() < 0.4:
            self._bicycle(rng, canvas)
        return camera.develop(rng, canvas)

    def _figure(self, rng: np.random.Generator, person: Person, sighting: Sighting) -> list[Tube]:
        return figure(person, self._dress(person), _random_pose(rng, person, sighting))

    def _detected(self, rng: np.random.Generator, person: Box, misplaced: float) -> Box:
        left, top, right, bottom = person
        height = (bottom - top) * MARGIN * np.exp(rng.normal(0, ZOOM))
        width = height * self.width / self.height
        direction = rng.uniform(0, 2 * pi)
        x = (left + right) / 2 + height * (rng.normal(0, SHIFT) / 2 + misplaced * np.cos(direction) / 2)
        y = (top + bottom) / 2 + height * (rng.normal(0, SHIFT) + misplaced * np.sin(direction))
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    def _pixels(self, box: Box) -> float:
        """Pixels of the canvas per metre."""
        return self.height / (box[3] - box[1])

    def _background(self, camera: Camera, box: Box, place: float) -> Canvas:
        moved = (box[0] + place, box[1], box[2] + place, box[3])
        picture = self.scenes[camera].crop(moved, (self.width, self.height))
        return np.asarray(picture).astype(np.float32)

    def _draw(
        self, canvas: Canvas, seen: Projection, box: Box, view: View, x: float = 0, y: float = 0
    ) -> None:
        """Draw what stands at the place (x, y) of the image plane."""
        pixels = self._pixels(box)
        draw(canvas, seen.placed(pixels, (x - box[0]) * pixels, (y - box[1]) * pixels), view)

    def _shadow(self, canvas: Canvas, box: Box) -> None:
        """A soft dark patch on the ground where somebody stands."""
        pixels = self._pixels(box)
        x = (np.arange(self.width, dtype=np.float32) / pixels + box[0]) / 0.38
        y = ((np.arange(self.height, dtype=np.float32) / pixels + box[1]) / 0.12)[:, None]
        rows = np.abs(y[:, 0]) < 3
        canvas[rows] *= (1 - SHADOW * np.exp(-(x**2) - y[rows] ** 2))[:, :, None]

    def _passer_by(
        self, rng: np.random.Generator, canvas: Canvas, box: Box, sighting: Sighting, aside: float, nearer: float
    ) -> None:
        """Somebody else, ``aside`` metres to the right and ``nearer`` metres towards the camera."""
        person = self.passers_by[int(rng.integers(len(self.passers_by)))]
        view = replace(sighting.view, yaw=rng.uniform(0, 2 * pi))
        scale = view.distance / (view.distance - nearer)
        seen = project(self._figure(rng, person, sighting), view).placed(scale, 0, 0)
        self._draw(canvas, seen, box, view, aside, nearer * scale * np.sin(view.pitch))

    def _occlude(self, rng: np.random.Generator, canvas: Canvas, box: Box, sighting: Sighting) -> None:
        chance = rng.random()
        if chance < 0.06:
            self._passer_by(
                rng, canvas, box, sighting, rng.choice([-1, 1]) * rng.uniform(0.35, 0.6), rng.uniform(0.5, 1)
            )
        elif chance < 0.12:
            x = rng.uniform(box[0], box[2])
            pole = Tube(
                np.array([x, 3.0, 0.5]),
                np.array([x, -0.2, 0.5]),
                np.full(STATIONS, rng.uniform(0.03, 0.07)),
                plain(POLE_COLOUR),
            )
            view = replace(sighting.view, yaw=0.0)
            self._draw(canvas, project([pole], view), box, view)
        elif chance < 0.17:
            self._bicycle(rng, canvas)

    def _bicycle(self, rng: np.random.Generator, canvas: Canvas) -> None:
        """A bicycle that stands before the person, often cut by the edge of the box."""
        sprite = bicycle(rng, self.height / 2.0)
        picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        left = int(rng.uniform(-0.75, 0.75) * self.width)
        picture.paste(sprite, (left, self.height - sprite.height + int(rng.uniform(0, 0.1) * self.height)), sprite)
        canvas[:] = np.asarray(picture)


def _random_pose(rng: np.random.Generator, person: Person, sighting: Sighting) -> Pose:
    elbows = rng.uniform(0.15, 0.6, 2)
    if rng.random() < 0.12:  # a telephone
        elbows[rng.integers(2)] = 2.1
    if person.carries_in_hand:
        elbows[0 if person.bag_side > 0 else 1] = 0.08
    return Pose(
        phase=rng.uniform(0, 2 * pi),
        stride=sighting.stride,
        arm_swing=sighting.stride * rng.uniform(0.6, 1.1),
        elbows=(float(elbows[0]), float(elbows[1])),
        lean=rng.normal(0.04, 0.02),
    )
