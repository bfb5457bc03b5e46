"""Every kind of page in a real browser, in two languages, widths and colours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.experiments.evaluate_model import (
    rank_between_cameras,
    rank_test_images,
    ranking_page,
    tabulate_top_matches,
)
from rga_reid.models.analysis import StageCapture
from rga_reid.reports.ablation_page import report_page
from rga_reid.reports.ablation_stats import Evaluation
from rga_reid.reports.ablation_tables import AblationReport, load_published
from rga_reid.reports.explorer import Exhibit, explorer_page
from rga_reid.reports.groups_page import groups_page
from rga_reid.reports.heat_maps import HeatMap, heat_map_page
from rga_reid.reports.language import Text
from rga_reid.reports.ranked_page import Match, Picture, ranked_page
from rga_reid.reports.relation_views import stage_view
from tests.axe import find_faults
from tests.contrast import low_contrasts

pytestmark = pytest.mark.slow
Browse = Callable[..., AbstractContextManager[Any]]
START = datetime(2026, 11, 20, 9, 15, tzinfo=timezone.utc)
PEOPLE, CAMERAS = 6, (1, 2, 3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Two pictures of each person by each camera; the first is a query."""
    folder = tmp_path_factory.mktemp("people")
    rows = []
    for pid in range(PEOPLE):
        for camid in CAMERAS:
            for frame, split in ((0, "query"), (1, "gallery"), (2, "gallery")):
                path = folder / f"a_rather_long_name_of_a_camera_and_a_day_{pid}_c{camid}_{frame}.jpg"
                Image.new("RGB", (64, 128), (40 * pid, 60 * camid, 100 * (frame == 0))).save(path)
                rows.append({"path": str(path), "pid": pid, "camid": camid, "split": split})
    return pd.DataFrame(rows).astype({"pid": "Int64", "camid": "Int64"})


def features_of(table: pd.DataFrame, noise: float) -> np.ndarray:
    random = np.random.default_rng(round(100 * noise))
    return np.eye(PEOPLE)[table["pid"]] + noise * random.normal(size=(len(table), PEOPLE))


def evaluate(table: pd.DataFrame, name: str, noise: float) -> Evaluation:
    features = features_of(table, noise)
    result = rank_test_images(features, table)
    curve = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1 + noise], "val_mAP": [0.1, 0.2, 0.3]})
    tables = (result.to_frame(), tabulate_top_matches(features, table), curve)
    costs = (11_000_000, 500_000_000 * (1 + noise), 720.0, 9.5 + noise, 310.0)
    cameras = rank_between_cameras(features, table)
    return Evaluation(name, 0, result.to_dict(), tuple(result.cmc), *tables, *costs, f"{name}.ckpt", cameras)


def make_report(table: pd.DataFrame) -> str:
    runs = [evaluate(table, name, noise) for name, noise in (("base", 0.8), ("better", 0.5), ("worse", 1.1))]
    return report_page(
        AblationReport("A report", runs, "base", missing=["x"], published=load_published("market1501"))
    )


def make_test(table: pd.DataFrame) -> str:
    features = features_of(table, 0.6)
    return ranking_page(features, table, rank_test_images(features, table), title="model/last.ckpt")


def make_query(table: pd.DataFrame) -> str:
    gallery = table[table["split"] == "gallery"]
    matches = [
        Match(row.path, row.pid, row.camid, 7, START + timedelta(minutes=n), rank=n + 1, score=0.9 - n / 20)
        for n, row in enumerate(gallery.head(10).itertuples())
    ]
    return ranked_page([Picture(table["path"][0], 0, 1)] * 10, [matches] * 10, threshold=0.55)


def make_tracks(table: pd.DataFrame) -> str:
    """Return the page of a query whose matches are grouped."""
    rows = [row.path for row in table[table["split"] == "gallery"].itertuples()]
    found = [
        Match(path, n, 2, 7, START + timedelta(minutes=n), rank=n // 3 + 1, score=0.9 - n / 20)
        for n, path in enumerate(rows[:9])
    ]
    groups = [replace(found[n], others=tuple(found[n + 1 : n + 3])) for n in (0, 3, 6)]
    return ranked_page([Picture("nowhere.jpg", 0, 1)], [groups], threshold=0.55)


def make_groups(table: pd.DataFrame) -> str:
    rows = table.rename(columns={"pid": "person"}).assign(track=7, similarity=np.linspace(0.5, 1, len(table)))
    return groups_page(rows.assign(time=START), gallery="G")


def make_heat_maps(view: str) -> Callable[[pd.DataFrame], str]:
    def make(table: pd.DataFrame) -> str:
        pixels = np.asarray(Image.open(table["path"][0]).convert("RGB"))
        what = Text("gate_after", {"stage": 4, "name": Text("gate_spatial")})
        random = np.random.default_rng(0)
        maps = [
            HeatMap(
                f"a_rather_long_name_of_a_camera_and_a_day_and_a_time_{name}.jpg",
                pixels,
                "last.ckpt",
                what,
                random.random(size),
                network="ResNet-18",
            )
            for name in "ab"
            for size in ((4, 2), (16,))
        ]
        return heat_map_page(maps, view, score=Text("score_length") if view == "gradcam" else "")  # type: ignore[arg-type]

    return make


def make_explorer(table: pd.DataFrame) -> str:
    pixels = np.asarray(Image.open(table["path"][0]).convert("RGB"))
    exhibits = []
    for name in ("rga", "pam", "criss_cross", "se"):
        torch.manual_seed(0)
        module, x = ATTENTION_MODULES[name](16, (8, 4)).eval(), torch.rand(1, 16, 8, 4)
        with torch.no_grad():
            relations = module.relations(x)
            trace, output = relations.trace()
        found = (name, relations.matrices, trace.weights, trace.flow, output)
        stages = [stage_view(StageCapture(number, *found)) for number in (1, 2, 3, 4)]
        exhibits.append(Exhibit(name, False, "a.jpg", pixels, stages, "a model"))
    return explorer_page(exhibits)


PAGES = {
    "report": make_report,
    "test": make_test,
    "query": make_query,
    "tracks": make_tracks,
    "groups": make_groups,
    "gradcam": make_heat_maps("gradcam"),
    "gates": make_heat_maps("gates"),
    "explorer": make_explorer,
}
#: a heading of each page
HEADINGS = {
    "report": "Curves",
    "test": "Summary",
    "query": "Query 1",
    "tracks": "Query 1",
    "groups": "Person 0",
    "gradcam": "Grad-CAM: length of the embedding",
    "gates": "Gates",
    "explorer": "Applied attention",
}


@pytest.fixture(scope="module")
def files(images: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(images), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(params=[1280, 390])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def show(files: dict[str, Path], width: int, browse: Browse) -> Iterator[Callable[[str], Any]]:
    """Open a page; at the end nothing is wider than the window, and the console is empty."""
    opened: list[tuple[AbstractContextManager[Any], Any]] = []

    def open_page(name: str) -> Any:
        context = browse(files[name], width=width, height=900)
        opened.append((context, context.__enter__()))
        return opened[-1][1]

    yield open_page
    for context, browser in opened:
        fits, log = browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), None
        log = browser.get_log("browser")
        context.__exit__(None, None, None)
        assert (fits, log) == (True, [])


def find(browser: Any, selector: str) -> Any:
    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    return element


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])]"
    script += ".map((one) => (one.innerText ?? one.textContent).trim())"
    return list(browser.execute_script(script, selector))


def test_tables_sort_by_mouse_and_keyboard(show: Callable[[str], Any]) -> None:
    browser = show("report")
    names, values = "table.sorts tbody th", "table.sorts tbody td:nth-child(2)"
    find(browser, "table.sorts th:nth-child(2) button").click()
    scores = [float(value) for value in texts(browser, values)[:3]]
    assert scores == sorted(scores, reverse=True)
    assert texts(browser, names)[:3] == ["better", "base", "worse"]
    assert find(browser, "table.sorts th:nth-child(2)").get_attribute("aria-sort") == "descending"
    find(browser, "table.sorts th:first-child button").send_keys(Keys.ENTER)
    assert texts(browser, names)[:3] == ["base", "better", "worse"]
    find(browser, "table.sorts th:first-child button").send_keys(Keys.ENTER)
    assert texts(browser, names)[:3] == ["worse", "better", "base"]


def test_a_query_has_the_command_that_explains_it(show: Callable[[str], Any]) -> None:
    browser = show("report")
    assert not browser.find_element(By.CSS_SELECTOR, ".change code").is_displayed()
    find(browser, ".change .copy").click()
    command = texts(browser, ".change code")[0].split()
    assert command[:2] == ["rga-reid", "explain"]
    assert command[4:7] == ["--checkpoint", "base.ckpt", "better.ckpt"]
    assert browser.find_element(By.CSS_SELECTOR, ".change code").is_displayed()


def test_variant_score_and_verdict_are_seen_first(show: Callable[[str], Any], width: int) -> None:
    browser = show("report")
    for column in (1, 2, 3):
        box = find(browser, f"table.sorts tbody tr > :nth-child({column})").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_charts_show_values(show: Callable[[str], Any]) -> None:
    browser = show("report")
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    series = {one["name"]: one["series"] for one in data["charts"]}
    assert list(series) == ["cmc", "ap", "learning", "validation", "gmac", "latency"]
    chart = find(browser, "[data-chart=cmc] svg")
    box = chart.rect
    ActionChains(browser, duration=0).move_to_element_with_offset(chart, -box["width"] * 0.3, 0).perform()
    shown = texts(browser, "[data-chart=cmc] .tip p")
    rank = int(shown[0].split()[-1])
    expected = [f"{one['name']}{one['y'][rank - 1]:.4g}" for one in series["cmc"]]
    assert [line.replace("\n", "").replace(" ", "") for line in shown[1:]] == expected
    learning = find(browser, "[data-chart=learning] svg")
    learning.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "2" in texts(browser, "[data-chart=learning] .tip")[0]
    find(browser, "[data-chart=gmac] .names button").click()
    script = "return document.querySelectorAll('[data-chart=gmac] .dot').length"
    assert browser.execute_script(script) == 2


def test_labels_of_charts_are_not_cut(
    images: pd.DataFrame, width: int, tmp_path: Path, browse: Browse
) -> None:
    """The last label of the operations, 0.1255, is at the right end of its axis."""
    macs = {"base": 123_880_000, "better": 125_380_000}
    runs = [replace(evaluate(images, name, 0.8), macs=count) for name, count in macs.items()]
    page = tmp_path / "page.html"
    page.write_text(report_page(AblationReport("A report", runs, "base")), encoding="utf-8")
    beyond = "return [...document.querySelectorAll('.chart svg text:not([transform])')].filter((one) => {"
    beyond += "const label = one.getBoundingClientRect(), chart = one.closest('svg').getBoundingClientRect();"
    beyond += "return label.left < chart.left || label.right > chart.right; }).map((one) => one.textContent)"
    with browse(page, width=width) as browser:
        assert "0.1255" in texts(browser, "[data-chart=gmac] text")
        assert browser.execute_script(beyond) == []


def test_the_map_has_pictures_neighbours_and_a_search(show: Callable[[str], Any]) -> None:
    browser = show("test")
    data = json.loads(browser.execute_script("return document.getElementById('data').textContent"))["map"]
    plot = find(browser, "#map")
    side, row = plot.rect["width"], 5
    x, y = (side * (24 + data[axis][row] * 552) / 600 - side / 2 for axis in ("x", "y"))
    ActionChains(browser, duration=0).move_to_element_with_offset(plot, round(x), round(y)).click().perform()
    about = texts(browser, "#neighbours .about")[0]
    chosen = next(n for n, one in enumerate(data["images"]) if one["path"] in about)
    near = browser.find_elements(By.CSS_SELECTOR, "#neighbours .found-image")
    titles = [one.get_attribute("title") for one in near]
    assert [title.split("\n")[1] for title in titles] == [
        data["images"][other]["path"] for other in data["neighbours"][chosen]
    ]
    for title, other in zip(titles, data["neighbours"][chosen], strict=True):
        same = data["images"][other]["pid"] == data["images"][chosen]["pid"]
        assert title.startswith("same person" if same else "another person")
    find(browser, "#find").send_keys("4")
    hits = [one for one in data["images"] if one["pid"] == 4 or "4" in one["path"]]
    assert texts(browser, "#found") == [f"{len(hits)} of {len(data['images'])} images"]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#hits button")) == len(hits) == 9


def test_a_click_enlarges_a_match_beside_its_query(show: Callable[[str], Any], width: int) -> None:
    browser = show("query")
    frames = browser.find_elements(By.CSS_SELECTOR, ".ranked .matches .frame")
    small = frames[0].rect["height"]
    find(browser, ".ranked .matches .frame").click()
    left, right = browser.find_elements(By.CSS_SELECTOR, "#large figure")
    assert left.rect["y"] == right.rect["y"]
    assert right.find_element(By.CSS_SELECTOR, ".frame").rect["height"] > 1.3 * small
    assert "#1" in right.text
    assert "_c1_1.jpg" in right.text  # the whole path
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert "#2" in browser.find_elements(By.CSS_SELECTOR, "#large figure")[1].text
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not browser.find_element(By.CSS_SELECTOR, "#large").is_displayed()
    if width == 390:  # strips: ten queries with ten matches in a grid were 18,934 pixels high
        assert browser.execute_script("return document.documentElement.scrollHeight") < 0.6 * 18_934


def test_images_of_a_track_are_shown_together(show: Callable[[str], Any]) -> None:
    browser = show("query")
    count = "return [...document.querySelector('.matches').children].filter((one) => !one.hidden).length"
    before = browser.execute_script(count)
    find(browser, "#tracks").click()
    cameras = browser.execute_script(
        "return new Set([...document.querySelector('.matches').children].map((one) => one.dataset.track)).size"
    )
    assert browser.execute_script(count) == cameras < before
    find(browser, ".same-track .frame").click()  # it opens what it stands for
    assert browser.find_elements(By.CSS_SELECTOR, "#large figure")[1].text.count("#") == 1
    find(browser, "#large-close").click()
    find(browser, "#tracks").click()
    assert browser.execute_script(count) == before


@pytest.mark.parametrize("name", ["gradcam", "gates"])
def test_pictures_of_a_row_begin_at_the_same_height(
    show: Callable[[str], Any], width: int, name: str
) -> None:
    browser = show(name)
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('.maps figure')].map((one) => [one, one.querySelector('img')])"
        ".filter(([, image]) => image).map((both) => both.map((one) => one.getBoundingClientRect().top))"
    )
    heights: dict[float, set[float]] = {}
    for figure, image in boxes:
        heights.setdefault(figure, set()).add(image)
    assert len(boxes) > len(heights)  # several in a row
    assert all(len(found) == 1 for found in heights.values())


@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_the_window(show: Callable[[str], Any], name: str) -> None:
    browser = show(name)
    assert HEADINGS[name] in texts(browser, "h1, h2")
    beyond = "const right = (one) => one.getBoundingClientRect().right; "
    beyond += "return [...document.querySelectorAll('td figure, td canvas')].filter((one) => "
    beyond += "right(one) > right(one.closest('td')) + 1).length"
    assert browser.execute_script(beyond) == 0


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_enough_contrast(files: dict[str, Path], browse: Browse, name: str, dark: bool) -> None:
    with browse(files[name], dark=dark, language="zh-CN" if dark else "en") as browser:
        assert browser.execute_script("return document.documentElement.lang") == ("zh-CN" if dark else "en")
        browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        assert low_contrasts(browser) == []
        find(browser, "#language").click()
        assert browser.execute_script("return document.documentElement.lang") == ("en" if dark else "zh-CN")
        assert (HEADINGS[name] in texts(browser, "h1, h2")) == dark
        assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_fault(files: dict[str, Path], browse: Browse, name: str, dark: bool) -> None:
    with browse(files[name], dark=dark, language="zh-CN" if dark else "en") as browser:
        browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
        if name == "explorer":  # the third step of the tour opens a box of the data flow
            for button in ("start-tour", "tour-next", "tour-next"):
                find(browser, f"#{button}").click()
        assert find_faults(browser) == []
