"""Who is seen where, and the files: the layout, names and roles of Market-1501."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from rga_reid.data.synthetic.cameras import CAMERAS, SUPERSAMPLING
from rga_reid.data.synthetic.people import Person, random_person
from rga_reid.data.synthetic.shots import Sighting, Studio
from rga_reid.errors import InputError
from rga_reid.files import atomic_folder

TRAIN, GALLERY, QUERY = "bounding_box_train", "bounding_box_test", "query"
DISTRACTOR, JUNK = 0, -1
SHOTS_PER_DISTRACTOR = 4
PASSERS_BY = 24
TYPICAL_BOX = 1.9  # metres; sets the sharpness of the backgrounds

FRAMES_PER_SIGHTING, FRAMES_PER_SHOT = 90, 8
BAD_BOX = 0.4  # how far a junk box misses its person, in box heights
JUNK_WITHOUT_PERSON = 0.5  # share

# the random streams: numbers drawn in one do not depend on how many were drawn in another
_PEOPLE, _SIGHTINGS, _SHOTS, _SCENES = range(4)


@dataclass(frozen=True)
class SyntheticSettings:
    """How large the data set is, and which one.

    Args:
        train_identities, test_identities: people; nobody is in both.
        cameras_per_identity: fewest and most cameras that see a person.
        shots_per_camera: fewest and most images of a person by a camera.
        distractors: gallery images of people who are in no query (pid 0).
        junk: gallery images of background and bad detections (pid -1).
        size: (height, width) of the images.
        seed: the same seed writes the same bytes.
    """

    train_identities: int = 140
    test_identities: int = 56
    cameras_per_identity: tuple[int, int] = (4, 6)
    shots_per_camera: tuple[int, int] = (2, 3)
    distractors: int = 200
    junk: int = 100
    size: tuple[int, int] = (128, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("train_identities", 2),
            ("test_identities", 1),
            ("distractors", 0),
            ("junk", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(
                    f"synthetic {name}: expected at least {least}, got {getattr(self, name)}"
                )
        if self.train_identities + self.test_identities > 9999:
            raise InputError("synthetic identities: expected at most 9999 in all (names have four digits)")
        for name, least, most in (("cameras_per_identity", 2, len(CAMERAS)), ("shots_per_camera", 2, 99)):
            few, many = getattr(self, name)
            if not least <= few <= many <= most:
                raise InputError(
                    f"synthetic {name}: expected {least} <= fewest <= most <= {most}, got {few}, {many}"
                )
        if min(self.size) < 16:
            raise InputError(f"synthetic size: expected at least 16 rows and columns, got {self.size}")


def write_synthetic(
    root: str | os.PathLike[str],
    settings: SyntheticSettings | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Draw the data set into the folder ``root``, laid out and named like Market-1501.

    ``bounding_box_train`` and ``bounding_box_test`` hold the images, ``query`` one image per test identity and
    camera; the other images of those people are in ``bounding_box_test``, among distractors and junk.

    Raises:
        InputError: ``root`` exists and ``overwrite`` is false, or its parent cannot be written.
    """
    settings = settings or SyntheticSettings()
    with atomic_folder(root, overwrite=overwrite) as folder:
        for name in (TRAIN, GALLERY, QUERY):
            (folder / name).mkdir()
        studio = _studio(settings)
        progress = track(
            list(enumerate(plan(settings))),
            "drawing",
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        for number, shot in progress:
            rng = np.random.default_rng([settings.seed, _SHOTS, number])
            camera = CAMERAS[shot.camera]
            if shot.person is None:
                image = studio.empty(rng, camera)
            else:
                image = studio.shoot(rng, camera, shot.person, shot.sighting, shot.misplaced)
            image.save(folder / shot.folder / shot.name, quality=camera.quality)


@dataclass(frozen=True)
class Shot:
    """One image to be taken; ``person`` is None for a box around nobody."""

    folder: str
    pid: int
    camera: int
    frame: int
    box: int
    person: Person | None
    sighting: Sighting
    misplaced: float = 0.0

    @property
    def name(self) -> str:
        pid = str(JUNK) if self.pid == JUNK else f"{self.pid:04d}"
        return f"{pid}_c{self.camera + 1}s1_{self.frame:06d}_{self.box:02d}.jpg"


def plan(settings: SyntheticSettings) -> Iterator[Shot]:
    """All shots: who is seen by which camera, when, and in which folder the image goes."""
    rng = np.random.default_rng([settings.seed, _SIGHTINGS])
    people = _people(settings.seed)
    clock = [0] * len(CAMERAS)  # frames so far, by camera

    def sighting(camera: int) -> tuple[int, Sighting]:
        clock[camera] += FRAMES_PER_SIGHTING
        return clock[camera], Sighting.random(rng, CAMERAS[camera])

    for pid in range(1, settings.train_identities + settings.test_identities + 1):
        person = next(people)
        fewest, most = settings.cameras_per_identity
        count = int(rng.integers(fewest, most + 1))
        for camera in sorted(rng.permutation(len(CAMERAS))[:count].tolist()):
            frame, seen = sighting(camera)
            for number in range(int(rng.integers(settings.shots_per_camera[0], settings.shots_per_camera[1] + 1))):
                is_query = pid > settings.train_identities and number == 0
                folder = TRAIN if pid <= settings.train_identities else QUERY if is_query else GALLERY
                box = 0 if is_query else 1
                yield Shot(folder, pid, camera, frame + number * FRAMES_PER_SHOT, box, person, seen)
    for number in range(settings.distractors):
        if number % SHOTS_PER_DISTRACTOR == 0:
            person = next(people)
        camera = int(rng.integers(len(CAMERAS)))
        frame, seen = sighting(camera)
        yield Shot(GALLERY, DISTRACTOR, camera, frame, 1, person, seen)
    for _ in range(settings.junk):
        camera = int(rng.integers(len(CAMERAS)))
        nobody = rng.random() < JUNK_WITHOUT_PERSON
        frame, seen = sighting(camera)
        yield Shot(GALLERY, JUNK, camera, frame, 1, None if nobody else next(people), seen, BAD_BOX)


def _people(seed: int) -> Iterator[Person]:
    """An endless row of strangers."""
    rng = np.random.default_rng([seed, _PEOPLE])
    while True:
        yield random_person(rng)


def _studio(settings: SyntheticSettings) -> Studio:
    rng = np.random.default_rng([settings.seed, _SCENES])
    pixels = SUPERSAMPLING * settings.size[0] / TYPICAL_BOX
    scenes = {camera: camera.scene(rng, pixels) for camera in CAMERAS}
    return Studio(scenes, settings.size, [random_person(rng) for _ in range(PASSERS_BY)])
