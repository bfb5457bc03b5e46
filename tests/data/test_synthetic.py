"""The synthetic data set: its layout, its pictures, and its difficulty for colour alone."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.errors import InputError
from rga_reid.models.colour_histogram import ColourHistogram
from tests.folders import files_below

FOLDERS = ("bounding_box_train", "bounding_box_test", "query")
NAME = re.compile(r"(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.jpg")
SETTINGS = SyntheticSettings(train_identities=2, test_identities=12, distractors=30, junk=8)
TINY = {"train_identities": 2, "test_identities": 2, "distractors": 3, "junk": 4, "size": (48, 24)}


#: Images of seed 3 and `TINY`: mean colour, and mean grey in 4 rows and 3 columns
VERSION_1 = {
    "bounding_box_test/-1_c1s1_000270_01.jpg": (
        [115.1, 109.8, 110.7],
        [[143.5, 146.7, 149.1], [111.4, 108.9, 108.8], [94.8, 96.7, 91.5], [106.6, 91.4, 93.0]],
    ),
    "bounding_box_test/-1_c5s1_000360_01.jpg": (
        [125.1, 119.9, 126.1],
        [[124.0, 105.7, 108.7], [107.4, 126.6, 129.9], [157.7, 115.6, 114.9], [150.4, 120.7, 122.7]],
    ),
    "bounding_box_test/0000_c6s1_000540_01.jpg": (
        [122.2, 115.4, 111.1],
        [[119.7, 111.1, 106.5], [135.7, 83.3, 132.9], [121.2, 115.2, 114.9], [123.7, 112.1, 118.5]],
    ),
    "bounding_box_test/0003_c3s1_000278_01.jpg": (
        [117.4, 108.9, 97.7],
        [[108.7, 131.8, 117.1], [122.9, 108.9, 100.4], [83.3, 60.6, 113.2], [134.0, 94.6, 120.4]],
    ),
}


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
    for name, (colour, grid) in VERSION_1.items():
        pixels = np.asarray(Image.open(tmp_path / "a" / name)).astype(float)
        np.testing.assert_allclose(pixels.mean((0, 1)), colour, atol=0.3)  # apart from rounding in JPEG
        np.testing.assert_allclose(pixels.reshape(4, 12, 3, 8, 3).mean((1, 3, 4)), grid, atol=0.5)


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
