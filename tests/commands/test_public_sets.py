"""Clothes, modalities, tracks and random splits in ``test``, ``features``, ``evaluate`` and ``gallery``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.evaluation import PROTOCOLS
from rga_reid.experiments.evaluate_model import evaluate_model
from rga_reid.inference.feature_files import read_features, write_features

IDENTITIES = 4


def draw(root: Path, names: list[str]) -> Path:
    """Draw a small picture for each name: a person has a colour, which varies."""
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 200, (1000, 3))
    for name in names:
        pid = int(
            "".join(filter(str.isdigit, name.split("/")[-1 if name[0] != "c" else 1]))[:4].lstrip("0") or 0
        )
        colour = np.clip(colours[pid % 1000] + rng.integers(-60, 60, 3), 0, 255).astype(np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(colour, (16, 8, 3)).copy()).save(root / name)
    return root


@pytest.fixture
def ltcc(tmp_path: Path) -> Path:
    names = [
        f"{folder}/{pid:03}_{clothes}_c{camera}_{number:06}.png"
        for folder, cameras in (("train", (1,)), ("query", (1, 2)), ("test", (1, 2, 3)))
        for pid in range(1, 1 + IDENTITIES)
        for clothes in (1, 2)
        for number, camera in enumerate(cameras)
    ]
    return draw(tmp_path / "ltcc", names)


@pytest.fixture
def sysu(tmp_path: Path) -> Path:
    root = tmp_path / "sysu"
    pids = range(1, 1 + IDENTITIES)
    names = [
        f"cam{camera}/{pid:04}/{number:04}.jpg" for camera in range(1, 7) for pid in pids for number in (1, 2)
    ]
    draw(root, [*names, *(f"cam{camera}/{pid:04}/0001.jpg" for camera in range(1, 7) for pid in (10, 11))])
    (root / "exp").mkdir()
    for split, ids in (("train", "10"), ("val", "11"), ("test", ",".join(map(str, pids)))):
        (root / "exp" / f"{split}_id.txt").write_text(ids)
    return root


@pytest.fixture
def mars(tmp_path: Path) -> Path:
    root, info = tmp_path / "mars", tmp_path / "mars" / "info"
    for folder, pids in (("bbox_train", (1,)), ("bbox_test", (2, 3, 4))):
        tracks = [
            f"{pid:04}C{camera}T{number:04}" for pid in pids for number, camera in enumerate((1, 2, 2), 1)
        ]
        names = [f"{track}F{frame:03}.jpg" for track in tracks for frame in (1, 2, 3)]
        draw(root, [f"{folder}/{name[:4]}/{name}" for name in names])
        info.mkdir(exist_ok=True)
        short = folder.removeprefix("bbox_")
        (info / f"{short}_name.txt").write_text("\n".join(names))
        rows = [[3 * n + 1, 3 * n + 3, int(track[:4]), int(track[5])] for n, track in enumerate(tracks)]
        savemat(info / f"tracks_{short}_info.mat", {f"track_{short}_info": np.array(rows)})
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([[1, 4, 7, 8]])})
    return root


@pytest.fixture
def viper(tmp_path: Path) -> Path:
    return draw(tmp_path / "viper", [f"cam_{side}/{pid:03}_0.bmp" for side in "ab" for pid in range(5)])


def run(*words: object) -> None:
    assert main([*map(str, words)]) == 0


def files(root: Path, card: str, checkpoint: Path, *words: str) -> Iterator[Path]:
    """Yield the feature files of queries and gallery."""
    for split in ("query", "gallery"):
        file = root.parent / f"{split}.npz"
        run(
            *("features", "--checkpoint", checkpoint, "--data.root", root, "--data.dataset", card),
            *("--data.split", split, "--device", "cpu", "--overwrite", "--out", file, *words),
        )
        yield file


@pytest.mark.parametrize(
    ("name", "card", "protocols"),
    [
        ("ltcc", "ltcc", [None, "clothes_changing", "same_clothes"]),
        ("sysu", "sysu_mm01", [None, "sysu_mm01_indoor_multi_shot", "cross_modality"]),
        ("mars", "mars", [None]),
        ("viper", "viper:all", [None]),
    ],
)
def test_every_way_gives_the_same_metrics(
    name: str,
    card: str,
    protocols: list[str | None],
    checkpoint: Path,
    mean_colour: Any,
    tmp_path: Path,
    request: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defaults = {"ltcc": "market1501", "viper:all": "viper"}
    root = request.getfixturevalue(name)
    query, gallery = files(root, card, checkpoint)
    seen = []
    for protocol in protocols:
        out = [tmp_path / f"{number}.json" for number in range(2)]
        words = [] if protocol is None else ["--protocol", protocol]
        source = ["--data.root", root, "--data.dataset", card]
        run("test", "--checkpoint", checkpoint, *source, *words, "--device", "cpu", "--json", out[0])
        words = ["--protocol", protocol or defaults.get(card, card)]
        run("evaluate", "--query", query, "--gallery", gallery, *words, "--json", out[1])
        assert len(re.findall(rf"; protocol {words[1]}\b", capsys.readouterr().out)) == 2
        tested, evaluated = (json.loads(file.read_text()) for file in out)
        assert tested.pop("protocol") == evaluated.pop("protocol") == words[1]
        assert tested.keys() == evaluated.keys()
        assert tested["valid_queries"] > 0
        for key in ("mAP", "rank-1", "queries", "valid_queries", "gallery"):
            assert tested[key] == pytest.approx(evaluated[key], abs=1e-6)
        model, table = mean_colour(), read_table(root, card)
        result = evaluate_model(model, table, protocol=PROTOCOLS[words[1]], device="cpu")
        assert result.mAP == pytest.approx(tested["mAP"], abs=1e-6)
        seen.append(tested["mAP"])
    assert len(set(seen)) == len(protocols)


def test_tracks_are_pooled_in_every_command(mars: Path, checkpoint: Path, tmp_path: Path) -> None:
    frames = [read_features(file) for file in files(mars, "mars", checkpoint)]
    assert [len(features) for features, _ in frames] == [12, 27]
    metrics = {}
    for pooling in ("mean", "attention"):
        query, gallery = files(mars, "mars", checkpoint, "--pool-tracks", pooling)
        features, table = read_features(gallery)
        assert (features.shape, table["track"].nunique()) == ((9, 3), 9)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
        first = frames[1][0][:3].mean(axis=0)
        if pooling == "mean":
            np.testing.assert_allclose(features[0], first / np.linalg.norm(first), atol=1e-6)
        out = [tmp_path / f"{pooling}{number}.json" for number in range(2)]
        run("evaluate", "--query", query, "--gallery", gallery, "--protocol", "mars", "--json", out[0])
        source = [
            "--checkpoint",
            checkpoint,
            "--data.root",
            mars,
            "--data.dataset",
            "mars",
            "--device",
            "cpu",
        ]
        run("test", *source, "--pool-tracks", pooling, "--json", out[1])
        results = [json.loads(file.read_text()) for file in out]
        assert results[0]["mAP"] == pytest.approx(results[1]["mAP"], abs=1e-6)
        assert results[1]["queries"] == 4
        metrics[pooling] = results[1]["mAP"]
        write_features(tmp_path / "q.npz", *frames[0])
        write_features(tmp_path / "g.npz", *frames[1])
        words = ["--query", tmp_path / "q.npz", "--gallery", tmp_path / "g.npz", "--pool-tracks", pooling]
        run("evaluate", *words, "--json", tmp_path / "pooled.json")
        pooled = json.loads((tmp_path / "pooled.json").read_text())
        assert (pooled["queries"], pooled["gallery"]) == (4, 9)
        assert pooled["mAP"] == pytest.approx(metrics[pooling], abs=1e-6)
    run("test", *source, "--json", tmp_path / "default.json")
    assert json.loads((tmp_path / "default.json").read_text())["mAP"] == metrics["mean"]


def test_a_gallery_of_tracks(
    mars: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--checkpoint", checkpoint, "--data.root", mars, "--data.dataset", "mars", "--device", "cpu"]
    run("gallery", "build", *source, "--gallery", tmp_path / "gallery")
    image = mars / "bbox_test" / "0002" / "0002C1T0001F001.jpg"
    out = tmp_path / "found.json"
    run("query", "--gallery", tmp_path / "gallery", "--image", image, "--group-by", "track", "--json", out)
    found = json.loads(out.read_text())
    matches = (found[0] if isinstance(found, list) else found)["matches"]
    assert matches[0]["track"] == "0002C1T0001"
    assert len({match["track"] for match in matches}) == 9


def test_labels_beside_npy_files(ltcc: Path, checkpoint: Path, tmp_path: Path) -> None:
    expected = None
    found = []
    for file in files(ltcc, "ltcc", checkpoint):
        features, table = read_features(file)
        np.save(file.with_suffix(".npy"), features)
        table[["pid", "camid", "clothes"]].to_csv(file.with_suffix(".csv"), index=False)
        found.append(file)
    for suffix in (".npz", ".npy"):
        query, gallery = (file.with_suffix(suffix) for file in found)
        out = tmp_path / "m.json"
        run(
            "evaluate",
            "--query",
            query,
            "--gallery",
            gallery,
            "--protocol",
            "clothes_changing",
            "--json",
            out,
        )
        value = json.loads(out.read_text())["mAP"]
        assert expected in (None, value)
        expected = value


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("clothes_changing", "query_clothes: "),
        ("cross_modality", "query_modality: "),
        ("mars", "query_track: "),
        ("prcc", "query_clothes: "),
    ],
)
def test_a_missing_column_is_named(
    tmp_path: Path, refused: Callable[..., str], protocol: str, words: str
) -> None:
    import pandas as pd

    for side in ("query", "gallery"):
        table = pd.DataFrame({"pid": [1, 2], "camid": [1, 2]})
        write_features(tmp_path / f"{side}.npz", np.eye(2, dtype=np.float32), table)
    inputs = ["--query", str(tmp_path / "query.npz"), "--gallery", str(tmp_path / "gallery.npz")]
    assert words in refused("evaluate", *inputs, "--protocol", protocol)


def test_options_that_do_not_fit(
    ltcc: Path, sysu: Path, checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ["test", "--checkpoint", str(checkpoint), "--device", "cpu", "--data.root"]
    card = ["--data.dataset", "sysu_mm01"]
    assert "--html" in refused(*words, str(sysu), *card, "--html", str(tmp_path / "p.html"))
    assert "--rerank: not defined for sysu_mm01" in refused(*words, str(sysu), *card, "--rerank")
    message = refused(*words, str(ltcc), "--data.dataset", "ltcc", "--pool-tracks", "mean")
    assert "--pool-tracks" in message
    assert "protocol mars" in refused(*words, str(ltcc), "--data.dataset", "ltcc", "--protocol", "mars")
    assert "has fixed splits" in refused(*words, str(ltcc), "--data.dataset", "ltcc:1")
    own = tmp_path / "own.yaml"
    own.write_text(
        (Path(__file__).parents[2] / "datasets" / "ltcc.yaml").read_text().replace(": market1501", ": best")
    )
    assert "protocol: expected one of" in refused(*words, str(ltcc), "--data.dataset", str(own))


def test_a_page_of_clothes_shows_no_removed_matches(ltcc: Path, checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    source = ["--checkpoint", checkpoint, "--data.root", ltcc, "--data.dataset", "ltcc", "--device", "cpu"]
    run("test", *source, "--protocol", "clothes_changing", "--html", page)
    files = re.findall(
        r'class="file" title="[^"]*/(query|test)/(\d+)_(\d)_c(\d)', page.read_text(encoding="utf-8")
    )
    assert {folder for folder, *_ in files} == {"query", "test"}
    asked: tuple[str, ...] = ()
    matches = 0
    for folder, pid, clothes, camera in files:
        if folder == "query":
            asked = (pid, clothes, camera)
        elif pid == asked[0]:
            matches += 1
            assert clothes != asked[1]
            assert camera != asked[2]
    assert matches > 3
