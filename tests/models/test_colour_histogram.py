"""The colour histogram against a loop over pixels in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.models.colour_histogram import ColourHistogram, colour_indices


def colour_of(red: int, green: int, blue: int) -> int:
    """Bin of a pixel, exact, from the definition of HSV: 18 hues × 3 saturations × 3 values, then 4 greys."""
    r, g, b = (Fraction(int(channel), 255) for channel in (red, green, blue))
    value, chroma = max(r, g, b), max(r, g, b) - min(r, g, b)
    level = value * Fraction(255, 256)
    if value == 0 or chroma / value < Fraction(1, 5):
        return 18 * 3 * 3 + int(level * 4)
    if value == r:
        degrees = 60 * (g - b) / chroma
    elif value == g:
        degrees = 60 * (b - r) / chroma + 120
    else:
        degrees = 60 * (r - g) / chroma + 240
    hue = int(((degrees + 10) % 360) // 20)  # bins of 20° around 0°, 20°, ...
    saturation = min(2, int((chroma / value - Fraction(1, 5)) / Fraction(4, 15)))
    return (hue * 3 + saturation) * 3 + int(level * 3)


def naive_histogram(image: np.ndarray) -> np.ndarray:
    """Of one image (3, H, W), float64."""
    _, height, width = image.shape
    counts = np.zeros((8, 166))
    for row in range(height):
        for column in range(width):
            side = 2 * (column + 0.5) / width - 1
            counts[row * 8 // height, colour_of(*image[:, row, column])] += (1 - side**2) ** 2
    roots = np.sqrt(counts.ravel())
    return roots / np.sqrt((roots**2).sum())


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 20, 10), dtype=np.uint8))


def test_every_kind_of_colour_falls_into_the_right_bin():
    """A grid through the RGB cube with its corners: many pixels lie exactly on the edge of a bin."""
    levels = np.array([0, 1, 51, 64, 85, 102, 127, 128, 153, 170, 204, 254, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij")).reshape(3, -1)
    found = colour_indices(torch.from_numpy(cube)[None, :, None])[0, 0]
    expected = [colour_of(*pixel) for pixel in cube.T]
    np.testing.assert_array_equal(found, expected)


def test_histogram_equals_a_loop_over_pixels(images):
    features = ColourHistogram(size=(20, 10)).embed(images)
    assert features.dtype == torch.float32
    for feature, image in zip(features, images, strict=True):
        np.testing.assert_allclose(feature, naive_histogram(image.numpy()), atol=1e-7)


def test_any_size_is_taken():
    smooth = torch.arange(0, 240, 2, dtype=torch.uint8).view(1, 1, 120, 1).expand(2, 3, 120, 50).contiguous()
    histogram = ColourHistogram(size=(40, 20))
    features = histogram.embed(smooth)
    assert features.shape == (2, histogram.dimension) == (2, 8 * 166)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in smooth]
    assert (features * histogram.embed(pictures)).sum(1).min() > 0.99
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_a_size_with_fewer_rows_than_stripes_is_refused():
    with pytest.raises(InputError, match="at least 8 rows"):
        ColourHistogram(size=(7, 10))
