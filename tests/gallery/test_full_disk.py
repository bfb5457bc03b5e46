"""A full disk: a small file system where one may be mounted, otherwise a limit on the size of files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, GalleryBuilder
from rga_reid.gallery.folder_store import orphaned_files

KIB = 1024
Room = Callable[[int], AbstractContextManager[None]]


@pytest.mark.slow
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
        assert orphaned_files(folder) == []
        again = Gallery.open(folder)
        assert again.check() == 4
        found = again.search(crowd(3, seed=1)[0], 50, with_ids=True)
        np.testing.assert_array_equal(found.to_numpy(dtype=str), before.to_numpy(dtype=str))
    gallery.remove(pids=3)  # with room, everything works again
    gallery.add(*crowd(3, seed=4))
    assert Gallery.open(folder).check() >= 5


@pytest.mark.slow
def test_a_new_gallery_leaves_nothing(disk: tuple[Path, Room], crowd: Callable) -> None:
    place, room = disk
    with (
        room(100 * KIB),
        pytest.raises(InputError, match=r"new: cannot write .*(No space left|File too large)"),
    ):
        Gallery.build(*crowd(1100)).save(place / "new")
    assert list(place.iterdir()) == []
