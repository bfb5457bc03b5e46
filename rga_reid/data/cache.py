"""Decode the images of a data set once: in memory, or into a file beside it that later runs memory-map.

The file is a plain ``.npy`` of uint8 ``(n, 3, H, W)``. Its name depends on the paths of the images, their
order and the size. A fingerprint beside it covers the length and modification time of every image file, so
that a changed data set is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from rga_reid.data.images import decode, map_in_threads, pixel_size
from rga_reid.errors import InputError, check_choice
from rga_reid.files import atomic_file, reserve, write_json
from rga_reid.inputs import read_json
from rga_reid.runtime import free_memory

FOLDER = ".rga-reid-cache"  #: folder of the cache beside the data; hidden, so that readers ignore it
SPARE = 0.2  #: share of the free memory that images leave to the rest of the program

_log = logging.getLogger("rga_reid")


def cached_images(
    paths: Sequence[str], size: tuple[int, int], *, where: Literal["memory", "file"], beside: Path
) -> np.ndarray:
    """Return the pixels of image files, decoded now or by an earlier run.

    Args:
        paths: n image files.
        size: (H, W) of the result. Images that all have one smaller size keep it: the batch is enlarged later
            together with its crop, which takes less memory and rounds only once.
        where: ``memory``, or ``file``: memory-mapped, and kept for later runs. ``memory`` uses the file too
            if it exists, or if memory is short, which is logged.
        beside: folder in which the cache folder is made.

    Returns:
        uint8 ``(n, 3, h, w)``, read-only if memory-mapped.

    Raises:
        InputError: an image cannot be read, or the file cannot be written.
    """
    check_choice("cache", where, ("memory", "file"))
    names = "\n".join(os.path.relpath(path, beside) for path in paths)
    height, width = size
    file = beside / FOLDER / f"{_digest(names)}-{height}x{width}.npy"
    fingerprint = _digest(json.dumps([_change(path) for path in paths]))
    if file.parent.is_symlink():  # in a downloaded data set it might lead anywhere
        raise InputError(f"{file.parent}: a link, expected a folder for the image cache, or nothing")
    found = _open(file, fingerprint, len(paths))
    if found is not None:
        return np.array(found) if where == "memory" and fits_in_memory(found.nbytes) else found
    size = _common_size(paths, size)
    if where == "memory" and fits_in_memory(len(paths) * 3 * size[0] * size[1]):
        return decode(paths, size)
    try:
        file.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{file.parent}: cannot make the folder of the image cache ({error.strerror}); "
            "--data.cache memory needs none"
        ) from None
    file.with_suffix(".json").unlink(missing_ok=True)  # pixels without a fingerprint are not used
    with atomic_file(file) as temporary:
        shape = (len(paths), 3, *size)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        reserve(temporary)
        decode(paths, size, out=pixels)
        pixels.flush()
    write_json(file.with_suffix(".json"), {"fingerprint": fingerprint, "images": len(paths)})
    return np.load(file, mmap_mode="r", allow_pickle=False)


def fits_in_memory(size: int) -> bool:
    """Return whether ``size`` bytes fit into the free memory with room to spare; log a warning if not."""
    free = free_memory()
    if size <= (1 - SPARE) * free:
        return True
    message = (
        "decoded images take %.1f GiB and %.1f GiB of memory are free: using a memory-mapped file instead"
    )
    _log.warning(message, size / 2**30, free / 2**30)
    return False


def _change(path: str) -> tuple[int, int] | None:
    """Return length and modification time of a file; None if it is missing, which its reader reports."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _open(file: Path, fingerprint: str, count: int) -> np.ndarray | None:
    try:
        described = read_json(file.with_suffix(".json"))
        if described["fingerprint"] != fingerprint:
            return None
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (count, 3)
        return pixels if fits else None
    except Exception:  # missing or damaged, for which NumPy raises many types
        return None


def _common_size(paths: Sequence[str], size: tuple[int, int]) -> tuple[int, int]:
    """Return the common size of all images if it is not larger than ``size``; otherwise ``size``."""
    common: tuple[int, int] | None = None
    for found in map_in_threads(pixel_size, paths, 2, "reading sizes"):
        common = common or found
        if found != common or found[0] > size[0] or found[1] > size[1]:
            return size
    return common or size


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
