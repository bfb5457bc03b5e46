"""A small software renderer: project tubes onto a camera and draw them back to front with soft edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, floor, hypot, pi, sin
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

Point = np.ndarray  #: (3,)
Canvas = np.ndarray  #: (height, width, 3), RGB from 0 to 255
Box = tuple[float, float, float, float]  #: left, top, right, bottom; y down

SHADES = 64  # steps of the lookup tables across a tube
MIN_RADIUS = 1e-3  # metres
MIN_LENGTH = 1e-3  # pixels, of a tube seen from its end
FAR_SHADE = 0.8  # parts behind the middle of the body are darker by this share per metre

# at each step across a tube: the position from -1 to 1, and the height of the surface there
_ACROSS = ((np.arange(SHADES) + 0.5) / SHADES * 2 - 1).astype(np.float32)
_TOWARDS = np.sqrt(1 - _ACROSS**2)


@dataclass(frozen=True)
class View:
    """The view of a camera on a person.

    Args:
        yaw: rotation of the person about the vertical; 0 faces the camera, π shows the back.
        pitch: angle at which the camera looks down.
        distance: metres from the person.
        light: unit vector towards the light, ``(right, up, towards the camera)``.
        ambient: share of light from all directions.
    """

    yaw: float
    pitch: float
    distance: float
    light: tuple[float, float, float]
    ambient: float


@dataclass(frozen=True)
class Projection:
    """n tubes on the image plane, farthest first; lengths in metres or, after ``place``, in pixels; y down."""

    tubes: tuple[Tube, ...]
    start: np.ndarray  #: (n, 2)
    end: np.ndarray  #: (n, 2)
    radius: np.ndarray  #: (n, STATIONS)
    bulge: np.ndarray  #: (n,), distance of the middle below the edges, in radii
    nearness: np.ndarray  #: (n,), metres towards the camera

    def place(self, scale: float, x: float, y: float) -> Projection:
        """Return a copy enlarged by ``scale`` about the point (0, 0), which moves to (x, y)."""
        origin = np.array([x, y], np.float32)
        return replace(
            self,
            start=self.start * np.float32(scale) + origin,
            end=self.end * np.float32(scale) + origin,
            radius=self.radius * np.float32(scale),
        )

    def bounding_box(self) -> Box:
        """Return the smallest box around all tubes."""
        reach = self.radius.max(1)
        low, high = np.minimum(self.start, self.end), np.maximum(self.start, self.end)
        left, right = (low[:, 0] - reach).min(), (high[:, 0] + reach).max()
        return float(left), float(low[:, 1].min()), float(right), float(high[:, 1].max())


def project(tubes: Sequence[Tube], view: View) -> Projection:
    """Project tubes onto the image plane; the point on the ground below the person is (0, 0)."""
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
        radius=np.maximum(radius[order], MIN_RADIUS).astype(np.float32),
        bulge=(tilt[1] * half_depth / half_width)[order].astype(np.float32),
        nearness=nearness[order].astype(np.float32),
    )


def draw(canvas: Canvas, projection: Projection, view: View) -> None:
    """Draw tubes in pixels onto ``canvas``."""
    right, _, towards = view.light
    lit = np.maximum(0, right * _ACROSS + towards * _TOWARDS) / towards
    shade = np.repeat(view.ambient + (1 - view.ambient) * lit, 3).reshape(-1, 3)
    # the texture column at each step across: the part of the surface that faces the camera
    angles = np.arcsin(_ACROSS) + view.yaw
    around = ((angles / (2 * pi) + 0.5) * COLUMNS).astype(np.intp) % COLUMNS
    dimmed = 1 + FAR_SHADE * np.minimum(0, projection.nearness)
    numbers = np.arange(canvas.shape[0] * canvas.shape[1]).reshape(canvas.shape[:2])
    for number, tube in enumerate(projection.tubes):
        covered = _cover(
            numbers,
            projection.start[number].tolist(),
            projection.end[number].tolist(),
            projection.radius[number],
            None if tube.round_ends else float(projection.bulge[number]),
        )
        if covered is not None:
            colour = tube.texture.reshape(-1, 3).take(covered.row * COLUMNS + around.take(covered.step), 0)
            colour *= (shade * dimmed[number]).take(covered.step, 0)
            before = canvas.reshape(-1, 3).take(covered.pixel, 0)
            before += np.repeat(covered.opacity, 3).reshape(-1, 3) * (colour - before)
            canvas.reshape(-1, 3)[covered.pixel] = before


class Covered(NamedTuple):
    """The k pixels that a tube covers, each array of length k."""

    pixel: np.ndarray  #: flat index on the canvas
    opacity: np.ndarray
    row: np.ndarray  #: row of the texture
    step: np.ndarray  #: step across the tube


def _cover(
    numbers: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: np.ndarray,
    bulge: float | None,
) -> Covered | None:
    """Return the pixels that a tube covers, and the part of its surface on each; None if it covers none."""
    reach = float(radius.max()) + 1
    left, right = floor(min(start[0], end[0]) - reach), ceil(max(start[0], end[0]) + reach)
    top, bottom = floor(min(start[1], end[1]) - reach), ceil(max(start[1], end[1]) + reach)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, numbers.shape[1]), min(bottom, numbers.shape[0])
    if left >= right or top >= bottom:
        return None

    length = max(hypot(end[0] - start[0], end[1] - start[1]), MIN_LENGTH)
    right_part, down_part = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    dx = np.arange(left, right, dtype=np.float32) - start[0]
    dy = (np.arange(top, bottom, dtype=np.float32) - start[1])[:, None]
    along, across = dx * right_part + dy * down_part, dx * down_part - dy * right_part

    overhang = reach if bulge is None else 1 + bulge * reach
    near = (np.abs(across) < reach) & (np.abs(along - length / 2) < length / 2 + overhang)
    along, across = along[near], across[near]
    here = radius.take(_quantize(along, length, STATIONS))
    step = _quantize(across + here, 2 * here, SHADES)
    if bulge is None:
        beyond = np.maximum(np.abs(along - length / 2) - length / 2, 0)
        opacity = _edge_opacity(here - np.hypot(across, beyond))
    else:
        along -= (bulge * down_part) * _TOWARDS.take(step) * here
        opacity = _edge_opacity(here - np.abs(across)) * _edge_opacity(
            length / 2 - np.abs(along - length / 2)
        )
    return Covered(numbers[top:bottom, left:right][near], opacity, _quantize(along, length, ROWS), step)


def _quantize(place: np.ndarray, length: float | np.ndarray, count: int) -> np.ndarray:
    """Return which of ``count`` equal parts of ``length`` contains a place, or the nearest part."""
    return np.minimum(np.maximum(place * (count / length), 0), count - 1).astype(np.intp)


def _edge_opacity(inside: np.ndarray) -> np.ndarray:
    """Return the opacity at an edge, which rises from 0 to 1 within half a pixel on either side."""
    return np.minimum(np.maximum(inside + 0.5, 0), 1)


Profile = np.ndarray  #: (STATIONS,), half widths

STATIONS = 32  # points of a tube's outline, equally spaced from start to end
PLACES = np.linspace(0, 1, STATIONS)


@dataclass(frozen=True)
class Tube:
    """A solid of elliptic cross-section around the line from ``start`` to ``end``.

    Args:
        radius: half width at each station, metres.
        depth: front-to-back size relative to the width.
        round_ends: end in half spheres; otherwise the ends are flat.
        behind: metres added to the distance for the drawing order (trousers under a coat).
        aside: metres added to x for the drawing order (an arm).
    """

    start: Point
    end: Point
    radius: Profile
    texture: Texture
    depth: float = 1.0
    round_ends: bool = False
    behind: float = 0.0
    aside: float = 0.0


def outline(*points: tuple[float, float]) -> Profile:
    """Return the half widths of a shape through points ``(share of the length, half width)``."""
    places, widths = zip(*points, strict=True)
    return np.interp(PLACES, places, widths)


def oval(roundness: float) -> Profile:
    """Return half widths of 1 in the middle and 0 at both ends; 0.5 is an ellipsoid, less a rounded box."""
    return np.maximum(0, 1 - (2 * PLACES - 1) ** 2) ** roundness


Texture = np.ndarray  #: float32 (ROWS, COLUMNS, 3)
Colour = tuple[int, int, int]

ROWS, COLUMNS = 64, 96

#: (ROWS, 1): 0 at the start of the part, 1 at its end.
ALONG = ((np.arange(ROWS, dtype=np.float32) + 0.5) / ROWS)[:, None]
#: (1, COLUMNS): 0 in front, positive towards positive x, ±π at the back.
AROUND = (((np.arange(COLUMNS, dtype=np.float32) + 0.5) / COLUMNS * 2 - 1) * np.float32(pi))[None]
#: (1, COLUMNS): sideways position, -1 to 1, the same in front and at the back.
ACROSS = np.sin(AROUND)

IN_FRONT = np.abs(AROUND) < pi / 2
FOLDS = 0.10  # variation of brightness by folds


def rgb(colour: Colour) -> np.ndarray:
    """Return a colour as float32 (3,)."""
    return np.array(colour, np.float32)


def plain(colour: Colour) -> Texture:
    """Return a texture of one colour."""
    return np.broadcast_to(rgb(colour), (ROWS, COLUMNS, 3)).copy()


def paint(texture: Texture, mask: ArrayLike, colour: Colour) -> Texture:
    """Return ``texture`` with ``colour`` where ``mask`` is 1."""
    weight = np.broadcast_to(np.asarray(mask, np.float32), (ROWS, COLUMNS))[:, :, None]
    return texture + weight * (rgb(colour) - texture)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Return smooth noise, roughly from -1 to 1, that varies over ``cell`` pixels (down, across)."""
    height, width = shape
    rows, columns = max(2, round(height / cell[0])), max(2, round(width / cell[1]))
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def fabric(rng: np.random.Generator, texture: Texture) -> Texture:
    """Return ``texture`` with the light and shadow of folds."""
    folds = smooth_noise(rng, (ROWS, COLUMNS), (10, 8)) + smooth_noise(rng, (ROWS, COLUMNS), (24, 6))
    return texture * (1 + FOLDS * folds[:, :, None])


def pattern(name: str, repeats: int) -> np.ndarray:
    """Return the mask of a garment's second colour.

    Args:
        name: one of ``PATTERNS``.
        repeats: number of repetitions along the garment.
    """
    return np.broadcast_to(np.asarray(PATTERNS[name](repeats), np.float32), (ROWS, COLUMNS))


def _bands(repeats: int) -> ArrayLike:
    return (ALONG * repeats) % 1 < 0.5


def _pinstripes(repeats: int) -> ArrayLike:
    return (AROUND / (2 * pi) * 3 * repeats) % 1 < 0.4


def _checks(repeats: int) -> ArrayLike:
    return 0.5 * np.asarray(_bands(repeats)) + 0.5 * ((AROUND / (2 * pi) * 2 * repeats) % 1 < 0.5)


def _dots(repeats: int) -> ArrayLike:
    down, around = ALONG * repeats, AROUND / (2 * pi) * 2 * repeats
    shifted = around + 0.5 * (np.floor(down) % 2)
    return (down % 1 - 0.5) ** 2 + (shifted % 1 - 0.5) ** 2 < 0.09


PATTERNS = {
    "plain": lambda repeats: 0,
    "bands": _bands,
    "pinstripes": _pinstripes,
    "checks": _checks,
    "dots": _dots,
    "yoke": lambda repeats: ALONG < 0.36,
    "lower half": lambda repeats: ALONG > 0.55,
    "chest band": lambda repeats: np.abs(ALONG - 0.38) < 0.09,
    "print": lambda repeats: (np.abs(ALONG - 0.38) < 0.14) & (np.abs(ACROSS) < 0.5) & IN_FRONT,
    "back print": lambda repeats: (np.abs(ALONG - 0.4) < 0.2) & (np.abs(ACROSS) < 0.6) & ~IN_FRONT,
    "side stripes": lambda repeats: np.abs(ACROSS) > 0.88,
}
"""Name -> repeats -> mask."""
