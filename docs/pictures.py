"""Make the pictures of docs/pictures.md and docs/explain.png from the results of `rga-reid demo`.

    cd FOLDER && rga-reid demo --out demo
    python docs/pictures.py FOLDER

The people in them are drawn by code. Screenshots need Chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechanisms import save_picture
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from rga_reid.commands import main as run_command

DOCS = Path(__file__).resolve().parent
PHOTO, OTHER = (f"demo/data/query/0157_{name}.jpg" for name in ("c1s1_011610_00", "c3s1_012060_00"))
MODEL = ["--checkpoint", "demo/model/last.ckpt"]
#: arguments of the commands, in the folder above the demo, from which paths in its gallery start
COMMANDS = {
    "explorer.html": ["explain", "--image", PHOTO, *MODEL],
    "relations.png": ["explain", "--image", PHOTO, *MODEL],
    "gradcam.png": ["explain", "--image", PHOTO, "--similar-to", OTHER, *MODEL, "--view", "gradcam"],
    "gates.png": ["explain", "--image", PHOTO, *MODEL, "--view", "gates"],
    "query.html": ["query", "--gallery", "demo/gallery", "--image", PHOTO, "--group-by", "track"],
    "test.html": ["test", *MODEL, "--data.root", "demo/data"],
}
WIDTH = 1280  # pixels, of screenshots
OPEN_G = """
const boxes = [...document.querySelectorAll("#flow .box")];
const box = boxes.find((one) => one.querySelector(".symbol").textContent === "Gs");
[...box.querySelectorAll("button")].pop().click();
setTimeout(() => document.getElementById("flow-section").scrollIntoView(), 500);
"""


@contextmanager
def open_browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options)
    try:
        yield browser
    finally:
        browser.quit()


def take_screenshot(
    browser: Any, page: Path, out: Path, height: int, address: str = "", act: Any = None
) -> None:
    """Save the upper part of a page, after ``act(browser)``."""
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get("about:blank")  # otherwise a new address after # would not load the page again
    browser.get(page.resolve().as_uri() + address)
    time.sleep(2)
    if act is not None:
        act(browser)
        time.sleep(2)
    browser.save_screenshot(str(out))


def open_tour(browser: Any) -> None:
    """Open the fourth step of the tour."""
    for name in ("start-tour", *["tour-next"] * 3):
        browser.find_element(By.ID, name).click()
        time.sleep(1)


def shrink(file: Path, out: Path, *, share: float = 1.0) -> None:
    """Save the upper share of a picture, at most as wide as a screenshot."""
    picture = Image.open(file).convert("RGB")
    picture = picture.crop((0, 0, picture.width, round(share * picture.height)))
    picture.thumbnail((WIDTH, picture.height), Image.Resampling.LANCZOS)
    save_picture(picture, out)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path, help="folder in which `rga-reid demo --out demo` was run")
    os.chdir(options.parse_args().folder)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for name, words in COMMANDS.items():
            out = "--out" if words[0] == "explain" else "--html"
            if run_command([*words, out, str(made / name)]) != 0:
                raise SystemExit(1)
        with open_browser() as browser:
            page = made / "explorer.html"
            take_screenshot(browser, page, made / "explain.png", 920)
            take_screenshot(browser, page, made / "tour_zh.png", 880, "#lang=zh", open_tour)
            take_screenshot(browser, page, made / "flow.png", 760, "", lambda one: one.execute_script(OPEN_G))
            take_screenshot(browser, made / "query.html", made / "timeline.png", 900)
            take_screenshot(browser, made / "test.html", made / "test.png", 1000)
            take_screenshot(browser, Path("demo/report/report.html"), made / "report.png", 1180)
        for name in ("tour_zh", "flow", "timeline", "test", "report", "gradcam", "gates"):
            shrink(made / f"{name}.png", DOCS / "pictures" / f"{name}.png")
        # the lower half has the same network before training
        shrink(made / "relations.png", DOCS / "pictures" / "relations.png", share=0.5)
        shrink(made / "explain.png", DOCS / "explain.png")


if __name__ == "__main__":
    main()
