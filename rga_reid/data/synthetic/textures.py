"""Unwrapped surfaces: what is painted around a limb, a torso or a head.

A texture is float32 ``(ROWS, COLUMNS, 3)``, RGB from 0 to 255. Rows run along the part, from its start to its
end; columns run once around it. Masks are ``(ROWS, COLUMNS)`` from 0 to 1.
"""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

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
FOLDS = 0.10  # how much cloth varies in brightness


def rgb(colour: Colour) -> np.ndarray:
    """A colour as float32 (3,)."""
    return np.array(colour, np.float32)


def plain(colour: Colour) -> Texture:
    """One colour everywhere."""
    return np.broadcast_to(rgb(colour), (ROWS, COLUMNS, 3)).copy()


def paint(texture: Texture, mask: ArrayLike, colour: Colour) -> Texture:
    """``texture`` with ``colour`` where ``mask`` is 1."""
    weight = np.broadcast_to(np.asarray(mask, np.float32), (ROWS, COLUMNS))[:, :, None]
    return texture + weight * (rgb(colour) - texture)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise of that shape, roughly from -1 to 1, which varies over ``cell`` pixels (down, across)."""
    height, width = shape
    rows, columns = max(2, round(height / cell[0])), max(2, round(width / cell[1]))
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def fabric(rng: np.random.Generator, texture: Texture) -> Texture:
    """``texture`` with the light and dark of folds."""
    folds = smooth_noise(rng, (ROWS, COLUMNS), (10, 8)) + smooth_noise(rng, (ROWS, COLUMNS), (24, 6))
    return texture * (1 + FOLDS * folds[:, :, None])


def pattern(name: str, repeats: int) -> np.ndarray:
    """The mask of a garment's second colour.

    Args:
        name: one of ``PATTERNS``.
        repeats: how often the pattern repeats along the garment.
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
