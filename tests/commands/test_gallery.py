"""``gallery``: build, add, remove, info, check and compact, with a tiny model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rga_reid.models
from rga_reid.commands import main
from rga_reid.gallery import Gallery
from rga_reid.gallery import build as builder
from rga_reid.gallery.location import open_store
from rga_reid.inference import distributed


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images: persons 0 to 4, by two cameras each."""
    folder = tmp_path / "people"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for row in range(10):
        colour = tuple(map(int, generator.integers(0, 256, 3)))
        Image.new("RGB", (8, 16), colour).save(folder / f"{row // 2:04d}_c{row % 2 + 1}s1_00000{row}_00.png")
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded before the options were checked")

    monkeypatch.setattr(rga_reid.models, "load_model", refuse)


def gallery(action: str, folder: Path, *words: object) -> int:
    return main(["gallery", action, "--gallery", str(folder), *map(str, words)])


@pytest.fixture
def built(tmp_path: Path, images: Path, checkpoint: Path) -> Path:
    assert gallery("build", tmp_path / "g", "--images", images, "--checkpoint", checkpoint) == 0
    return tmp_path / "g"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """1,500 images of 30 persons, in an .npz file."""
    generator = np.random.default_rng(0)
    pids = np.arange(1500) % 30
    rows = generator.normal(size=(30, 16))[pids] + 0.5 * generator.normal(size=(1500, 16))
    paths = np.array([f"{row}.jpg" for row in range(1500)])
    np.savez(tmp_path / "f.npz", features=rows.astype(np.float32), paths=paths, pids=pids)
    return tmp_path / "f.npz"


def test_build_from_images(
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (images / "lobby").mkdir()
    Image.new("RGB", (8, 16), "green").save(images / "lobby" / "visitor.png")
    monkeypatch.chdir(tmp_path)
    words = ["--images", "people", "--checkpoint", "model.ckpt", "--json", "facts.json", "--device", "cpu"]
    assert gallery("build", Path("g"), *words, "--batch-size", 2) == 0
    monkeypatch.chdir(images)  # the paths hold from any folder
    table = Gallery.open(tmp_path / "g").table
    assert table["path"].tolist() == [str(path) for path in sorted(images.rglob("*.png"))]
    assert table["pid"].tolist()[:4] == [0, 0, 1, 1]
    assert table["camid"].isna().tolist() == [False] * 10 + [True]
    written = json.loads((tmp_path / "facts.json").read_text())
    assert (written["count"], written["dimension"], written["identities"]) == (11, 3, 5)
    assert (written["cameras"], written["location"]) == ([1, 2], str(tmp_path / "g"))
    assert written["model"]["checkpoint"] == str(checkpoint)
    assert written["model"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert str(checkpoint) in capsys.readouterr().out


def test_build_from_a_data_set(tmp_path: Path, tiny_market: Path, checkpoint: Path) -> None:
    words = ["--data.root", tiny_market, "--data.dataset", "market1501", "--checkpoint", checkpoint]
    assert gallery("build", tmp_path / "g", *words) == 0
    table = Gallery.open(tmp_path / "g").table
    assert {Path(path).parent.name for path in table["path"]} == {"bounding_box_test"}
    assert sorted(table["pid"].unique()) == [-1, 0, 11, 12, 13, 14]
    assert all(Path(path).is_absolute() for path in table["path"])


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_build_from_features_info_and_remove(
    tmp_path: Path, features: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    given = {"hnsw": ["--hnsw-m", 8, "--ef-search", 64], "ivf": ["--nlist", 20], "ivfpq": ["--pq-m", 2]}
    settings, facts = given.get(kind, []), tmp_path / "facts.json"
    assert gallery("build", tmp_path / "g", "--features", features, "--index", kind, *settings) == 0
    printed = capsys.readouterr().out
    assert gallery("info", tmp_path / "g", "--json", facts) == 0
    assert capsys.readouterr().out == printed
    written = json.loads(facts.read_text())
    assert (written["count"], written["identities"], written["model"]) == (1500, 30, None)
    assert written["bytes"] == sum(f.stat().st_size for f in (tmp_path / "g").rglob("*") if f.is_file())
    if settings:
        assert written["settings"][str(settings[0])[2:].replace("-", "_")] == settings[1]
        assert 0.5 < written["recall_at_10"] <= 1
        assert re.search(rf"recall@10 +{written['recall_at_10']:.3f}", printed)
    assert gallery("remove", tmp_path / "g", "--pid", 3, 4) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("removed 100 images (")
    assert "1 segment" in lines[1]
    assert "1,400" in lines[1]
    assert ("1 index" in lines[2]) == (kind != "flat")


def test_add_images(
    built: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(distributed, "BLOCK_ROWS", 2)
    for row in range(5):
        Image.new("RGB", (8, 16), (10 * row, 99, 3)).save(images / f"0009_c{row + 1}s1_000001_00.png")
    error = refused("gallery", "add", "--gallery", str(built), "--images", str(images))
    assert "0000_c1s1_000000_00.png" in error
    assert "9 more" in error
    assert "--skip-known" in error
    for new in (5, 0):  # the second time nothing is new
        assert gallery("add", built, "--images", images, "--skip-known", "--batch-size", 1) == 0
        assert f"images: {new}, persons: {min(new, 1)}," in capsys.readouterr().out
        table = Gallery.open(built).table
        assert table["pid"].tolist()[10:] == [9] * 5
        assert table["camid"].tolist()[10:] == [1, 2, 3, 4, 5]
    capsys.readouterr()
    assert gallery("compact", built) == 0
    assert re.search(r"compacted: \d segments? before, 1 now", capsys.readouterr().out)
    assert gallery("check", built) == 0
    assert "3 files" in capsys.readouterr().out


def test_add_fails_before_images_are_embedded_if_a_server_has_the_lock(
    built: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "0009_c1s1_000001_00.png").write_bytes(b"refused when it is read")
    words = ["gallery", "add", "--gallery", str(built), "--images", str(tmp_path / "new"), "--wait", "0"]
    with open_store(str(built)).exclusive():
        assert "/v1/images" in refused(*words)
    assert len(Gallery.open(built)) == 10


def test_add_features(built: Path, tmp_path: Path, features: Path, refused: Callable[..., str]) -> None:
    words = ["gallery", "add", "--features", str(features), "--gallery"]
    assert "does not say which model" in refused(*words, str(built))
    assert "dimension 16" in refused(*words, str(built), "--same-features")
    assert gallery("build", tmp_path / "other", "--features", features) == 0
    assert "1,499 more" in refused(*words, str(tmp_path / "other"))
    np.savez(tmp_path / "more.npz", features=np.eye(2, 16, dtype=np.float32), paths=np.array(["a", "0.jpg"]))
    assert gallery("add", tmp_path / "other", "--features", tmp_path / "more.npz", "--skip-known") == 0
    assert Gallery.open(tmp_path / "other").table["path"].tolist()[1500:] == ["a"]


def test_add_refuses_another_model(
    built: Path, images: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    Image.new("RGB", (8, 16), (1, 2, 3)).save(images / "new.png")
    checkpoint.write_bytes(b"trained further")
    words = ["gallery", "add", "--gallery", str(built), "--images", str(images), "--skip-known"]
    assert "another model" in refused(*words)
    assert "another model" in refused(*words, "--checkpoint", str(checkpoint))
    assert len(Gallery.open(built)) == 10


def test_remove(
    tmp_path: Path, built: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "people/0003_c1s1_000006_00.png"  # the gallery has it as an absolute path
    capsys.readouterr()
    assert gallery("remove", built, "--pid", 0, 1, "--path", path, "--json", "facts.json") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("removed 5 images (")
    assert Gallery.open(built).table["pid"].tolist() == [2, 2, 3, 4, 4]
    assert json.loads((tmp_path / "facts.json").read_text())["count"] == 5
    assert (images / "0000_c1s1_000000_00.png").exists()


def test_dry_run_lists_the_files_that_remain(
    tmp_path: Path, built: Path, images: Path, capsys: pytest.CaptureFixture
) -> None:
    facts = tmp_path / "facts.json"
    assert gallery("remove", built, "--where", "camera = 1", "--dry-run", "--json", facts) == 0
    assert json.loads(facts.read_text())["paths"] == sorted(map(str, images.glob("*_c1s1_*")))
    assert len(Gallery.open(built)) == 10
    assert "files are not deleted" in capsys.readouterr().out


def test_remove_names_uploaded_pictures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = pd.DataFrame(
        {"path": ["a.jpg", "b.jpg", "c"], "pid": [1, 1, 2], "upload": ["a.jpg", "b.jpg", ""]}
    )
    Gallery.build(np.eye(3, dtype=np.float32), table).save(tmp_path / "G")
    for words in (["--pid", 1, "--dry-run"], ["--pid", 1]):
        assert gallery("remove", tmp_path / "G", *words) == 0
        assert re.search("2 pictures uploaded .*: a.jpg, b.jpg\n", capsys.readouterr().out)
    assert gallery("remove", tmp_path / "G", "--pid", 2) == 0
    assert "to a server" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--pid"),
        (["--pid", "99"], "pid 99: "),
        (["--pid", "1", "-7"], "pid -7: "),
        (["--path", "no.png"], "no.png: "),
        (["--pid", "one"], "pid: expected a whole number"),
        (["--pid", "1", "--json", "no/facts.json"], "no/facts.json"),
    ],
)
def test_remove_refuses(built: Path, refused: Callable[..., str], words: list[str], message: str) -> None:
    assert message in refused("gallery", "remove", "--gallery", str(built), *words)
    assert len(Gallery.open(built)) == 10


def test_overwrite(tmp_path: Path, built: Path, images: Path, refused: Callable[..., str]) -> None:
    words = ["--images", images, "--checkpoint", tmp_path / "model.ckpt"]
    assert "exists already" in refused("gallery", "build", "--gallery", str(built), *map(str, words))
    next(images.iterdir()).unlink()
    assert gallery("build", built, *words, "--overwrite") == 0
    assert len(Gallery.open(built)) == 9


def test_unreadable_images_are_refused_or_listed(
    tmp_path: Path, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture, refused: Callable[..., str]
) -> None:
    (images / "0007_c1s1_000001_00.png").write_bytes(b"no picture")
    (images / "0008_c1s1_000001_00.png").touch()
    words = ["--gallery", str(tmp_path / "g"), "--images", str(images)]
    before = sorted(tmp_path.iterdir())
    assert "0007_c1s1_000001_00.png" in refused("gallery", "build", *words, "--checkpoint", str(checkpoint))
    assert sorted(tmp_path.iterdir()) == before
    assert main(["gallery", "build", *words, "--checkpoint", str(checkpoint), "--skip-unreadable"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "2 unreadable images" in lines[0]
    assert [Path(line.split(":")[0]).name[:4] for line in lines[1:]] == ["0007", "0008"]
    assert len(Gallery.open(tmp_path / "g")) == 10
    assert "0007" in refused("gallery", "add", *words, "--skip-known")
    assert main(["gallery", "add", *words, "--skip-known", "--skip-unreadable"]) == 0


def test_an_interrupted_build_is_resumed(
    mean_colour: Any,
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(builder, "SHARD_ROWS", 4)
    models = [
        mean_colour(fail_after=7),
        mean_colour(),
        mean_colour(),
        mean_colour(fail_after=6),
        mean_colour(),
    ]
    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": models.pop(0))
    words = ["--images", images, "--checkpoint", checkpoint, "--batch-size", 2]
    assert gallery("build", tmp_path / "g", *words) == 130
    again = ["gallery", "build", "--gallery", str(tmp_path / "g"), *map(str, words)]
    assert "unfinished build" in refused(*again)
    assert "manifest.json: missing" in refused("gallery", "info", "--gallery", str(tmp_path / "g"))
    first = min(images.iterdir())
    content = first.read_bytes()
    first.unlink()
    assert first.name in refused(*again, "--resume")
    first.write_bytes(content)
    checkpoint.write_bytes(b"trained further")
    assert "another model" in refused(*again, "--resume")
    checkpoint.write_bytes(b"weights")
    assert gallery("build", tmp_path / "g", *words, "--resume") == 0  # embeds the six that are left
    resumed = Gallery.open(tmp_path / "g")
    assert gallery("build", tmp_path / "whole", *words) == 0
    whole = Gallery.open(tmp_path / "whole")
    assert resumed.table.equals(whole.table)
    assert resumed.search(np.eye(3), 10).equals(whole.search(np.eye(3), 10))
    assert resumed.model == whole.model
    assert "exists already" in refused(*again, "--resume")
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["lock", "manifest.json", "segments"]


IMAGES = ["--images", "{images}", "--checkpoint", "{ckpt}"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--images"),
        (["--images", "{images}", "--features", "f.npz"], "--images"),
        (["--images", "{images}", "--data.root", "{images}"], "--images"),
        (["--images", "{images}"], "--checkpoint"),
        (["--features", "f.npz", "--checkpoint", "m.ckpt"], "--checkpoint"),
        (["--features", "f.npz", "--resume"], "--resume"),
        (["--features", "{pathless}"], "'paths'"),
        ([*IMAGES, "--index", "tree"], "index: "),
        ([*IMAGES, "--nlist", "4"], "'nlist'"),
        ([*IMAGES, "--index", "hnsw", "--hnsw-m", "0"], "hnsw_m: "),
        ([*IMAGES, "--hnsw-m", "many"], "--hnsw-m: "),
        ([*IMAGES, "--gallery", "{tmp}/no/x.db"], "x.db: "),
        (["--data.root", "{tmp}/none", "--checkpoint", "{ckpt}"], "none"),
        (["--images", "{images}", "--checkpoint", "{tmp}/no.ckpt"], "no.ckpt: "),
        (["--images", "{tmp}/none", "--checkpoint", "{ckpt}"], "none: "),
        ([*IMAGES, "--batch-size", "0"], "--batch-size: "),
        ([*IMAGES, "--gallery", "{images}", "--overwrite"], "not part of a gallery"),
        ([*IMAGES, "--gallery", "{images}"], "exists already"),
        ([*IMAGES, "--device", "abacus"], "abacus"),
    ],
)
def test_options_are_checked_before_the_model_is_loaded(
    tmp_path: Path, images: Path, words: list[str], message: str, refused: Callable[..., str]
) -> None:
    checkpoint, pathless = tmp_path / "m.ckpt", tmp_path / "pathless.npz"
    checkpoint.write_bytes(b"weights")
    np.savez(pathless, features=np.eye(4, dtype=np.float32), pids=np.arange(4))
    before = sorted(tmp_path.rglob("*"))
    filled = [word.format(images=images, tmp=tmp_path, ckpt=checkpoint, pathless=pathless) for word in words]
    assert message in refused("gallery", "build", "--gallery", str(tmp_path / "g"), *filled)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_that_does_not_fit_is_refused_before_images_are_embedded(
    mean_colour: Any,
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": mean_colour(fail_after=0))
    words = ["--images", str(images), "--checkpoint", str(checkpoint), "--index", "ivfpq", "--pq-m", "5"]
    assert "pq_m" in refused("gallery", "build", "--gallery", str(tmp_path / "g"), *words)
    assert not (tmp_path / "g").exists()


def test_info_and_check_of_a_damaged_gallery(built: Path, refused: Callable[..., str]) -> None:
    (vectors,) = built.rglob("vectors.npy")
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    assert gallery("info", built) == 0
    assert "vectors.npy: damaged" in refused("gallery", "check", "--gallery", str(built))
    vectors.unlink()
    for action in ("info", "check"):
        assert "vectors.npy: missing" in refused("gallery", action, "--gallery", str(built))


@pytest.mark.slow
def test_the_commands_on_milvus_answer_as_on_a_folder(
    tmp_path: Path, tiny_market: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    from milvus_lite.server_manager import server_manager_instance

    location, folder = str(tmp_path / "people.db"), str(tmp_path / "folder")
    image, answers = str(next((tiny_market / "query").iterdir())), []
    for number, name in enumerate((location, folder)):
        words = ["--data.root", tiny_market, "--checkpoint", tiny_checkpoint, "--device", "cpu"]
        assert gallery("build", Path(name), *words) == 0
        assert gallery("remove", Path(name), "--pid", 12) == 0
        for action in ("compact", "check"):
            assert gallery(action, Path(name)) == 0
        assert gallery("info", Path(name), "--json", tmp_path / "info.json") == 0
        facts = json.loads((tmp_path / "info.json").read_text())
        assert (facts["location"], facts["removals"], facts["bytes"] > 0) == (name, 1, True)
        limits = ["--where", "pid >= 0", "--exclude-camera", "1", "--rerank", "--top-k", "4"]
        out = ["--json", str(tmp_path / f"{number}.json"), "--html", str(tmp_path / "page.html")]
        assert main(["query", "--gallery", name, "--image", image, *limits, *out, "--device", "cpu"]) == 0
        answers.append(json.loads((tmp_path / f"{number}.json").read_text()))
    assert answers[0] == answers[1]
    assert len(answers[0][0]["matches"]) == 4
    server_manager_instance.release_server(location)


def test_another_file_of_the_same_weights_is_the_same_model(
    tmp_path: Path, images: Path, tiny_checkpoint: Path, refused: Callable[..., str]
) -> None:
    """Such as the export of a checkpoint."""
    tensors = load_file(tiny_checkpoint)
    with safe_open(tiny_checkpoint, "pt") as file:
        metadata = file.metadata()
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, same, {**metadata, "comment": "other bytes"})
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file({**tensors, name: tensors[name] + 1}, other, metadata)
    words = ["--images", str(images), "--device", "cpu", "--checkpoint"]
    assert gallery("build", tmp_path / "g", *words, tiny_checkpoint) == 0
    assert gallery("add", tmp_path / "g", "--skip-known", *words, same) == 0
    image = ["--image", str(min(images.iterdir())), "--device", "cpu", "--checkpoint"]
    assert main(["query", "--gallery", str(tmp_path / "g"), *image, str(same)]) == 0
    assert "another model" in refused("query", "--gallery", str(tmp_path / "g"), *image, str(other))
    add = ["gallery", "add", "--gallery", str(tmp_path / "g"), "--skip-known", *words]
    assert "another model" in refused(*add, str(other))
