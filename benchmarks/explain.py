"""Measure ``explain``: time to write its page, size of the page, time to open it and to follow the pointer.

The pictures are synthetic pedestrians, the networks ResNet-50s at 256x128, so that stage 1 has 2,048 positions.
Each page is written by the command in its own process and opened in a new headless Chromium, timed from the start
of the navigation until the page is painted. Then the pointer moves over the photo, in every stage of every module
with relations between positions, timed from the pointer event until the heat maps of the new point are painted.
Reported are medians and the slowest move.

    python benchmarks/explain.py --out explain.json
    python benchmarks/explain.py --demo demo  # only the page of `rga-reid explain --demo demo`, which has run before

It needs a browser: apt-get install -y chromium chromium-driver
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.experiments.benchmark import describe_machine
from rga_reid.files import write_json
from rga_reid.models import build_model, save_model

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT = 120  # seconds, to give up on a page
STEPS = ((0.1, 0.2), (0.3, 0.8), (0.5, 0.5), (0.7, 0.1), (0.9, 0.9), (0.2, 0.6), (0.6, 0.3), (0.8, 0.7))

# Runs before the code of the page. A message posted while a frame is prepared arrives when it is painted.
WATCH = """
window.noted = { opened: 0, moves: [] };
const painted = (done) => requestAnimationFrame(() => {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => done(performance.now());
  channel.port2.postMessage(0);
});
new MutationObserver(() => {
  if (document.body?.dataset.ready === "yes" && !noted.opened) {
    noted.opened = -1;
    painted((now) => { noted.opened = now; });
  }
}).observe(document, { subtree: true, childList: true, attributeFilter: ["data-ready"] });
addEventListener("pointermove", (event) => {
  if (event.target.id === "photo") painted((now) => { noted.moves.push(now - event.timeStamp); });
}, true);
"""


@contextmanager
def open_page(page: Path) -> Iterator[Any]:
    """Open the page in a new browser and wait until it is painted."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(found for name in CHROMIUM if (found := shutil.which(name)))
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses to run as root otherwise
    for flag in flags:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        screen = {"width": 1280, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        browser.get(page.as_uri())
        WebDriverWait(browser, TIMEOUT).until(lambda b: b.execute_script("return noted.opened > 0"))
        yield browser
    finally:
        browser.quit()


def measure_moves(browser: Any) -> list[float]:
    """Return the milliseconds of each pointer move, in all stages of all modules."""
    found: list[float] = []
    for exhibit in range(_options(browser, "exhibits")):
        _choose(browser, "exhibits", exhibit)
        for stage in range(_options(browser, "stages")):
            _choose(browser, "stages", stage)
            for matrix in range(_options(browser, "matrices")):
                _choose(browser, "matrices", matrix)
                if browser.find_element(By.ID, "fig-row").is_displayed():
                    found += _moves_here(browser)
    return found


def _options(browser: Any, group: str) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, f"#{group} input"))


def _choose(browser: Any, group: str, number: int) -> None:
    option = browser.find_elements(By.CSS_SELECTOR, f"#{group} input")[number]
    if not option.is_selected():
        browser.execute_script("document.body.dataset.ready = 'no'; arguments[0].click()", option)
        ready = "return document.body.dataset.ready === 'yes'"
        WebDriverWait(browser, TIMEOUT).until(lambda b: b.execute_script(ready))


def _moves_here(browser: Any) -> list[float]:
    photo = browser.find_element(By.ID, "photo")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); noted.moves = []", photo)
    left, top, width, height = browser.execute_script(
        "const box = arguments[0].getBoundingClientRect(); return [box.left, box.top, box.width, box.height]",
        photo,
    )
    for done, (v, u) in enumerate(STEPS, 1):
        before = browser.find_element(By.ID, "readout").get_attribute("data-node")
        where = {"type": "mouseMoved", "x": left + u * width, "y": top + v * height}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", where)
        WebDriverWait(browser, TIMEOUT, 0.02).until(
            lambda b, done=done: b.execute_script("return noted.moves.length") >= done
        )
        if browser.find_element(By.ID, "readout").get_attribute("data-node") == before:
            raise RuntimeError(f"the page did not follow the pointer to {where}")
        time.sleep(0.05)  # keep the moves apart
    return browser.execute_script("return noted.moves")


def measure(words: list[str], page: Path, repeats: int) -> dict[str, float]:
    """Write and open one page ``repeats`` times each; return the figures."""
    writing, opening, moving = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "rga_reid.commands", "explain", *words, "--out", str(page)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        writing.append(time.perf_counter() - started)
    for _ in range(repeats):
        with open_page(page) as browser:
            opening.append(browser.execute_script("return noted.opened") / 1000)
            moving += measure_moves(browser)
    return {
        "megabytes": round(page.stat().st_size / 1e6, 2),
        "seconds_to_write": round(statistics.median(writing), 2),
        "seconds_to_open": round(statistics.median(opening), 2),
        "moves": len(moving),
        "milliseconds_to_follow": round(statistics.median(moving), 1),
        "milliseconds_slowest": round(max(moving), 1),
    }


def make_kinds(folder: Path) -> dict[str, list[str]]:
    """Return the words of the command for each page, with pictures and a checkpoint in the folder."""
    write_synthetic(folder / "set", SyntheticSettings(2, 3, (2, 2), (2, 2), 0, 0, (256, 128)))
    pictures = [str(path) for path in sorted((folder / "set" / "query").glob("*.jpg"))[:3]]
    torch.manual_seed(0)
    checkpoint = folder / "rga.safetensors"
    save_model(build_model(depth=50, attention="rga", size=(256, 128)), checkpoint)
    return {
        "five modules, untrained": ["--image", pictures[0]],
        "a checkpoint beside untrained": ["--image", pictures[0], "--checkpoint", str(checkpoint)],
        "ten modules, untrained": ["--image", pictures[0], "--attention", *ATTENTION_MODULES],
        "a checkpoint, three photos": ["--image", *pictures, "--checkpoint", str(checkpoint)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=3, help="repetitions of writing and of opening per page"
    )
    parser.add_argument(
        "--demo", metavar="DIR", help="measure only the page of trained networks in this folder"
    )
    parser.add_argument("--out", help="write the results as JSON")
    options = parser.parse_args()
    if not (shutil.which("chromedriver") and any(map(shutil.which, CHROMIUM))):
        sys.exit("no Chromium with chromedriver: apt-get install -y chromium chromium-driver")
    results = {}
    print("| page | MB | s to write | s to open | ms to follow, median | slowest |\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = make_kinds(folder) if options.demo is None else {"trained": ["--demo", options.demo]}
        for kind, words in kinds.items():
            row = results[kind] = measure(words, folder / "page.html", options.repeats)
            figures = [value for key, value in row.items() if key != "moves"]
            print(f"| {kind} | {' | '.join(map(str, figures))} |", flush=True)
    if options.out:
        write_json(
            options.out, {"machine": describe_machine(), "repeats": options.repeats, "results": results}
        )


if __name__ == "__main__":
    main()
