"""Galleries on disk: whole, replaced, damaged, foreign."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pandas as pd
import pytest

from rga_reid.errors import InputError
from rga_reid.retrieval import Gallery, ModelRecord


def random_features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


def gallery_of(count: int, model: ModelRecord | None = None) -> Gallery:
    """A gallery with some labels unknown."""
    table = pd.DataFrame(
        {
            "path": [f"people/{row}.jpg" for row in range(count)],
            "pid": pd.array([None if row % 7 == 3 else row % 5 for row in range(count)], dtype="Int64"),
            "camid": pd.array([None if row % 11 == 5 else row % 3 for row in range(count)], dtype="Int64"),
        }
    )
    return Gallery.build(random_features(count), table, model=model)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def saved(tmp_path: Path, checkpoint: Path) -> Path:
    model = SimpleNamespace(size=(256, 128), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    gallery = gallery_of(30, ModelRecord.of(model, checkpoint))
    gallery.save(tmp_path / "gallery")
    return tmp_path / "gallery"


def test_an_opened_gallery_is_the_saved_one(saved: Path, checkpoint: Path) -> None:
    built, opened = gallery_of(30), Gallery.open(saved)
    query = random_features(2, seed=1)
    pd.testing.assert_frame_equal(opened.search(query, 30), built.search(query, 30))
    pd.testing.assert_frame_equal(opened.table, built.table)
    assert (len(opened), opened.dimension) == (30, 24)
    assert opened.model == ModelRecord(
        str(checkpoint), hashlib.sha256(b"weights").hexdigest(), (256, 128), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    )


def test_the_manifest_tells_what_is_there(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("version", "index", "metric", "dimension", "count")} == {
        "version": 1,
        "index": "flat",
        "metric": "cosine",
        "dimension": 24,
        "count": 30,
    }
    assert manifest["model"]["size"] == [256, 128]
    for name, recorded in manifest["files"].items():
        content = (saved / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {"manifest.json", *manifest["files"]} == {file.name for file in saved.iterdir()}


def test_save_refuses_what_exists(saved: Path) -> None:
    other = gallery_of(5)
    with pytest.raises(InputError, match="exists already"):
        other.save(saved)
    assert len(Gallery.open(saved)) == 30
    other.save(saved, overwrite=True)
    assert len(Gallery.open(saved)) == 5


def test_overwrite_never_deletes_other_files(saved: Path) -> None:
    (saved / "holiday.jpg").write_bytes(b"a picture")
    with pytest.raises(InputError, match=r"holds 'holiday.jpg', which is no part of a gallery"):
        gallery_of(5).save(saved, overwrite=True)
    assert (saved / "holiday.jpg").read_bytes() == b"a picture"
    with pytest.raises(InputError, match="found a file"):
        gallery_of(5).save(saved / "holiday.jpg", overwrite=True)


@pytest.mark.parametrize("stage", ["index", "table", "manifest"])
def test_a_failing_save_leaves_the_old_gallery(
    saved: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "index": (faiss, "write_index"),
        "table": (pd.DataFrame, "to_parquet"),
        "manifest": (Path, "write_text"),
    }[stage]
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    beside = sorted(saved.parent.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(InputError, match=r"cannot write the gallery .No space left on device"):
            gallery_of(5).save(saved, overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert sorted(saved.parent.iterdir()) == beside


@pytest.mark.parametrize("name", ["index.faiss", "table.parquet"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "missing", "folder"])
def test_a_damaged_file_is_named(saved: Path, name: str, damage: str) -> None:
    file = saved / name
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "longer":
        file.write_bytes(content + b"\0")
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    with pytest.raises(InputError, match=rf"{name}: (damaged|missing)"):
        Gallery.open(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged: not JSON"),
        ("{", "damaged: not JSON"),
        ("[]", "not the manifest of a gallery"),
        ('{"name": "an app"}', "not the manifest of a gallery"),
        ('{"format": "rga-reid gallery", "version": 2}', "format version 2; this program reads 1"),
        ('{"format": "rga-reid gallery", "version": 1}', "damaged manifest"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_named(saved: Path, text: str, message: str) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=f"manifest.json: .*{message}"):
        Gallery.open(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dimension", "24"),
        ("count", -3),
        ("count", True),
        ("metric", "euclidean"),
        ("index", "tree"),
        ("files", {}),
        ("files", None),
        ("model", {"checkpoint": "x"}),
        ("model", 5),
    ],
)
def test_a_manifest_of_odd_values_is_named(saved: Path, key: str, value: object) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(InputError, match=r"manifest.json: damaged manifest"):
        Gallery.open(saved)


def swap(saved: Path, name: str, content: bytes) -> None:
    """Put another file in place, with a manifest that vouches for it."""
    (saved / name).write_bytes(content)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (saved / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (faiss.IndexFlatIP(24), "0 x 24, but manifest.json says 30 x 24"),
        (faiss.IndexFlatL2(24), "expected a flat inner-product index, found IndexFlatL2"),
        (faiss.IndexHNSWFlat(24, 4), "expected a flat inner-product index, found IndexHNSWFlat"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(saved: Path, index: faiss.Index, message: str) -> None:
    swap(saved, "index.faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(InputError, match=message):
        Gallery.open(saved)


def test_files_of_another_kind_are_refused(saved: Path) -> None:
    table = (saved / "table.parquet").read_bytes()
    swap(saved, "table.parquet", b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"table.parquet: not a Parquet table"):
        Gallery.open(saved)
    swap(saved, "table.parquet", table)
    swap(saved, "index.faiss", b"no index")
    with pytest.raises(InputError, match=r"index.faiss: not a FAISS index"):
        Gallery.open(saved)


def test_a_table_of_another_gallery_is_refused(saved: Path, tmp_path: Path) -> None:
    gallery_of(29).save(tmp_path / "other")
    swap(saved, "table.parquet", (tmp_path / "other" / "table.parquet").read_bytes())
    with pytest.raises(InputError, match=r"table.parquet: expected 30 rows by manifest.json, found 29"):
        Gallery.open(saved)


def test_no_gallery_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected a gallery, a folder; found nothing"):
        Gallery.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"manifest.json: missing; is this folder a gallery"):
        Gallery.open(tmp_path)
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"photo.jpg: expected a gallery, a folder; found a file"):
        Gallery.open(file)


def test_the_remembered_checkpoint_is_found(saved: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = Gallery.open(saved).model
    assert model is not None
    assert model.find_checkpoint() == checkpoint
    moved = checkpoint.rename(tmp_path / "elsewhere.ckpt")
    assert model.find_checkpoint(moved) == moved
    with pytest.raises(
        InputError, match=r"model.ckpt: no such checkpoint; .*if it has moved, give --checkpoint"
    ):
        model.find_checkpoint()


def test_another_checkpoint_is_refused(saved: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = Gallery.open(saved).model
    assert model is not None
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"other weights")
    with pytest.raises(
        InputError, match=r"other.ckpt: the gallery was built with another model: .*model.ckpt"
    ):
        model.find_checkpoint(other)
    checkpoint.write_bytes(b"trained further")
    with pytest.raises(
        InputError, match=r"model.ckpt: the gallery was built with another model.*has changed"
    ):
        model.find_checkpoint()
