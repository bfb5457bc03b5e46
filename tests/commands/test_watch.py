"""``gallery watch`` as a user runs it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import rga_reid.models
from rga_reid import Gallery
from rga_reid.commands import main

CHECKOUT = Path(__file__).parents[2]
PATTERN = r"(?P<camera>cam\d+)/(?P<time>\d{8}T\d{6}Z?)_trk(?P<track>\d+)"
HANGS = 600  # seconds; only ends what would never end


def save(folder: Path, name: str, seed: int = 0) -> Path:
    """Write an image elsewhere, and rename it into place."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    Image.new("RGB", (8, 16), (seed % 256, 7 * seed % 256, 99)).save(draft)
    os.utime(draft, (1e9, 1e9))
    draft.rename(path)
    return path


def crop(number: int) -> str:
    return f"cam{number % 3}/20261120T10{number // 60 % 60:02d}{number % 60:02d}Z_trk{number:06d}.png"


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    """Three crops, of which a gallery G has the first two."""
    for number in range(2):
        save(tmp_path / "crops", crop(number), number)
    return tmp_path / "crops"


@pytest.fixture
def built(tmp_path: Path, crops: Path, checkpoint: Path) -> str:
    words = ["--images", str(crops), "--pattern", PATTERN, "--checkpoint", str(checkpoint)]
    assert main(["gallery", "build", "--gallery", str(tmp_path / "G"), *words]) == 0
    save(crops, crop(2), 2)
    return str(tmp_path / "G")


def test_watch(
    built: str,
    crops: Path,
    tmp_path: Path,
    mean_colour: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Camera(mean_colour):
        """Saves a crop while the one before is embedded; the signal comes with the fourth."""

        def embed(self, images: torch.Tensor, **options: Any) -> torch.Tensor:
            save(crops, crop(12 - self.left), 12)
            if not self.left:  # another program erases an image after the last addition
                Gallery.open(built).remove(paths=[str(crops / crop(0))])
            return super().embed(images, **options)

    monkeypatch.setattr(rga_reid.models, "load_model", lambda path, device="cpu": Camera(fail_after=3))
    words = ["gallery", "watch", "--gallery", built, "--images", str(crops), "--pattern", PATTERN]
    capsys.readouterr()
    assert main([*words, "--json", str(tmp_path / "facts.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    added = [crop(number) for number in (2, 9, 10)]
    assert lines[1:5] == [*(f"added {name}" for name in added), "stopped: 3 added"]
    table = Gallery.open(built).table
    assert table["path"].tolist() == [str(crops / name) for name in (crop(1), *added)]
    assert table["camera"].tolist() == ["cam1", "cam2", "cam0", "cam1"]
    assert table["track"].tolist() == [1, 2, 9, 10]
    assert table["time"].iloc[-1].isoformat() == "2026-11-20T10:00:10+00:00"
    assert json.loads((tmp_path / "facts.json").read_text())["count"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "{crops}/none"], "--images"),
        (["--images", "{crops}"], "20261120T100000_trk"),  # no zone
        (["--images", "{crops}", "--pattern", "(?P<camera>gate)"], "cam0/20261120T100000_trk"),
        (["--images", "{crops}", "--pattern", "cam"], "named groups"),
        (["--images", "{crops}/empty", "--pattern", "("], "--pattern"),
        (["--images", "{crops}", "--timezone", "Europe/Nowhere"], "Europe/Nowhere"),
        (["--images", "{crops}", "--batch-size", "0"], "--batch-size"),
        (["--images", "{crops}", "--wait", "-1"], "--wait"),
        (["--images", "{crops}", "--gallery", "{crops}"], "manifest.json"),
    ],
)
def test_bad_options(
    built: str, crops: Path, words: list[str], message: str, refused: Callable[..., str]
) -> None:
    (crops / "empty").mkdir()
    for path in crops.rglob("*.png"):
        path.rename(path.with_name(path.name.replace("Z_", "_")))
    given = [word.format(crops=crops) for word in words]
    command = ["gallery", "watch", "--gallery", built]
    assert message in refused(*command, *([] if "--pattern" in given else ["--pattern", PATTERN]), *given)


EMBEDDER = """
import torch

class Mean:
    size, dimension = (16, 8), 3

    def embed(self, images, *, batch_size=64, device=None):
        return images.float().mean((2, 3)) + 1
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


class Watcher:
    """A process that follows a folder, and the images that it has acknowledged."""

    def __init__(self, folder: Path, location: str) -> None:
        words = ["gallery", "watch", "--gallery", location, "--images", "crops", "--pattern", PATTERN]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rga_reid.commands", *words, "--import", "tiny_embedder"],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.lines.append(line.rstrip("\n"))

    @property
    def added(self) -> list[str]:
        return [line.removeprefix("added ") for line in self.lines if line.startswith("added ")]

    def wait(self, count: int = 0) -> None:
        """Wait until it follows the folder, and has acknowledged some images."""
        until = time.monotonic() + HANGS
        while not self.lines or len(self.added) < count:
            assert self._process.poll() is None, self.lines
            assert time.monotonic() < until
            time.sleep(0.01)

    def stop(self, signum: int) -> int:
        self._process.send_signal(signum)
        code = self._process.wait(HANGS)
        self._reader.join()
        return code


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[int, int], threading.Thread]]:
    """Return a function that begins to write the crops of some numbers in another thread."""
    threads: list[threading.Thread] = []

    def write(start: int, stop: int) -> None:
        generator = random.Random(start)
        for number in range(start, stop):
            time.sleep(generator.uniform(0, 0.05))
            if number % 4:
                save(tmp_path / "crops", crop(number), number)
            else:  # in two parts
                content = save(tmp_path, "whole.png", number).read_bytes()
                path = tmp_path / "crops" / crop(number)
                with open(path, "wb") as file:
                    file.write(content[:50])
                    file.flush()
                    time.sleep(generator.uniform(0, 1))
                    file.write(content[50:])

    def begin(start: int, stop: int) -> threading.Thread:
        threads.append(threading.Thread(target=write, args=(start, stop)))
        threads[-1].start()
        return threads[-1]

    yield begin
    for thread in threads:
        thread.join()


def read_paths(folder: Path, location: str) -> list[str]:
    """Return the crops in a gallery that no other process has open."""
    gallery = Gallery.open(folder / location)
    assert gallery.check() > 0
    paths = [os.path.relpath(path, folder / "crops") for path in gallery.table["path"]]
    if location.endswith(".db"):
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(folder / location))
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("location", ["G", "G.db"])
def test_stopped_and_killed_watches_lose_and_repeat_nothing(
    tmp_path: Path, writer: Callable[[int, int], threading.Thread], location: str
) -> None:
    (tmp_path / "tiny_embedder.py").write_text(EMBEDDER)
    for number in range(10):
        save(tmp_path / "crops", crop(number), number)
    words = ["--images", "crops", "--pattern", PATTERN, "--checkpoint", "tiny_embedder.Mean"]
    command = [sys.executable, "-m", "rga_reid.commands", "gallery", "build", "--gallery", location, *words]
    subprocess.run([*command, "--import", "tiny_embedder"], cwd=tmp_path, env=ENVIRONMENT, check=True)
    made, acknowledged, generator = 10, set[str](), random.Random(0)
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]
    for turn, signum in enumerate(signals):
        present = set(read_paths(tmp_path, location))
        watcher = Watcher(tmp_path, location)
        watcher.wait()
        thread = writer(made, made + 30)
        made += 30
        wanted = generator.randint(0, 25)
        if turn == len(signals) - 1:
            wanted = made - len(present)
        watcher.wait(wanted)
        assert watcher.stop(signum) == (-signum if signum == signal.SIGKILL else 0)
        thread.join()
        assert not acknowledged & set(watcher.added)
        acknowledged |= set(watcher.added)
        assert acknowledged <= set(read_paths(tmp_path, location))
    assert sorted(read_paths(tmp_path, location)) == sorted(map(crop, range(made)))
