"""Grounds and walls: colours of a surface at places given in metres.

A surface takes random numbers and two float32 arrays (h, w): x to the right, and y up the wall or, on the
ground, towards the camera. It returns RGB colours (h, w, 3) from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rga_reid.data.synthetic.textures import Colour, rgb, smooth_noise

Array = np.ndarray  #: float32
Surface = Callable[[np.random.Generator, Array, Array], Array]

TONES = 64  # tiles after which the random tones repeat
POSTER_COLOURS: tuple[Colour, ...] = ((152, 84, 78), (78, 100, 132), (190, 176, 116), (92, 120, 94))


def paving(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Grey slabs."""
    tone, joints = _tiles(rng, x, y, size=(0.6, 0.4), joint=0.025)
    return _mixed(joints, (158, 152, 146), (108, 104, 102)) * (1 + 0.07 * tone + _noise(rng, x, 0.06))


def red_bricks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A brick pavement."""
    tone, joints = _tiles(rng, x, y, size=(0.24, 0.12), joint=0.018)
    return _mixed(joints, (168, 116, 98), (136, 122, 112)) * (1 + 0.14 * tone + _noise(rng, x, 0.05))


def asphalt(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A street with a painted line."""
    line = np.abs(y + 1.2) < 0.07
    return _mixed(0.85 * line, (118, 118, 122), (206, 202, 190)) * (1 + _noise(rng, x, 0.12, 2))


def grass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A lawn with a path where people walk."""
    blades = 0.5 + _noise(rng, x, 0.25, 2.5) + _noise(rng, x, 0.25, 22)
    lawn = _mixed(blades[:, :, 0], (74, 100, 52), (128, 142, 78))
    path = rgb((166, 156, 134)) * (1 + _noise(rng, x, 0.1))
    return np.where((np.abs(y - 0.1) < 0.7)[:, :, None], path, lawn)


def concrete(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Large stained plates."""
    _, joints = _tiles(rng, x, y, size=(2.2, 1.8), joint=0.04)
    stains = _noise(rng, x, 0.08, 60) + _noise(rng, x, 0.05)
    return _mixed(joints, (162, 160, 154), (112, 110, 106)) * (1 + stains)


def polished(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """The chequered floor of a hall."""
    dark = (np.floor(x / 0.8) + np.floor(y / 0.8)) % 2
    return _mixed(dark, (172, 166, 152), (130, 124, 116)) * (1 + _noise(rng, x, 0.03))


def brick_wall(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Red bricks in light mortar."""
    tone, joints = _tiles(rng, x, y, size=(0.3, 0.1), joint=0.016)
    return _mixed(joints, (144, 96, 82), (164, 150, 138)) * (1 + 0.16 * tone)


def glass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Tall panes that reflect the sky."""
    tone, frames = _tiles(rng, x, np.full_like(y, 0.5), size=(1.1, 9.0), joint=0.07)
    sky = 0.5 + _noise(rng, x, 0.3, 75) + 0.2 * tone
    sill = np.abs(y - 1.1) < 0.04
    panes = _mixed(sky[:, :, 0], (64, 74, 84), (128, 142, 154))
    return np.where((frames | sill)[:, :, None], rgb((150, 150, 150)), panes)


def hedge(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Leaves up to a wavy edge, the sky above."""
    leaves = 0.5 + _noise(rng, x, 0.3, 4) + _noise(rng, x, 0.25, 18)
    green = _mixed(leaves[:, :, 0], (50, 64, 40), (112, 138, 84))
    sky = np.clip((y - 1.7 - 0.2 * np.sin(3 * x)) / 0.3, 0, 1)[:, :, None]
    return green + sky * (rgb((186, 196, 204)) - green)


def plaster(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A light wall with a dark base and posters."""
    colours = _mixed(y < 0.35, (178, 172, 156), (126, 122, 116)) * (1 + _noise(rng, x, 0.04, 8))
    for left in np.arange(x.min(), x.max(), 1.7):
        right = left + rng.uniform(0.5, 0.9)
        colour = POSTER_COLOURS[rng.integers(len(POSTER_COLOURS))]
        colours[(x > left) & (x < right) & (np.abs(y - 1.45) < 0.35)] = rgb(colour)
    return colours


def fence(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Iron bars before something far away."""
    rails = (np.abs(y - 1.15) < 0.03) | (np.abs(y - 0.15) < 0.03)
    bars = (y < 1.2) & (rails | (x % 0.16 < 0.03))
    behind = _mixed(0.5 + _noise(rng, x, 0.5, 40)[:, :, 0], (112, 122, 104), (176, 178, 170))
    return np.where(bars[:, :, None], rgb((58, 60, 62)), behind)


def shelves(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """The boxes in a shop."""
    tone, frames = _tiles(rng, x, y, size=(0.4, 0.45), joint=0.03)
    boxes = _mixed(0.5 + 0.5 * tone[:, :, 0], (84, 76, 68), (166, 148, 116))
    return np.where(frames[:, :, None], rgb((52, 44, 40)), boxes)


def _mixed(weight: Array, first: Colour, second: Colour) -> Array:
    """``first`` where the weight (h, w) is 0, ``second`` where it is 1."""
    return rgb(first) + np.asarray(weight, np.float32)[:, :, None] * (rgb(second) - rgb(first))


def _tiles(
    rng: np.random.Generator, x: Array, y: Array, size: tuple[float, float], joint: float
) -> tuple[Array, Array]:
    """Tiles, each row shifted by half a tile.

    Args:
        size: (width, height), metres.
        joint: metres between tiles.

    Returns:
        A random tone per tile, -1 to 1, (h, w, 1); the mask of the joints (h, w).
    """
    width, height = size
    row, up = np.floor(y / height), y % height
    shifted = x + 0.5 * width * (row % 2)
    column, right = np.floor(shifted / width), shifted % width
    tones = rng.uniform(-1, 1, (TONES, TONES)).astype(np.float32)
    tone = tones[row.astype(int) % TONES, column.astype(int) % TONES]
    return tone[:, :, None], (right < joint) | (up < joint)


def _noise(rng: np.random.Generator, like: Array, strength: float, cell: float = 2.5) -> Array:
    """Noise (h, w, 1) for an array (h, w), varying over ``cell`` pixels."""
    height, width = like.shape
    return strength * smooth_noise(rng, (height, width), (cell, cell))[:, :, None]
