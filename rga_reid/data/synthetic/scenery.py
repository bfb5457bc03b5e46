"""What a camera sees behind the people: a ground, a wall, bicycles; and what stands before them.

Scenes are painted once per camera, in perspective: a pixel of the image plane is followed to the ground or to
the wall, and the surface is evaluated there, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from PIL import Image, ImageDraw

from rga_reid.data.synthetic.surfaces import Surface
from rga_reid.data.synthetic.textures import Colour, smooth_noise

# the part of the image plane that a scene covers, in metres from where people stand
SCENE_WIDTH, SCENE_ABOVE, SCENE_BELOW = 7.0, 3.0, 1.0
HORIZON = 0.05  # metres on the image plane; ground nearer to the horizon than this is not painted
SATURATION = 0.4  # streets are greyer than clothes
PATCHES, PATCH_SIZE = 0.12, 0.8  # of light and shade: strength, and metres
CORNER_SHADE, CORNER_SIZE = 0.35, 0.5  # of the ground before the wall: strength, and metres
BICYCLE_BEFORE_WALL = 0.5  # metres
TYRE_COLOUR: Colour = (30, 30, 32)
METAL_COLOUR: Colour = (140, 140, 142)
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
    ground: Surface,
    wall: Surface,
    wall_distance: float,
    bicycles: int,
    pitch: float,
    camera_distance: float,
) -> Scene:
    """Paint what a camera with that pitch and distance (see ``View``) sees.

    Args:
        pixels: per metre of the image plane.
        wall_distance: metres behind the people.
        bicycles: how many lean against the wall.
    """
    columns = np.arange(round(SCENE_WIDTH * pixels), dtype=np.float32) / pixels - SCENE_WIDTH / 2
    rows = np.arange(round((SCENE_ABOVE + SCENE_BELOW) * pixels), dtype=np.float32) / pixels - SCENE_ABOVE

    # where the ray through each row meets the ground, in metres towards the camera, and where the wall begins
    falling = np.maximum(camera_distance * sin(pitch) + rows * cos(pitch), HORIZON)
    towards = np.maximum(rows * camera_distance / falling, -wall_distance)
    magnified = camera_distance / (camera_distance - cos(pitch) * towards)
    wall_magnified = camera_distance / (camera_distance + cos(pitch) * wall_distance)
    wall_foot = -wall_distance * sin(pitch) * wall_magnified
    is_ground = rows > wall_foot
    up = (wall_foot - rows) / (wall_magnified * cos(pitch))

    colours = np.empty((len(rows), len(columns), 3), np.float32)
    for part, surface, heights in ((is_ground, ground, towards), (~is_ground, wall, up)):
        x = columns / magnified[part, None]
        colours[part] = surface(rng, x, np.broadcast_to(heights[part, None], x.shape))
    grey = colours.mean(2, keepdims=True)
    colours = grey + SATURATION * (colours - grey)
    shade = 1 + PATCHES * smooth_noise(rng, colours.shape[:2], (PATCH_SIZE * pixels, PATCH_SIZE * pixels))
    in_corner = np.where(is_ground, np.exp(-(towards + wall_distance) / CORNER_SIZE), 0)
    shade *= 1 - CORNER_SHADE * in_corner.astype(np.float32)[:, None]
    picture = Image.fromarray(np.clip(colours * shade[:, :, None], 0, 255).astype(np.uint8))

    for _ in range(bicycles):
        sprite = bicycle(rng, wall_magnified * pixels)
        left = round(rng.uniform(-0.05, 0.95) * picture.width)
        foot = round((SCENE_ABOVE + wall_foot + BICYCLE_BEFORE_WALL * sin(pitch)) * pixels)
        picture.paste(sprite, (left, foot - sprite.height), sprite)
    return Scene(picture, pixels)


def bicycle(rng: np.random.Generator, pixels: float) -> Image.Image:
    """A bicycle from the side, as RGBA on transparent ground."""
    fine = 2 * pixels  # drawn twice as large, for soft edges
    size = (round(BICYCLE_LENGTH * fine), round(BICYCLE_HEIGHT * fine))
    picture = Image.new("RGBA", size)
    pen = ImageDraw.Draw(picture)
    frame = FRAME_COLOURS[rng.integers(len(FRAME_COLOURS))]

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
