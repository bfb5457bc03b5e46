"""A small software renderer: tubes seen by a camera, drawn from back to front with soft edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, floor, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray

from rga_reid.data.synthetic.figure import STATIONS, Tube
from rga_reid.data.synthetic.textures import COLUMNS, ROWS

Canvas = NDArray[np.float32]  #: (height, width, 3), RGB from 0 to 255
Box = tuple[float, float, float, float]  #: left, top, right, bottom; y down

SHADES = 64  # steps of the lookup tables across a tube
THINNEST = 1e-3  # metres, of a radius
FAR_SHADE = 0.8  # what lies behind the middle of the body is darker by this share per metre

# at each step across a tube: the place, from -1 to 1, and how far the surface stands out there
_ACROSS = ((np.arange(SHADES) + 0.5) / SHADES * 2 - 1).astype(np.float32)
_TOWARDS = np.sqrt(1 - _ACROSS**2)


@dataclass(frozen=True)
class View:
    """How a camera sees a person.

    Args:
        yaw: turn of the person about the vertical; 0 faces the camera, π shows the back.
        pitch: how far the camera looks down.
        distance: metres; a near camera shows more perspective.
        light: direction the light comes from, ``(right, up, towards the camera)``; length 1.
        ambient: light from everywhere, as a share.
    """

    yaw: float
    pitch: float
    distance: float
    light: tuple[float, float, float]
    ambient: float


@dataclass(frozen=True)
class Projection:
    """n tubes on the image plane, furthest first; lengths in metres or, once placed, in pixels; y down."""

    tubes: tuple[Tube, ...]
    start: NDArray[np.float32]  #: (n, 2)
    end: NDArray[np.float32]  #: (n, 2)
    radius: NDArray[np.float32]  #: (n, STATIONS)
    bulge: NDArray[np.float32]  #: (n,), how far the middle hangs below the edges, in radii
    nearness: NDArray[np.float32]  #: (n,), metres towards the camera

    def placed(self, scale: float, x: float, y: float) -> Projection:
        """The same, enlarged by ``scale`` about the point (0, 0), which moves to (x, y)."""
        origin = np.array([x, y], np.float32)
        return replace(
            self,
            start=self.start * np.float32(scale) + origin,
            end=self.end * np.float32(scale) + origin,
            radius=self.radius * np.float32(scale),
        )

    def extent(self) -> Box:
        """The smallest box around all tubes."""
        reach = self.radius.max(1)
        low, high = np.minimum(self.start, self.end), np.maximum(self.start, self.end)
        left, right = (low[:, 0] - reach).min(), (high[:, 0] + reach).max()
        return float(left), float(low[:, 1].min()), float(right), float(high[:, 1].max())


def project(tubes: Sequence[Tube], view: View) -> Projection:
    """Tubes as the camera sees them; the point on the ground below the person is (0, 0)."""
    turn, tilt = (cos(view.yaw), sin(view.yaw)), (cos(view.pitch), sin(view.pitch))
    ends = np.array([(tube.start, tube.end) for tube in tubes])  # (n, 2, 3)
    right = turn[0] * ends[:, :, 0] + turn[1] * ends[:, :, 2]
    forward = turn[0] * ends[:, :, 2] - turn[1] * ends[:, :, 0]
    magnified = view.distance / (view.distance - tilt[0] * forward - tilt[1] * ends[:, :, 1])
    down = tilt[1] * forward - tilt[0] * ends[:, :, 1]
    places = np.stack([right * magnified, down * magnified], 2)

    behind, aside, depth = np.array([(tube.behind, tube.aside, tube.depth) for tube in tubes]).T
    nearness = forward.mean(1) - turn[1] * aside - behind
    half_width, half_depth = np.hypot(turn[0], turn[1] * depth), np.hypot(turn[1], turn[0] * depth)
    radius = np.stack([tube.radius for tube in tubes]) * (magnified.mean(1) * half_width)[:, None]
    order = np.argsort(nearness, kind="stable")
    return Projection(
        tubes=tuple(tubes[number] for number in order),
        start=places[order, 0].astype(np.float32),
        end=places[order, 1].astype(np.float32),
        radius=np.maximum(radius[order], THINNEST).astype(np.float32),
        bulge=(tilt[1] * half_depth / half_width)[order].astype(np.float32),
        nearness=nearness[order].astype(np.float32),
    )


def draw(canvas: Canvas, projection: Projection, view: View) -> None:
    """Draw tubes that are placed in pixels onto ``canvas``."""
    right, _, towards = view.light
    lit = np.maximum(0, right * _ACROSS + towards * _TOWARDS) / towards
    shade = (view.ambient + (1 - view.ambient) * lit)[:, None]
    # the texture column at each step across: the part of the surface that is turned to the camera
    angles = np.arcsin(_ACROSS) + view.yaw
    around = ((angles / (2 * pi) + 0.5) * COLUMNS).astype(np.intp) % COLUMNS
    dimmed = 1 + FAR_SHADE * np.minimum(0, projection.nearness)
    numbers = np.arange(canvas.shape[0] * canvas.shape[1]).reshape(canvas.shape[:2])
    for number, tube in enumerate(projection.tubes):
        outline = _Outline(
            *projection.start[number].tolist(),
            *projection.end[number].tolist(),
            projection.radius[number],
            float(projection.bulge[number]),
            tube.round_ends,
        )
        covered = outline.pixels(numbers)
        if covered is not None:
            pixel, opacity, row, step = covered
            colour = tube.texture.reshape(-1, 3).take(row * COLUMNS + around.take(step), 0)
            colour *= (shade * dimmed[number]).take(step, 0)
            before = canvas.reshape(-1, 3).take(pixel, 0)
            canvas.reshape(-1, 3)[pixel] = before + opacity[:, None] * (colour - before)


@dataclass(frozen=True)
class _Outline:
    """One tube in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float
    radius: NDArray[np.float32]
    bulge: float
    round_ends: bool

    def pixels(
        self, numbers: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]] | None:
        """The pixels that the tube covers, of a canvas whose pixels have these ``numbers`` (height, width).

        Returns:
            Per pixel its number, the opacity, the texture row and the step across; None if the
            tube lies outside.
        """
        height, width = numbers.shape
        reach = float(self.radius.max()) + 1
        left, right = floor(min(self.x0, self.x1) - reach), ceil(max(self.x0, self.x1) + reach)
        top, bottom = floor(min(self.y0, self.y1) - reach), ceil(max(self.y0, self.y1) + reach)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            return None

        length = max(hypot(self.x1 - self.x0, self.y1 - self.y0), 1e-3)
        right_part, down_part = (self.x1 - self.x0) / length, (self.y1 - self.y0) / length
        dx = np.arange(left, right, dtype=np.float32) - self.x0
        dy = (np.arange(top, bottom, dtype=np.float32) - self.y0)[:, None]
        along, across = dx * right_part + dy * down_part, dx * down_part - dy * right_part

        overhang = reach if self.round_ends else 1 + self.bulge * reach
        near = np.abs(across) < reach
        near &= np.abs(along - length / 2) < length / 2 + overhang
        along, across = along[near], across[near]
        radius = self.radius.take(_steps(along, length, STATIONS))
        step = _steps(across + radius, 2 * radius, SHADES)
        if self.round_ends:
            beyond = np.maximum(np.abs(along - length / 2) - length / 2, 0)
            opacity = _soft(radius - np.hypot(across, beyond))
        else:
            along -= (self.bulge * down_part) * _TOWARDS.take(step) * radius
            opacity = _soft(radius - np.abs(across)) * _soft(length / 2 - np.abs(along - length / 2))
        pixel = numbers[top:bottom, left:right][near]
        return pixel, opacity, _steps(along, length, ROWS), step


def _steps(
    place: NDArray[np.float32], length: float | NDArray[np.float32], count: int
) -> NDArray[np.intp]:
    """In which of ``count`` equal parts of ``length`` a place lies; the nearest if outside."""
    return np.minimum(np.maximum(place * (count / length), 0), count - 1).astype(np.intp)


def _soft(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """Opacity at an edge: half a pixel from 0 to 1 on either side."""
    return np.minimum(np.maximum(inside + 0.5, 0), 1)
