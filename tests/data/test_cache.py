"""Decoded images in memory or in a file: the same pixels, decoded anew when a file changes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rga_reid.data import cache, cached_images, decode
from rga_reid.errors import InputError


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(5):
        made.append(str(tmp_path / f"{number}.png"))
        pixels = rng.integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made[-1])
    return made


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counted(paths: list[str], *arguments: object, **options: object) -> np.ndarray:
        calls.append(len(paths))
        return decode(paths, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "decode", counted)
    return calls


def test_a_file_is_decoded_once_and_again_when_an_image_changes(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_decoding(monkeypatch)
    first = cached_images(paths, (32, 16), where="file", beside=tmp_path)
    again = cached_images(paths, (32, 16), where="file", beside=tmp_path)
    in_memory = cached_images(paths, (32, 16), where="memory", beside=tmp_path)
    assert calls == [5]
    assert isinstance(again, np.memmap)
    assert not isinstance(in_memory, np.memmap)
    for images in (first, again, in_memory):
        assert np.array_equal(images, decode(paths, (32, 16)))

    Image.new("RGB", (20, 40), "red").save(paths[2])
    changed = cached_images(paths, (32, 16), where="file", beside=tmp_path)
    assert calls == [5, 5]
    assert (changed[2, 0] == 255).all()
    os.utime(paths[0], (1, 1))  # touched, the same length
    cached_images(paths, (32, 16), where="file", beside=tmp_path)
    assert calls == [5, 5, 5]


def test_another_size_order_or_choice_is_another_file(paths: list[str], tmp_path: Path) -> None:
    whole = np.array(cached_images(paths, (32, 16), where="file", beside=tmp_path))
    turned = cached_images(paths[::-1], (32, 16), where="file", beside=tmp_path)
    assert np.array_equal(turned, whole[::-1])
    assert cached_images(paths[:2], (32, 16), where="file", beside=tmp_path).shape == (2, 3, 32, 16)
    assert cached_images(paths, (16, 8), where="file", beside=tmp_path).shape == (5, 3, 16, 8)


def test_a_damaged_file_is_made_anew(paths: list[str], tmp_path: Path) -> None:
    cached_images(paths, (32, 16), where="file", beside=tmp_path)
    (file,) = (tmp_path / cache.FOLDER).glob("*.npy")
    whole = file.read_bytes()
    for broken in (b"", whole[:500], whole[:10] + b"(" + whole[11:]):  # the last in its header
        file.write_bytes(broken)
        images = cached_images(paths, (32, 16), where="file", beside=tmp_path)
        assert np.array_equal(images, decode(paths, (32, 16)))
    file.with_suffix(".json").write_text("{")
    assert len(cached_images(paths, (32, 16), where="file", beside=tmp_path)) == 5


def test_images_of_one_smaller_size_keep_it(paths: list[str], tmp_path: Path) -> None:
    for path in paths:
        Image.open(path).crop((0, 0, 20, 40)).save(path)
    assert cached_images(paths, (64, 32), where="memory", beside=tmp_path).shape == (5, 3, 40, 20)
    assert cached_images(paths, (64, 16), where="memory", beside=tmp_path).shape == (5, 3, 64, 16)
    Image.open(paths[3]).crop((0, 0, 20, 39)).save(paths[3])
    assert cached_images(paths, (64, 32), where="memory", beside=tmp_path).shape == (5, 3, 64, 32)


def test_short_memory_falls_back_on_the_file_and_says_so(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = 5 * 3 * 32 * 16
    monkeypatch.setattr(cache, "free_memory", lambda: 2 * needed)
    with caplog.at_level(logging.WARNING):
        assert not isinstance(cached_images(paths, (32, 16), where="memory", beside=tmp_path), np.memmap)
        assert not caplog.messages
        monkeypatch.setattr(cache, "free_memory", lambda: needed)
        images = cached_images(paths, (32, 16), where="memory", beside=tmp_path)
    assert isinstance(images, np.memmap)
    assert np.array_equal(images, decode(paths, (32, 16)))
    assert "using a memory-mapped file" in caplog.messages[0]


def test_a_place_that_cannot_be_written(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / cache.FOLDER).write_text("a file")
    with pytest.raises(InputError, match=r"cannot make the folder of the image cache .*--data\.cache memory"):
        cached_images(paths, (32, 16), where="file", beside=tmp_path)


def test_an_image_that_is_none_leaves_no_cache(paths: list[str], tmp_path: Path) -> None:
    Path(paths[1]).write_text("no image")
    with pytest.raises(InputError, match=r"1\.png: not an image"):
        cached_images(paths, (32, 16), where="file", beside=tmp_path)
    os.remove(paths[1])
    with pytest.raises(InputError, match=r"1\.png: no such image file"):
        cached_images(paths, (32, 16), where="memory", beside=tmp_path)
    assert not list(tmp_path.glob(f"{cache.FOLDER}/*.npy"))
