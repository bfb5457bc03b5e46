"""Small data for tests: images drawn here, nothing is downloaded."""

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

# a shell that starts tests in the background has them, and all that they start, ignore these
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# the same cases in every run: a failure seen once can be seen again
# on a machine of any speed
settings.register_profile(
    "reproducible", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused: exit code 2 and one line on stderr, which is returned."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.startswith("rga-reid: error: ")
        assert error.count("\n") == 1, error
        return error

    return run


@pytest.fixture(scope="session")
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Market-1501 layout: 8 training and 4 test identities, two cameras, a distractor and a junk image.

    All tests of the process share it; who leaves something beside it, an image cache say, works on a copy.
    """
    root = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)

    def save(folder: str, pid: int, camera: int, frame: int) -> None:
        base = np.random.default_rng(pid + 2).integers(0, 256, (4, 2, 3))
        noise = rng.integers(-20, 20, (64, 32, 3))
        pixels = np.clip(base.repeat(16, 0).repeat(16, 1) + noise, 0, 255).astype(np.uint8)
        name = f"{pid:04d}" if pid >= 0 else "-1"
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{name}_c{camera}s1_{frame:06d}_00.jpg")

    for pid in range(1, 9):
        for frame in range(6):
            save("bounding_box_train", pid, 1 + frame % 2, frame)
    for pid in range(11, 15):
        save("query", pid, 1, 0)
        for frame in range(1, 4):
            save("bounding_box_test", pid, 1 + frame % 2, frame)
    save("bounding_box_test", 0, 1, 0)
    save("bounding_box_test", -1, 2, 0)
    yield root
    assert sorted(os.listdir(root)) == ["bounding_box_test", "bounding_box_train", "query"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-18 with RGA-SC for 64x32 images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(build_model(depth=18, attention="rga", size=(64, 32), classes=3), path)
    return path


CHECKOUT = Path(__file__).parent.parent


class Block(NamedTuple):
    """A block of code of a document."""

    language: str
    text: str
    line: int  #: of its first line
    above: str  #: the line of text above it


def code_blocks_of(document: str | Path) -> list[Block]:
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [
        Block(
            one[1], one[2], text[: one.start()].count("\n") + 2, text[: one.start()].rstrip().split("\n")[-1]
        )
        for one in found
    ]


@pytest.fixture(scope="session")
def code_blocks() -> Callable[[str | Path], list[Block]]:
    """The fenced blocks of a Markdown file, by its path from the top of the checkout, in order."""
    return code_blocks_of


_PROGRAM = """#!/bin/sh
# rga-reid, with what a small data set in place of Market-1501 asks for
case "$1" in
data) set -- "$@" --dataset "{card}" ;;
train) set -- "$@" --data.identities_per_batch 2 --data.images_per_identity 2 --trainer.max_epochs 1 ;;
ablate) set -- "$@" --only baseline ;;
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
    """Run a block of a document as a reader of it would, a few drawn people in place of ``DIR``.

    ``documented(block, folder)`` runs it in ``folder`` and returns what it printed. ``rga-reid``, ``python``
    and ``python cli.py`` are those of this checkout, or of a copy of it: ``source``.
    """
    place = tmp_path_factory.mktemp("documented")
    data, programs = place / "market", place / "programs"
    shutil.copytree(tiny_market, data)
    query = sorted((data / "query").glob("*.jpg"))[0]
    shutil.copy(query, data / "query" / "0001_c1s1_001051_00.jpg")  # the one that documents name
    programs.mkdir()
    (place / "small.yaml").write_text(_CARD)
    (programs / "rga-reid").write_text(_PROGRAM.format(card=place / "small.yaml", python=sys.executable))
    python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'  # a link would leave its environment behind
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
        assert done.returncode == 0, f"the block at line {block.line}: {done.stdout}\n{done.stderr}"
        return done.stdout

    return run


DISK = 4 << 20  # bytes of the small file system


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond a size: as on a full disk, a write fails."""
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
    """A folder on a small disk, and what leaves so many bytes there for what is written next.

    Where nothing may be mounted, both are a limit on the size of files.
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

    yield place, room if mounted else largest_file
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)  # galleries may hold files open


BROWSER = "apt-get install -y chromium chromium-driver"  # which installs it, on Debian and Ubuntu


@pytest.fixture(scope="session")
def browse() -> Callable[..., AbstractContextManager[Any]]:
    """Open a page in a real Chromium without window and network: ``with browse(page) as browser``."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.fail(f"no Chromium with chromedriver found; install them: {BROWSER}")

    @contextmanager
    def opened(page: Path, *, width: int = 1280, height: int = 1000) -> Iterator[Any]:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise
        for flag in flags:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            browser.execute_cdp_cmd("Network.enable", {})
            browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            browser.get(page.as_uri())
            ready = "return document.body.dataset.ready === 'yes'"
            WebDriverWait(browser, 120).until(lambda b: b.execute_script(ready))
            yield browser
        finally:
            browser.quit()

    return opened
