"""Damaged, edited and unknown files of a gallery are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import Gallery
from rga_reid.gallery.manifest import canonical_json
from tests.security.hostile import put, reseal


def random_features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with all kinds of files: an index and a deletion log."""
    folder = tmp_path_factory.mktemp("template") / "gallery"
    table = pd.DataFrame({"path": [f"people/{row}.jpg" for row in range(1200)], "pid": np.arange(1200) % 5})
    Gallery.build(random_features(1200), table, index="ivf").save(folder)
    Gallery.open(folder).remove(paths="people/3.jpg")
    return folder


@pytest.fixture
def gallery(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "gallery"))


@pytest.mark.parametrize("name", ["index.faiss", "table.parquet", "vectors.npy", "removals-2.jsonl"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "folder"])
def test_a_file_of_another_size_is_refused(gallery: Path, name: str, damage: str) -> None:
    (file,) = gallery.rglob(name)
    content = file.read_bytes()
    if damage in ("truncated", "longer"):
        file.write_bytes(content[:-1] if damage == "truncated" else content + b"\0")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    with pytest.raises(InputError, match=rf"{name}: (damaged|missing)"):
        Gallery.open(gallery)


def test_any_flipped_byte_is_named(gallery: Path) -> None:
    opened = Gallery.open(gallery)
    assert opened.check() == 5
    generator = np.random.default_rng(0)
    for file in sorted(path for path in gallery.rglob("*") if path.is_file() and path.name != "lock"):
        content = file.read_bytes()
        for position in (0, len(content) - 1, *generator.integers(0, len(content), 4)):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"{file.name}: "):
                opened.check()
        file.write_bytes(content)
    assert opened.check() == 5


def test_all_damaged_files_are_named(gallery: Path) -> None:
    opened = Gallery.open(gallery)
    next(gallery.rglob("index.faiss")).unlink()
    table = next(gallery.rglob("table.parquet"))
    table.write_bytes(table.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"index.faiss: missing") as caught:
        opened.check()
    assert "table.parquet: damaged" in str(caught.value)


def test_vectors_that_are_not_of_length_1_are_named(gallery: Path) -> None:
    """The manifest has their checksum, so only ``check`` finds them."""
    (file,) = gallery.rglob("vectors.npy")
    put(gallery, "vectors.npy", file.read_bytes()[:-4] + np.float32(7).tobytes())
    with pytest.raises(InputError, match=r"vectors.npy: .*length 1"):
        Gallery.open(gallery).check()


def test_a_damaged_index_never_reaches_faiss(gallery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index,) = gallery.rglob("index.faiss")
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    opened = Gallery.open(gallery)  # sizes and headers are right
    monkeypatch.setattr(faiss, "read_index", None)
    for _ in range(2):
        with pytest.raises(InputError, match=r"index.faiss: damaged"):
            opened.search(random_features(1))


FORMAT = '{"format": "rga-reid gallery", "version": '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not the manifest"),
        ('{"name": "an app"}', "not the manifest"),
        (FORMAT + "4}", "format version 4"),
        (FORMAT + "2}", "damaged or edited"),
        (FORMAT + '2, "sha256": "\\ud800"}', "damaged or edited"),
        (canonical_json({"format": "rga-reid gallery", "version": 2}).decode(), "damaged manifest"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_named(gallery: Path, text: str, message: str) -> None:
    (gallery / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=rf"manifest.json: .*{message}"):
        Gallery.open(gallery)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", None),
        ("dimension", "24"),
        ("count", 29),
        ("next_id", True),
        ("next_id", -3),
        ("metric", "euclidean"),
        ("index", {"kind": "tree", "settings": {}}),
        ("index", {"kind": "ivf", "settings": {"hnsw_m": 4}}),
        ("index", "flat"),
        ("segments", [{"name": "../../other"}]),
        ("segments", None),
        ("removals", {"name": "../removals-1.jsonl", "bytes": 1, "sha256": ""}),
        ("model", {"checkpoint": "x"}),
        ("model", 5),
    ],
)
def test_a_manifest_of_odd_values_is_named(gallery: Path, key: str, value: object) -> None:
    reseal(gallery, lambda manifest: manifest.update({key: value}))
    with pytest.raises(InputError, match=r"manifest.json: damaged manifest"):
        Gallery.open(gallery)


@pytest.mark.parametrize(
    ("spec", "count", "message"),
    [
        ("IVF30,Flat", 0, "1199 x 24"),
        ("HNSW8,Flat", 1199, "kind ivf, .* IndexHNSWFlat"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(gallery: Path, spec: str, count: int, message: str) -> None:
    index = faiss.index_factory(24, spec, faiss.METRIC_INNER_PRODUCT)
    index.train(random_features(1199))
    index.add(random_features(count))
    put(gallery, "index.faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(InputError, match=rf"index.faiss: .*{message}"):
        Gallery.open(gallery).search(random_features(1))


def test_files_of_another_kind_are_refused(gallery: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", random_features(1199).astype(np.float64))
    other = pd.DataFrame({"path": [f"{row}.jpg" for row in range(7)], "id": range(7)})
    other.to_parquet(tmp_path / "short.parquet")
    pd.concat([other] * 172).head(1199).to_parquet(tmp_path / "unordered.parquet")
    for name, content, message in [
        ("table.parquet", b"PAR1 no table PAR1", ""),
        ("table.parquet", (tmp_path / "short.parquet").read_bytes(), "rows"),
        ("table.parquet", (tmp_path / "unordered.parquet").read_bytes(), "ids"),
        ("vectors.npy", b"no array", "damaged"),
        ("vectors.npy", (tmp_path / "wide.npy").read_bytes(), "float64"),
        ("vectors.npy", next(gallery.rglob("vectors.npy")).read_bytes() + b"more", "damaged"),
        ("index.faiss", next(gallery.rglob("index.faiss")).read_bytes()[:40], "FAISS"),
    ]:
        (file,) = gallery.rglob(name)
        whole = file.read_bytes()
        put(gallery, name, content)
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            Gallery.open(gallery).search(random_features(1))
        put(gallery, name, whole)
    assert len(Gallery.open(gallery)) == 1199
