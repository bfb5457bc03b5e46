"""The gallery commands on Milvus Lite: the words are those of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rga_reid.commands import main
from rga_reid.gallery import Gallery


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    from milvus_lite.server_manager import server_manager_instance

    yield str(tmp_path / "people.db")
    server_manager_instance.release_server(str(tmp_path / "people.db"))


def write(file: Path, count: int, seed: int) -> str:
    features = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    paths = np.array([f"{seed}/{row}.jpg" for row in range(count)])
    np.savez(file, features=features, paths=paths, pids=np.arange(count) % 10, camids=np.arange(count) % 3)
    return str(file)


def test_build_add_remove_info_verify_compact(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture, refused: Callable
) -> None:
    first, second = write(tmp_path / "1.npz", 100, 1), write(tmp_path / "2.npz", 10, 2)
    gallery = ["--gallery", place]
    assert main(["gallery", "build", *gallery, "--features", first]) == 0
    printed = capsys.readouterr().out
    for text in ("100", "flat, 16 dimensions, cosine", "MB", place):
        assert text in printed
    assert "exists already" in refused("gallery", "build", *gallery, "--features", first)
    assert main(["gallery", "add", *gallery, "--features", second]) == 0
    assert "1/0.jpg: the gallery has this image already (and 99 more)" in refused(
        "gallery", "add", *gallery, "--features", first
    )
    assert main(["gallery", "remove", *gallery, "--pid", "3", "--path", "2/0.jpg"]) == 0
    assert "removed 12 images" in capsys.readouterr().out
    assert "pid 3: not in the gallery; nothing was removed" in refused(
        "gallery", "remove", *gallery, "--pid", "4", "3"
    )
    assert main(["gallery", "check", *gallery]) == 0
    assert "checked: 98 images read back" in capsys.readouterr().out
    assert main(["gallery", "compact", *gallery]) == 0
    assert main(["gallery", "info", *gallery, "--json", str(tmp_path / "info.json")]) == 0
    facts = json.loads((tmp_path / "info.json").read_text())
    wanted = {"location": place, "count": 98, "identities": 9, "cameras": [0, 1, 2], "removals": 2}
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["bytes"] > 98 * 16 * 4


def test_build_and_query_images(
    place: str, tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--data.root", str(tiny_market), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    assert main(["gallery", "build", "--gallery", place, *words]) == 0
    assert main(["gallery", "build", "--gallery", str(tmp_path / "folder"), *words]) == 0
    image = str(next((tiny_market / "query").iterdir()))
    answers = []
    for number, gallery in enumerate((place, str(tmp_path / "folder"))):
        file = tmp_path / f"{number}.json"
        limits = ["--where", "pid >= 0", "--exclude-camera", "1", "--rerank", "--top-k", "4"]
        out = ["--json", str(file), "--html", str(tmp_path / "page.html")]
        assert main(["query", "--gallery", gallery, "--image", image, *limits, *out, "--device", "cpu"]) == 0
        answers.append(json.loads(file.read_text()))
    assert answers[0] == answers[1]
    assert len(answers[0][0]["matches"]) == 4
    assert Gallery.open(place).model is not None
