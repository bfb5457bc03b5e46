"""Image files to RGB pixels, or to one clear line about what is wrong with the file."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

from rga_reid.errors import InputError
from rga_reid.runtime import track

MAX_PIXELS = 64_000_000  #: a larger image is refused from its header, before any pixel is decoded
MAX_BYTES = 4 * MAX_PIXELS + (1 << 20)  #: of a file: some decoders read all of it before they look at it

Fault = Literal["missing", "empty", "truncated", "unreadable", "too large"]

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # pillow's others run programs or are rare
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_LITTER = frozenset({"thumbs.db", "desktop.ini"})


class ImageError(InputError):
    """A file that is not a usable image.

    Args:
        path: of the file.
        fault: in which way: ``missing``, ``empty``, ``truncated``, ``unreadable`` or ``too large``.
        detail: the same in words, without the path.
    """

    def __init__(self, path: str | os.PathLike[str], fault: Fault, detail: str) -> None:
        super().__init__(f"{display_path(path)}: {detail}")
        self.fault, self.detail = fault, detail


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    The EXIF orientation is applied, transparent pixels are composited on white, 16-bit values are scaled to
    8 bits. Of an animation the first frame is taken.

    Raises:
        ImageError: (an ``InputError``) the file is missing, empty, truncated, not an image, of a pixel type
            without a defined white (32-bit, floating point), or has more than ``MAX_PIXELS`` pixels or
            ``MAX_BYTES`` bytes.
    """
    try:
        _check_file(path)
        with open(path, "rb") as file:
            image = _open(file, path)
            _load(image, path)
    except FileNotFoundError:
        raise ImageError(path, "missing", "no such image file") from None
    except OSError as error:
        raise ImageError(path, "unreadable", f"cannot read this file ({error.strerror or error})") from None
    return _to_rgb(image, path)


def decode(
    paths: Iterable[str | os.PathLike[str]],
    size: tuple[int, int],
    *,
    threads: int = 2,
    refused: dict[int, ImageError] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Read image files into one array.

    Args:
        paths: n image files.
        size: (H, W) of the result; an image of another size is resized bilinearly with antialiasing.
        threads: files decoded at the same time.
        refused: takes the errors of files that cannot be read, by row, instead of raising the first. The
            pixels of such a row are undefined.
        out: array to fill, uint8 ``(n, 3, H, W)``; a new one by default.

    Returns:
        uint8 ``(n, 3, H, W)``, RGB, in the order of ``paths``.

    Raises:
        ImageError: for the first file that ``read_image`` refuses, if ``refused`` does not take it.
    """
    files = list(paths)
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"size: expected a height and a width of at least 1, got {tuple(size)}")
    images = np.empty((len(files), 3, height, width), np.uint8) if out is None else out

    def fill(row: int) -> None:
        try:
            images[row] = to_pixels(read_image(files[row]), (height, width))
        except ImageError as error:
            if refused is None:
                raise
            refused[row] = error
        except MemoryError:
            raise
        except Exception as error:  # a defect of this program: the file that shows it is worth knowing
            raise RuntimeError(f"{display_path(files[row])}: cannot be decoded") from error

    for _ in map_in_threads(fill, range(len(files)), threads, "decoding"):
        pass
    return images


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pixels uint8 ``(3, H, W)`` of an RGB image, resized bilinearly with antialiasing to ``size`` (H, W)."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def pixel_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of an image as ``read_image`` gives it, from its header where that is enough.

    Raises:
        ImageError: see ``read_image``.
    """
    try:
        _check_file(path)
        with open(path, "rb") as file:
            image = _open(file, path)
            if not image.getexif():
                return image.height, image.width
    except ImageError:
        raise
    except Exception:  # no such file, or a damaged EXIF block: read_image says what is wrong, if anything
        pass
    upright = read_image(path)
    return upright.height, upright.width


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below a folder, sorted by relative POSIX path.

    Known by their suffixes in any case; hidden files and folders and ``Thumbs.db`` are passed over. Linked
    folders are followed, each once.

    Raises:
        InputError: the folder is missing, is not a folder, cannot be read, or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        found = "found a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: expected a folder of images, {found}")
    images = [path for path in _walk(root) if path.suffix.lower() in _SUFFIXES]
    if not images:
        raise InputError(f"{root}: no image found in this folder (suffixes {' '.join(sorted(_SUFFIXES))})")
    return sorted(images, key=lambda path: path.relative_to(root).as_posix())


def is_ignored_file(name: str) -> bool:
    """Whether a file name is one that file managers leave about: hidden, ``Thumbs.db``, ``desktop.ini``."""
    return name.startswith(".") or name.lower() in _LITTER


def is_unicode(path: str) -> bool:
    """Whether a path is valid Unicode: tables and JSON cannot hold another."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def display_path(path: str | os.PathLike[str]) -> str:
    """A path for people to read, bytes that are not Unicode escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file (a pipe would be waited for), is empty, or larger than any image."""
    try:
        status = os.stat(path)
    except ValueError:  # a zero byte in the name
        raise ImageError(path, "missing", "no such image file") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise ImageError(path, "unreadable", f"expected an image file, found {kind}")
    if status.st_size == 0:
        raise ImageError(path, "empty", "empty file (0 bytes), expected an image")
    if status.st_size > MAX_BYTES:
        detail = f"image file of {status.st_size:,} bytes, refused: more than {MAX_BYTES:,}"
        raise ImageError(path, "too large", detail)


def _walk(root: Path) -> list[Path]:
    files: list[Path] = []
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            # in reverse, for ``pop`` takes the last: of two links to one folder the first in order counts
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True):
                if is_ignored_file(entry.name):
                    continue
                if not is_unicode(entry.path):
                    raise InputError(f"{display_path(entry.path)}: the name is not valid UTF-8; rename it")
                (folders if entry.is_dir() else files).append(folder / entry.name)
        except OSError as error:
            raise InputError(f"{folder}: cannot read this folder ({error.strerror})") from None
    return files


def _plugins() -> list[tuple[Callable[..., ImageFile.ImageFile], Callable[[bytes], object]]]:
    """Of each accepted format: what opens it, and what knows it by a file's first 16 bytes."""
    Image.init()
    return [(factory, accept) for factory, accept in map(Image.OPEN.__getitem__, _FORMATS) if accept]


def _open(file: BinaryIO, path: str | os.PathLike[str]) -> ImageFile.ImageFile:
    """Read the header only, and judge the size by it.

    Not by ``Image.open``: that judges by limits of its own, global ones, with a warning.
    """
    prefix = file.read(16).ljust(16, b"\0")  # older plug-ins index it
    file.seek(0)
    factories = [factory for factory, accept in _plugins() if accept(prefix) is True]
    if not factories:
        raise ImageError(path, "unreadable", "not an image, or of an unknown format")
    try:
        image = factories[0](file, "")
    except Exception as error:  # plug-ins raise nearly anything on a damaged header
        raise _damaged(error, path) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        detail = f"image of {height} x {width} pixels, refused: more than {MAX_PIXELS:,}"
        raise ImageError(path, "too large", detail)
    return image


def _load(image: ImageFile.ImageFile, path: str | os.PathLike[str]) -> None:
    """Decode the pixels and turn them upright."""
    try:
        image.load()
    except Exception as error:  # plug-ins raise nearly anything on damaged data
        raise _damaged(error, path) from None
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block tells no orientation, but the pixels are whole
        return


def _damaged(error: Exception, path: str | os.PathLike[str]) -> Exception:
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # some plug-ins judge by pillow's limit, before us
        return ImageError(path, "too large", f"image of too many pixels, refused ({error})")
    if "truncated" in str(error).lower():
        return ImageError(path, "truncated", f"truncated image ({error})")
    return ImageError(path, "unreadable", f"damaged image ({error or type(error).__name__})")


def _to_rgb(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    # 16-bit PGM, and 16-bit PNG in older pillow, open as "I" with values to 65535; elsewhere "I" has no white
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        scaled = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(path, "unreadable", f"pixel type {image.mode!r}, expected 8 or 16 bits")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(path, "unreadable", f"pixel type {image.mode!r}: cannot be shown as RGB") from None


Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 32  # items that wait for each thread
_MANY = 1000  # files from which the work takes long enough for a progress bar


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, what: str
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``; the first error, or Ctrl-C, drops the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            results = _in_order(pool, function, items, _AHEAD * threads)
            yield from results if len(items) < _MANY else track(results, what, len(items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for those that have begun


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """As ``pool.map``, which would take up all items at once."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
