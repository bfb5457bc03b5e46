"""``features`` of folders and data sets, and what the other commands do with its file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rga_reid import Gallery, load_embedder
from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.inference import extract_features
from rga_reid.inference.feature_files import read_features, read_fingerprint, write_features
from rga_reid.models import build_model, save_model
from rga_reid.training import ReIDData
from tests.onnx_files import DIMENSION, write_onnx


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    """A network that takes pixels."""
    return write_onnx(tmp_path / "pixels.onnx", "uint8")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Another network of the same dimension."""
    return write_onnx(tmp_path / "foreign.onnx", metadata={"mean": "[0, 0, 0]", "std": "[1, 1, 1]"})


@pytest.fixture
def table(tiny_market: Path, tmp_path: Path) -> Path:
    """A CSV file of the data set."""
    rows = read_table(tiny_market)
    rows.to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def features(*words: object) -> None:
    assert main(["features", *map(str, words)]) == 0


@pytest.mark.parametrize("split", [None, "train", "query", "gallery"])
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_data_set(
    tiny_market: Path, table: Path, tmp_path: Path, onnx: Path, kind: str, split: str | None
) -> None:
    root = tiny_market if kind == "folder" else table
    words = [] if split is None else ["--data.split", split]
    features("--checkpoint", onnx, "--data.root", root, *words, "--out", tmp_path / "f.npz")
    expected = read_table(tiny_market)
    expected = expected[(expected["split"] == split) | (split is None)].drop(columns="split")
    found, labels = read_features(tmp_path / "f.npz")
    pd.testing.assert_frame_equal(labels, expected.reset_index(drop=True))
    np.testing.assert_array_equal(found, extract_features(load_embedder(onnx), expected)[0])


def test_the_identities_held_out_of_training(
    tiny_market: Path, table: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = ReIDData(
        str(tiny_market), identities_per_batch=2, images_per_identity=2, val_fraction=0.4, val_seed=3
    )
    model = build_model(backbone="resnet18", attention=None, size=(64, 32))
    model.trained_on = data.statistics
    save_model(model, tmp_path / "m.safetensors")
    words = ["--checkpoint", tmp_path / "m.safetensors", "--data.split", "val", "--data.root"]
    for root in (tiny_market, table):
        features(*words, root, "--out", tmp_path / "f.npz", "--overwrite")
        labels = read_features(tmp_path / "f.npz")[1]
        assert 0 < labels.pid.nunique() < 8
        assert labels.path.tolist() == data.val_table.path.tolist()
    fewer = pd.read_csv(table)
    fewer = fewer[fewer.pid != data.train_table.pid[0]]
    fewer.to_csv(tmp_path / "fewer.csv", index=False)
    out = ["--out", tmp_path / "new.npz"]
    assert "data set of its training" in refused(
        "features", *map(str, [*words, tmp_path / "fewer.csv", *out])
    )
    model.trained_on = None
    save_model(model, tmp_path / "m.safetensors")
    assert "held out" in refused("features", *map(str, [*words, tiny_market, *out]))


def test_another_card(tmp_path: Path, onnx: Path) -> None:
    for split, person in (("train", "1"), ("query", "2"), ("gallery", "2")):
        (tmp_path / "set" / split / person).mkdir(parents=True)
        Image.new("RGB", (4, 8), (int(person) * 50, 10, 10)).save(tmp_path / "set" / split / person / "a.png")
    words = ["--data.root", tmp_path / "set", "--data.dataset", "folders", "--data.split", "gallery"]
    features("--checkpoint", onnx, *words, "--out", tmp_path / "f.npz")
    assert read_features(tmp_path / "f.npz")[1]["pid"].tolist() == [2]


@pytest.mark.parametrize("source", ["--images", "--data.root"])
def test_unreadable_images_are_left_out_and_listed(
    tiny_market: Path, tmp_path: Path, onnx: Path, refused: Callable[..., str], source: str, capsys: Any
) -> None:
    shutil.copytree(tiny_market, tmp_path / "market")
    bad = [tmp_path / "market" / "query" / f"0011_c1s1_00000{number}_01.jpg" for number in (7, 8)]
    bad[0].write_bytes(b"no picture")
    bad[1].write_bytes(next(tiny_market.glob("query/*.jpg")).read_bytes()[:200])
    words = ["--checkpoint", onnx, source, tmp_path / "market", "--out", tmp_path / "f.npz"]
    message = refused("features", *map(str, words))
    assert bad[0].name in message
    assert "--skip-unreadable" in message
    assert not (tmp_path / "f.npz").exists()
    features(*words, "--skip-unreadable", "--batch-size", 3)
    listed = capsys.readouterr().err
    for file in bad:
        assert file.name in listed
    found, labels = read_features(tmp_path / "f.npz")
    readable = sorted(str(path) for path in (tmp_path / "market").rglob("*.jpg") if path not in bad)
    assert sorted(labels["path"]) == readable
    np.testing.assert_array_equal(found, extract_features(load_embedder(onnx), labels)[0])


def test_no_readable_image(tmp_path: Path, onnx: Path, capsys: Any) -> None:
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "a.jpg").write_bytes(b"no picture")
    words = ["--checkpoint", onnx, "--images", tmp_path / "people", "--out", tmp_path / "f.npz"]
    assert main(["features", *map(str, words), "--skip-unreadable"]) == 2
    assert "none of the images" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--images DIR, --table FILE and --data.root"),
        ("--images {tmp} --data.root {tmp}", "--images DIR, --table FILE and --data.root"),
        ("--images {tmp} --data.split query", "--data.split"),
        ("--data.root {tmp} --data.split test", "--data.split"),
        ("--images {tmp} --input-size 256", "--input-size"),
        ("--images {tmp} --input-size 8x8", "pixels.onnx: takes images of 4 x 2"),
        ("--images {tmp} --mean 0 0", "--mean"),
        ("--images {tmp} --float-input", "--float-input"),
        ("--images {tmp} --checkpoint {tmp}/none.onnx", "none.onnx: no such file"),
        ("--images {tmp} --checkpoint no_module.Own", "no_module.Own"),
    ],
)
def test_bad_options(tmp_path: Path, onnx: Path, refused: Any, words: str, message: str) -> None:
    Image.new("RGB", (4, 8)).save(tmp_path / "a.png")
    given = words.format(tmp=tmp_path).split()
    assert message in refused("features", "--checkpoint", str(onnx), "--out", str(tmp_path / "f.npz"), *given)


def test_the_fingerprint_goes_with_the_features(
    tiny_market: Path, tmp_path: Path, onnx: Path, foreign: Path, refused: Callable[..., str]
) -> None:
    g, q, other, bare = (tmp_path / f"{name}.npz" for name in ("g", "q", "other", "bare"))
    features("--checkpoint", onnx, "--data.root", tiny_market, "--data.split", "gallery", "--out", g)
    features("--checkpoint", onnx, "--data.root", tiny_market, "--data.split", "query", "--out", q)
    features("--checkpoint", foreign, "--data.root", tiny_market, "--data.split", "query", "--out", other)
    write_features(bare, *read_features(q))
    assert read_fingerprint(q) == load_embedder(onnx).fingerprint
    assert read_fingerprint(bare) is None
    assert main(["gallery", "build", "--gallery", str(tmp_path / "G"), "--features", str(g)]) == 0
    assert Gallery.open(tmp_path / "G").model == load_embedder(onnx).fingerprint
    image = str(next(tiny_market.glob("query/*.jpg")))
    words = ["query", "--gallery", str(tmp_path / "G"), "--json", str(tmp_path / "m.json")]
    assert main([*words, "--image", image]) == 0  # with the model of the file
    asked = [
        ("--features", str(other)),
        ("--features", str(bare)),
        ("--image", image, "--checkpoint", str(foreign)),
    ]
    for some in asked:
        assert "--same-features" in refused(*words, *some)
        assert main([*words, *some, "--same-features"]) == 0
    assert main([*words, "--features", str(q), "--top-k", "3"]) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    expected = Gallery.open(tmp_path / "G").search(read_features(q)[0], 3)
    assert [match["score"] for one in found for match in one["matches"]] == expected["score"].tolist()
    assert [one["image"] for one in found] == read_features(q)[1]["path"].tolist()
    # adding: the same rule
    add = ["gallery", "add", "--gallery", str(tmp_path / "G"), "--features"]
    assert "--same-features" in refused(*add, str(other))
    assert "does not say which model" in refused(*add, str(bare))
    assert main([*add, str(q)]) == 0
    assert len(Gallery.open(tmp_path / "G")) == len(read_features(g)[0]) + len(read_features(q)[0])


def test_galleries_of_unknown_features(
    tiny_market: Path, tmp_path: Path, onnx: Path, refused: Callable[..., str], capsys: Any
) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, DIMENSION)).astype(np.float32)
    write_features(tmp_path / "own.npz", vectors, pd.DataFrame({"path": [f"{row}.jpg" for row in range(6)]}))
    np.savez(tmp_path / "ask.npz", features=vectors[:2] * 3)
    assert (
        main(["gallery", "build", "--gallery", str(tmp_path / "G"), "--features", str(tmp_path / "own.npz")])
        == 0
    )
    words = ["query", "--gallery", str(tmp_path / "G"), "--json", str(tmp_path / "m.json")]
    page = ["--html", str(tmp_path / "m.html")]
    capsys.readouterr()
    assert main([*words, *page, "--features", str(tmp_path / "ask.npz")]) == 0  # both are unknown
    found = json.loads((tmp_path / "m.json").read_text())
    assert [(one["image"], one["matches"][0]["path"]) for one in found] == [(None, "0.jpg"), (None, "1.jpg")]
    printed, drawn = capsys.readouterr().out, (tmp_path / "m.html").read_text()
    assert "row 1 of the features" in printed
    assert "row 1" in drawn
    assert main([*words, *page, "--features", str(tmp_path / "ask.npz"), "--multi"]) == 0
    (one,) = json.loads((tmp_path / "m.json").read_text())
    units = vectors[:2] / np.linalg.norm(vectors[:2], axis=1, keepdims=True)
    mean = Gallery.open(tmp_path / "G").search(units.mean(axis=0, keepdims=True))
    assert one["images"] == [None, None]
    assert [match["score"] for match in one["matches"]] == pytest.approx(mean["score"].tolist())
    assert "mean of 2 pictures" in capsys.readouterr().out
    # an image is embedded by a model that nobody has said to be the same
    image = ["--image", str(next(tiny_market.glob("query/*.jpg")))]
    assert "--checkpoint" in refused(*words, *image)
    known = [*image, "--checkpoint", str(onnx)]
    assert "--same-features" in refused(*words, *known)
    assert main([*words, *known, "--same-features"]) == 0
    add = ["gallery", "add", "--gallery", str(tmp_path / "G"), "--checkpoint", str(onnx)]
    add += ["--images", str(tiny_market / "query")]
    assert "--same-features" in refused(*add)
    assert main([*add, "--same-features"]) == 0


def test_query_options_that_exclude_each_other(
    tmp_path: Path, onnx: Path, tiny_market: Path, refused: Callable[..., str]
) -> None:
    np.savez(tmp_path / "ask.npz", features=np.ones((1, DIMENSION), np.float32))
    image, ask = str(next(tiny_market.glob("query/*.jpg"))), str(tmp_path / "ask.npz")
    words = ["query", "--gallery", str(tmp_path / "G")]
    assert "--image FILE and --features" in refused(*words)
    assert "--image FILE and --features" in refused(*words, "--image", image, "--features", ask)
    assert "--checkpoint" in refused(*words, "--features", ask, "--checkpoint", str(onnx))


def test_one_network_in_every_command(
    tiny_market: Path, tmp_path: Path, foreign: Path, capsys: Any, refused: Callable[..., str]
) -> None:
    images = sorted(map(str, tiny_market.glob("query/*.jpg")))
    build = ["gallery", "build", "--gallery", str(tmp_path / "G"), "--data.root", str(tiny_market)]
    assert main([*build, "--checkpoint", str(foreign)]) == 0
    add = ["gallery", "add", "--gallery", str(tmp_path / "G"), "--images", str(tiny_market / "query")]
    assert main(add) == 0
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    words = ["query", "--gallery", str(tmp_path / "G"), "--image", *images, str(bad)]
    assert "bad.jpg" in refused(*words)
    assert main([*words, "--json", str(tmp_path / "m.json"), "--skip-unreadable"]) == 0
    assert "bad.jpg" in capsys.readouterr().err
    found = json.loads((tmp_path / "m.json").read_text())
    assert [one["image"] for one in found] == [one["matches"][0]["path"] for one in found] == images
    given = ["--checkpoint", str(foreign), "--json", str(tmp_path / "s.json")]
    assert main(["verify", *images[:2], *given]) == 0
    vectors = load_embedder(foreign).embed(images[:2]).double()
    score = json.loads((tmp_path / "s.json").read_text())["score"]
    assert score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)


@pytest.mark.parametrize("flip", [[], ["--flip"]])
def test_testing_a_network(
    tiny_market: Path, tmp_path: Path, onnx: Path, flip: list[str], refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_market, tmp_path / "market")
    words = ["test", "--checkpoint", str(onnx), *flip, "--json", str(tmp_path / "t.json"), "--data.root"]
    assert main([*words, str(tiny_market)]) == 0
    expected = json.loads((tmp_path / "t.json").read_text())
    bad = tmp_path / "market" / "bounding_box_test" / "0011_c2s1_000077_00.jpg"
    bad.write_bytes(b"no picture")
    assert bad.name in refused(*words, str(tmp_path / "market"))
    assert main([*words, str(tmp_path / "market"), "--skip-unreadable"]) == 0
    assert json.loads((tmp_path / "t.json").read_text()) == expected


def test_a_gallery_does_not_import_the_class_that_it_names(
    tmp_path: Path, tiny_market: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_embedder_for_test.py").write_text(
        "class Mean:\n"
        "    size, dimension = (4, 2), 3\n"
        "    def embed(self, images, *, batch_size=64, device=None):\n"
        "        return images.float().mean((2, 3))\n"
    )
    own = ["--import", "own_embedder_for_test"]
    build = ["gallery", "build", "--gallery", "G", "--images", str(tiny_market / "query")]
    assert main([*build, "--checkpoint", "own_embedder_for_test.Mean", *own]) == 0
    ask = ["query", "--gallery", "G", "--image", str(next(tiny_market.glob("query/*.jpg")))]
    assert main(ask) == 0
    monkeypatch.delitem(sys.modules, "own_embedder_for_test")
    monkeypatch.syspath_prepend(tmp_path)  # where it could be imported from
    assert "--import own_embedder_for_test" in refused(*ask)
    assert main([*ask, *own]) == 0
