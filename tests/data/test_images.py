"""Decoding against known pixel values, every kind of bad file, and images found in folders."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from rga_reid.data import MAX_PIXELS, decode, list_images, read_image
from rga_reid.data.images import ImageError, map_in_threads, pixel_size
from rga_reid.errors import InputError
from tests.folders import touch

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (5, 4, 3), np.uint8)


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes]) -> bytes:
    """Write a PNG file by hand: bit depth, colour type, raw rows without their filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    return np.asarray(image)


# --- pixel types ---------------------------------------------------------------------------------------

GRAY, FLAT = PIXELS[:, :, 0], np.full((16, 16, 3), (200, 30, 90), np.uint8)
ALPHA = RNG.integers(0, 256, (5, 4, 1), np.uint8)
PALETTE = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
PALETTE.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [9, 8, 7]]])


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite in floating point."""
    return 255 + (colour.astype(float) - 255) * alpha / 255


def cmyk(black: int) -> Image.Image:
    return Image.new("CMYK", (8, 8), (0, 0, 0, black))


#: name -> image, options of saving, pixels as integers if they must be equal
STORED: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray]] = {
    "rgb.png": (Image.fromarray(PIXELS), {}, PIXELS),
    "rgb.bmp": (Image.fromarray(PIXELS), {}, PIXELS),
    "rgb.ppm": (Image.fromarray(PIXELS), {}, PIXELS),
    "rgb.tif": (Image.fromarray(PIXELS), {}, PIXELS),
    "rgb.webp": (Image.fromarray(PIXELS), {"lossless": True}, PIXELS),
    "gray.png": (Image.fromarray(GRAY), {}, GRAY[:, :, None]),
    "bits.png": (Image.fromarray(GRAY > 127), {}, 255 * (GRAY > 127)[:, :, None]),
    "rgba.png": (Image.fromarray(np.dstack([PIXELS, ALPHA])), {}, on_white(PIXELS, ALPHA)),
    "la.png": (Image.fromarray(np.dstack([GRAY, ALPHA]), "LA"), {}, on_white(GRAY[:, :, None], ALPHA)),
    "palette.gif": (PALETTE, {}, COLOURS),
    "index.png": (PALETTE, {"transparency": 1}, on_white(COLOURS, np.array([[[255], [0], [255]]]))),
    "index.gif": (PALETTE, {"transparency": 1}, on_white(COLOURS, np.array([[[255], [0], [255]]]))),
    "alphas.png": (
        PALETTE,
        {"transparency": bytes([255, 0, 128])},
        on_white(COLOURS, np.array([[[255], [0], [128]]])),
    ),
    "colour.png": (
        Image.fromarray(COLOURS.astype(np.uint8)),
        {"transparency": (9, 8, 7)},
        on_white(COLOURS, np.array([[[255], [255], [0]]])),
    ),
    "white.tif": (cmyk(0), {}, np.full((8, 8, 3), 255)),
    "black.jpg": (cmyk(255), {"quality": 100}, np.zeros((8, 8, 3))),
    "half.tif": (cmyk(128), {}, np.full((8, 8, 3), 127.0)),
    "flat.jfif": (Image.fromarray(FLAT), {"quality": 100}, FLAT.astype(float)),
    "flat.avif": (Image.fromarray(FLAT), {"quality": 100}, FLAT.astype(float)),
}


@pytest.mark.parametrize("name", STORED)
def test_pixels_become_rgb_on_white(tmp_path: Path, name: str) -> None:
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    image, options, expected = STORED[name]
    path = save(tmp_path / name, image, **options)
    tolerance = 1 if expected.dtype.kind == "f" else 0
    assert np.abs(pixels(path) - expected.astype(float)).max() <= tolerance
    assert list_images(tmp_path) == [path]
    assert pixels(path.rename(tmp_path / "a.jpg")).shape[:2] == expected.shape[:2]  # the content counts


SIXTEEN = np.array([[0, 128, 257, 32768], [65535, 65278, 1000, 40000]], np.uint16)
SCALED = np.rint(SIXTEEN.astype(np.float64) / 257).astype(int)[:, :, None]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_gray_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes())
    else:
        save(path, Image.fromarray(SIXTEEN))
    assert (pixels(path) == SCALED).all()


def test_sixteen_bit_rgb_is_scaled_within_one(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (2, 4, 3)).astype(np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 2, 16, 2, [row.astype(">u2").tobytes() for row in values]))
    assert np.abs(pixels(path) - values / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_white_are_refused(tmp_path: Path, dtype: type) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.zeros((2, 2), dtype)))
    with pytest.raises(InputError, match=r"a\.tif: pixel type '[IF]'"):
        read_image(path)


# --- EXIF orientation ----------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.arange(24, dtype=np.uint8).reshape(4, 6).repeat(8, 0).repeat(8, 1) * 10
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(stored), exif=exif)
    upright = UPRIGHT[orientation](stored)
    assert np.abs(pixels(path)[:, :, 0].astype(int) - upright).max() <= 3  # of JPEG
    assert pixel_size(path) == upright.shape
    sixteen = save(tmp_path / "b.png", Image.fromarray(SIXTEEN), exif=exif)
    assert (pixels(sixteen) == UPRIGHT[orientation](SCALED)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_leaves_the_pixels(tmp_path: Path) -> None:
    for junk in (b"", b"nonsense", b"II+\0\x08", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        path = save(tmp_path / "a.jpg", Image.new("RGB", (8, 4), "white"), exif=b"Exif\0\0" + junk)
        assert (pixels(path) == 255).all()
        assert pixel_size(path) == (4, 8)


# --- bad files -----------------------------------------------------------------------------------------


def refused(path: Path, fault: str, words: str = ".") -> None:
    with pytest.raises(ImageError, match=words) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert error.value.fault == fault
    with pytest.raises(InputError, match=path.name):
        decode([path], (4, 4))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.jpg", "missing")
    (tmp_path / "a.jpg").mkdir()
    refused(tmp_path / "a.jpg", "unreadable", "folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "unreadable", "not a regular file")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty", "0 bytes")
    for content in (b"hello, this is text\n", b"P", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF"):
        (tmp_path / "other.jpg").write_bytes(content)
        refused(tmp_path / "other.jpg", "unreadable")


def encode(fmt: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (24, 17, 3), np.uint8)).save(file, fmt, **options)
    return file.getvalue()


FORMATS = {fmt: encode(fmt) for fmt in ("JPEG", "PNG", "BMP", "GIF", "PPM")}
FORMATS |= {"progressive": encode("JPEG", progressive=True), "WEBP": encode("WEBP", lossless=True)}


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_cut_file_is_refused_unless_all_pixels_are_there(tmp_path: Path, fmt: str) -> None:
    data, path = FORMATS[fmt], tmp_path / "a.image"
    path.write_bytes(data)
    whole = pixels(path)
    faults, lengths = [], range(len(data) - 1, 0, -23)
    for length in lengths:
        path.write_bytes(data[:length])
        try:
            assert (pixels(path) == whole).all()
        except ImageError as error:
            faults.append(error.fault)
    assert set(faults) <= {"truncated", "unreadable"}
    assert len(faults) > 0.9 * len(lengths)
    if fmt == "JPEG":
        path.write_bytes(data[: len(data) * 2 // 3])
        refused(path, "truncated", "truncated")
        assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore:Image size")
def test_images_of_huge_sizes(tmp_path: Path) -> None:
    """Their headers promise more pixels than any image may have."""
    frame = bytearray(FORMATS["GIF"])  # a small image with one huge frame
    place = frame.find(b",\0\0\0\0") + 5
    frame[place : place + 4] = struct.pack("<HH", 65_535, 65_535)
    path = tmp_path / "a.image"
    for content in (b"P6 99999999 99999999 255\n", png(2**31 - 1, 2**31 - 1, 8, 2, []), bytes(frame)):
        path.write_bytes(content)
        refused(path, "too large", "image of ")


def test_size_limits(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.png"
    assert MAX_PIXELS == 8000 * 8000
    path.write_bytes(png(8001, 8000, 8, 0, []))  # there are no pixels to decode
    refused(path, "too large", "8000 x 8001 pixels")
    path.write_bytes(png(8000, 8000, 8, 0, []))
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        read_image(path)
    os.truncate(path, 64 << 30)  # some decoders read the whole file first
    refused(path, "too large", "68,719,476,736 bytes")
    assert not recwarn.list


# --- many images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 5), (50, 30), (16, 40), (31, 17)])
def test_decode_resizes_with_antialiasing(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (31, 17, 3), np.uint8))
    out = decode([save(tmp_path / "a.png", image)], size)
    assert (out.shape, out.dtype) == ((1, 3, *size), np.uint8)
    expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    assert (out[0] == expected.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("threads", [1, 5])
def test_decode_keeps_the_order(tmp_path: Path, threads: int) -> None:
    images = RNG.integers(0, 256, (23, 6, 4, 3), np.uint8)
    paths = [save(tmp_path / f"{row}.png", Image.fromarray(image)) for row, image in enumerate(images)]
    out = np.zeros((23, 3, 6, 4), np.uint8)
    assert decode(map(str, paths), (6, 4), threads=threads, out=out) is out
    assert (out == images.transpose(0, 3, 1, 2)).all()


def test_decode_raises_or_collects_errors(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{row}.png", Image.fromarray(PIXELS)) for row in range(5)]
    paths[1].write_bytes(b"not an image")
    paths[3].unlink()
    with pytest.raises(InputError, match=r"1\.png"):
        decode(paths, (5, 4))
    errors: dict[int, ImageError] = {}
    out = decode(paths, (5, 4), refused=errors)
    assert {row: error.fault for row, error in errors.items()} == {1: "unreadable", 3: "missing"}
    assert (out[[0, 2, 4]] == PIXELS.transpose(2, 0, 1)).all()
    with pytest.raises(InputError, match="size"):
        decode([], (0, 4))


def test_threads_keep_the_order_and_stop_at_the_first_error() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 300:
            raise ValueError(number)
        return number * number

    results = map_in_threads(work, range(4000), 2, "working")
    assert [next(results) for _ in range(300)] == [number * number for number in range(300)]
    assert len(begun) < 1000  # items are taken up as results are taken
    with pytest.raises(ValueError, match="300"):
        list(results)
    assert len(begun) < 2000


# --- folders -------------------------------------------------------------------------------------------


def test_list_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["b/2.JPG", "a.png", "b/1.jpeg", "b.webp", "c/d/e.tiff", "x.jpg.jpg", "y.jfif"]
    touch(tmp_path, *names, "Thumbs.db", "b/thumbs.db", ".hidden.jpg", ".cache/a.jpg", "b/._2.JPG")
    touch(tmp_path, "@eaDir/a.jpg", "b/__MACOSX/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(str(tmp_path))]
    assert found == sorted(names)
    assert not caplog.messages
    touch(tmp_path, "a.heic", "b.HEIC", "c/d.txt", "jpg")
    assert len(list_images(tmp_path)) == len(names)
    assert caplog.messages == [f"{tmp_path}: skipped 4 files (.heic, .txt, no suffix)"]


def test_linked_folders_are_followed_once_by_their_first_name(tmp_path: Path) -> None:
    for folder, link in (("a", "b"), ("d", "c")):
        touch(tmp_path, f"{folder}/x.jpg")
        (tmp_path / link).symlink_to(tmp_path / folder)
    (tmp_path / "d" / "back").symlink_to(tmp_path)
    assert list_images(tmp_path) == [tmp_path / "a" / "x.jpg", tmp_path / "c" / "x.jpg"]


def test_list_images_refuses(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    for folder, words in (
        ("none", "no such folder"),
        ("notes.txt", "found a file"),
        (".", r"no image.*\.txt"),
    ):
        with pytest.raises(InputError, match=words):
            list_images(tmp_path / folder)
    with open(os.fsencode(tmp_path) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(InputError, match=r"\\xff\.jpg"):
        list_images(tmp_path)
