"""A disk that is full, in earnest: a small file system where one may be mounted, else a limit on files."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.retrieval import Gallery, GalleryBuilder
from rga_reid.retrieval.gallery_folder import leftovers

KIB = 1024
DISK = 4096 * KIB

#: leaves so many bytes for what is written next
Room = Callable[[int], AbstractContextManager[None]]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond a size: as on a full disk, a write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["file system", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Room]]:
    """A folder, and what makes it full. Where nothing may be mounted, both are the limit."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        mounted = request.param != "limit" and subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False

    @contextmanager
    def room(size: int) -> Iterator[None]:
        used = sum(-(-file.stat().st_size // 4096) * 4096 for file in place.rglob("*") if file.is_file())
        filler = place / "other files"
        filler.write_bytes(bytes(max(0, DISK - used - size)))
        yield
        filler.unlink()

    yield place, room if mounted else largest_file
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)  # galleries may hold files open


def test_the_old_gallery_stays(disk: tuple[Path, Room], crowd: Callable) -> None:
    """Changes that find no room: of many images, of a segment to be written again, of its index alone."""
    place, room = disk
    folder = place / "gallery"
    Gallery.build(*crowd(1100), index="hnsw").save(folder)  # vectors 138 KiB, the index some more
    gallery = Gallery.open(folder)
    before = gallery.search(crowd(3, seed=1)[0], 50, with_ids=True)

    def stream() -> None:
        with GalleryBuilder(folder, overwrite=True) as builder:
            builder.add(*crowd(9000, seed=2))
            builder.finish()

    changes: list[tuple[int, Callable[[], object]]] = [
        (300 * KIB, lambda: gallery.add(*crowd(9000, seed=2))),
        (100 * KIB, lambda: gallery.remove(pids=3)),
        (145 * KIB, lambda: gallery.remove(pids=3)),
        (100 * KIB, lambda: Gallery.build(*crowd(1100, seed=3)).save(folder, overwrite=True)),
        (300 * KIB, stream),
        (0, lambda: gallery.add(*crowd(3, seed=4))),
    ]
    for size, change in changes:
        with (
            room(size),
            pytest.raises(InputError, match=r"gallery: cannot write .*(No space left|File too large)"),
        ):
            change()
        assert leftovers(folder) == []
        again = Gallery.open(folder)
        assert again.verify() == 4
        found = again.search(crowd(3, seed=1)[0], 50, with_ids=True)
        np.testing.assert_array_equal(found.to_numpy(dtype=str), before.to_numpy(dtype=str))
    gallery.remove(pids=3)  # with room, it goes on as if nothing had been
    gallery.add(*crowd(3, seed=4))
    assert Gallery.open(folder).verify() >= 5


def test_a_new_gallery_leaves_nothing(disk: tuple[Path, Room], crowd: Callable) -> None:
    place, room = disk
    with (
        room(100 * KIB),
        pytest.raises(InputError, match=r"new: cannot write .*(No space left|File too large)"),
    ):
        Gallery.build(*crowd(1100)).save(place / "new")
    with room(DISK) if room is largest_file else nullcontext():
        assert list(place.iterdir()) == []
