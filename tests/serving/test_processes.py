"""The command in a process of its own: signals, kills, a second writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rga_reid.gallery import Gallery
from rga_reid.inference import load_embedder
from tests.serving.conftest import CHECKOUT, EMBEDDER, Start, draw

FEATURES = np.asarray(EMBEDDER.embed([draw(1, 9)])).tolist()


def add_until(address: str, stop: threading.Event, acknowledged: list[int]) -> None:
    """Add images, one after the other, until the server is gone."""
    with httpx.Client(base_url=address, timeout=600) as http:
        while not stop.is_set():
            body = {"features": FEATURES, "rows": [{"pid": 1000}]}
            try:
                answer = http.post("/v1/images", json=body)
            except httpx.HTTPError:
                return
            if answer.status_code == 201:
                acknowledged.extend(answer.json()["ids"])


@pytest.mark.slow
def test_acknowledged_images_survive_kills(start: Start, people: Path) -> None:
    acknowledged: list[int] = []
    rng = np.random.default_rng(0)
    for _ in range(5):
        process, address = start("--images-root", str(people.parent))
        writers = [
            threading.Thread(target=add_until, args=(address, threading.Event(), acknowledged))
            for _ in range(4)
        ]
        for writer in writers:
            writer.start()
        time.sleep(rng.uniform(0.2, 1.5))
        process.kill()
        for writer in writers:
            writer.join()
    assert acknowledged
    gallery = Gallery.open(people)
    assert set(acknowledged) <= set(gallery.ids.tolist())
    assert len(set(acknowledged)) == len(acknowledged)
    gallery.check()


@pytest.mark.slow
def test_sigterm_ends_requests_and_commits(start: Start, people: Path) -> None:
    process, address = start()
    acknowledged: list[int] = []
    writers = [
        threading.Thread(target=add_until, args=(address, threading.Event(), acknowledged)) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    while len(acknowledged) < 8:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 0
    for writer in writers:
        writer.join()
    gallery = Gallery.open(people, wait=0)
    assert set(gallery.find(where="pid = 1000")["id"]) == set(acknowledged)  # each was answered
    for line in (people.parent / "log").read_text().splitlines():
        assert {"time", "level", "message"} <= set(json.loads(line))


@pytest.mark.slow
def test_a_second_server_of_a_folder_is_refused(start: Start, people: Path) -> None:
    start()
    words = [sys.executable, "-m", "rga_reid.commands", "serve", "--gallery", str(people), "--port", "0"]
    second = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}
    )
    assert second.returncode == 2
    assert "locked" in second.stderr
    assert second.stderr.count("\n") == 1
    _, reader = start("--read-only")
    _, other = start("--read-only")
    for address in (reader, other):
        assert httpx.get(f"{address}/v1/gallery", timeout=600).json()["count"] == 12


@pytest.mark.slow
def test_program_of_the_guide_runs(
    start: Start, people: Path, tiny_checkpoint: Path, code_blocks: Callable[..., list[Any]], tmp_path: Path
) -> None:
    programs = [block.text for block in code_blocks("docs/serving.md") if block.language == "python"]
    model = load_embedder(tiny_checkpoint)
    table = Gallery.open(people).table.drop(columns="camid")
    table.loc[0, ["track", "camera"]] = 17, 3
    Gallery.build(model.embed(table["path"].tolist()), table, model=model.fingerprint).save(tmp_path / "deep")
    crop = tmp_path / "crops" / "cam11" / "20261120T101500_trk000008_03.jpg"
    crop.parent.mkdir(parents=True)
    for file in (tmp_path / "A.jpg", crop):
        file.write_bytes(draw(0, kind="JPEG"))
    _, address = start(location=str(tmp_path / "deep"))
    text = "\nprint(matches.shape, gallery.count())\n".join([*programs, ""]).replace(
        "http://localhost:8000", address
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.splitlines() == ["(1, 11) 11", "(1, 11) 12"], done.stderr
