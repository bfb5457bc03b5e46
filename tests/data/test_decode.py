"""Many images: decoded into one array, and found in folders."""

import os

import numpy as np
import pytest
from PIL import Image

from rga_reid.data import decode, list_images
from rga_reid.errors import InputError

RNG = np.random.default_rng(11)
PIXELS = RNG.integers(0, 256, (5, 4, 3), np.uint8)


def saved(path, image):
    image.save(path)
    return path


def bilinear(channel, height, width):
    """Antialiased bilinear resampling by its definition: a triangle as wide as the reduction, float64."""

    def weights(old, new):
        scale = old / new
        support = max(scale, 1.0)
        centres = (np.arange(new) + 0.5) * scale
        triangle = 1 - np.abs((np.arange(old) + 0.5)[None] - centres[:, None]) / support
        triangle = np.clip(triangle, 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(channel.shape[0], height), weights(channel.shape[1], width)
    return rows @ channel.astype(np.float64) @ columns.T


@pytest.mark.parametrize("size", [(7, 5), (50, 30), (16, 40), (31, 17)])
def test_decode_resizes_with_antialiasing(tmp_path, size):
    image = RNG.integers(0, 256, (31, 17, 3), np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(image))
    out = decode([path], size)
    assert out.shape == (1, 3, *size)
    assert out.dtype == np.uint8
    wanted = np.stack([bilinear(image[:, :, channel], *size) for channel in range(3)])
    assert np.abs(out[0] - wanted).max() <= 1.01  # pillow rounds twice


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_decode_keeps_order_and_pixels(tmp_path, threads):
    images = RNG.integers(0, 256, (23, 6, 4, 3), np.uint8)
    paths = [saved(tmp_path / f"{row}.png", Image.fromarray(image)) for row, image in enumerate(images)]
    assert (decode(paths, (6, 4), threads=threads) == images.transpose(0, 3, 1, 2)).all()
    assert (
        decode(map(str, paths[::-1]), (6, 4), threads=threads)[::-1] == images.transpose(0, 3, 1, 2)
    ).all()


def test_decode_nothing():
    assert decode([], (8, 4)).shape == (0, 3, 8, 4)


def test_decode_names_the_first_bad_file(tmp_path):
    good = saved(tmp_path / "good.png", Image.fromarray(PIXELS))
    (tmp_path / "bad1.png").write_bytes(b"no")
    (tmp_path / "bad2.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad1\.png"):
        decode([good, tmp_path / "bad1.png", good, tmp_path / "bad2.png"], (5, 4))


def test_decode_lists_what_it_cannot_read(tmp_path):
    paths = [saved(tmp_path / f"{row}.png", Image.fromarray(PIXELS)) for row in range(5)]
    paths[1].write_bytes(b"not an image")
    paths[3].unlink()
    refused = {}
    out = decode(paths, (5, 4), refused=refused)
    assert {row: error.fault for row, error in refused.items()} == {1: "unreadable", 3: "missing"}
    for row in (0, 2, 4):
        np.testing.assert_array_equal(out[row], PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_decode_refuses_an_empty_size(size):
    with pytest.raises(InputError, match="size"):
        decode([], size)


def test_list_images(tmp_path):
    names = ["b/2.JPG", "a.png", "b/1.jpeg", "b.webp", "c/d/e.tiff", "x.jpg.jpg"]
    ignored = ["Thumbs.db", "b/thumbs.db", ".hidden.jpg", ".cache/a.jpg", "notes.txt", "jpg", "b/._2.JPG"]
    for name in names + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == sorted(names)
    assert [str(path) for path in list_images(str(tmp_path))] == [str(tmp_path / name) for name in found]


def test_of_a_folder_and_a_link_to_it_the_first_name_counts(tmp_path):
    for folder, link in (("a", "b"), ("d", "c")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").touch()
        (tmp_path / link).symlink_to(tmp_path / folder)
    assert list_images(tmp_path) == [tmp_path / "a" / "x.jpg", tmp_path / "c" / "x.jpg"]


def test_list_images_follows_links_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "root")
    assert list_images(tmp_path / "root") == [tmp_path / "root" / "link" / "a.jpg"]


def test_list_images_refuses(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "none")
    with pytest.raises(InputError, match="found a file"):
        list_images(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="no image found"):
        list_images(tmp_path)


def test_list_images_refuses_a_name_that_is_not_unicode(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(InputError, match=r"\\xff\.jpg: the name is not valid UTF-8"):
        list_images(tmp_path)
