"""A small gallery that is served in this process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from starlette.testclient import TestClient

from rga_reid.gallery import Gallery
from rga_reid.models import ColourHistogram
from rga_reid.serving.app import Settings, create_app
from rga_reid.serving.engine import Engine

CHECKOUT = Path(__file__).parent.parent.parent
EMBEDDER = ColourHistogram((64, 32))

Start = Callable[..., tuple[subprocess.Popen[str], str]]  # see the fixture ``start``


def draw(person: int, shot: int = 0, kind: str = "PNG") -> bytes:
    """Return a picture of a person: a coarse pattern of colours, and noise that differs between shots."""
    pattern = np.random.default_rng(person).integers(0, 256, (4, 2, 3)).repeat(16, 0).repeat(16, 1)
    noise = np.random.default_rng((person, shot)).integers(-9, 10, (64, 32, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pattern + noise, 0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


class Served(NamedTuple):
    """A server in this process."""

    http: TestClient
    engine: Engine
    location: Path

    def post(self, path: str, *pictures: bytes, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """Send pictures and fields as a form."""
        files = [("image", (f"{number}.png", picture)) for number, picture in enumerate(pictures)]
        return self.http.post(path, files=files, data=fields, headers=headers)


def build_people(folder: Path) -> Path:
    """Write a gallery of four persons with three images each, by two cameras and in tracks, and its pictures."""
    rows = []
    (folder / "pictures").mkdir()
    for person in range(4):
        for shot in range(3):
            file = folder / "pictures" / f"{person}_{shot}.png"
            file.write_bytes(draw(person, shot))
            rows.append(
                {
                    "path": str(file),
                    "pid": person,
                    "camera": shot % 2,
                    "track": person,
                    "time": pd.Timestamp("2026-11-20T10:00Z") + pd.Timedelta(minutes=10 * person + shot),
                    "zone": "north" if shot else "south",
                }
            )
    table = pd.DataFrame(rows)
    Gallery.build(EMBEDDER.embed(table["path"].tolist()), table).save(folder / "gallery")
    return folder / "gallery"


def open_server(stack: ExitStack, location: Path, embedder: Any = EMBEDDER, **options: Any) -> Served:
    """Serve a gallery until the stack is closed; options are those of ``Engine`` and ``Settings``."""
    known = {"images_root", "read_only", "workers", "max_pixels"}
    settings = Settings(
        **{name: value for name, value in options.items() if name not in known - {"read_only"}}
    )
    inner = {name: value for name, value in options.items() if name in known}
    engine = Engine(str(location), embedder, metrics=settings.metrics, **inner)
    app = create_app(engine, settings)
    http = stack.enter_context(TestClient(app, base_url="http://localhost", raise_server_exceptions=False))
    return Served(http, engine, location)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """The gallery of ``build_people``."""
    return build_people(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of such a gallery with the folder of its pictures, for tests that change nothing."""
    location = build_people(tmp_path_factory.mktemp("shared"))
    with ExitStack() as stack:
        yield open_server(stack, location, images_root=location.parent)


@pytest.fixture
def serve(people: Path) -> Iterator[Callable[..., Served]]:
    """Serve the gallery of ``people``, or another one, see ``open_server``."""
    with ExitStack() as stack:
        yield lambda location=people, *words, **options: open_server(stack, location, *words, **options)


@pytest.fixture
def served(serve: Callable[..., Served], people: Path) -> Served:
    """Serve the gallery of ``people`` with the folder of its pictures."""
    return serve(images_root=people.parent)


@contextmanager
def run_server(location: str, log: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``rga-reid serve`` on a gallery; yield the process and its address.

    Args:
        location: gallery, see ``Gallery.open``.
        log: file to which its log is appended.
        words: other options.
    """
    command = [sys.executable, "-m", "rga_reid.commands", "serve", "--gallery", location, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    with (
        open(log, "a") as errors,
        subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready http://127.0.0.1:"), log.read_text()
            yield process, line.split()[1]
        finally:
            process.kill()


@pytest.fixture
def start(people: Path) -> Iterator[Start]:
    """Start ``rga-reid serve`` on the gallery of ``people`` or another one, see ``run_server``."""
    with ExitStack() as stack:
        yield lambda *words, location=str(people): stack.enter_context(
            run_server(location, people.parent / "log", *words)
        )
