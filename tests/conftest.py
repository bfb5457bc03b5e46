"""Fixtures shared by all tests. Tests draw their own small images; nothing is downloaded."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from rga_reid.commands import main
from rga_reid.models import build_model, save_model

CHECKOUT = Path(__file__).parent.parent

# A shell that runs the tests in the background makes them and their child processes ignore these signals.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Hypothesis draws the same examples in every run, and tolerates slow machines.
settings.register_profile(
    "reproducible", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every test independent of the random numbers drawn by the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one line on stderr; return that line."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.startswith("rga-reid: error: ")
        assert error.count("\n") == 1, error
        return error

    return run


def write_market(root: Path, *, train: int = 8, test: int = 4, size: tuple[int, int] = (64, 32)) -> None:
    """Write a small data set in the layout of Market-1501, with a distractor and a junk image.

    Each identity has its own coarse colour pattern plus noise, seen by two cameras.
    """
    rng = np.random.default_rng(0)

    def save(folder: str, pid: int, camera: int, frame: int) -> None:
        base = np.random.default_rng(pid + 2).integers(0, 256, (4, 2, 3))
        noise = rng.integers(-20, 20, (*size, 3))
        enlarged = base.repeat(size[0] // 4, 0).repeat(size[1] // 2, 1)
        name = f"{pid:04d}" if pid >= 0 else "-1"
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(np.clip(enlarged + noise, 0, 255).astype(np.uint8)).save(
            root / folder / f"{name}_c{camera}s1_{frame:06d}_00.jpg"
        )

    for pid in range(1, train + 1):
        for frame in range(6):
            save("bounding_box_train", pid, 1 + frame % 2, frame)
    for pid in range(11, 11 + test):
        save("query", pid, 1, 0)
        for frame in range(1, 4):
            save("bounding_box_test", pid, 1 + frame % 2, frame)
    save("bounding_box_test", 0, 1, 0)
    save("bounding_box_test", -1, 2, 0)


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Market-1501 layout: 8 training and 4 test identities, two cameras, a distractor and a junk image.

    All tests of the process share it, so tests that write into the folder must copy it first.
    """
    root = tmp_path_factory.mktemp("market")
    write_market(root)
    yield root
    assert sorted(os.listdir(root)) == ["bounding_box_test", "bounding_box_train", "query"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-18 with RGA-SC for 64x32 images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(build_model(depth=18, attention="rga", size=(64, 32), classes=3), path)
    return path


class Block(NamedTuple):
    """A fenced code block of a Markdown file."""

    language: str
    text: str
    line: int  #: number of its first line
    above: str  #: the line of text before it


def find_code_blocks(document: str | Path) -> list[Block]:
    """Return the fenced code blocks of a Markdown file, given its path in the checkout."""
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    blocks = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        before = text[: match.start()]
        blocks.append(Block(match[1], match[2], before.count("\n") + 2, before.rstrip().split("\n")[-1]))
    return blocks


@pytest.fixture(scope="session")
def code_blocks() -> Callable[[str | Path], list[Block]]:
    """Return ``find_code_blocks``."""
    return find_code_blocks


_PROGRAM = """#!/bin/sh
# rga-reid with the options that a data set much smaller than Market-1501 needs
case "$1" in
data) set -- "$@" --dataset "{card}" ;;
train)
    case "$*" in *pretrained*) set -- "$@" --model.weights null ;; esac  # nothing is downloaded
    set -- "$@" --data.identities_per_batch 2 --data.images_per_identity 2 --trainer.max_epochs 1 ;;
ablate) set -- "$@" --only baseline ;;
explain) case "$*" in *--demo*) set -- "$@" --epochs 1 ;; esac ;;
esac
exec "{python}" -m rga_reid.commands "$@"
"""
_CARD = """name: small
title: A few people in the layout of Market-1501
layout: names
pattern: '(?P<pid>-1|\\d{4})_c(?P<camid>\\d)s\\d_\\d{6}_\\d{2}\\.jpg'
junk_pids: [-1]
distractor_pids: [0]
splits:
  train: {sources: [{folder: bounding_box_train}]}
  query: {sources: [{folder: query}]}
  gallery: {sources: [{folder: bounding_box_test}]}
"""


@pytest.fixture(scope="session")
def documented(tiny_market: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a code block of a document as a reader would, with the tiny data set in place of ``DIR``.

    ``documented(block, folder)`` runs the block in ``folder`` and returns its output. ``rga-reid``, ``python``
    and ``python cli.py`` come from this checkout, or from a copy of it: ``source``.
    """
    place = tmp_path_factory.mktemp("documented")
    data, programs = place / "market", place / "programs"
    shutil.copytree(tiny_market, data)
    query = sorted((data / "query").glob("*.jpg"))[0]
    mirrored = Image.open(query).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(data / "query" / "0001_c1s1_001051_00.jpg")  # the query image that documents name
    programs.mkdir()
    (place / "small.yaml").write_text(_CARD)
    (programs / "rga-reid").write_text(_PROGRAM.format(card=place / "small.yaml", python=sys.executable))
    python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'  # a symbolic link would lose the environment
    (programs / "python").write_text(python)
    for program in programs.iterdir():
        program.chmod(0o755)

    def run(block: Block, folder: Path, *, source: Path = CHECKOUT) -> str:
        text = re.sub(r"\bDIR\b", str(data), block.text).replace("python cli.py", "rga-reid")
        words = {"bash": ["bash", "-euo", "pipefail", "-c", text], "python": [sys.executable, "-c", text]}
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        done = subprocess.run(
            words[block.language],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(source), "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"block at line {block.line}: {done.stdout}\n{done.stderr}"
        return done.stdout

    return run


DISK = 4 << 20  # bytes of the small file system


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Make this process fail to write files larger than ``size`` bytes, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["file system", "limit"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[int], AbstractContextManager[None]]]]:
    """Return a folder on a small disk, and a context manager that leaves room for a number of bytes there.

    Where the tests may not mount a file system, both parameters limit the size of files instead.
    """
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)]
    try:
        mounted = request.param != "limit" and subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False

    @contextmanager
    def room(size: int) -> Iterator[None]:
        used = sum(-(-file.stat().st_size // 4096) * 4096 for file in place.rglob("*") if file.is_file())
        filler = place / "other files"
        filler.write_bytes(bytes(max(0, DISK - used - size)))
        yield
        filler.unlink()

    yield place, room if mounted else limit_file_size
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)  # lazily: galleries may hold open files


@pytest.fixture(scope="session")
def browse() -> Callable[..., AbstractContextManager[Any]]:
    """Open a page in headless Chromium: ``with browse(page) as browser``.

    A file has no network access; an address of a local server has.
    """
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.fail("Chromium or chromedriver not found: apt-get install -y chromium chromium-driver")

    @contextmanager
    def open_page(
        page: Path | str, *, width: int = 1280, height: int = 1000, language: str = "en", dark: bool = False
    ) -> Iterator[Any]:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(flag)
        if os.geteuid() == 0:
            options.add_argument("--no-sandbox")  # Chromium does not run as root otherwise
        options.add_argument("--use-fake-device-for-media-stream")  # a camera with a drawn picture
        options.add_argument("--use-fake-ui-for-media-stream")
        options.add_experimental_option("prefs", {"intl.accept_languages": language})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            offline = {
                "offline": isinstance(page, Path),
                "latency": 0,
                "downloadThroughput": 0,
                "uploadThroughput": 0,
            }
            browser.execute_cdp_cmd("Network.enable", {})
            browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            browser.get(page.as_uri() if isinstance(page, Path) else page)
            ready = (  # pages without a script have loaded their pictures then
                "return document.readyState === 'complete' && "
                "(document.scripts.length === 0 || document.body.dataset.ready === 'yes')"
            )
            WebDriverWait(browser, 600).until(lambda b: b.execute_script(ready))
            yield browser
        finally:
            browser.quit()

    return open_page
