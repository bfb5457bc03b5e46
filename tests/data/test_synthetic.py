"""The synthetic data set: its layout, its difficulty for colour alone, and its drawing functions."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.data.synthetic.people import (
    FOREARM,
    SHANK,
    THIGH,
    UPPER_ARM,
    Body,
    Pose,
    random_person,
    skeleton,
)
from rga_reid.data.synthetic.rendering import (
    AROUND,
    PATTERNS,
    Tube,
    View,
    draw,
    outline,
    paint,
    pattern,
    plain,
    project,
)
from rga_reid.errors import InputError
from rga_reid.models.colour_histogram import ColourHistogram
from tests.folders import files_below

FOLDERS = ("bounding_box_train", "bounding_box_test", "query")
NAME = re.compile(r"(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg")
SETTINGS = SyntheticSettings(train_identities=2, test_identities=12, distractors=30, junk=8)
TINY = {"train_identities": 2, "test_identities": 2, "distractors": 3, "junk": 4, "size": (48, 24)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "market"
    write_synthetic(folder, SETTINGS)
    return folder


def names(folder: Path) -> list[tuple[int, int]]:
    """(pid, camera) of the images in a folder, by name."""
    found = [NAME.fullmatch(path.name) for path in sorted(folder.iterdir())]
    assert all(found)
    return [(int(match[1]), int(match[2])) for match in found]


def test_layout_counts_and_sizes_follow_the_settings(root):
    assert sorted(path.name for path in root.iterdir()) == sorted(FOLDERS)
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))
    train, test, query = (names(root / folder) for folder in FOLDERS)
    assert {pid for pid, _ in train} == {1, 2}
    assert {pid for pid, _ in query} == set(range(3, 15))
    by_pid = Counter(pid for pid, _ in test)
    assert (by_pid[0], by_pid[-1]) == (30, 8)
    gallery = [pair for pair in test if pair[0] > 0]
    for seen in (Counter(train), Counter(query) + Counter(gallery)):
        assert set(seen.values()) == {2, 3}  # images of a person by a camera
        assert set(Counter(pid for pid, _ in seen).values()) <= {4, 5, 6}  # cameras of a person
    assert len(query) == len(set(query))  # one per person and camera
    assert set(gallery) == set(query)


def test_a_seed_gives_the_same_bytes_and_the_same_pictures_for_ever(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic(tmp_path / name, SyntheticSettings(**TINY, seed=seed))
    first, second, other = (files_below(tmp_path / name) for name in "abc")
    assert first == second
    assert not set(first.values()) & set(other.values())
    assert len(set(first.values())) == len(first) == 56  # and no image is drawn twice
    for name, colour, spread in (  # of version 1.0, apart from rounding in JPEG
        ("bounding_box_test/-1_c1s1_000270_01.jpg", [115.1, 109.8, 110.7], 31.6),
        ("bounding_box_test/-1_c5s1_000360_01.jpg", [125.1, 119.9, 126.1], 27.4),
        ("bounding_box_test/0000_c6s1_000540_01.jpg", [122.2, 115.4, 111.1], 27.4),
        ("bounding_box_test/0003_c3s1_000278_01.jpg", [117.4, 108.9, 97.7], 36.7),
    ):
        pixels = np.asarray(Image.open(tmp_path / "a" / name))
        np.testing.assert_allclose(pixels.mean((0, 1)), colour, atol=0.3)
        assert pixels.std() == pytest.approx(spread, abs=0.3)


def test_existing_folder_is_kept_unless_overwritten(tmp_path):
    (tmp_path / "market").mkdir()
    (tmp_path / "market" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="market: "):
        write_synthetic(tmp_path / "market", SyntheticSettings(**TINY))
    assert [path.name for path in (tmp_path / "market").iterdir()] == ["mine.txt"]
    few = {"images_per_camera": (2, 2), "cameras_per_identity": (2, 2), "distractors": 0, "junk": 0}
    write_synthetic(tmp_path / "market", SyntheticSettings(**{**TINY, **few}), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "market").iterdir()) == sorted(FOLDERS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_identities": 1}, "train_identities: .* 2 .* got 1"),
        ({"junk": -1}, "junk: .* got -1"),
        ({"test_identities": 9999}, "identities: .* got 10127"),
        ({"cameras_per_identity": (1, 4)}, "cameras_per_identity: .* got 1 and 4"),
        ({"cameras_per_identity": (3, 7)}, "cameras_per_identity: .* got 3 and 7"),
        ({"images_per_camera": (3, 2)}, "images_per_camera: .* got 3 and 2"),
        ({"size": (128, 8)}, "size: .*16"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SyntheticSettings(**wrong)


def test_colour_alone_does_not_find_people(root):
    """Mean step AP of the colour histogram, by a loop over ranked lists; above chance, below 40 %."""
    found = {}
    for folder in ("query", "bounding_box_test"):
        paths = sorted((root / folder).iterdir())
        features = ColourHistogram().embed(paths).double().numpy()
        found[folder] = list(zip(features, names(root / folder), strict=True))
    precisions = []
    for feature, (pid, camera) in found["query"]:
        ranked = []
        for other, (other_pid, other_camera) in found["bounding_box_test"]:
            if other_pid != -1 and (other_pid, other_camera) != (pid, camera):
                ranked.append((float(feature @ other), other_pid == pid))
        ranked.sort(key=lambda pair: -pair[0])
        hits = [rank for rank, (_, correct) in enumerate(ranked, 1) if correct]
        precisions.append(np.mean([number / rank for number, rank in enumerate(hits, 1)]))
    assert 0.10 < np.mean(precisions) < 0.40


def test_bones_keep_their_length_and_a_foot_stands_on_the_ground():
    body = Body(height=1.8)
    for phase in np.linspace(0, 2 * np.pi, 7):
        joints = skeleton(body, Pose(phase=phase, stride=0.35, elbows=(0.2, 2.0)))

        def length(start, end, joints=joints):
            return np.linalg.norm(joints[start] - joints[end])

        for side in ("left", "right"):
            assert length(f"{side}_hip", f"{side}_knee") == pytest.approx(1.8 * THIGH)
            assert length(f"{side}_knee", f"{side}_ankle") == pytest.approx(1.8 * SHANK)
            assert length(f"{side}_shoulder", f"{side}_elbow") == pytest.approx(1.8 * UPPER_ARM)
            assert length(f"{side}_elbow", f"{side}_wrist") == pytest.approx(1.8 * FOREARM)
        soles = [joints[f"{side}_{part}"][1] for side in ("left", "right") for part in ("heel", "toe")]
        assert min(soles) == pytest.approx(0, abs=1e-12)


def seen_from(yaw: float, pitch: float = 0.0) -> View:
    return View(yaw=yaw, pitch=pitch, distance=10, light=(0, 0, 1), ambient=1)


def test_projection_is_a_pinhole_camera():
    start, end = np.array([0.3, 1.7, 0.2]), np.array([-0.1, 0.4, -0.5])
    view = seen_from(yaw=0.8, pitch=0.3)
    seen = project([Tube(start, end, outline((0, 0.1), (1, 0.1)), plain((0, 0, 0)))], view)
    for point, place in ((start, seen.start[0]), (end, seen.end[0])):
        c, s = math.cos(0.8), math.sin(0.8)
        x, y, z = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ point
        c, s = math.cos(0.3), math.sin(0.3)
        x, y, z = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ [x, y, z]
        np.testing.assert_allclose(place, [10 * x / (10 - z), -10 * y / (10 - z)], rtol=1e-5)


@pytest.mark.parametrize("slant", [0.0, 0.5, 1.2])
def test_a_tube_covers_its_area(slant):
    """A straight tube covers length × width, one with round ends a disc more: also where edges are soft."""
    direction = np.array([math.sin(slant), -math.cos(slant), 0])
    start = np.array([0.0, 0.0, 0.0])
    for round_ends, caps in ((False, 0.0), (True, math.pi * 15**2)):
        tube = Tube(
            start, start + direction, outline((0, 0.3), (1, 0.3)), plain((1, 1, 1)), round_ends=round_ends
        )
        view = seen_from(0)
        seen = project([tube], view)
        canvas = np.zeros((150, 150, 3), np.float32)
        draw(canvas, seen.place(50, 50, 50), view)
        magnified = seen.radius[0, 0] / 0.3
        assert canvas[:, :, 0].sum() == pytest.approx(50 * 30 * magnified**2 + caps, rel=0.01)


def test_the_side_that_faces_the_camera_is_the_one_that_is_seen():
    front_red = paint(plain((0, 0, 200)), np.abs(AROUND) < np.pi / 2, (200, 0, 0))
    tube = Tube(np.array([0, 1.0, 0]), np.zeros(3), outline((0, 0.2), (1, 0.2)), front_red)
    reds = {}
    for name, yaw in (("front", 0), ("left", np.pi / 2), ("back", np.pi), ("right", -np.pi / 2)):
        canvas = np.zeros((60, 60, 3), np.float32)
        draw(canvas, project([tube], seen_from(yaw)).place(50, 30, 55), seen_from(yaw))
        reds[name] = canvas[30, :, 0] > canvas[30, :, 2]
    assert reds["front"][30]
    assert not reds["back"].any()
    assert reds["left"].sum() == pytest.approx(10, abs=1)  # half of the 20 pixels
    np.testing.assert_array_equal(reds["left"][20:40], reds["right"][20:40][::-1])
    assert reds["left"][25] != reds["right"][25]


def test_people_share_colours_and_differ_in_other_things():
    rng = np.random.default_rng(5)
    people = [random_person(rng) for _ in range(200)]
    colours = Counter((person.top.colour, person.cloth.colour) for person in people)
    assert len(colours) <= 40
    assert sum(count > 1 for count in colours.values()) > 30
    assert len(set(people)) == 200


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "plain"])
def test_patterns_show_both_colours(name):
    share = pattern(name, 4).mean()
    assert 0.02 < share < 0.7
