"""What a camera sees behind the people: a ground, a wall, bicycles; and what stands before them.

Scenes are painted once per camera, in perspective: a pixel of the image plane is followed to the ground or to
the wall, and the surface is evaluated there, in metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, sin

import numpy as np
from PIL import Image, ImageDraw

from rga_reid.data.synthetic.textures import Colour, rgb, smooth_noise

Array = np.ndarray  #: float32 (h, w); colours (h, w, 3)
#: from random numbers, x and y in metres (y: up the wall, or towards the camera) to colours
Surface = Callable[[np.random.Generator, Array, Array], Array]

# the part of the image plane that a scene covers, in metres from where people stand
SCENE_WIDTH, SCENE_ABOVE, SCENE_BELOW = 7.0, 3.0, 1.0
SATURATION = 0.4  # streets are greyer than clothes
TYRE_COLOUR, METAL_COLOUR = (30, 30, 32), (140, 140, 142)
FRAME_COLOURS: tuple[Colour, ...] = ((40, 40, 44), (120, 34, 34), (44, 62, 104), (150, 150, 150))
BICYCLE_LENGTH, BICYCLE_HEIGHT = 1.7, 1.05


@dataclass(frozen=True)
class Scene:
    """A painted background; ``picture`` has ``pixels`` per metre of the image plane."""

    picture: Image.Image
    pixels: float

    def crop(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> Image.Image:
        """The part inside ``box`` (left, top, right, bottom: metres, y down from the standing line).

        Args:
            box: moved back inside where it leaves the scene.
            size: (width, height) of the result.
        """
        width, height = (box[2] - box[0]) * self.pixels, (box[3] - box[1]) * self.pixels
        left = min(max(box[0] * self.pixels, 0), self.picture.width - width)
        top = min(max((box[1] + SCENE_ABOVE) * self.pixels, 0), self.picture.height - height)
        corners = (left, top, left + width, top + height)
        return self.picture.resize(size, Image.Resampling.BILINEAR, box=corners)


def paint_scene(
    rng: np.random.Generator,
    pixels: float,
    *,
    ground: str,
    wall: str,
    wall_distance: float,
    bicycles: int,
    pitch: float,
    camera_distance: float,
) -> Scene:
    """Paint what a camera with that ``pitch`` and distance (see ``View``) sees.

    Args:
        ground, wall: keys of ``GROUNDS`` and ``WALLS``.
        wall_distance: metres behind the people.
        bicycles: how many lean against the wall.
    """
    columns = np.arange(round(SCENE_WIDTH * pixels), dtype=np.float32) / pixels - SCENE_WIDTH / 2
    rows = np.arange(round((SCENE_ABOVE + SCENE_BELOW) * pixels), dtype=np.float32) / pixels
    down = (rows - SCENE_ABOVE)[:, None]

    # where the ray through a row meets the ground: metres towards the camera
    towards = down * camera_distance / np.maximum(camera_distance * sin(pitch) + down * cos(pitch), 0.05)
    is_ground = (towards > -wall_distance) & (camera_distance * sin(pitch) + down * cos(pitch) > 0.05)
    towards = np.where(is_ground, towards, -wall_distance)
    magnified = camera_distance / (camera_distance - cos(pitch) * towards)
    foot = -camera_distance * sin(pitch) * wall_distance / (camera_distance + cos(pitch) * wall_distance)
    up = (foot - down) / (magnified * cos(pitch))

    x = np.broadcast_to(columns / magnified, (len(rows), len(columns)))
    shape_up, shape_towards = np.broadcast_to(up, x.shape), np.broadcast_to(towards, x.shape)
    colours = np.where(
        is_ground[:, :, None], GROUNDS[ground](rng, x, shape_towards), WALLS[wall](rng, x, shape_up)
    )
    grey = colours.mean(2, keepdims=True)
    colours = grey + SATURATION * (colours - grey)
    shade = 1 + 0.12 * smooth_noise(rng, x.shape, (0.8 * pixels, 0.8 * pixels))
    shade *= np.where(is_ground, 1 - 0.35 * np.exp(-(towards + wall_distance) / 0.5), 1.0)
    picture = Image.fromarray(np.clip(colours * shade[:, :, None], 0, 255).astype(np.uint8))

    scale = camera_distance / (camera_distance + cos(pitch) * (wall_distance - 0.5)) * pixels
    for _ in range(bicycles):
        sprite = bicycle(rng, scale)
        left = int(rng.uniform(-0.05, 0.95) * picture.width)
        foot_row = round((SCENE_ABOVE + foot + 0.5 * sin(pitch)) * pixels)
        picture.paste(sprite, (left, foot_row - sprite.height), sprite)
    return Scene(picture, pixels)


def bicycle(rng: np.random.Generator, pixels: float) -> Image.Image:
    """A bicycle from the side, as RGBA on transparent ground."""
    fine = 2 * pixels  # drawn twice as large, for soft edges
    size = (round(BICYCLE_LENGTH * fine), round(BICYCLE_HEIGHT * fine))
    picture = Image.new("RGBA", size)
    pen = ImageDraw.Draw(picture)
    frame = _one_of(rng, FRAME_COLOURS)

    def line(points: list[tuple[float, float]], colour: Colour, thick: float) -> None:
        pen.line([(x * fine, y * fine) for x, y in points], fill=colour, width=max(1, round(thick * fine)))

    rear, front, crank, saddle, head = (0.35, 0.72), (1.35, 0.72), (0.75, 0.74), (0.62, 0.3), (1.22, 0.28)
    for x, y in (rear, front):
        box = [(x - 0.32) * fine, (y - 0.32) * fine, (x + 0.32) * fine, (y + 0.32) * fine]
        pen.ellipse(box, outline=TYRE_COLOUR, width=max(1, round(0.05 * fine)))
        for angle in np.arange(0, np.pi, np.pi / 4):
            dx, dy = 0.3 * cos(angle), 0.3 * sin(angle)
            line([(x - dx, y - dy), (x + dx, y + dy)], METAL_COLOUR, 0.012)
    line([rear, crank, head, saddle, rear], frame, 0.045)
    line([saddle, crank], frame, 0.045)
    line([head, front], frame, 0.045)
    line([(saddle[0] - 0.14, 0.24), (saddle[0] + 0.12, 0.24)], TYRE_COLOUR, 0.07)
    line([head, (1.2, 0.14), (1.1, 0.1)], METAL_COLOUR, 0.035)
    return picture.resize((size[0] // 2, size[1] // 2), Image.Resampling.BOX)


def _one_of(rng: np.random.Generator, colours: tuple[Colour, ...]) -> tuple[int, ...]:
    return colours[int(rng.integers(len(colours)))]


def _mixed(weight: Array, first: Colour, second: Colour) -> Array:
    """``first`` where ``weight`` is 0, ``second`` where it is 1: (h, w, 3)."""
    return rgb(first) + weight[:, :, None] * (rgb(second) - rgb(first))


def _cells(
    rng: np.random.Generator, x: Array, y: Array, wide: float, tall: float, joint: float
) -> tuple[Array, Array]:
    """Tiles or bricks: a random tone per cell (-1 to 1) and a mask of the joints between them."""
    row = np.floor(y / tall)
    shifted = x / wide + 0.5 * (row % 2)
    column = np.floor(shifted)
    tones = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    tone = tones[row.astype(int) % 64, column.astype(int) % 64]
    joints = ((shifted % 1) * wide < joint) | ((y / tall % 1) * tall < joint)
    return tone, joints.astype(np.float32)


def _grain(rng: np.random.Generator, x: Array, strength: float, cell: float = 2.5) -> Array:
    return 1 + strength * smooth_noise(rng, x.shape, (cell, cell))[:, :, None]


def _paving(rng: np.random.Generator, x: Array, y: Array) -> Array:
    tone, joints = _cells(rng, x, y, 0.6, 0.4, 0.025)
    return (
        _mixed(joints, (158, 152, 146), (108, 104, 102))
        * (1 + 0.07 * tone[:, :, None])
        * _grain(rng, x, 0.06)
    )


def _red_bricks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    tone, joints = _cells(rng, x, y, 0.24, 0.12, 0.018)
    return (
        _mixed(joints, (168, 116, 98), (136, 122, 112)) * (1 + 0.14 * tone[:, :, None]) * _grain(rng, x, 0.05)
    )


def _asphalt(rng: np.random.Generator, x: Array, y: Array) -> Array:
    line = (np.abs(y + 1.2) < 0.07).astype(np.float32)
    return _mixed(0.85 * line, (118, 118, 122), (206, 202, 190)) * _grain(rng, x, 0.12, 2)


def _grass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    path = (np.abs(y - 0.1) < 0.7).astype(np.float32)
    blades = smooth_noise(rng, x.shape, (3, 2)) + smooth_noise(rng, x.shape, (20, 24))
    green = _mixed(0.5 + 0.25 * blades, (74, 100, 52), (128, 142, 78))
    return green + path[:, :, None] * (rgb((166, 156, 134)) * _grain(rng, x, 0.1) - green)


def _concrete(rng: np.random.Generator, x: Array, y: Array) -> Array:
    _, joints = _cells(rng, x, y, 2.2, 1.8, 0.04)
    stains = smooth_noise(rng, x.shape, (50, 70))
    return (
        _mixed(joints, (162, 160, 154), (112, 110, 106))
        * (1 + 0.08 * stains[:, :, None])
        * _grain(rng, x, 0.05)
    )


def _polished(rng: np.random.Generator, x: Array, y: Array) -> Array:
    chess = ((np.floor(x / 0.8) + np.floor(y / 0.8)) % 2).astype(np.float32)
    return _mixed(chess, (172, 166, 152), (130, 124, 116)) * _grain(rng, x, 0.03)


def _brick_wall(rng: np.random.Generator, x: Array, y: Array) -> Array:
    tone, joints = _cells(rng, x, y, 0.3, 0.1, 0.016)
    return _mixed(joints, (144, 96, 82), (164, 150, 138)) * (1 + 0.16 * tone[:, :, None])


def _glass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    tone, frames = _cells(rng, x, np.zeros_like(y) + 0.5, 1.1, 9.0, 0.07)
    sill = (np.abs(y - 1.1) < 0.04).astype(np.float32)
    sky = 0.5 + 0.3 * smooth_noise(rng, x.shape, (60, 90)) + 0.2 * tone
    return _mixed(np.maximum(frames, sill), (0, 0, 0), (150, 150, 150)) + (
        1 - np.maximum(frames, sill)[:, :, None]
    ) * _mixed(sky, (64, 74, 84), (128, 142, 154))


def _hedge(rng: np.random.Generator, x: Array, y: Array) -> Array:
    leaves = 0.5 + 0.3 * smooth_noise(rng, x.shape, (4, 4)) + 0.25 * smooth_noise(rng, x.shape, (18, 18))
    green = _mixed(leaves, (50, 64, 40), (112, 138, 84))
    haze = (np.clip((y - 1.7 - 0.2 * np.sin(3 * x)) / 0.3, 0, 1))[:, :, None]
    return green + haze * (rgb((186, 196, 204)) - green)


def _plaster(rng: np.random.Generator, x: Array, y: Array) -> Array:
    wall = _mixed((y < 0.35).astype(np.float32), (178, 172, 156), (126, 122, 116)) * _grain(rng, x, 0.04, 8)
    for left in np.arange(-6, 6, 1.7):
        inside = (x > left) & (x < left + rng.uniform(0.5, 0.9)) & (np.abs(y - 1.45) < 0.35)
        wall[inside] = np.float32(
            _one_of(rng, ((152, 84, 78), (78, 100, 132), (190, 176, 116), (92, 120, 94)))
        )
    return wall


def _fence(rng: np.random.Generator, x: Array, y: Array) -> Array:
    bars = ((x % 0.16 < 0.03) | (np.abs(y - 1.15) < 0.03) | (np.abs(y - 0.15) < 0.03)) & (y < 1.2)
    behind = _mixed(0.5 + 0.5 * smooth_noise(rng, x.shape, (40, 40)), (112, 122, 104), (176, 178, 170))
    return behind + bars[:, :, None] * (rgb((58, 60, 62)) - behind)


def _shop(rng: np.random.Generator, x: Array, y: Array) -> Array:
    tone, frames = _cells(rng, x, y, 0.4, 0.45, 0.03)
    goods, _ = _cells(rng, x, y, 0.4, 0.45, 0.03)
    warm = _mixed(0.5 + 0.5 * tone, (84, 76, 68), (166, 148, 116))
    warm[:, :, 2] += 12 * goods
    return warm + frames[:, :, None] * (rgb((52, 44, 40)) - warm)


GROUNDS: dict[str, Surface] = {
    "paving": _paving,
    "red bricks": _red_bricks,
    "asphalt": _asphalt,
    "grass": _grass,
    "concrete": _concrete,
    "polished": _polished,
}
WALLS: dict[str, Surface] = {
    "brick": _brick_wall,
    "glass": _glass,
    "hedge": _hedge,
    "plaster": _plaster,
    "fence": _fence,
    "shop": _shop,
}
