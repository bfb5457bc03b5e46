"""Decoding against known pixel values, and every kind of bad file one by one."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from rga_reid.data import MAX_PIXELS, decode, read_image
from rga_reid.data.images import ImageError, pixel_size
from rga_reid.errors import InputError

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (5, 4, 3), np.uint8)


def png(width, height, depth, colour, rows):
    """A PNG file written by hand: bit depth, colour type, raw rows without their filter byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    image = read_image(path)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    return np.asarray(image)


# --- pixel types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif"])
def test_lossless_rgb_is_returned_as_it_is(tmp_path, suffix):
    assert (pixels(saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS))) == PIXELS).all()


def test_lossless_webp_is_returned_as_it_is(tmp_path):
    assert (pixels(saved(tmp_path / "a.webp", Image.fromarray(PIXELS), lossless=True)) == PIXELS).all()


def test_the_content_counts_not_the_suffix(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(PIXELS))
    assert (pixels(path.rename(tmp_path / "a.jpg")) == PIXELS).all()


def test_jpeg_is_close_to_what_was_written(tmp_path):
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    read = pixels(saved(tmp_path / "a.jpg", Image.fromarray(flat), quality=95)).astype(int)
    assert np.abs(read - flat).max() <= 3


def test_grayscale_fills_three_channels(tmp_path):
    gray = PIXELS[:, :, 0]
    assert (pixels(saved(tmp_path / "a.png", Image.fromarray(gray))) == gray[:, :, None]).all()


def test_one_bit_is_black_and_white(tmp_path):
    bits = np.array([[0, 1], [1, 0]], bool)
    assert (pixels(saved(tmp_path / "a.png", Image.fromarray(bits))) == bits[:, :, None] * 255).all()


def test_palette(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    assert pixels(saved(tmp_path / "a.png", image)).tolist() == [[[255, 0, 0], [0, 255, 0], [9, 8, 7]]]


def test_palette_with_transparency_is_composited_on_white(tmp_path):
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([255, 0, 0, 0, 255, 0, 9, 8, 7])
    path = saved(tmp_path / "a.png", image, transparency=bytes([255, 0, 128]))
    half = [round(255 + (value - 255) * 128 / 255) for value in (9, 8, 7)]
    assert pixels(path)[0].tolist()[:2] == [[255, 0, 0], [255, 255, 255]]
    assert np.abs(pixels(path)[0, 2].astype(int) - half).max() <= 1


def test_transparent_gif_is_composited_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putdata([0, 1])
    image.putpalette([255, 0, 0, 0, 255, 0])
    path = saved(tmp_path / "a.gif", image, transparency=1)
    assert pixels(path)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def composited(colour, alpha):
    return 255 + (colour.astype(float) - 255) * alpha.astype(float)[..., None] / 255


def test_rgba_is_composited_on_white(tmp_path):
    alpha = RNG.integers(0, 256, (5, 4), np.uint8)
    image = Image.fromarray(np.dstack([PIXELS, alpha]))
    read = pixels(saved(tmp_path / "a.png", image))
    assert np.abs(read - composited(PIXELS, alpha)).max() <= 1


def test_gray_with_alpha_is_composited_on_white(tmp_path):
    alpha, gray = RNG.integers(0, 256, (2, 5, 4), np.uint8)
    read = pixels(saved(tmp_path / "a.png", Image.fromarray(np.dstack([gray, alpha]), "LA")))
    assert np.abs(read - composited(gray[:, :, None], alpha)).max() <= 1


def test_a_transparent_colour_of_an_rgb_png_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    path = saved(tmp_path / "a.png", image, transparency=(1, 2, 3))
    assert pixels(path)[0].tolist() == [[255, 255, 255], [4, 5, 6]]


SIXTEEN = np.array([[0, 128, 257, 32768], [65535, 65278, 1000, 40000]], np.uint16)


def scaled(values):
    return np.rint(values.astype(np.float64) / 257).astype(int)[:, :, None]


def test_sixteen_bit_gray_is_scaled(tmp_path):
    data = png(4, 2, 16, 0, [row.astype(">u2").tobytes() for row in SIXTEEN])
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert (pixels(path) == scaled(SIXTEEN)).all()


def test_sixteen_bit_tiff_and_pgm_are_scaled(tmp_path):
    tiff = saved(tmp_path / "a.tif", Image.fromarray(SIXTEEN))
    assert (pixels(tiff) == scaled(SIXTEEN)).all()
    pgm = tmp_path / "a.pgm"
    pgm.write_bytes(b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes())
    assert (pixels(pgm) == scaled(SIXTEEN)).all()


def test_sixteen_bit_rgb_is_scaled_within_one(tmp_path):
    values = RNG.integers(0, 65536, (2, 4, 3)).astype(np.uint16)
    data = png(4, 2, 16, 2, [row.astype(">u2").tobytes() for row in values])
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert np.abs(pixels(path) - values / 257).max() <= 1


@pytest.mark.parametrize(("ink", "rgb"), [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((0, 0, 0, 128), 127)])
def test_cmyk(tmp_path, ink, rgb):
    image = Image.new("CMYK", (8, 8), ink)
    for path in (saved(tmp_path / "a.tif", image), saved(tmp_path / "a.jpg", image, quality=100)):
        assert np.abs(pixels(path).astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_white_are_refused(tmp_path, dtype):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.zeros((2, 2), dtype)))
    with pytest.raises(InputError, match=r"a\.tif: pixel type '[IF]', expected 8 or 16 bits"):
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


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), exif=exif)
    assert (pixels(path) == UPRIGHT[orientation](PIXELS)).all()
    assert pixel_size(path) == UPRIGHT[orientation](PIXELS).shape[:2]


def test_exif_orientation_of_a_jpeg_and_of_sixteen_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = saved(tmp_path / "a.jpg", Image.new("RGB", (24, 8)), exif=exif)
    assert read_image(jpeg).size == (8, 24)
    sixteen = saved(tmp_path / "b.png", Image.fromarray(SIXTEEN), exif=exif)
    assert (pixels(sixteen) == UPRIGHT[6](scaled(SIXTEEN))).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_damaged_exif_block_leaves_the_pixels(tmp_path, suffix):
    for junk in (b"", b"nonsense", b"II+\0\x08", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (8, 4), "white"), exif=b"Exif\0\0" + junk)
        assert (pixels(path) == 255).all()
        assert pixel_size(path) == (4, 8)


# --- bad files -----------------------------------------------------------------------------------------


def refused(path, fault, words):
    with pytest.raises(ImageError, match=words) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert error.value.fault == fault
    with pytest.raises(InputError, match=words):
        decode([path], (4, 4))


def test_missing_file(tmp_path):
    refused(tmp_path / "none.jpg", "missing", "no such image file")


def test_empty_file(tmp_path):
    path = tmp_path / "a.jpg"
    path.touch()
    refused(path, "empty", "0 bytes")


def test_folder(tmp_path):
    path = tmp_path / "a.jpg"
    path.mkdir()
    refused(path, "unreadable", "found a folder")


def test_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "a.jpg"
    os.mkfifo(path)
    refused(path, "unreadable", "not a regular file")


@pytest.mark.parametrize("content", [b"hello, this is text\n", b"P", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF"])
def test_not_an_image(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    refused(path, "unreadable", "not an image|damaged image")


def encoded(fmt, **options):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (24, 17, 3), np.uint8)).save(file, fmt, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("fmt", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_no_cut_gives_other_pixels(tmp_path, fmt, options):
    """Cut anywhere, a file is refused, or it lost nothing that its pixels need."""
    data = encoded(fmt, **options)
    path = tmp_path / "a.image"
    path.write_bytes(data)
    whole = pixels(path)
    faults = []
    for length in range(len(data) - 1, 0, -7):
        path.write_bytes(data[:length])
        try:
            assert (pixels(path) == whole).all()
        except ImageError as error:
            faults.append(error.fault)
    assert set(faults) <= {"truncated", "unreadable"}
    assert len(faults) > 0.9 * len(data) / 7


def test_truncated_jpeg_is_named_so(tmp_path):
    data = encoded("JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[: len(data) * 2 // 3])
    refused(path, "truncated", "truncated")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_changed_byte_never_escapes_as_another_error(tmp_path):
    path = tmp_path / "a.image"
    messages = []
    for data in (encoded("JPEG"), encoded("PNG"), encoded("GIF"), encoded("WEBP")):
        for _ in range(150):
            damaged = bytearray(data)
            damaged[RNG.integers(len(data))] = RNG.integers(256)
            path.write_bytes(damaged)
            try:
                assert read_image(path).mode == "RGB"
            except ImageError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert all(message.startswith(f"{path}: ") for message in messages)


@pytest.mark.parametrize(("width", "height"), [(8001, 8000), (30_000, 30_000), (60_000, 60_000)])
def test_too_large_is_refused_from_the_header(tmp_path, width, height, recwarn):
    data = png(width, height, 8, 0, [])  # there are no pixels to decode
    path = tmp_path / "a.png"
    path.write_bytes(data)
    limit = Image.MAX_IMAGE_PIXELS
    refused(path, "too large", f"{height} x {width} pixels, refused: more than 64,000,000")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


def test_the_largest_size_is_let_through_to_decoding(tmp_path):
    assert MAX_PIXELS == 8000 * 8000
    data = png(8000, 8000, 8, 0, [])
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        read_image(path)
