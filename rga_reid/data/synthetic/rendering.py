"""A small software renderer: tubes seen by a camera, drawn from back to front with soft edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray

from rga_reid.data.synthetic.figure import STATIONS, Tube
from rga_reid.data.synthetic.textures import COLUMNS, ROWS

Canvas = NDArray[np.float32]

SHADES = 64  # steps of the lookup tables across a tube
_ACROSS = (np.arange(SHADES) + 0.5) / SHADES * 2 - 1
THINNEST = 1e-3  # metres
_TOWARDS = np.sqrt(1 - _ACROSS**2).astype(np.float32)
FAR_SHADE = 0.8  # what lies behind the middle of the body is darker by this share per metre


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

    yaw: float = 0.0
    pitch: float = 0.2
    distance: float = 8.0
    light: tuple[float, float, float] = (0.4, 0.6, 0.69)
    ambient: float = 0.55


@dataclass(frozen=True)
class Flat:
    """A tube on the image plane: places in metres, later in pixels; y down."""

    tube: Tube
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radius: NDArray[np.float64]
    bulge: float  #: how far the middle lies in front of the edges, relative to the radius
    nearness: float

    def placed(self, scale: float, origin: Sequence[float]) -> Flat:
        """The same after scaling and shifting the image plane."""
        return Flat(
            self.tube,
            self.start * scale + origin,
            self.end * scale + origin,
            self.radius * scale,
            self.bulge,
            self.nearness,
        )


def project(tubes: Sequence[Tube], view: View) -> list[Flat]:
    """Tubes on the image plane, furthest first; the point on the ground below the person is (0, 0)."""
    ends = np.stack([point for tube in tubes for point in (tube.start, tube.end)])
    x, depth = _turned(ends, view.yaw)
    nearness = cos(view.pitch) * depth + sin(view.pitch) * ends[:, 1]
    down = sin(view.pitch) * depth - cos(view.pitch) * ends[:, 1]
    magnified = view.distance / (view.distance - nearness)
    places = (np.stack([x, down], 1) * magnified[:, None]).reshape(-1, 2, 2)
    magnified = magnified.reshape(-1, 2).mean(1)
    middles = depth.reshape(-1, 2).mean(1)
    flats = []
    for tube, (start, end), scale, middle in zip(tubes, places, magnified, middles, strict=True):
        near = middle - sin(view.yaw) * tube.aside - tube.behind
        seen = hypot(cos(view.yaw), tube.depth * sin(view.yaw))
        towards = hypot(sin(view.yaw), tube.depth * cos(view.yaw))
        bulge = sin(view.pitch) * towards / seen
        flats.append(Flat(tube, start, end, np.maximum(tube.radius * scale * seen, THINNEST), bulge, near))
    return sorted(flats, key=lambda flat: flat.nearness)


def _turned(points: NDArray[np.float64], yaw: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far right, and how near to the camera, points of a person turned by ``yaw`` are."""
    x, z = points[:, 0], points[:, 2]
    return cos(yaw) * x + sin(yaw) * z, cos(yaw) * z - sin(yaw) * x


def extent(flats: Sequence[Flat]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what is drawn."""
    ends = np.stack([[flat.start, flat.end] for flat in flats])
    reach = np.array([flat.radius.max() for flat in flats])
    left, right = (ends[:, :, 0].min(1) - reach).min(), (ends[:, :, 0].max(1) + reach).max()
    return left, ends[:, :, 1].min(), right, ends[:, :, 1].max()


def draw(canvas: Canvas, flats: Sequence[Flat], view: View) -> None:
    """Draw tubes placed in pixels onto ``canvas`` (height, width, 3), furthest first."""
    lit = np.maximum(0, view.light[0] * _ACROSS + view.light[2] * _TOWARDS)
    shade = (view.ambient + (1 - view.ambient) * lit / view.light[2]).astype(np.float32)
    # the texture column at each step across: the part of the surface that is turned to the camera
    angles = np.arcsin(_ACROSS) + view.yaw
    around = ((angles / (2 * pi) + 0.5) * COLUMNS).astype(np.intp) % COLUMNS
    for flat in flats:
        far = np.float32(1 + FAR_SHADE * min(0.0, flat.nearness))
        _draw_tube(canvas, flat, shade * far, around)


def _draw_tube(
    canvas: Canvas,
    flat: Flat,
    shade: NDArray[np.float32],
    around: NDArray[np.intp],
) -> None:
    tube = flat.tube
    length = max(hypot(*(flat.end - flat.start)), 1e-3)
    right_part, down_part = ((flat.end - flat.start) / length).tolist()
    reach = flat.radius.max() + 1
    left, top = np.maximum(np.floor(np.minimum(flat.start, flat.end) - reach).astype(int), 0)
    right, bottom = np.ceil(np.maximum(flat.start, flat.end) + reach).astype(int) + 1
    region = canvas[top : max(bottom, 0), left : max(right, 0)]
    if region.size == 0:
        return
    dx = np.arange(left, left + region.shape[1], dtype=np.float32) - np.float32(flat.start[0])
    dy = (np.arange(top, top + region.shape[0], dtype=np.float32) - np.float32(flat.start[1]))[:, None]
    along = dx * right_part + dy * down_part
    across = dx * down_part - dy * right_part

    # from here on only the pixels near the tube, in one row
    overhang = reach if tube.round_ends else 1 + abs(flat.bulge) * reach
    near = (np.abs(across) < reach) & (np.abs(along - length / 2) < length / 2 + overhang)
    rows, columns = np.nonzero(near)
    along, across = along[near], across[near]
    station = (along * ((STATIONS - 1) / length)).clip(0, STATIONS - 1).astype(np.intp)
    radius = flat.radius.astype(np.float32).take(station)
    step = ((across / radius + 1) * (SHADES / 2)).clip(0, SHADES - 1).astype(np.intp)
    if tube.round_ends:
        beyond = np.maximum(np.maximum(-along, along - length), 0)
        covered = (radius - np.hypot(across, beyond) + 0.5).clip(0, 1)
    else:
        along -= np.float32(flat.bulge * down_part) * _TOWARDS.take(step) * radius
        covered = (radius - np.abs(across) + 0.5).clip(0, 1)
        covered *= (along + 0.5).clip(0, 1) * (length - along + 0.5).clip(0, 1)

    texel = (along * (ROWS / length)).clip(0, ROWS - 1).astype(np.intp) * COLUMNS + around.take(step)
    colour = tube.texture.reshape(-1, 3).take(texel, axis=0) * shade.take(step)[:, None]
    pixel = (rows + top) * canvas.shape[1] + columns + left
    before = canvas.reshape(-1, 3).take(pixel, axis=0)
    canvas.reshape(-1, 3)[pixel] = before + covered[:, None] * (colour - before)
