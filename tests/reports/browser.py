"""A real Chromium without a window, for pages that run code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

INSTALL = "apt-get install -y chromium chromium-driver"


@contextmanager
def chromium(page: Path, *, width: int = 1280, height: int = 1000) -> Iterator[webdriver.Chrome]:
    """A browser with ``page`` open and its pictures drawn; the network is off."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if driver is None or binary is None:
        pytest.fail(f"no Chromium with chromedriver found; install them: {INSTALL}")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--window-size={width},{height}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        mobile = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", mobile)
        browser.get(page.as_uri())
        WebDriverWait(browser, 120).until(
            lambda b: b.execute_script("return document.body.dataset.ready === 'yes'")
        )
        yield browser
    finally:
        browser.quit()
