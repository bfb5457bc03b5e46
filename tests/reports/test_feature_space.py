"""The map of the feature space."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports import feature_map as feature_space
from rga_reid.reports.feature_map import CROP, Group, feature_map, flat_layout, nearest_neighbours


def test_neighbours_stay_neighbours() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16)).repeat(12, axis=0)
    features = (centres + 0.05 * rng.normal(size=centres.shape)).astype(np.float32)
    points = flat_layout(features, seed=3)
    assert points.shape == (48, 2)
    np.testing.assert_array_equal(points, flat_layout(features, seed=3))
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (apart.argmin(axis=1) // 12 == np.arange(48) // 12).all()


def test_few_images_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flat_layout(np.eye(4, dtype=np.float32)).shape == (4, 2)
    with pytest.raises(InputError, match="expected at least 4 images, got 3"):
        flat_layout(np.eye(3, dtype=np.float32))
    monkeypatch.setattr(feature_space, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs scikit-learn: pip install scikit-learn"):
        flat_layout(np.eye(4, dtype=np.float32))


def test_nearest_neighbours_against_loops() -> None:
    features = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    rows, similarities = nearest_neighbours(features, 5)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for n in range(30):
        expected = sorted((m for m in range(30) if m != n), key=lambda m, n=n: -(unit[n] @ unit[m]))[:5]
        assert rows[n].tolist() == expected
        np.testing.assert_allclose(similarities[n], unit[expected] @ unit[n], rtol=1e-5)
    assert nearest_neighbours(features[:3])[0].shape == (3, 2)


def test_the_map_has_each_picture_in_its_place(tmp_path: Path) -> None:
    """45 pictures in two rows of the sheet; one cannot be read."""
    paths = [str(tmp_path / f"{n}.png") for n in range(45)]
    for n, path in enumerate(paths[:-1]):
        Image.new("RGB", (40, 80), (0, 5 * n, 0)).save(path)
    splits = ["query"] * 5 + ["gallery"] * 40
    table = pd.DataFrame({"path": paths, "pid": range(45), "camid": [None] * 45, "split": splits})
    features = np.random.default_rng(0).normal(size=(45, 8)).astype(np.float32)
    data, sheet = feature_map(features, table, [Group(np.array([3, 1]), "#0072b2", "v", {3: "2"})])
    assert [len(data[key]) for key in ("images", "x", "y", "neighbours", "similarities")] == [45] * 5
    assert all(0 <= value <= 1 for value in (*data["x"], *data["y"]))
    assert max(np.ptp(data["x"]), np.ptp(data["y"])) == pytest.approx(1, abs=1e-3)
    assert [one["query"] for one in data["images"]] == [True] * 5 + [False] * 40
    assert data["images"][7]["pid"] == 7
    assert data["images"][7]["camid"] is None
    assert data["groups"] == [{"points": [3, 1], "colour": "#0072b2", "marker": "v", "labels": {"3": "2"}}]
    picture = Image.open(io.BytesIO(base64.b64decode(sheet.partition(",")[2])))
    assert picture.size == (40 * CROP[0], 2 * CROP[1])
    for n in range(45):
        place = (CROP[0] * (n % 40) + CROP[0] // 2, CROP[1] * (n // 40) + CROP[1] // 2)
        expected = (128, 128, 128) if n == 44 else (0, 5 * n, 0)
        np.testing.assert_allclose(picture.getpixel(place), expected, atol=6)
