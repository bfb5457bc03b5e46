"""Six cameras: where each hangs, what it looks at, and what its optics and electronics make of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
from PIL import Image, ImageFilter

from rga_reid.data.synthetic import surfaces
from rga_reid.data.synthetic.rendering import Canvas
from rga_reid.data.synthetic.scenery import Scene, paint_scene
from rga_reid.data.synthetic.surfaces import Surface

SUPERSAMPLING = 2
MID_GREY = 112.0
BLUR_ROWS = 128
SHOT_CAST = 0.02  # standard deviation of the gain per channel, from shot to shot


@dataclass(frozen=True)
class Camera:
    """One camera of the network.

    Args:
        pitch, distance: see ``View``.
        headings: usual yaws of the people who come by.
        ground, wall, wall_distance, bicycles: see ``paint_scene``.
        light, ambient: see ``View``.
        exposure, cast, contrast: gain, gain per RGB channel, spread about mid-grey.
        blur: standard deviation in pixels of an image of ``BLUR_ROWS`` rows.
        noise: standard deviation in grey levels.
        quality: of the JPEG files.
    """

    pitch: float
    distance: float
    headings: tuple[float, ...]
    ground: Surface
    wall: Surface
    wall_distance: float
    bicycles: int
    light: tuple[float, float, float]
    ambient: float
    exposure: float
    cast: tuple[float, float, float]
    contrast: float
    blur: float
    noise: float
    quality: int

    def scene(self, rng: np.random.Generator, pixels: float) -> Scene:
        """Paint this camera's background with ``pixels`` per metre."""
        return paint_scene(
            rng,
            pixels,
            ground=self.ground,
            wall=self.wall,
            wall_distance=self.wall_distance,
            bicycles=self.bicycles,
            pitch=self.pitch,
            camera_distance=self.distance,
        )

    def develop(self, rng: np.random.Generator, canvas: Canvas, exposure: float = 1.0) -> Image.Image:
        """The picture that this camera takes of a canvas, which is ``SUPERSAMPLING`` times as large.

        Args:
            exposure: gain of this shot, besides the camera's own.
        """
        sharp = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).reduce(SUPERSAMPLING)
        seen = sharp.filter(ImageFilter.GaussianBlur(self.blur * sharp.height / BLUR_ROWS))
        gain = self.exposure * exposure * np.array(self.cast) * rng.normal(1, SHOT_CAST, 3)
        picture = np.asarray(seen, dtype=np.float32) * gain.astype(np.float32)
        picture = MID_GREY + self.contrast * (picture - MID_GREY)
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * self.noise
        return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


FRONT, LEFT, BACK, RIGHT = 0.0, pi / 2, pi, 3 * pi / 2

CAMERAS = (
    Camera(
        pitch=0.22, distance=9, headings=(FRONT, BACK),
        ground=surfaces.paving, wall=surfaces.fence, wall_distance=5, bicycles=6,
        light=(0.5, 0.5, 0.71), ambient=0.55,
        exposure=1.0, cast=(1.0, 1.0, 1.0), contrast=1.0, blur=0.5, noise=3, quality=90,
    ),
    Camera(
        pitch=0.38, distance=11, headings=(LEFT, RIGHT),
        ground=surfaces.asphalt, wall=surfaces.brick_wall, wall_distance=4, bicycles=2,
        light=(-0.6, 0.5, 0.62), ambient=0.5,
        exposure=0.9, cast=(0.975, 1.0, 1.03), contrast=0.93, blur=0.8, noise=6, quality=75,
    ),
    Camera(
        pitch=0.15, distance=6, headings=(FRONT, LEFT),
        ground=surfaces.polished, wall=surfaces.shelves, wall_distance=3, bicycles=0,
        light=(0.2, 0.6, 0.77), ambient=0.7,
        exposure=1.02, cast=(1.035, 1.0, 0.955), contrast=0.95, blur=0.6, noise=4, quality=85,
    ),
    Camera(
        pitch=0.3, distance=10, headings=(BACK, RIGHT),
        ground=surfaces.grass, wall=surfaces.hedge, wall_distance=6, bicycles=0,
        light=(0.75, 0.4, 0.53), ambient=0.45,
        exposure=1.05, cast=(0.99, 1.015, 0.98), contrast=1.08, blur=0.5, noise=3, quality=88,
    ),
    Camera(
        pitch=0.45, distance=7, headings=(FRONT, RIGHT, BACK),
        ground=surfaces.red_bricks, wall=surfaces.glass, wall_distance=5, bicycles=3,
        light=(-0.4, 0.7, 0.59), ambient=0.6,
        exposure=0.88, cast=(1.015, 0.985, 1.01), contrast=1.05, blur=1.0, noise=7, quality=70,
    ),
    Camera(
        pitch=0.2, distance=8, headings=(LEFT, BACK),
        ground=surfaces.concrete, wall=surfaces.plaster, wall_distance=4, bicycles=1,
        light=(-0.2, 0.6, 0.77), ambient=0.65,
        exposure=1.1, cast=(0.99, 1.0, 1.02), contrast=0.88, blur=0.7, noise=4, quality=80,
    ),
)  # fmt: skip
