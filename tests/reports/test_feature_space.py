"""The plot of the feature space."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rga_reid.errors import InputError
from rga_reid.reports import plots as feature_space
from rga_reid.reports.plots import Group, feature_space_plot, flat_layout


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


def test_the_plot_draws_each_group_in_its_colour() -> None:
    points = np.arange(12, dtype=float).reshape(6, 2)
    group = Group(np.array([1, 3]), "#0072b2", "v", {3: "2", 1: "7"})
    axes = feature_space_plot(points, [group]).axes[0]
    everything, coloured, large = axes.collections
    np.testing.assert_array_equal(everything.get_offsets(), points)
    np.testing.assert_array_equal(coloured.get_offsets(), points[[1, 3]])
    np.testing.assert_array_equal(large.get_offsets(), points[[3, 1]])
    assert [text.get_text() for text in axes.texts] == ["2", "7"]
    assert not axes.images  # no photograph


def test_labels_beside_each_other_do_not_overlap() -> None:
    """Marks in one place of the plane and in its corners: every label is legible."""
    points = np.array([[0, 0], [100, 100], [50, 50], [51, 50], [50, 51.5], [52, 52], [49, 49], [48, 52]])
    groups = [Group(np.arange(len(points)), "#0072b2", "o", {n: str(10 + n) for n in range(len(points))})]
    figure = feature_space_plot(points, groups)
    canvas = FigureCanvasAgg(figure)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == len(points)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y1)
