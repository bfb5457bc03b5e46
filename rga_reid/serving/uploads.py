"""Uploaded pictures: decoded behind limits, and kept in files below the images root by the hash of their content.

A picture's file is named in the column ``upload`` of its row: the hash and the suffix of its format. It is empty for
rows that were added as features, and null for rows that other programs have added, whose ``path`` may be a file below
the images root.

A file that belongs to a row and a row that belongs to a file cannot change at once. So the file's name ends in
``.pending`` while a change is under way, and ``recover`` decides by the rows what becomes of it if the server was
killed.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from rga_reid.data.images import MAX_PIXELS, normalise_image, read_image, to_pixels
from rga_reid.errors import InputError
from rga_reid.files import DiskError, make_folder, sync
from rga_reid.process import hold_lock

COLUMN = "upload"  #: column of a gallery with the names of files
FOLDER = "uploads"  #: below the images root
_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]{2,4}")
_SUFFIXES = {"JPEG": "jpg"}  # others are the format in lower case
_PENDING = ".pending"
_LOCK = "lock"
_LOCK_WAIT = 60.0  # seconds
_BOX = (256, 512)  # largest width and height of a thumbnail


@dataclass(frozen=True)
class Picture:
    """An uploaded picture.

    Args:
        content: of an image file.
        pixels: uint8 ``(3, H, W)``, of the model's size.
    """

    content: bytes
    pixels: np.ndarray

    @cached_property
    def name(self) -> str:
        """Name of its file. Only pictures that are kept need it."""
        with Image.open(io.BytesIO(self.content)) as opened:  # its header was read before
            kind = opened.format or "bin"
        return f"{hashlib.sha256(self.content).hexdigest()}.{_SUFFIXES.get(kind, kind.lower())}"


def decode_upload(content: bytes, size: tuple[int, int], name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture.

    Args:
        content: of an image file.
        size: (H, W) of the result.
        name: what error messages call it.
        max_pixels: limit, checked before any pixel is decoded.

    Raises:
        ImageError: see ``normalise_image``.
    """
    image = normalise_image(content, name, max_pixels=max_pixels)
    return Picture(content, to_pixels(image, size))


@dataclass(frozen=True)
class UploadStore:
    """Files of uploaded pictures below a folder. Servers on one Milvus server share it.

    Args:
        root: the images root.
    """

    root: Path

    def create(self) -> None:
        """Make the folder of the files, if it does not exist; ``DiskError`` if that fails."""
        make_folder(self._folder)

    @property
    def _folder(self) -> Path:
        return self.root / FOLDER

    def path(self, name: str) -> Path:
        """Return the file of a picture.

        Raises:
            InputError: not a name that ``decode_upload`` gave, as in a gallery of a stranger.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"column {COLUMN!r}: expected a name of a file, got {name[:100]!r}")
        return self._folder / name[:2] / name

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock of the folder, so that no other server changes rows and files meanwhile."""
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self._folder / _LOCK, wait=_LOCK_WAIT))
            except OSError as error:
                raise DiskError.of(self._folder, error) from None
            yield

    @contextmanager
    def adding(self, pictures: Iterable[Picture]) -> Iterator[None]:
        """Write the files of pictures whose rows are added in the block; they are durable before it begins."""
        new: dict[Path, Picture] = {}
        for picture in pictures:
            path = self.path(picture.name)
            if not path.exists():
                new[path] = picture
        try:
            for folder in {path.parent for path in new}:
                make_folder(folder)
            for path, picture in new.items():
                with open(_pending(path), "wb") as file:
                    file.write(picture.content)
                    file.flush()
                    os.fsync(file.fileno())
            for folder in {path.parent for path in new} | ({self._folder} if new else set()):
                sync(folder)
        except OSError as error:
            for path in new:
                with suppress(OSError):
                    _pending(path).unlink(missing_ok=True)
            raise DiskError.of(self._folder, error) from None
        try:
            yield
        except BaseException:
            for path in new:
                _pending(path).unlink(missing_ok=True)
            raise
        for path in new:
            with suppress(OSError):  # the rows are durable; ``recover`` tries again
                os.replace(_pending(path), path)

    @contextmanager
    def erasing(self, names: Iterable[str], used: Callable[[list[str]], set[str]]) -> Iterator[None]:
        """Delete the files of pictures whose rows are erased in the block.

        Args:
            names: of the files.
            used: returns those of some names that other rows still have.
        """
        paths = {name: self.path(name) for name in names if _NAME.fullmatch(name)}
        for path in paths.values():
            with suppress(FileNotFoundError):
                os.replace(path, _pending(path))
        try:
            yield
        finally:
            self._decide(paths, used)

    def recover(self, used: Callable[[list[str]], set[str]]) -> None:
        """Keep or delete the files of changes that were interrupted, see ``erasing``."""
        paths = {path.name.removesuffix(_PENDING): path for path in self._folder.glob(f"*/*{_PENDING}")}
        self._decide({name: self.path(name) for name in paths if _NAME.fullmatch(name)}, used)

    def _decide(self, paths: dict[str, Path], used: Callable[[list[str]], set[str]]) -> None:
        if not paths:
            return
        kept = used(list(paths))
        for name, path in paths.items():
            with suppress(FileNotFoundError):
                if name in kept:
                    os.replace(_pending(path), path)
                else:
                    _pending(path).unlink()
        for folder in {path.parent for path in paths.values()}:
            if folder.is_dir():
                sync(folder)

    def find(self, upload: str | None, path: str) -> Path | None:
        """Return the file of a row's picture; None if it has none below the images root.

        Args:
            upload: the row's column ``upload``; null for rows that were not added by a server.
            path: the row's path; a relative one is that of the working folder or of the images root.
        """
        if upload is not None:
            return self.path(upload) if _NAME.fullmatch(upload) else None
        for candidate in (Path(path), Path(self.root, path)):
            try:
                file = candidate.resolve(strict=True)
            except (OSError, ValueError, RuntimeError):  # missing, a null byte, or a loop of links
                continue
            inside = file.is_file() and file.is_relative_to(self.root.resolve())
            if inside and not file.is_relative_to(self._folder.resolve()):
                return file
        return None


def _pending(path: Path) -> Path:
    return path.with_name(path.name + _PENDING)


def thumbnail(file: Path) -> bytes:
    """Return a picture as a small JPEG.

    Raises:
        ImageError: the file is missing, or not an image.
    """
    image = read_image(file)
    image.thumbnail(_BOX, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
