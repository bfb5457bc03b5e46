"""CUHK03 as published: images in a MATLAB 7.3 file, splits in MATLAB 5 files; both are made here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from rga_reid.data import check_data, cuhk03, load_card, read_table
from rga_reid.data.cards import Card
from rga_reid.errors import InputError

PROTOCOL = "cuhk03_new_protocol_config_labeled.mat"


def picture(pair: int, identity: int, number: int) -> np.ndarray:
    """Return (H, W, 3) of a size and pixels that no other image has."""
    rng = np.random.default_rng([pair, identity, number])
    return rng.integers(0, 256, (20 + number, 10 + identity, 3), dtype=np.uint8)


def write_pictures(path: Path, kind: str = "labeled", **how: object) -> dict[str, np.ndarray]:
    """Write two pairs of cameras with 2 and 1 identities: images 1, 2 of the first camera, 6 of the second.

    Args:
        how: options of h5py's ``create_dataset``.
    """
    named = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:

        def reference(data: object) -> h5py.Reference:
            stored = file.create_dataset(f"#refs#/{len(file.get('#refs#', ()))}", data=data, **how)
            return stored.ref

        pairs = []
        for pair, identities in ((1, 2), (2, 1)):
            cells = np.empty((identities, 10), object)
            for identity in range(1, identities + 1):
                for number in range(1, 11):
                    if number in (1, 2, 6):
                        pixels = picture(pair, identity, number)
                        camera = 1 if number < 6 else 2
                        named[f"{pair}_{identity:03d}_{camera}_{number:02d}.png"] = pixels
                        stored = reference(pixels.transpose(2, 1, 0))  # MATLAB's order of indices
                    else:
                        stored = reference(np.zeros(2, np.uint64))  # an empty cell: its shape
                    cells[identity - 1, number - 1] = stored
            pairs.append(reference(cells.T.astype(h5py.ref_dtype)))
        file.create_dataset(kind, data=np.array([pairs], h5py.ref_dtype), **how)
    return named


def write_protocol(path: Path, names: list[str], **changes: object) -> None:
    filelist = np.empty((len(names), 1), object)
    filelist[:, 0] = names
    labels = [10 * int(name[0]) + int(name[2:5]) for name in names]
    indices = {
        "train_idx": [number for number, label in enumerate(labels, 1) if label == 11],
        "query_idx": [number for number, name in enumerate(names, 1) if name[0] == "2" and "_2_" in name[5:]],
        "gallery_idx": [
            number for number, name in enumerate(names, 1) if name[0] == "2" and "_1_" in name[5:]
        ],
    }
    content = {"filelist": filelist, "labels": np.array([labels]).T, **indices, **changes}
    savemat(path, {key: value for key, value in content.items() if value is not None})


@pytest.fixture
def card() -> Card:
    """Return the bundled card without its counts."""
    bundled = load_card("cuhk03_labeled")
    splits = {
        name: dataclasses.replace(split, images=None, identities=None)
        for name, split in bundled.splits.items()
    }
    return dataclasses.replace(bundled, splits=splits)


@pytest.mark.parametrize(
    ("place", "how"),
    [("cuhk-03.mat", {}), ("cuhk03_release/cuhk-03.mat", {"compression": "gzip", "shuffle": True})],
)
def test_images_are_unpacked_once_and_split_by_the_protocol(
    tmp_path: Path, card: Card, place: str, how: dict[str, Any]
) -> None:
    named = write_pictures(tmp_path / place, **how)
    write_protocol(tmp_path / PROTOCOL, sorted(named))
    table = read_table(tmp_path, card)
    found = [(Path(row.path).name, row.pid, row.camid, row.split) for row in table.itertuples()]
    assert found == [
        ("1_001_1_01.png", 11, 1, "train"),
        ("1_001_1_02.png", 11, 1, "train"),
        ("1_001_2_06.png", 11, 2, "train"),
        ("2_001_2_06.png", 21, 2, "query"),
        ("2_001_1_01.png", 21, 1, "gallery"),
        ("2_001_1_02.png", 21, 1, "gallery"),
    ]
    assert {path.name for path in (tmp_path / "labeled").iterdir()} == set(named)
    for name, pixels in named.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "labeled" / name)), pixels), name
    (tmp_path / place).unlink()  # not needed any more
    assert read_table(tmp_path, card).equals(table)
    assert not check_data(tmp_path, card).problems


def test_a_card_of_both_kinds_without_a_pattern(tmp_path: Path, card: Card) -> None:
    named = write_pictures(tmp_path / "cuhk-03.mat")
    write_protocol(tmp_path / PROTOCOL, sorted(named))
    own = dataclasses.replace(card, pattern=None)
    labeled = read_table(tmp_path, own)
    assert len(labeled) == 6
    assert labeled.camid.isna().all()
    write_pictures(tmp_path / "cuhk-03.mat", "detected")
    (source,) = own.splits["gallery"].sources
    other = dataclasses.replace(source, folder=("detected",))  # with the same protocol file
    gallery = dataclasses.replace(own.splits["gallery"], sources=(other,))
    both = read_table(tmp_path, dataclasses.replace(own, splits={**own.splits, "gallery": gallery}))
    kinds = both.path.map(lambda path: Path(path).parent.name)
    assert dict(zip(both.split, kinds, strict=True)) == {
        "train": "labeled",
        "query": "labeled",
        "gallery": "detected",
    }


def test_files_that_are_missing(tmp_path: Path, card: Card) -> None:
    with pytest.raises(InputError, match=rf"{PROTOCOL}: expected this file, .*, found nothing"):
        read_table(tmp_path, card)
    write_protocol(tmp_path / PROTOCOL, ["1_001_1_01.png"])
    with pytest.raises(InputError, match=r"expected cuhk-03\.mat or .*labeled/, found cuhk03_new"):
        read_table(tmp_path, card)


def test_mat_files_of_the_wrong_kind(tmp_path: Path, card: Card) -> None:
    named = write_pictures(tmp_path / "cuhk-03.mat", kind="detected")
    protocol, archive = tmp_path / PROTOCOL, tmp_path / "cuhk-03.mat"

    def refused(file: Path, words: str) -> None:
        with pytest.raises(InputError, match=rf"{file.name}: .*{words}"):
            read_table(tmp_path, card)

    for content in (archive.read_bytes(), b"no MATLAB file" * 20, bytes((8 << 20) + 1)):
        protocol.write_bytes(content)
        refused(protocol, "protocol of CUHK03")
    write_protocol(protocol, sorted(named), query_idx=None, labels=None)
    refused(protocol, "labels, query_idx, found filelist")
    write_protocol(protocol, sorted(named))
    refused(archive, "'labeled', found #refs#, detected")
    savemat(archive, {"labeled": np.zeros(3)})
    refused(archive, "HDF5")
    with h5py.File(archive, "w") as file:
        file["labeled"] = np.zeros((1, 5))
    refused(archive, "cells of cells")
    assert not (tmp_path / "labeled").exists()  # nothing is half unpacked


def test_a_protocol_that_names_missing_images(tmp_path: Path, card: Card) -> None:
    named = write_pictures(tmp_path / "cuhk-03.mat")
    write_protocol(tmp_path / PROTOCOL, [*sorted(named), "1_001_1_03.png", "1_001_1_04.png"])
    with pytest.raises(InputError, match=r"03\.png; .*no such image file: .*04\.png"):
        read_table(tmp_path, card)
    write_protocol(tmp_path / PROTOCOL, sorted(named), train_idx=[1, 99])
    with pytest.raises(InputError, match="image 99 of 9"):
        read_table(tmp_path, card)


def test_images_that_another_process_unpacked_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "cuhk-03.mat")
    map_in_threads = cuhk03.map_in_threads

    def slower(*arguments: Any) -> Any:
        yield from map_in_threads(*arguments)
        (tmp_path / "labeled").mkdir()
        (tmp_path / "labeled" / "theirs.png").touch()

    monkeypatch.setattr(cuhk03, "map_in_threads", slower)
    folder = cuhk03.unpack(tmp_path, "labeled")
    assert [path.name for path in folder.iterdir()] == ["theirs.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cuhk-03.mat", "labeled"]
