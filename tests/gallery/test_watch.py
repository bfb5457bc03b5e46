"""Images of a followed folder, with files that appear while others are embedded."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid.data import ImageError, read_image
from rga_reid.errors import InputError
from rga_reid.gallery import Gallery, segments
from rga_reid.gallery import watch as watch_module
from rga_reid.gallery.watch import Arrivals, Embed, WatchedBatch, watch_folder

MAX_ROUNDS = 100  # only ends what would never end
NEVER = 4e9  # a time of change that does not pass during a test


class Finite(Arrivals):
    """Arrivals that end one idle round after a number of files was given out."""

    wanted = 1

    def __iter__(self) -> Iterator[list[Path]]:
        given = 0
        for paths in itertools.islice(super().__iter__(), MAX_ROUNDS):
            given += len(paths)
            yield paths
            if not paths and given >= self.wanted:
                return
        raise AssertionError(f"{given} files were given out, expected {self.wanted}")


def describe(paths: Sequence[Path], schema: Mapping[str, str]) -> tuple[pd.DataFrame, Mapping[str, str]]:
    if any("invalid" in path.name for path in paths):
        raise InputError("invalid: expected another name")
    return pd.DataFrame({"path": list(map(str, paths)), "camera": "hall"}), {**schema, "camera": "string"}


def embed(table: pd.DataFrame, unreadable: list[ImageError]) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    for row in range(len(table)):
        try:
            colour = np.asarray(read_image(table["path"].iloc[row]), float).mean((0, 1))
        except ImageError as error:
            unreadable.append(error)
        else:
            yield colour[None], table[row : row + 1]


def save(path: Path, colour: str = "teal") -> None:
    """Write an image elsewhere, and rename it into place; it is complete at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    Image.new("RGB", (4, 8), colour).save(draft, "PNG")
    os.utime(draft, (1e9, 1e9))
    draft.rename(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image that the gallery has, and one that it does not have."""
    for name in ("known", "new"):
        save(tmp_path / "crops" / f"{name}.png")
    return tmp_path / "crops"


@pytest.fixture
def gallery(tmp_path: Path, folder: Path) -> Gallery:
    table = pd.DataFrame({"path": [str(folder / "known.png")]})
    Gallery.build(np.ones((1, 3)), table).save(tmp_path / "G")
    return Gallery.open(tmp_path / "G")


def watch(
    gallery: Gallery,
    folder: Path,
    wanted: int = 1,
    on_batch: Callable[[int], object] = lambda number: None,
    embed: Embed = embed,
    **settings: Any,
) -> list[WatchedBatch]:
    """Follow a folder until some files were given out; call a function after each batch."""
    found = []
    arrivals = Finite(folder, gallery.known_paths, **settings)
    arrivals.wanted = wanted
    for batch in watch_folder(gallery, arrivals, describe, embed):
        assert set(batch.added) <= set(Gallery.open(gallery._store.location).table["path"])
        found.append(batch)
        on_batch(len(found))
    return found


def names(gallery: Gallery) -> list[str]:
    return [Path(path).name for path in gallery.table["path"]]


def test_images_that_are_there_and_images_that_appear(gallery: Gallery, folder: Path) -> None:
    def arrive(number: int) -> None:
        if number == 1:
            save(folder / "later.png")
            save(folder / "a" / "b" / "deep.png")
            for name in ("notes.txt", ".hidden.png", ".trash/gone.png", "@eaDir/thumbnail.png"):
                save(folder / name)
            (folder / "known.png").write_bytes(b"changed")  # known by its path

    watch(gallery, folder, 3, arrive)
    assert sorted(names(gallery)) == ["deep.png", "known.png", "later.png", "new.png"]
    assert gallery.table["camera"].tolist()[1:] == ["hall"] * 3
    assert watch(gallery, folder, 0) == []


def test_a_file_is_read_when_it_is_complete(gallery: Gallery, folder: Path) -> None:
    save(folder / ".whole")
    content, slow, reads = (folder / ".whole").read_bytes(), folder / "slow.png", []

    class Slow(Finite):
        """Appends to a file between every two looks at it."""

        wanted = 2

        def __iter__(self) -> Iterator[list[Path]]:
            written = 0
            for paths in super().__iter__():
                reads.extend(path.name for path in paths)
                if written < len(content):
                    assert "slow.png" not in reads
                    with open(slow, "ab") as file:
                        file.write(content[written : written + 12])
                    os.utime(slow, (NEVER, NEVER + written))
                    written += 12
                yield paths

    batches = list(watch_folder(gallery, Slow(folder, gallery.known_paths, settled=0.1), describe, embed))
    assert [batch.refused for batch in batches] == [[], []]
    assert reads == ["new.png", "slow.png"]
    assert names(gallery) == ["known.png", "new.png", "slow.png"]


def test_an_unreadable_file_is_tried_again_then_left_out(gallery: Gallery, folder: Path) -> None:
    for name in ("repaired", "never", "replaced"):
        (folder / f"{name}.png").write_bytes(b"no picture yet")
        os.utime(folder / f"{name}.png", (1e9, 1e9))

    def repair(number: int) -> None:
        if number == 1:
            save(folder / "repaired.png")
        if number == 3:  # after they were left out
            (folder / "never.png").chmod(0o600)  # its content stays
            save(folder / "replaced.png")

    reads = Counter[str]()

    def embed_counted(
        table: pd.DataFrame, unreadable: list[ImageError]
    ) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
        reads.update(Path(path).name for path in table["path"])
        return embed(table, unreadable)

    batches = watch(gallery, folder, 4 + 3 + 2 + 1, repair, embed_counted, retries=(0.01, 0.01))
    assert reads == {"new.png": 1, "repaired.png": 2, "never.png": 3, "replaced.png": 4}
    assert [[Path(path).name for path in batch.added] for batch in batches] == [
        ["new.png"],
        ["repaired.png"],
        [],
        ["replaced.png"],
    ]
    assert [len(batch.refused) for batch in batches] == [0, 0, 2, 0]
    assert "never.png" in batches[2].refused[0]


def test_an_invalid_name_does_not_keep_the_others_out(gallery: Gallery, folder: Path) -> None:
    save(folder / "invalid.png")
    save(folder / "valid.png")

    def look_again(number: int) -> None:
        if number == 1:
            (folder / "invalid.png").chmod(0o600)  # a notice of a change, but the content is the same
            save(folder / "later.png")

    first, second = watch(gallery, folder, 4, look_again)
    assert [Path(path).name for path in first.added] == ["new.png", "valid.png"]
    assert first.refused == ["invalid: expected another name"]
    assert ([Path(path).name for path in second.added], second.refused) == (["later.png"], [])


def test_a_scan_that_fails_later_does_not_end_it(
    gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rga_reid.gallery.watch.RESCANNED", 0.01)
    find, calls = watch_module.find_images, []

    def find_later(root: Path, **options: Any) -> Any:
        calls.append(root)
        if len(calls) > 1 and root == folder:
            raise InputError(f"{root}/gone: cannot read this folder (no such file or directory)")
        return find(root, **options)

    monkeypatch.setattr(watch_module, "find_images", find_later)
    watch(gallery, folder, 2, lambda number: save(folder / "later.png") if number == 1 else None)
    assert "later.png" in names(gallery)
    assert calls.count(folder) > 1
    with pytest.raises(InputError, match="cannot read this folder"):  # at the start it is reported
        watch(gallery, folder)


def test_small_segments_are_joined_while_nothing_arrives(
    gallery: Gallery, folder: Path, crowd: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MERGED_ROWS", (700,))
    for size in (400, 200, 100):
        gallery.add(*crowd(size, dimension=3))
    watch(gallery, folder)
    assert gallery.describe()["segments"] == 4
    monkeypatch.setattr(watch_module, "MAINTAINED_ROWS", 1)
    save(folder / "one.png")
    watch(gallery, folder)
    assert gallery.describe()["segments"] == 1


def test_a_folder_that_is_gone(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        watch(gallery, tmp_path / "none")
