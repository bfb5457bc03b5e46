"""Images decoded once: in memory, or in a file beside the data that later runs map into memory.

The file is a plain ``.npy`` of uint8 ``(n, 3, H, W)``; its name tells which images it holds, in which order
and size. The fingerprint beside it covers the length and the time of change of every image file, so that a
changed data set is decoded anew.
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

FOLDER = ".rga-reid-cache"  #: beside the data; hidden, so that no reader takes it for a folder of images
SPARE = 0.2  #: share of the free memory that images in memory leave to the rest of the program

_log = logging.getLogger("rga_reid")


def cached_images(
    paths: Sequence[str], size: tuple[int, int], *, where: Literal["memory", "file"], beside: Path
) -> np.ndarray:
    """The pixels of image files, decoded now or by an earlier run.

    Args:
        paths: n image files.
        size: (H, W) wanted. Images that are all of one smaller size keep it: a batch is enlarged later, in
            one step with its crop, for less memory and without rounding twice.
        where: ``memory``, or ``file``: mapped into memory, read as needed, kept for later runs. ``memory``
            takes the file too where there is one, or where memory is short (and says so).
        beside: folder that the file's folder is made in.

    Returns:
        uint8 ``(n, 3, h, w)``, read-only if mapped.

    Raises:
        InputError: an image that cannot be read; a file that cannot be written.
    """
    check_choice("cache", where, ("memory", "file"))
    names = "\n".join(os.path.relpath(path, beside) for path in paths)
    height, width = size
    file = beside / FOLDER / f"{_digest(names)}-{height}x{width}.npy"
    fingerprint = _digest(json.dumps([_change(path) for path in paths]))
    if file.parent.is_symlink():  # of a data set that somebody packed: it might lead anywhere
        raise InputError(f"{file.parent}: a link, expected a folder for the image cache, or nothing")
    found = _open(file, fingerprint, len(paths))
    if found is not None:
        return found if where == "file" else _in_memory(found)
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
    file.with_suffix(".json").unlink(missing_ok=True)  # pixels without a fingerprint count as none
    with atomic_file(file) as temporary:
        shape = (len(paths), 3, *size)
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        reserve(temporary)
        decode(paths, size, out=pixels)
        pixels.flush()
    write_json(file.with_suffix(".json"), {"fingerprint": fingerprint, "images": len(paths)})
    return np.load(file, mmap_mode="r", allow_pickle=False)


def fits_in_memory(size: int) -> bool:
    """Whether ``size`` bytes fit into the free memory with room to spare; if not, says so."""
    free = free_memory()
    if free is None or size <= (1 - SPARE) * free:
        return True
    _log.warning(
        "decoded images take %.1f GiB and %.1f GiB of memory are free: using a memory-mapped file beside the "
        "data instead",
        size / 2**30,
        free / 2**30,
    )
    return False


def _change(path: str) -> tuple[int, int] | None:
    """What tells that a file was changed; None if it is not there, which its reader says."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _in_memory(mapped: np.ndarray) -> np.ndarray:
    return np.array(mapped) if fits_in_memory(mapped.nbytes) else mapped


def _open(file: Path, fingerprint: str, count: int) -> np.ndarray | None:
    try:
        described = read_json(file.with_suffix(".json"))
        if described["fingerprint"] != fingerprint:
            return None
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        fits = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (count, 3)
        return pixels if fits else None
    except Exception:  # none, or a damaged one, of which NumPy raises nearly anything: made anew
        return None


def _common_size(paths: Sequence[str], size: tuple[int, int]) -> tuple[int, int]:
    """The size that all images have, if it is one and no larger than ``size``; else ``size``."""
    common: tuple[int, int] | None = None
    for found in map_in_threads(pixel_size, paths, 2, "reading sizes"):
        common = common or found
        if found != common or found[0] > size[0] or found[1] > size[1]:
            return size
    return common or size


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
