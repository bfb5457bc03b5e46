"""Find image files and decode them to RGB, or to one clear line about what is wrong with a file."""

from __future__ import annotations

import io
import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from rga_reid.errors import InputError
from rga_reid.runtime import track

MAX_PIXELS = 64_000_000  #: a larger image is refused from its header, before any pixel is decoded
MAX_BYTES = 4 * MAX_PIXELS + (1 << 20)  #: largest file: some decoders read all of it first

Fault = Literal["missing", "empty", "truncated", "unreadable", "too large"]

_FORMATS = {  # Pillow's other formats run programs or are rare
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
_IGNORED = frozenset(  # left by file managers and network drives, in lower case; hidden files are ignored too
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "@tmp", "#recycle", "@recycle", "#snapshot"}
    | {"@recently-snapshot", "$recycle.bin", "system volume information", "lost+found"}
)

_log = logging.getLogger("rga_reid")


class ImageError(InputError):
    """A file that is not a usable image.

    Args:
        path: path of the file.
        fault: ``missing``, ``empty``, ``truncated``, ``unreadable`` or ``too large``.
        detail: the fault in words, without the path.
    """

    def __init__(self, path: str | os.PathLike[str], fault: Fault, detail: str) -> None:
        super().__init__(f"{display_path(path)}: {detail}")
        self.fault, self.detail = fault, detail


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    The EXIF orientation is applied, transparent pixels are composited on white, 16-bit values are scaled to
    8 bits, and animations give their first frame.

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


def normalise_image(
    source: bytes | Image.Image, name: str = "image", *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return an encoded or PIL image as 8-bit RGB, upright, by the rules of ``read_image``.

    Args:
        source: content of an image file, or a PIL image, which is not changed.
        name: how error messages name the image.
        max_pixels: limit for an encoded image.

    Raises:
        ImageError: see ``read_image``.
    """
    if isinstance(source, bytes):
        image: Image.Image = _open(io.BytesIO(source), name, max_pixels)
        _load(image, name)
        return _to_rgb(image, name)
    try:
        source.load()
    except Exception as error:  # PIL decodes an opened file here
        raise _damaged(error, name) from None
    try:
        image = ImageOps.exif_transpose(source)
    except Exception:  # the EXIF block is damaged, but the pixels are complete
        image = source.copy()
    image.format = source.format
    return _to_rgb(image, name)


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
        size: (H, W) of the result; images of another size are resized bilinearly with antialiasing.
        threads: number of files decoded at the same time.
        refused: receives the errors of unreadable files by row; by default the first one is raised. The
            pixels of such a row are undefined.
        out: array to fill, uint8 ``(n, 3, H, W)``; by default a new one.

    Returns:
        uint8 ``(n, 3, H, W)``, RGB, in the order of ``paths``.

    Raises:
        ImageError: ``read_image`` refused a file, and ``refused`` is None.
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
        except Exception as error:  # a bug: name the file that shows it
            raise RuntimeError(f"{display_path(files[row])}: cannot be decoded") from error

    for _ in map_in_threads(fill, range(len(files)), threads, "decoding"):
        pass
    return images


def to_pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return the uint8 ``(3, H, W)`` pixels of an RGB image, resized bilinearly with antialiasing."""
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def pixel_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (H, W) of an image as ``read_image`` returns it, from its header if that is enough.

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
    except Exception:  # missing file or damaged EXIF block: read_image decides
        pass
    upright = read_image(path)
    return upright.height, upright.width


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files below a folder, sorted by relative POSIX path.

    Images are recognised by their suffix in any case; other files are counted in a log message. Hidden files
    and what file managers and network drives leave (``Thumbs.db``, ``@eaDir``) are ignored. Linked folders
    are followed, each once.

    Raises:
        InputError: the folder is missing, is not a folder, cannot be read, or contains no image.
    """
    images, skipped = find_images(folder)
    if skipped:
        _log.warning("%s: %s", display_path(folder), describe_skipped(skipped))
    return images


def find_images(
    folder: str | os.PathLike[str], *, allow_none: bool = False
) -> tuple[list[Path], Counter[str]]:
    """Return the images of ``list_images``, and the number of other files by suffix.

    Args:
        folder: folder, searched with its subfolders.
        allow_none: accept a folder without an image.
    """
    root = Path(folder)
    if not root.is_dir():
        found = "found a file" if root.exists() else "no such folder"
        raise InputError(f"{root}: expected a folder of images, {found}")
    suffixes = image_suffixes()
    images: list[Path] = []
    skipped: Counter[str] = Counter()
    for path in _walk(root):
        if path.suffix.lower() in suffixes:
            images.append(path)
        else:
            skipped[path.suffix.lower()] += 1
    if not images and not allow_none:
        found = f"; {describe_skipped(skipped)}" if skipped else ""
        raise InputError(
            f"{root}: no image found in this folder (suffixes {' '.join(sorted(suffixes))}{found})"
        )
    return sorted(images, key=lambda path: path.relative_to(root).as_posix()), skipped


def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, by which images are recognised."""
    return frozenset(suffix for suffixes in _formats().values() for suffix in suffixes)


def describe_skipped(skipped: Counter[str]) -> str:
    """Return the message about files that are not read as images, such as ``skipped 4 files (.heic, .avif)``."""
    common_first = sorted(skipped, key=lambda suffix: (-skipped[suffix], suffix == "", suffix))
    suffixes = [suffix or "no suffix" for suffix in common_first[:5]]
    more = ", ..." if len(skipped) > 5 else ""
    count = skipped.total()
    return f"skipped {count:,} file{'s' * (count > 1)} ({', '.join(suffixes)}{more})"


def is_ignored_file(name: str) -> bool:
    """Return whether a file or folder is hidden, or left by a file manager or network drive."""
    return name.startswith(".") or name.lower() in _IGNORED


def is_unicode(path: str) -> bool:
    """Return whether a path is valid Unicode, as tables and JSON require."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def display_path(path: str | os.PathLike[str]) -> str:
    """Return a path for a message, with bytes that are not Unicode escaped."""
    if isinstance(path, bytes):  # the content of a file, by mistake
        return f"{len(path):,} bytes"
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is not regular (reading a pipe would block), empty, or too large."""
    try:
        status = os.stat(path)
    except ValueError:  # a null byte in the name
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
    """Return all files below a folder that are not ignored."""
    files: list[Path] = []
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            # in reverse, as ``pop`` takes the last: of two links to one folder the first name counts
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True):
                if is_ignored_file(entry.name):
                    continue
                if not is_unicode(entry.path):
                    raise InputError(f"{display_path(entry.path)}: the name is not valid UTF-8; rename it")
                (folders if entry.is_dir() else files).append(folder / entry.name)
        except OSError as error:
            raise InputError(f"{folder}: cannot read this folder ({error.strerror})") from None
    return files


@cache
def _formats() -> dict[str, tuple[str, ...]]:
    """Return the formats that can be read here, and their suffixes: AVIF and HEIC where Pillow has them."""
    with suppress(ImportError):
        import pillow_heif  # a plug-in that users may have installed

        pillow_heif.register_heif_opener()
    Image.init()
    optional = {"AVIF": (".avif",), "HEIF": (".heic", ".heif")}
    found = {name: suffixes for name, suffixes in optional.items() if name in Image.OPEN}
    if not features.check("avif"):
        found.pop("AVIF", None)
    return {**_FORMATS, **found}


def _open(file: BinaryIO, path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the header only, and check the size."""
    try:
        image = Image.open(file, formats=list(_formats()))
    except UnidentifiedImageError:
        raise ImageError(path, "unreadable", "not an image, damaged, or of an unknown format") from None
    except Exception as error:  # plug-ins raise many types for a damaged header
        raise _damaged(error, path) from None
    width, height = image.size
    if width * height > max_pixels:
        detail = f"image of {height} x {width} pixels, refused: more than {max_pixels:,}"
        raise ImageError(path, "too large", detail)
    return image


def _load(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Decode the pixels and turn them upright."""
    try:
        image.load()
    except Exception as error:  # plug-ins raise many types for damaged data
        raise _damaged(error, path) from None
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a damaged EXIF block; the pixels are complete
        return


def _damaged(error: Exception, path: str | os.PathLike[str]) -> Exception:
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit
        return ImageError(path, "too large", f"image of too many pixels, refused ({error})")
    if "truncated" in str(error).lower():
        return ImageError(path, "truncated", f"truncated image ({error})")
    return ImageError(path, "unreadable", f"damaged image ({error or type(error).__name__})")


def _to_rgb(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    # 16-bit PGM, and 16-bit PNG in older Pillow, open as "I" with values to 65535; other "I" have no white
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        scaled = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(path, "unreadable", f"pixel type {image.mode!r}, expected 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(path, "unreadable", f"pixel type {image.mode!r}: cannot be shown as RGB") from None


Item = TypeVar("Item")
Result = TypeVar("Result")

_QUEUED = 32  # items that wait for each thread
_MIN_TRACKED = 1000  # items from which a progress bar is shown


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, what: str
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``; the first error, or Ctrl-C, cancels the rest."""
    waiting: deque[Future[Result]] = deque()

    def run() -> Iterator[Result]:
        """Do as ``pool.map``, which would submit all items at once."""
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _QUEUED * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from run() if len(items) < _MIN_TRACKED else track(run(), what, len(items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for running items
