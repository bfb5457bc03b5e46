"""``gallery add``, ``remove``, ``verify`` and ``compact``, and builds that stop and go on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rga_reid.models
from rga_reid.commands import gallery as command
from rga_reid.commands import main
from rga_reid.gallery import Gallery
from rga_reid.gallery import gallery as builder
from rga_reid.gallery import index as indexes
from rga_reid.inference import distributed as team


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


def test_the_settings_are_those_of_the_library() -> None:
    assert list(command.SETTINGS) == list(dict.fromkeys(sum(indexes.SETTINGS.values(), ())))


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "ivfpq"])
def test_an_approximate_gallery_tells_its_recall(
    tmp_path: Path, features: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    given = {"hnsw": ["--hnsw-m", 8, "--ef-search", 64], "ivf": ["--nlist", 20], "ivfpq": ["--pq-m", 2]}[kind]
    facts = tmp_path / "facts.json"
    words = ["--features", features, "--index", kind, *given, "--json", facts]
    assert gallery("build", tmp_path / "g", *words) == 0
    printed = capsys.readouterr().out
    written = json.loads(facts.read_text())
    assert 0.5 < written["recall_at_10"] <= 1
    assert re.search(rf"recall@10 +{written['recall_at_10']:.3f} against the exact search", printed)
    assert written["settings"][str(given[0])[2:].replace("-", "_")] == given[1]
    assert gallery("info", tmp_path / "g") == 0
    assert capsys.readouterr().out == printed

    assert gallery("remove", tmp_path / "g", "--pid", 3, 4) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("removed 100 images (")
    assert "written again: 1 segment with 1,400 other images\n" in printed
    assert "built anew, as no index can forget: 1 index\n" in printed


def test_add_images(
    built: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(team, "BLOCK_ROWS", 2)
    for row in range(5):
        Image.new("RGB", (8, 16), (10 * row, 99, 3)).save(images / f"0009_c{row + 1}s1_000001_00.png")
    assert gallery("add", built, "--images", images) == 2
    told = "people/0000_c1s1_000000_00.png: the gallery has this image already (and 9 more); --skip-known"
    assert told in capsys.readouterr().err
    assert gallery("add", built, "--images", images, "--skip-known", "--batch-size", 1) == 0
    table = Gallery.open(built).table
    assert len(table) == 15
    assert table["pid"].tolist()[10:] == [9] * 5
    assert table["camid"].tolist()[10:] == [1, 2, 3, 4, 5]
    assert gallery("add", built, "--images", images, "--skip-known") == 0  # nothing is new
    assert len(Gallery.open(built)) == 15
    assert gallery("compact", built) == 0
    assert re.search(r"compacted: \d segments? before, 1 now", capsys.readouterr().out)
    assert gallery("check", built) == 0
    assert "checked: every byte of 3 files is as it was written" in capsys.readouterr().out


def test_add_knows_its_model(
    built: Path, images: Path, checkpoint: Path, refused: Callable[..., str]
) -> None:
    Image.new("RGB", (8, 16), (1, 2, 3)).save(images / "new.png")
    checkpoint.write_bytes(b"trained further")
    words = ["gallery", "add", "--gallery", str(built), "--images", str(images), "--skip-known"]
    assert "the gallery was built with another model" in refused(*words)
    assert "the gallery was built with another model" in refused(*words, "--checkpoint", str(checkpoint))
    assert len(Gallery.open(built)) == 10


def test_features_and_galleries_must_fit(built: Path, features: Path, refused: Callable[..., str]) -> None:
    error = refused("gallery", "add", "--gallery", str(built), "--features", str(features))
    assert "features: of dimension 16, but the gallery's have 3" in error


def test_add_features(tmp_path: Path, features: Path, refused: Callable[..., str]) -> None:
    assert gallery("build", tmp_path / "g", "--features", features) == 0
    assert "0.jpg: the gallery has this image already (and 1,499 more)" in refused(
        "gallery", "add", "--gallery", str(tmp_path / "g"), "--features", str(features)
    )
    np.savez(tmp_path / "more.npz", features=np.eye(2, 16, dtype=np.float32), paths=np.array(["a", "0.jpg"]))
    assert gallery("add", tmp_path / "g", "--features", tmp_path / "more.npz", "--skip-known") == 0
    assert Gallery.open(tmp_path / "g").table["path"].tolist()[1500:] == ["a"]


def test_remove(
    tmp_path: Path, built: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    path = "people/0003_c1s1_000006_00.png"  # the gallery has it as an absolute path
    facts = tmp_path / "facts.json"
    assert gallery("remove", built, "--pid", 0, 1, "--path", path, "--json", facts) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("removed 5 images (")
    assert Gallery.open(built).table["pid"].tolist() == [2, 2, 3, 4, 4]
    assert json.loads(facts.read_text())["count"] == 5
    assert (images / "0000_c1s1_000000_00.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "gallery remove: expected --pid N or --path P"),
        (["--pid", "99"], "pid 99: not in the gallery; nothing was removed"),
        (["--pid", "1", "-7"], "pid -7: not in the gallery"),
        (["--path", "no.png"], "no.png: not in the gallery"),
        (["--pid", "one"], "--pid: expected int, got one"),
        (["--pid", "1", "--json", "no/facts.json"], "its folder does not exist"),
    ],
)
def test_remove_refuses(built: Path, refused: Callable[..., str], words: list[str], message: str) -> None:
    assert message in refused("gallery", "remove", "--gallery", str(built), *words)
    assert len(Gallery.open(built)) == 10


def test_unreadable_images_are_refused_or_listed(
    tmp_path: Path, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "0007_c1s1_000001_00.png").write_bytes(b"no picture")
    (images / "0008_c1s1_000001_00.png").touch()
    words = ["--images", images, "--checkpoint", checkpoint]
    assert gallery("build", tmp_path / "g", *words) == 2
    assert "0007_c1s1_000001_00.png" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()
    assert gallery("build", tmp_path / "g", *words, "--skip-unreadable") == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "left out 2 unreadable images:"
    assert [Path(line.split(":")[0]).name[:4] for line in told[1:]] == ["0007", "0008"]
    assert len(Gallery.open(tmp_path / "g")) == 10
    for row in range(2):
        (images / f"000{row + 7}_c1s1_000001_00.png").unlink()
    (images / "new.png").write_bytes(b"no picture")
    assert gallery("add", tmp_path / "g", "--images", images, "--skip-known") == 2
    assert gallery("add", tmp_path / "g", "--images", images, "--skip-known", "--skip-unreadable") == 0
    assert "left out 1 unreadable images:" in capsys.readouterr().err


def test_an_interrupted_build_goes_on(
    mean_colour: Any,
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(builder, "SHARD_ROWS", 4)
    models = [mean_colour(fail_after=7), mean_colour(fail_after=6), mean_colour()]
    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": models.pop(0))
    words = ["--images", images, "--checkpoint", checkpoint, "--batch-size", 2]
    assert gallery("build", tmp_path / "g", *words) == 130
    again = ["gallery", "build", "--gallery", str(tmp_path / "g"), *map(str, words)]
    assert "unfinished build" in refused(*again)
    assert "manifest.json: missing" in refused("gallery", "info", "--gallery", str(tmp_path / "g"))
    assert gallery("build", tmp_path / "g", *words, "--resume") == 0  # embeds the six that are left
    resumed = Gallery.open(tmp_path / "g")
    assert gallery("build", tmp_path / "whole", *words) == 0
    whole = Gallery.open(tmp_path / "whole")
    assert resumed.table.equals(whole.table)
    assert resumed.search(np.eye(3), 10).equals(whole.search(np.eye(3), 10))
    assert resumed.model == whole.model
    assert "exists already" in refused(*again, "--resume")


def test_what_cannot_be_resumed(
    mean_colour: Any,
    tmp_path: Path,
    images: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr(builder, "SHARD_ROWS", 2)
    models = [mean_colour(fail_after=4), mean_colour(), mean_colour(), mean_colour()]
    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": models.pop(0))
    words = ["--images", images, "--checkpoint", checkpoint, "--batch-size", 2]
    again = ["gallery", "build", "--gallery", str(tmp_path / "g"), *map(str, words), "--resume"]
    assert gallery("build", tmp_path / "g", *words) == 130
    first = images / "0000_c1s1_000000_00.png"
    content = first.read_bytes()
    first.unlink()
    told = f"{first.name}: in the unfinished build, but gone since; --overwrite starts over"
    assert told in refused(*again)
    first.write_bytes(content)
    checkpoint.write_bytes(b"trained further")
    assert "the unfinished build used another model; --overwrite starts over" in refused(*again)
    assert gallery("build", tmp_path / "g", *words, "--overwrite") == 0
    assert len(Gallery.open(tmp_path / "g")) == 10
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["lock", "manifest.json", "segments"]


def test_build_from_a_data_set(tmp_path: Path, tiny_market: Path, checkpoint: Path) -> None:
    words = ["--data.root", tiny_market, "--data.dataset", "market1501", "--checkpoint", checkpoint]
    assert gallery("build", tmp_path / "g", *words) == 0
    table = Gallery.open(tmp_path / "g").table
    assert {Path(path).parent.name for path in table["path"]} == {"bounding_box_test"}
    assert sorted(table["pid"].unique()) == [-1, 0, 11, 12, 13, 14]
    assert all(Path(path).is_absolute() for path in table["path"])
