"""Plan the images of the synthetic data set and write them in the layout of Market-1501."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rga_reid.data.synthetic.people import Person, random_person
from rga_reid.data.synthetic.scenes import CAMERAS, SUPERSAMPLING, Sighting, Studio, paint_scene
from rga_reid.errors import MAX_SEED, InputError, check_int, short_repr
from rga_reid.files import atomic_folder
from rga_reid.runtime import track

TRAIN, GALLERY, QUERY = "bounding_box_train", "bounding_box_test", "query"
DISTRACTOR, JUNK = 0, -1  # pids
MAX_IDENTITIES = 9999  # file names have four digits
MIN_SIDE, MAX_SIDE = 16, 2048  # pixels

IMAGES_PER_DISTRACTOR = 4
BAD_BOX = 0.4  # distance of a junk box from its person, in box heights
JUNK_WITHOUT_PERSON = 0.5  # share of junk boxes
PASSERS_BY = 24
FRAMES_PER_SIGHTING, FRAMES_PER_SHOT = 90, 8
USUAL_BOX = 1.9  # height in metres; sets the sharpness of the scenes

_MAX_COUNT = 2**31  # images or people

# independent random streams: draws from one do not change the others
_PEOPLE, _SIGHTINGS, _SHOTS, _SCENES = range(4)


@dataclass(frozen=True)
class SyntheticSettings:
    """Size and random seed of the data set.

    Args:
        train_identities, test_identities: number of people; nobody is in both splits.
        cameras_per_identity: smallest and largest number of cameras that see a person.
        images_per_camera: smallest and largest number of images of a person by one camera.
        distractors: number of gallery images of people who are in no query (pid 0).
        junk: number of gallery images of background and of badly cropped people (pid -1).
        size: (height, width) of the images.
        seed: random seed; the same seed writes the same bytes.

    Raises:
        InputError: a number outside its range; the message names it.
    """

    train_identities: int = 128
    test_identities: int = 50
    cameras_per_identity: tuple[int, int] = (4, 6)
    images_per_camera: tuple[int, int] = (2, 3)
    distractors: int = 160
    junk: int = 80
    size: tuple[int, int] = (128, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"train_identities": 2, "test_identities": 1, "distractors": 0, "junk": 0, "seed": 0}
        for name, low in least.items():
            most = MAX_SEED if name == "seed" else _MAX_COUNT
            check_int(f"synthetic {name}", getattr(self, name), low, most)
        for name in ("cameras_per_identity", "images_per_camera", "size"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or [type(number) for number in value] != [int, int]:
                raise InputError(f"synthetic {name}: expected two whole numbers, got {short_repr(value)}")
        people = self.train_identities + self.test_identities
        if people > MAX_IDENTITIES:
            raise InputError(f"synthetic identities: expected at most {MAX_IDENTITIES} in all, got {people}")
        for name, highest in (("cameras_per_identity", len(CAMERAS)), ("images_per_camera", 9)):
            few, many = getattr(self, name)
            if not 2 <= few <= many <= highest:
                raise InputError(
                    f"synthetic {name}: expected 2 <= fewest <= most <= {highest}, got {few} and {many}"
                )
        if min(self.size) < MIN_SIDE or max(self.size) > MAX_SIDE:
            raise InputError(
                f"synthetic size: expected {MIN_SIDE} to {MAX_SIDE} pixels a side, "
                f"got {short_repr(self.size)}"
            )


@dataclass(frozen=True)
class Shot:
    """The plan of one image; ``person`` is None for a box without a person."""

    folder: str
    pid: int
    camera: int  #: from 0
    frame: int
    person: Person | None
    sighting: Sighting

    @property
    def name(self) -> str:
        """File name ``PPPP_cCsS_FFFFFF_BB.jpg``: pid, camera and sequence, frame, box (00 is a query)."""
        pid = str(JUNK) if self.pid == JUNK else f"{self.pid:04d}"
        return f"{pid}_c{self.camera + 1}s1_{self.frame:06d}_{'00' if self.folder == QUERY else '01'}.jpg"


def write_synthetic(
    root: str | os.PathLike[str], settings: SyntheticSettings | None = None, *, overwrite: bool = False
) -> None:
    """Draw a data set into the folder ``root``, laid out and named like Market-1501.

    ``bounding_box_train`` holds the training identities. ``query`` holds one image per test identity and
    camera; their other images are in ``bounding_box_test``, among distractors and junk.

    Args:
        root: folder to make, with its parents.
        settings: sizes and seed; by default a demonstration set of about 2,500 images.
        overwrite: replace an existing folder.

    Raises:
        InputError: ``root`` exists and ``overwrite`` is false, or its parent cannot be written.
    """
    settings = settings or SyntheticSettings()
    with atomic_folder(root, overwrite=overwrite) as folder:
        for name in (TRAIN, GALLERY, QUERY):
            (folder / name).mkdir()
        shots = list(plan_shots(settings))
        studio = _make_studio(settings)
        for number, shot in track(enumerate(shots), "drawing people", len(shots)):
            _take_shot(studio, shot, np.random.default_rng([settings.seed, _SHOTS, number]), folder)


def plan_shots(settings: SyntheticSettings) -> Iterator[Shot]:
    """Yield all shots: person, camera, time and folder of each image."""
    rng = np.random.default_rng([settings.seed, _SIGHTINGS])
    people = _iter_people(np.random.default_rng([settings.seed, _PEOPLE]))
    frames = [0] * len(CAMERAS)  # current frame of each camera

    def sighting(camera: int) -> tuple[int, Sighting]:
        frames[camera] += FRAMES_PER_SIGHTING
        return frames[camera], Sighting.random(rng, CAMERAS[camera])

    for pid in range(1, settings.train_identities + settings.test_identities + 1):
        person = next(people)
        count = rng.integers(*settings.cameras_per_identity, endpoint=True)
        for camera in sorted(rng.permutation(len(CAMERAS))[:count].tolist()):
            frame, seen = sighting(camera)
            for number in range(rng.integers(*settings.images_per_camera, endpoint=True)):
                test_folder = QUERY if number == 0 else GALLERY
                folder = TRAIN if pid <= settings.train_identities else test_folder
                yield Shot(folder, pid, camera, frame + number * FRAMES_PER_SHOT, person, seen)

    for number in range(settings.distractors):
        if number % IMAGES_PER_DISTRACTOR == 0:
            person = next(people)
        camera = int(rng.integers(len(CAMERAS)))
        frame, seen = sighting(camera)
        yield Shot(GALLERY, DISTRACTOR, camera, frame, person, seen)
    for _ in range(settings.junk):
        camera = int(rng.integers(len(CAMERAS)))
        nobody = rng.random() < JUNK_WITHOUT_PERSON
        frame, seen = sighting(camera)
        yield Shot(GALLERY, JUNK, camera, frame, None if nobody else next(people), seen)


def _take_shot(studio: Studio, shot: Shot, rng: np.random.Generator, folder: Path) -> None:
    camera = CAMERAS[shot.camera]
    if shot.person is None:
        image = studio.photograph_nobody(rng, camera)
    else:
        misplaced = BAD_BOX if shot.pid == JUNK else 0.0
        image = studio.photograph(rng, camera, shot.person, shot.sighting, misplaced)
    image.save(folder / shot.folder / shot.name, quality=camera.quality)


def _iter_people(rng: np.random.Generator) -> Iterator[Person]:
    """Yield random people without end."""
    while True:
        yield random_person(rng)


def _make_studio(settings: SyntheticSettings) -> Studio:
    rng = np.random.default_rng([settings.seed, _SCENES])
    pixels = SUPERSAMPLING * settings.size[0] / USUAL_BOX
    scenes = {camera: paint_scene(rng, pixels, camera) for camera in CAMERAS}
    return Studio(scenes, settings.size, [random_person(rng) for _ in range(PASSERS_BY)])
