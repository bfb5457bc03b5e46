"""Six cameras, the scenes before them, and the images that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import cos, exp, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rga_reid.data.synthetic.figure import build_figure
from rga_reid.data.synthetic.people import Person, Pose, dress
from rga_reid.data.synthetic.rendering import (
    Box,
    Canvas,
    Colour,
    Projection,
    Tube,
    View,
    draw,
    outline,
    plain,
    project,
    rgb,
    smooth_noise,
)

SUPERSAMPLING = 2
MID_GREY = 112.0
BLUR_ROWS = 128
SHOT_CAST = 0.02  # standard deviation of the gain per channel, from shot to shot


@dataclass(frozen=True)
class Camera:
    """One camera of the network.

    Args:
        pitch, distance: see ``View``.
        headings: usual yaws of people in view.
        ground, wall: surfaces of the scene.
        wall_distance: metres from the people to the wall.
        bicycles: number of bicycles that lean against the wall.
        light, ambient: see ``View``.
        exposure, cast, contrast: gain, gain per RGB channel, spread about mid-grey.
        blur: standard deviation in pixels of an image of ``BLUR_ROWS`` rows.
        noise: standard deviation in grey levels.
        quality: quality of the JPEG files.
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

    def develop(self, rng: np.random.Generator, canvas: Canvas, exposure: float = 1.0) -> Image.Image:
        """Return the image that this camera takes of a canvas, which is ``SUPERSAMPLING`` times as large.

        Args:
            exposure: gain of this shot, in addition to the camera's.
        """
        sharp = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).reduce(SUPERSAMPLING)
        seen = sharp.filter(ImageFilter.GaussianBlur(self.blur * sharp.height / BLUR_ROWS))
        gain = self.exposure * exposure * np.array(self.cast) * rng.normal(1, SHOT_CAST, 3)
        picture = np.asarray(seen, dtype=np.float32) * gain.astype(np.float32)
        picture = MID_GREY + self.contrast * (picture - MID_GREY)
        picture += rng.standard_normal(picture.shape, dtype=np.float32) * self.noise
        return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


FRONT, LEFT, BACK, RIGHT = 0.0, pi / 2, pi, 3 * pi / 2


Array = np.ndarray  #: float32
Surface = Callable[[np.random.Generator, Array, Array], Array]

TONES = 64  # random tones repeat after so many tiles
POSTER_COLOURS: tuple[Colour, ...] = ((152, 84, 78), (78, 100, 132), (190, 176, 116), (92, 120, 94))


def paving(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Grey slabs."""
    tone, joints = _tiles(rng, x, y, size=(0.6, 0.4), joint=0.025)
    return _mix(joints, (158, 152, 146), (108, 104, 102)) * (1 + 0.07 * tone + _noise(rng, x, 0.06))


def red_bricks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A brick pavement."""
    tone, joints = _tiles(rng, x, y, size=(0.24, 0.12), joint=0.018)
    return _mix(joints, (168, 116, 98), (136, 122, 112)) * (1 + 0.14 * tone + _noise(rng, x, 0.05))


def asphalt(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A street with a painted line."""
    line = np.abs(y + 1.2) < 0.07
    return _mix(0.85 * line, (118, 118, 122), (206, 202, 190)) * (1 + _noise(rng, x, 0.12, 2))


def grass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A lawn with a path where people walk."""
    blades = 0.5 + _noise(rng, x, 0.25, 2.5) + _noise(rng, x, 0.25, 22)
    lawn = _mix(blades[:, :, 0], (74, 100, 52), (128, 142, 78))
    path = rgb((166, 156, 134)) * (1 + _noise(rng, x, 0.1))
    return np.where((np.abs(y - 0.1) < 0.7)[:, :, None], path, lawn)


def concrete(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Large stained plates."""
    _, joints = _tiles(rng, x, y, size=(2.2, 1.8), joint=0.04)
    stains = _noise(rng, x, 0.08, 60) + _noise(rng, x, 0.05)
    return _mix(joints, (162, 160, 154), (112, 110, 106)) * (1 + stains)


def polished(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """The chequered floor of a hall."""
    dark = (np.floor(x / 0.8) + np.floor(y / 0.8)) % 2
    return _mix(dark, (172, 166, 152), (130, 124, 116)) * (1 + _noise(rng, x, 0.03))


def brick_wall(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Red bricks in light mortar."""
    tone, joints = _tiles(rng, x, y, size=(0.3, 0.1), joint=0.016)
    return _mix(joints, (144, 96, 82), (164, 150, 138)) * (1 + 0.16 * tone)


def glass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Tall panes that reflect the sky."""
    tone, frames = _tiles(rng, x, np.full_like(y, 0.5), size=(1.1, 9.0), joint=0.07)
    sky = 0.5 + _noise(rng, x, 0.3, 75) + 0.2 * tone
    sill = np.abs(y - 1.1) < 0.04
    panes = _mix(sky[:, :, 0], (64, 74, 84), (128, 142, 154))
    return np.where((frames | sill)[:, :, None], rgb((150, 150, 150)), panes)


def hedge(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Leaves up to a wavy edge, the sky above."""
    leaves = 0.5 + _noise(rng, x, 0.3, 4) + _noise(rng, x, 0.25, 18)
    green = _mix(leaves[:, :, 0], (50, 64, 40), (112, 138, 84))
    sky = np.clip((y - 1.7 - 0.2 * np.sin(3 * x)) / 0.3, 0, 1)[:, :, None]
    return green + sky * (rgb((186, 196, 204)) - green)


def plaster(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """A light wall with a dark base and posters."""
    colours = _mix(y < 0.35, (178, 172, 156), (126, 122, 116)) * (1 + _noise(rng, x, 0.04, 8))
    for left in np.arange(x.min(), x.max(), 1.7):
        right = left + rng.uniform(0.5, 0.9)
        colour = POSTER_COLOURS[rng.integers(len(POSTER_COLOURS))]
        colours[(x > left) & (x < right) & (np.abs(y - 1.45) < 0.35)] = rgb(colour)
    return colours


def fence(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Iron bars before something far away."""
    rails = (np.abs(y - 1.15) < 0.03) | (np.abs(y - 0.15) < 0.03)
    bars = (y < 1.2) & (rails | (x % 0.16 < 0.03))
    behind = _mix(0.5 + _noise(rng, x, 0.5, 40)[:, :, 0], (112, 122, 104), (176, 178, 170))
    return np.where(bars[:, :, None], rgb((58, 60, 62)), behind)


def shelves(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """The boxes in a shop."""
    tone, frames = _tiles(rng, x, y, size=(0.4, 0.45), joint=0.03)
    boxes = _mix(0.5 + 0.5 * tone[:, :, 0], (84, 76, 68), (166, 148, 116))
    return np.where(frames[:, :, None], rgb((52, 44, 40)), boxes)


def _mix(weight: Array, first: Colour, second: Colour) -> Array:
    """Return ``first`` where the weight (h, w) is 0 and ``second`` where it is 1."""
    return rgb(first) + np.asarray(weight, np.float32)[:, :, None] * (rgb(second) - rgb(first))


def _tiles(
    rng: np.random.Generator, x: Array, y: Array, size: tuple[float, float], joint: float
) -> tuple[Array, Array]:
    """Lay tiles in shifted rows: return a random tone per tile from -1 to 1, and the mask of the joints."""
    width, height = size
    row, up = np.floor(y / height), y % height
    shifted = x + 0.5 * width * (row % 2)
    column, right = np.floor(shifted / width), shifted % width
    tones = rng.uniform(-1, 1, (TONES, TONES)).astype(np.float32)
    tone = tones[row.astype(int) % TONES, column.astype(int) % TONES]
    return tone[:, :, None], (right < joint) | (up < joint)


def _noise(rng: np.random.Generator, like: Array, strength: float, cell: float = 2.5) -> Array:
    """Return noise (h, w, 1) for an array (h, w), varying over ``cell`` pixels."""
    height, width = like.shape
    return strength * smooth_noise(rng, (height, width), (cell, cell))[:, :, None]


# part of the image plane that a scene covers, in metres from the standing point
SCENE_WIDTH, SCENE_ABOVE, SCENE_BELOW = 7.0, 3.0, 1.0
HORIZON = 0.05  # metres on the image plane; the ground ends this far from the horizon
SATURATION = 0.4  # streets are greyer than clothes
PATCHES, PATCH_SIZE = 0.12, 0.8  # patches of light and shade: strength, metres
CORNER_SHADE, CORNER_SIZE = 0.35, 0.5  # shade on the ground before the wall: strength, metres
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
        """Return the part of the scene inside a box.

        Args:
            box: left, top, right, bottom in metres, y down from the standing line; moved inside if it
                leaves the scene.
            size: (width, height) of the result.
        """
        width, height = (box[2] - box[0]) * self.pixels, (box[3] - box[1]) * self.pixels
        left = min(max(box[0] * self.pixels, 0), self.picture.width - width)
        top = min(max((box[1] + SCENE_ABOVE) * self.pixels, 0), self.picture.height - height)
        corners = (left, top, left + width, top + height)
        return self.picture.resize(size, Image.Resampling.BILINEAR, box=corners)


def paint_scene(rng: np.random.Generator, pixels: float, camera: Camera) -> Scene:
    """Paint the background of a camera, with ``pixels`` per metre of the image plane."""
    pitch, camera_distance, wall_distance = camera.pitch, camera.distance, camera.wall_distance
    columns = np.arange(round(SCENE_WIDTH * pixels), dtype=np.float32) / pixels - SCENE_WIDTH / 2
    rows = np.arange(round((SCENE_ABOVE + SCENE_BELOW) * pixels), dtype=np.float32) / pixels - SCENE_ABOVE

    # point where the ray through each row meets the ground, in metres towards the camera; foot of the wall
    falling = np.maximum(camera_distance * sin(pitch) + rows * cos(pitch), HORIZON)
    towards = np.maximum(rows * camera_distance / falling, -wall_distance)
    magnified = camera_distance / (camera_distance - cos(pitch) * towards)
    wall_magnified = camera_distance / (camera_distance + cos(pitch) * wall_distance)
    wall_foot = -wall_distance * sin(pitch) * wall_magnified
    is_ground = rows > wall_foot
    up = (wall_foot - rows) / (wall_magnified * cos(pitch))

    colours = np.empty((len(rows), len(columns), 3), np.float32)
    for part, surface, heights in ((is_ground, camera.ground, towards), (~is_ground, camera.wall, up)):
        x = columns / magnified[part, None]
        colours[part] = surface(rng, x, np.broadcast_to(heights[part, None], x.shape))
    grey = colours.mean(2, keepdims=True)
    colours = grey + SATURATION * (colours - grey)
    shade = 1 + PATCHES * smooth_noise(rng, colours.shape[:2], (PATCH_SIZE * pixels, PATCH_SIZE * pixels))
    in_corner = np.where(is_ground, np.exp(-(towards + wall_distance) / CORNER_SIZE), 0)
    shade *= 1 - CORNER_SHADE * in_corner.astype(np.float32)[:, None]
    picture = Image.fromarray(np.clip(colours * shade[:, :, None], 0, 255).astype(np.uint8))

    for _ in range(camera.bicycles):
        sprite = draw_bicycle(rng, wall_magnified * pixels)
        left = round(rng.uniform(-0.05, 0.95) * picture.width)
        foot = round((SCENE_ABOVE + wall_foot + BICYCLE_BEFORE_WALL * sin(pitch)) * pixels)
        picture.paste(sprite, (left, foot - sprite.height), sprite)
    return Scene(picture, pixels)


def draw_bicycle(rng: np.random.Generator, pixels: float) -> Image.Image:
    """Draw a bicycle from the side, as RGBA on a transparent ground."""
    fine = 2 * pixels  # twice as large, for soft edges
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


# boxes of a detector, in heights of the person: size, standard deviations of place and (log) size
BOX_HEIGHT, BOX_SHIFT, BOX_ZOOM = 1.04, 0.035, 0.05

# probabilities
STANDING, TELEPHONE, COMPANY = 0.12, 0.12, 0.15
HIDDEN_BY_PERSON, HIDDEN_BY_POLE, HIDDEN_BY_BICYCLE = 0.06, 0.06, 0.05
BICYCLE_ALONE = 0.4  # in boxes without a person

# standard deviations; turns in radians, places in metres, light as the logarithm of a gain
TURN_BY_SIGHTING, TURN_BY_SHOT = 0.45, 0.2
STEP_BY_SHOT = 0.5
TILT_BY_SIGHTING = 0.03
LIGHT_BY_SIGHTING = 0.13

COMPANY_DISTANCE = -1.5  # metres towards the camera
SHADOW, SHADOW_SIZE = 0.45, (0.38, 0.12)  # share of the light taken; metres on the image plane
POLE_COLOUR = (96, 98, 96)
CACHED_PEOPLE = 4  # whose textures are kept, in addition to those of the passers-by


@dataclass(frozen=True)
class Sighting:
    """A person passing a camera: what the shots have in common."""

    view: View
    place: float  #: metres from the left end of the scene
    stride: float  #: see ``Pose``
    exposure: float  #: gain

    @classmethod
    def random(cls, rng: np.random.Generator, camera: Camera) -> Sighting:
        """Return a person who walks in one of the camera's usual directions."""
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
    """Take images of one size.

    Args:
        scenes: background by camera.
        size: (height, width) of the images.
        passers_by: people who may appear in the background.
    """

    def __init__(
        self, scenes: Mapping[Camera, Scene], size: tuple[int, int], passers_by: Sequence[Person]
    ) -> None:
        self.scenes = scenes
        self.height, self.width = SUPERSAMPLING * size[0], SUPERSAMPLING * size[1]
        self.passers_by = passers_by
        self._dress = lru_cache(maxsize=CACHED_PEOPLE + len(passers_by))(dress)

    def photograph(
        self,
        rng: np.random.Generator,
        camera: Camera,
        person: Person,
        sighting: Sighting,
        misplaced: float = 0.0,
    ) -> Image.Image:
        """Take an image of a person; ``misplaced`` shifts the box by so many box heights in a random direction."""
        view = replace(sighting.view, yaw=sighting.view.yaw + rng.normal(0, TURN_BY_SHOT))
        seen = project(self._pose(rng, person, sighting.stride), view)
        box = self._detect(rng, seen.bounding_box(), misplaced)
        canvas = self._background(camera, box, sighting.place + rng.normal(0, STEP_BY_SHOT))
        self._cast_shadow(canvas, box)
        if rng.random() < COMPANY:
            self._add_passer_by(rng, canvas, box, view, aside=(0.35, 0.75), nearer=COMPANY_DISTANCE)
        self._draw(canvas, seen, box, view)
        self._hide(rng, canvas, box, view)
        return camera.develop(rng, canvas, sighting.exposure)

    def photograph_nobody(self, rng: np.random.Generator, camera: Camera) -> Image.Image:
        """Take an image of a box without a person."""
        height = rng.uniform(0.9, 2.2)
        width = height * self.width / self.height
        top = rng.uniform(-2.2, 0.4 - 0.6 * height)
        canvas = self._background(camera, (0, top, width, top + height), rng.uniform(0, SCENE_WIDTH - width))
        if rng.random() < BICYCLE_ALONE:
            self._add_bicycle(rng, canvas)
        return camera.develop(rng, canvas)

    def _pose(self, rng: np.random.Generator, person: Person, stride: float) -> list[Tube]:
        return build_figure(person, self._dress(person), _random_pose(rng, person, stride))

    def _detect(self, rng: np.random.Generator, person: Box, misplaced: float) -> Box:
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
        """Return the pixels of the canvas per metre."""
        return self.height / (box[3] - box[1])

    def _draw(
        self, canvas: Canvas, seen: Projection, box: Box, view: View, x: float = 0.0, y: float = 0.0
    ) -> None:
        """Draw tubes at the point (x, y) of the image plane."""
        pixels = self._pixels(box)
        draw(canvas, seen.place(pixels, (x - box[0]) * pixels, (y - box[1]) * pixels), view)

    def _cast_shadow(self, canvas: Canvas, box: Box) -> None:
        """Darken the ground softly around the standing point."""
        pixels = self._pixels(box)
        x = (np.arange(self.width, dtype=np.float32) / pixels + box[0]) / SHADOW_SIZE[0]
        y = (np.arange(self.height, dtype=np.float32) / pixels + box[1]) / SHADOW_SIZE[1]
        rows = np.abs(y) < 3
        canvas[rows] *= (1 - SHADOW * np.exp(-(x**2) - y[rows, None] ** 2))[:, :, None]

    def _add_passer_by(
        self,
        rng: np.random.Generator,
        canvas: Canvas,
        box: Box,
        view: View,
        aside: tuple[float, float],
        nearer: float,
    ) -> None:
        """Draw another person, ``nearer`` metres towards the camera and to the left or right."""
        person = self.passers_by[int(rng.integers(len(self.passers_by)))]
        x = rng.choice((-1, 1)) * rng.uniform(*aside)
        scale = view.distance / (view.distance - nearer)
        view = replace(view, yaw=rng.uniform(0, 2 * pi))
        seen = project(self._pose(rng, person, rng.uniform(0.2, 0.4)), view).place(scale, 0, 0)
        self._draw(canvas, seen, box, view, x, scale * nearer * sin(view.pitch))

    def _hide(self, rng: np.random.Generator, canvas: Canvas, box: Box, view: View) -> None:
        """Sometimes draw an object or another person before the person."""
        chance = rng.random()
        if chance < HIDDEN_BY_PERSON:
            self._add_passer_by(rng, canvas, box, view, aside=(0.35, 0.6), nearer=rng.uniform(0.5, 1))
        elif chance < HIDDEN_BY_PERSON + HIDDEN_BY_POLE:
            x, radius = rng.uniform(box[0], box[2]), rng.uniform(0.03, 0.07)
            top, foot = np.array([x, 3, 0.5]), np.array([x, -0.2, 0.5])
            pole = Tube(top, foot, radius * outline((0, 1), (1, 1)), plain(POLE_COLOUR))
            facing = replace(view, yaw=0.0)
            self._draw(canvas, project([pole], facing), box, facing)
        elif chance < HIDDEN_BY_PERSON + HIDDEN_BY_POLE + HIDDEN_BY_BICYCLE:
            self._add_bicycle(rng, canvas)

    def _add_bicycle(self, rng: np.random.Generator, canvas: Canvas) -> None:
        """Draw a bicycle at the lower edge, often cut by the sides."""
        sprite = draw_bicycle(rng, self.height / 2)
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


CAMERAS = (
    Camera(
        pitch=0.22, distance=9, headings=(FRONT, BACK),
        ground=paving, wall=fence, wall_distance=5, bicycles=6,
        light=(0.5, 0.5, 0.71), ambient=0.55,
        exposure=1.0, cast=(1.0, 1.0, 1.0), contrast=1.0, blur=0.5, noise=3, quality=90,
    ),
    Camera(
        pitch=0.38, distance=11, headings=(LEFT, RIGHT),
        ground=asphalt, wall=brick_wall, wall_distance=4, bicycles=2,
        light=(-0.6, 0.5, 0.62), ambient=0.5,
        exposure=0.9, cast=(0.975, 1.0, 1.03), contrast=0.93, blur=0.8, noise=6, quality=75,
    ),
    Camera(
        pitch=0.15, distance=6, headings=(FRONT, LEFT),
        ground=polished, wall=shelves, wall_distance=3, bicycles=0,
        light=(0.2, 0.6, 0.77), ambient=0.7,
        exposure=1.02, cast=(1.035, 1.0, 0.955), contrast=0.95, blur=0.6, noise=4, quality=85,
    ),
    Camera(
        pitch=0.3, distance=10, headings=(BACK, RIGHT),
        ground=grass, wall=hedge, wall_distance=6, bicycles=0,
        light=(0.75, 0.4, 0.53), ambient=0.45,
        exposure=1.05, cast=(0.99, 1.015, 0.98), contrast=1.08, blur=0.5, noise=3, quality=88,
    ),
    Camera(
        pitch=0.45, distance=7, headings=(FRONT, RIGHT, BACK),
        ground=red_bricks, wall=glass, wall_distance=5, bicycles=3,
        light=(-0.4, 0.7, 0.59), ambient=0.6,
        exposure=0.88, cast=(1.015, 0.985, 1.01), contrast=1.05, blur=1.0, noise=7, quality=70,
    ),
    Camera(
        pitch=0.2, distance=8, headings=(LEFT, BACK),
        ground=concrete, wall=plaster, wall_distance=4, bicycles=1,
        light=(-0.2, 0.6, 0.77), ambient=0.65,
        exposure=1.1, cast=(0.99, 1.0, 1.02), contrast=0.88, blur=0.7, noise=4, quality=80,
    ),
)  # fmt: skip
