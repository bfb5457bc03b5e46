"""``gallery build`` and ``gallery info`` from the command line, with a tiny model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rga_reid.models
from rga_reid.commands import main
from rga_reid.gallery import Gallery


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    (folder / "lobby").mkdir(parents=True)
    colours = {
        "0001_c1s1_000001_00.jpg": "red",
        "0002_c2s1_000001_00.jpg": "blue",
        "lobby/visitor.png": "green",
    }
    for name, colour in colours.items():
        Image.new("RGB", (8, 16), colour).save(folder / name)
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(rga_reid.models, "load_model", refuse)


def build(*words: object) -> int:
    return main(["gallery", "build", *map(str, words), "--device", "cpu"])


def test_an_index_that_does_not_fit_the_model_is_refused_before_images_are_embedded(
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    def embed(*_: object, **__: object) -> None:
        raise AssertionError("images were embedded before the options were checked")

    monkeypatch.setattr("rga_reid.commands.gallery.embedded", embed)
    place = tmp_path / "g"
    words = ["--gallery", place, "--images", images, "--checkpoint", checkpoint, "--index", "ivfpq"]
    assert "pq_m" in refused("gallery", "build", *map(str, words), "--pq-m", "5", "--device", "cpu")
    assert not place.exists()


def test_build_from_images(
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    facts = tmp_path / "facts.json"
    words = ["--gallery", "gallery", "--images", "people", "--checkpoint", "model.ckpt", "--json", facts]
    assert build(*words, "--batch-size", 2) == 0
    monkeypatch.chdir(images)  # the paths hold from any folder
    table = Gallery.open(tmp_path / "gallery").table
    assert table["path"].tolist() == [str(path) for path in sorted(images.rglob("*.*g"))]
    assert table["pid"].tolist()[:2] == [1, 2]
    assert table["camid"].isna().tolist() == [False, False, True]
    written = json.loads(facts.read_text())
    assert (written["count"], written["dimension"], written["identities"], written["cameras"]) == (
        3,
        3,
        2,
        [1, 2],
    )
    assert written["model"]["checkpoint"] == str(checkpoint)
    assert written["model"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert str(checkpoint) in capsys.readouterr().out


def test_build_from_features_and_info(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    features = np.eye(4, dtype=np.float32)
    paths = np.array([f"{row}.jpg" for row in range(4)])
    np.savez(tmp_path / "f.npz", features=features, paths=paths, pids=np.array([3, 3, -1, 5]))
    assert build("--gallery", tmp_path / "g", "--features", tmp_path / "f.npz") == 0
    built = capsys.readouterr().out
    facts = tmp_path / "info.json"
    assert main(["gallery", "info", "--gallery", str(tmp_path / "g"), "--json", str(facts)]) == 0
    assert capsys.readouterr().out == built
    written = json.loads(facts.read_text())
    assert (written["count"], written["identities"], written["model"]) == (4, 2, None)
    assert written["bytes"] == sum(f.stat().st_size for f in (tmp_path / "g").rglob("*") if f.is_file())
    assert Gallery.open(tmp_path / "g").table["path"].tolist() == paths.tolist()


def test_options_of_an_action_are_named_as_they_are_typed(refused: Callable[..., str]) -> None:
    assert "rga-reid gallery: info: --gallery is required" in refused("gallery", "info")
    assert "did you mean --gallery?" in refused("gallery", "info", "--galery", "g")
    told = refused("gallery", "build", "--gallery", "g", "--hnsw-m", "many")
    assert "--hnsw-m: expected int, got many" in told


def test_features_without_paths_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "f.npz", features=np.eye(4, dtype=np.float32), pids=np.arange(4))
    assert build("--gallery", tmp_path / "g", "--features", tmp_path / "f.npz") == 2
    assert "f.npz: expected an array 'paths'" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


def test_overwrite(tmp_path: Path, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--gallery", tmp_path / "g", "--images", images, "--checkpoint", checkpoint]
    assert build(*words) == 0
    assert build(*words) == 2
    assert "exists already" in capsys.readouterr().err
    (images / "0001_c1s1_000001_00.jpg").unlink()
    assert build(*words, "--overwrite") == 0
    assert len(Gallery.open(tmp_path / "g")) == 2


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --images DIR, --data.root DIR and --features FILE.npz"),
        (["--images", "{images}", "--features", "f.npz"], "expected one of --images DIR"),
        (["--images", "{images}", "--data.root", "{images}"], "expected one of --images DIR"),
        (["--images", "{images}"], "images need --checkpoint"),
        (["--features", "f.npz", "--checkpoint", "m.ckpt"], "--checkpoint goes with images"),
        (["--features", "f.npz", "--resume"], "--resume goes with images"),
        (["--images", "{images}", "--checkpoint", "{ckpt}", "--index", "tree"], "index: expected flat, hnsw"),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--nlist", "4"],
            "index flat: unknown setting 'nlist'",
        ),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--index", "hnsw", "--hnsw-m", "0"],
            "hnsw_m: expected a whole number from 2",
        ),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--gallery", "{tmp}/no/x.db"],
            "its folder does not exist",
        ),
        (["--data.root", "{tmp}/none", "--checkpoint", "{ckpt}"], "none"),
        (["--images", "{images}", "--checkpoint", "{tmp}/no.ckpt"], "no.ckpt: no such file"),
        (["--images", "{tmp}/none", "--checkpoint", "{ckpt}"], "none: expected a folder of images"),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--batch-size", "0"],
            "--batch-size: expected a whole number of at least 1",
        ),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--json", "{tmp}/no/f.json"],
            "its folder does not exist",
        ),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--json", "{tmp}"],
            "is a folder, expected a file",
        ),
        (
            ["--images", "{images}", "--checkpoint", "{ckpt}", "--gallery", "{images}", "--overwrite"],
            "is not part of a",
        ),
        (["--images", "{images}", "--checkpoint", "{ckpt}", "--gallery", "{images}"], "exists already"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    tmp_path: Path, images: Path, words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = tmp_path / "m.ckpt"
    checkpoint.write_bytes(b"weights")
    before = sorted(tmp_path.rglob("*"))
    filled = [word.format(images=images, tmp=tmp_path, ckpt=checkpoint) for word in words]
    assert build("--gallery", tmp_path / "g", *filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_model")
def test_an_unknown_device_is_refused(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = tmp_path / "m.ckpt"
    checkpoint.write_bytes(b"weights")
    words = [
        "--gallery",
        tmp_path / "g",
        "--images",
        images,
        "--checkpoint",
        checkpoint,
        "--device",
        "abacus",
    ]
    assert main(["gallery", "build", *map(str, words)]) == 2
    assert "device 'abacus': not available" in capsys.readouterr().err


def test_an_unreadable_image_leaves_no_gallery(
    tmp_path: Path, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "0003_c1s1_000001_00.jpg").write_bytes(b"no picture")
    assert build("--gallery", tmp_path / "g", "--images", images, "--checkpoint", checkpoint) == 2
    assert "0003_c1s1_000001_00.jpg" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "people"]


def test_info_of_a_damaged_gallery(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "f.npz", features=np.eye(4, dtype=np.float32), paths=np.array(list("abcd")))
    assert build("--gallery", tmp_path / "g", "--features", tmp_path / "f.npz") == 0
    vectors = next((tmp_path / "g").rglob("vectors.npy"))
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    capsys.readouterr()
    assert main(["gallery", "info", "--gallery", str(tmp_path / "g")]) == 0
    assert main(["gallery", "check", "--gallery", str(tmp_path / "g")]) == 2
    assert "vectors.npy: damaged: its checksum differs" in capsys.readouterr().err
    vectors.unlink()
    for action in ("info", "check"):
        assert main(["gallery", action, "--gallery", str(tmp_path / "g")]) == 2
        assert "vectors.npy: missing from the gallery" in capsys.readouterr().err
