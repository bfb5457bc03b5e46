"""Small data for tests: images drawn here, nothing is downloaded."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from rga_reid.commands import main
from rga_reid.models import build_model, save_model

# the same cases in every run: a failure seen once can be seen again
settings.register_profile("reproducible", derandomize=True)
settings.load_profile("reproducible")


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
def tiny_market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Market-1501 layout: 8 training and 4 test identities, two cameras, a distractor and a junk image."""
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
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-18 with RGA-SC for 64x32 images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_model(build_model(depth=18, attention="rga", size=(64, 32), classes=3), path)
    return path


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
