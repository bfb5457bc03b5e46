"""Images that ``embed`` accepts: the same picture gives the same embedding in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.models import ColourHistogram, EmbeddingModel, FlipTTA, build_model

EXACT = ColourHistogram((64, 32))  #: counts pixels in integers, so equal pixels give equal features


@pytest.fixture(scope="module")
def model() -> EmbeddingModel:
    torch.manual_seed(0)
    return build_model(depth=18, size=(64, 32))


def draw_pixels(*shape: int) -> np.ndarray:
    gradient = np.linspace(0, 255, int(np.prod(shape))).reshape(shape)
    return gradient.astype(np.uint8)


def save(folder: Path, kind: str) -> Path:
    """Write an image that needs more than decoding."""
    image, path, options = Image.fromarray(draw_pixels(90, 45, 3)), folder / f"{kind}.png", {}
    if kind == "rotated":
        path, exif = path.with_suffix(".jpg"), Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif, "quality": 95}
    elif kind == "16-bit":
        image = Image.fromarray(np.linspace(0, 65535, 90 * 45).reshape(90, 45).astype(np.uint16))
    elif kind == "transparent":
        image.putalpha(Image.fromarray(draw_pixels(45, 90).T.copy()))
    elif kind == "palette":
        image = image.quantize(16)
        options = {"transparency": 3}
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["plain", "rotated", "16-bit", "transparent", "palette"])
def test_paths_bytes_and_pil_images_are_alike(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, kind)
    expected = EXACT.embed([path])
    with Image.open(path) as opened:
        forms: list[Any] = [path, str(path), path.read_bytes(), opened]
        for form in forms:
            assert torch.equal(EXACT.embed(form), expected)
            assert torch.equal(EXACT.embed([form] * 3, batch_size=2), expected.expand(3, -1))
        assert opened.size == Image.open(path).size  # it is not turned in place
        loaded = opened.copy()
    if kind == "plain":
        assert torch.equal(EXACT.embed(loaded), expected)
        assert torch.equal(EXACT.embed(np.asarray(loaded)), expected)


def test_arrays_and_channel_order() -> None:
    rgb = draw_pixels(64, 32, 3) // np.array([1, 2, 4], np.uint8)
    bgr = rgb[:, :, ::-1]
    expected = EXACT.embed(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    for images in (rgb, [rgb], np.stack([rgb])):
        assert torch.equal(EXACT.embed(images), expected)
    for images in (bgr, [bgr], torch.from_numpy(bgr.copy()).permute(2, 0, 1)[None]):
        assert torch.equal(EXACT.embed(images, channel_order="bgr"), expected)
        assert not torch.allclose(EXACT.embed(images), expected, atol=1e-3)
    with pytest.raises(InputError, match="channel_order"):
        EXACT.embed(rgb, channel_order="gbr")  # type: ignore[arg-type]


@pytest.mark.parametrize("flip", [False, True])
def test_models_take_the_same_images(model: EmbeddingModel, tmp_path: Path, flip: bool) -> None:
    embedder, path = FlipTTA(model) if flip else model, save(tmp_path, "rotated")
    expected = embedder.embed([path])
    assert expected.shape == (1, 512)
    torch.testing.assert_close(embedder.embed(Image.open(path)), expected)
    torch.testing.assert_close(embedder.embed([path.read_bytes()] * 3, batch_size=2), expected.expand(3, -1))
    pixels = draw_pixels(64, 32, 3)
    torch.testing.assert_close(
        embedder.embed(pixels[:, :, ::-1], channel_order="bgr"), embedder.embed(pixels), atol=1e-5, rtol=1e-4
    )


def test_flip_tta_embeds_both_directions(model: EmbeddingModel) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    flipped = FlipTTA(model)
    both = model.embed(images).double() + model.embed(images.flip(-1)).double()
    expected = both / both.norm(dim=1, keepdim=True)
    torch.testing.assert_close(flipped.embed(images).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flipped.embed(images), flipped.embed(images.flip(-1)))
    assert not torch.allclose(flipped.embed(images), model.embed(images))


def test_tensors_of_any_size(model: EmbeddingModel) -> None:
    pixels = draw_pixels(100, 50, 3)
    by_tensor = model.embed(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    torch.testing.assert_close(model.embed(pixels), by_tensor, atol=2e-3, rtol=0)
    for nothing in ([], torch.empty(0, 3, 64, 32, dtype=torch.uint8)):
        assert model.embed(nothing).shape == (0, 512)
        assert ColourHistogram().embed(nothing).shape == (0, 1328)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.zeros(1, 3, 64, 32), "float32"),
        (torch.zeros(1, 1, 64, 32, dtype=torch.uint8), "(1, 1, 64, 32)"),
        (torch.zeros(3, 64, 32, dtype=torch.uint8), "(3, 64, 32)"),
        (np.zeros((64, 32), np.uint8), "(64, 32)"),
        (np.zeros((64, 32, 3)), "float64"),
        (np.zeros((0, 32, 3), np.uint8), "(0, 32, 3)"),
        (["nowhere.jpg"], "nowhere.jpg"),
        ("nowhere.jpg", "nowhere.jpg"),
        ([draw_pixels(8, 4, 3), None], "images[1]"),
        ([draw_pixels(8, 4, 3), b"\xff\xd8\xff" + bytes(100_000)], "images[1]"),
        (Image.fromarray(np.zeros((8, 4), np.int32)), "images[0]"),
    ],
)
def test_wrong_images_are_named_in_one_short_line(model: EmbeddingModel, images: Any, named: str) -> None:
    for embedder in (model, ColourHistogram()):
        with pytest.raises(InputError, match="batch_size"):
            embedder.embed(np.zeros((8, 4, 3), np.uint8), batch_size=0)
        with pytest.raises(InputError) as error:
            embedder.embed(images)
        assert named in str(error.value)
        assert len(str(error.value)) < 200
