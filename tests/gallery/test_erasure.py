"""A removed person is in no file of the gallery any more."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from rga_reid.gallery import Gallery

PERSON = 11


def units(features: np.ndarray) -> np.ndarray:
    exact = features.astype(np.float64)
    return (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float32)


def traces(folder: Path, path: str, row: np.ndarray) -> dict[str, set[str]]:
    """Return where files contain an image: raw bytes, decoded tables, FAISS's vectors."""
    found: dict[str, set[str]] = {}

    def note(file: Path, what: str, present: object) -> None:
        if present:
            found.setdefault(file.name, set()).add(what)

    for file in (path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        note(file, "bytes", any(part.tobytes() in content for part in np.array_split(row, 4)))
        note(file, "path", path.encode() in content)
        if file.suffix == ".parquet":
            note(file, "table", path in pd.read_parquet(io.BytesIO(content))["path"].tolist())
        if file.suffix == ".npy":
            note(file, "row", (np.load(file) @ row > 0.999).any())
        if file.suffix == ".faiss":
            index = faiss.read_index(str(file))
            if isinstance(index, faiss.IndexIVF):
                index.make_direct_map()
            note(file, "decoded", (index.reconstruct_n(0, index.ntotal) @ row > 0.9).any())
    return found


def centroids(folder: Path) -> np.ndarray:
    """Of all inverted files, as unit rows."""
    rows = [np.empty((0, 32), np.float32)]
    for file in folder.rglob("*.faiss"):
        index = faiss.read_index(str(file))
        if isinstance(index, faiss.IndexIVF):
            rows.append(units(index.quantizer.reconstruct_n(0, index.nlist)))
    return np.concatenate(rows)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_no_file_contains_a_removed_person(tmp_path: Path, crowd: Callable, kind: str) -> None:
    features, table = crowd(1500)
    late, names = crowd(2, seed=9)
    names["pid"] = [PERSON, PERSON + 1]
    folder = tmp_path / "gallery"
    Gallery.build(features, table, index=kind).save(folder)
    gallery = Gallery.open(folder)
    gallery.add(late, names)  # the same person in another segment
    people, rows = pd.concat([table, names], ignore_index=True), units(np.vstack([features, late]))
    mean = units(rows[people["pid"] == PERSON].mean(axis=0, keepdims=True))[0]
    expected = {"vectors.npy": {"bytes", "row"}, "table.parquet": {"table"}}
    if kind != "flat":
        expected["index.faiss"] = {"decoded"} if kind == "ivfpq" else {"bytes", "decoded"}
    gone, stays = (
        [people.index[people["pid"] == pid][0], 1500 + number] for number, pid in enumerate(names["pid"])
    )

    def search(row: int) -> dict[str, set[str]]:
        found = traces(folder, people["path"][row], rows[row])
        return {name: what - {"path"} for name, what in found.items()}  # compressed, a path may be legible

    assert search(gone[0]) == search(stays[0]) == expected
    assert search(gone[1]).keys() == {"vectors.npy", "table.parquet"}
    if kind in ("ivf", "ivfpq"):
        assert (centroids(folder) @ mean > 0.98).any()  # what an index learns of a person

    done = gallery.remove(pids=PERSON)
    assert (done.images, done.indexes) == ((people["pid"] == PERSON).sum(), int(kind != "flat"))
    for row in people.index[people["pid"] == PERSON]:
        assert traces(folder, people["path"][row], rows[row]) == {}
    assert not (centroids(folder) @ mean > 0.98).any()
    assert search(stays[0]) == expected  # the same search still finds who stays
    assert search(stays[1]).keys() >= {"vectors.npy", "table.parquet"}
    assert gallery.check() >= 4


def test_what_a_killed_removal_left_goes_with_the_next_write(tmp_path: Path, crowd: Callable) -> None:
    """Killed between the switch and the deletion: the old segment remains, but no manifest names it."""
    features, table = crowd(100)
    folder = tmp_path / "gallery"
    Gallery.build(features, table).save(folder)
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    gallery = Gallery.open(folder)
    gallery.remove(paths=table["path"][3])
    row = units(features[3:4])[0]
    for path, content in old.items():
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    assert traces(folder, table["path"][3], row)
    assert len(Gallery.open(folder)) == 99  # readers pass it over
    gallery.remove(paths=table["path"][4])
    assert traces(folder, table["path"][3], row) == {}
