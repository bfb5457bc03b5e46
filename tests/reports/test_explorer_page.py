"""The explorer in a real browser: every panel moves the point, and every number is that of numpy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.models.analysis import StageCapture
from rga_reid.reports import relation_views
from rga_reid.reports.explorer import Exhibit, explorer_page
from rga_reid.reports.relation_views import stage_view
from tests.contrast import low_contrasts

pytestmark = pytest.mark.slow
Browse = Callable[..., AbstractContextManager[Any]]

PATIENCE = 600  # seconds, to end a hang
SHOWN = 1e-3  #: relative precision of the numbers, as the page states it
THREE_DIGITS = 5.1e-3  #: relative precision of their text
MODULES = ("rga", "pam", "cam", "nonlocal", "criss_cross")
GRIDS = ((24, 24), (8, 4))  # of the two stages: 576 positions are too many to be shown whole
CHANNELS = 16
DEAD = (2, 5, 11)  # channels of the input that are 0 everywhere


def capture(name: str, stage: int) -> StageCapture:
    torch.manual_seed(stage)
    module = ATTENTION_MODULES[name](CHANNELS, GRIDS[stage - 1]).eval()
    x = torch.rand(1, CHANNELS, *GRIDS[stage - 1])
    x[:, DEAD] = 0
    with torch.no_grad():
        relations = module.relations(x)
        trace, output = relations.trace()
    return StageCapture(stage, name, relations.matrices, trace.weights, trace.flow, output)


@pytest.fixture(scope="module")
def captures() -> dict[str, list[StageCapture]]:
    return {name: [capture(name, stage) for stage in (1, 2)] for name in MODULES}


@pytest.fixture(scope="module")
def file(captures: dict[str, list[StageCapture]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    exhibits = [
        Exhibit(name, True, "a.jpg", pixels, list(map(stage_view, of_stages)), "a model")
        for name, of_stages in captures.items()
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer_page(exhibits, note="a note"), encoding="utf-8")
    return path


class Page:
    def __init__(self, browser: Any, file: Path) -> None:
        self.browser, self.file = browser, file

    def open(self, **settings: Any) -> None:
        words = "&".join(f"{key}={value}" for key, value in settings.items())
        self.browser.get("about:blank")
        self.browser.get(f"{self.file.as_uri()}#{words}")
        self.wait("document.body.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: str, *arguments: Any) -> None:
        WebDriverWait(self.browser, PATIENCE, 0.05).until(
            lambda b: b.execute_script(f"return {condition}", *arguments)
        )

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def point_at(self, element: Any, row: int, column: int, grid: tuple[int, int]) -> ActionChains:
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        box = element.rect
        x = (column + 0.5) * box["width"] / grid[1] - box["width"] / 2
        y = (row + 0.5) * box["height"] / grid[0] - box["height"] / 2
        chain = ActionChains(self.browser, duration=0)
        return chain.move_to_element_with_offset(element, round(x), round(y))

    def node(self, value: int) -> None:
        self.wait("document.getElementById('readout').dataset.node === arguments[0]", str(value))

    def number(self, name: str) -> float:
        return float(self.find(f"#{name}").get_attribute("data-value"))

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))


@pytest.fixture(scope="module", params=[1280, 390])
def window(request: pytest.FixtureRequest, file: Path, browse: Browse) -> Iterator[Page]:
    with browse(file, width=request.param, height=900) as browser:
        yield Page(browser, file)


@pytest.fixture
def page(window: Page) -> Iterator[Page]:
    """The page. Nothing is wider than the window, and the console stays empty."""
    window.open(lang="en")
    yield window
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.browser.get_log("browser") == []


def test_opens_on_the_finest_whole_stage_with_the_photo_in_view(page: Page) -> None:
    assert page.text("#stages label:has(:checked)").startswith("2 (8×4")
    for target in ("#same", "#applied-section", "#flow-section", "#about"):
        page.run("document.querySelector(arguments[0]).scrollIntoView({block: 'end'})", target)
        box = page.run(
            "const b = document.getElementById('photo').getBoundingClientRect(); return [b.top, b.bottom]"
        )
        assert box[0] >= 0
        assert box[1] <= 900
    assert not page.run("return document.getElementById('short').open")
    top = page.run(
        "return ['row', 'short'].map(id => document.getElementById(id).getBoundingClientRect().top)"
    )
    assert top[0] < top[1]  # pictures before formulas


@pytest.mark.parametrize("part", ["#same-point figure:nth-child(3) canvas", "#applied canvas.tap", "#photo"])
def test_every_panel_moves_the_point(page: Page, part: str) -> None:
    canvas = page.find(part)
    page.point_at(canvas, 6, 1, (8, 4)).perform()  # hover
    page.node(25)
    page.point_at(canvas, 5, 1, (8, 4)).click().perform()
    page.node(21)
    page.point_at(canvas, 2, 2, (8, 4)).perform()  # held
    canvas.send_keys(Keys.ARROW_UP)
    page.node(17)
    canvas.send_keys(Keys.ARROW_RIGHT)
    page.node(18)


def test_open_boxes_move_the_point_and_mark_their_inputs(page: Page) -> None:
    page.click('.box[data-symbol="f_s"] .toggle')
    page.wait("document.querySelector('.box[data-symbol=\"f_s\"] .opened canvas') !== null")
    canvas = page.find('.box[data-symbol="f_s"] .opened canvas')
    page.point_at(canvas, 3, 3, (8, 4)).click().perform()
    page.node(15)
    assert page.run("return [...document.querySelectorAll('.is-input')].map(b => b.dataset.symbol)") == [
        "r_s"
    ]
    page.click('.box[data-symbol="f_s"] .toggle')
    assert page.run("return document.querySelectorAll('.is-input').length") == 0


def dot_products(capture: StageCapture, left: str, right: str) -> np.ndarray:
    steps = {step.symbol: step.tensor[0].double().flatten(1).numpy() for step in capture.flow}
    return np.einsum("ei,ej->ij", steps[left], steps[right])


@pytest.mark.parametrize(
    ("exhibit", "symbol", "left", "right"),
    [(0, "G_s", "θ_s", "φ_s"), (1, "A", "Q", "K"), (3, "f", "θ", "φ"), (4, "A_2", "Q_2", "K_2")],
)
def test_an_entry_is_computed_with_numbers(
    page: Page, captures: dict[str, list[StageCapture]], exhibit: int, symbol: str, left: str, right: str
) -> None:
    """Products by numpy in double precision, their softmax by hand."""
    shown = captures[MODULES[exhibit]][1]
    matrix = "pass_2" if symbol == "A_2" else "positions" if exhibit else "spatial"
    i, j = 9, 13  # in one column, so that criss-cross attention relates them
    page.open(
        lang="en", exhibit=exhibit, stage=2, matrix=matrix, i="0.3125,0.375", j="0.4375,0.375", open=symbol
    )
    page.wait("document.querySelector('.calc')?.dataset.value !== undefined")
    products = dot_products(shown, left, right)
    data = page.run("return {...document.querySelector('.calc').dataset}")
    assert (int(data["i"]), int(data["j"])) == (i, j)
    assert float(data["dot"]) == pytest.approx(products[i, j], rel=1e-5)
    expected = float(shown.matrices[matrix][0, i, j])
    assert float(data["value"]) == pytest.approx(expected, rel=1e-4)
    assert page.number("value-row") == pytest.approx(expected, rel=SHOWN)
    rows = page.run(
        "return [...document.querySelectorAll('.calc tr')].slice(1).map(r => [...r.cells].map(c => c.textContent))"
    )
    total = (
        rows[-1][-1]
        .replace("−", "-")
        .replace("·10", "e")
        .translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    )
    assert float(total) == pytest.approx(products[i, j], rel=THREE_DIGITS)
    working = page.text(".calc").replace("−", "-").replace("(-", "-").replace(")", " ")
    if found := re.search(r"exp\((-{0,2}[\d.]+) - (-?[\d.]+)\s+= ([\d.]+),", working):  # the digits suffice
        negated, log, value = (float(text.replace("--", "")) for text in found.groups())
        assert np.exp(negated - log) == pytest.approx(value, rel=2 * THREE_DIGITS)
    page.click(".calc button")
    page.wait("document.querySelector('.calc tr.now') !== null")


def test_channels_that_are_dead_are_left_out_and_ties_are_named(
    page: Page, captures: dict[str, list[StageCapture]]
) -> None:
    page.open(lang="en", exhibit=2, stage=2)
    assert f"{CHANNELS - len(DEAD)} of {CHANNELS}" in page.text("#cap-channels")
    channel = int(page.find("#readout").get_attribute("data-node"))
    assert channel not in DEAD
    assert page.text("#head-photo").startswith(f"Activation of channel {channel}")
    row = captures["cam"][1].matrices["channels"][0, channel].numpy()
    live = [k for k in range(CHANNELS) if k not in DEAD and k != channel]
    wanted = sorted(live, key=lambda k: (-row[k], k))[:4]
    shown = page.run(
        "return [...document.querySelectorAll('#most figure')].map(f => Number(f.dataset.channel))"
    )
    assert shown == wanted
    page.click("#most figure canvas")
    page.node(wanted[0])
    # products of nodes that the ReLU of the embedding sets to 0 tie
    page.open(lang="en", exhibit=0, stage=2, matrix="channel")
    channel = int(page.find("#readout").get_attribute("data-node"))
    row = captures["rga"][1].matrices["channel"][0, channel].numpy()
    live = [k for k in range(CHANNELS) if k not in DEAD and k != channel]
    ties = sum(row[k] == row[live].min() for k in live)
    assert (f"{ties} channels share the lowest value" in page.text("#tied-least")) == (ties > 1)
    page.click("#exhibits label:nth-of-type(3) input")  # CAM, and back to RGA
    page.wait("document.getElementById('channel-picker').hidden === false")
    page.click("#exhibits label:nth-of-type(1) input")
    page.wait("document.querySelector('#exhibits label:has(:checked)').textContent.startsWith('rga')")
    assert page.text("#matrices label:has(:checked)").startswith("Gc")  # chosen in the address


def test_channels_that_a_channel_takes_from_are_those_unlike_it(page: Page) -> None:
    page.click("#exhibits label:nth-of-type(3) input")
    page.wait("document.getElementById('head-most').textContent.includes('takes most')")
    assert page.text("#readout").count("the most it takes") == 1
    page.click("#exhibits label:nth-of-type(1) input")
    page.click("#matrices label:nth-of-type(2) input")
    page.wait("document.getElementById('head-most').textContent.startsWith('Most related')")


def test_a_number_after_a_minus_sign_is_in_brackets(page: Page) -> None:
    assert page.run("return [bracket(-150), bracket(18.6), bracket(0)]") == ["(−150)", "18.6", "0"]


def test_a_narrow_range_has_the_digits_of_its_width(page: Page) -> None:
    assert page.run("return ends(0.99702, 1.00231)") == {"low": "0.99702", "high": "1.0023"}
    assert page.run("return ends(-0.25, 0.125)") == {"low": "−0.250", "high": "0.125"}


def test_coming_back_from_channels_shows_positions(page: Page) -> None:
    for number, channels in ((3, True), (1, False)):
        page.click(f"#exhibits label:nth-of-type({number}) input")
        page.wait(f"document.getElementById('channel-picker').hidden === {str(not channels).lower()}")
        assert page.text("#look-title") == ("Choose a channel" if channels else "Point at the photo")
    assert page.text("#matrices label:has(:checked)").startswith("Gs")
    assert page.text("#head-photo") == "Photo"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_tour_has_six_steps_with_the_numbers_of_the_point(
    page: Page, captures: dict[str, list[StageCapture]], lang: str
) -> None:
    G = captures["rga"][1].matrices["spatial"][0]
    i, j = next((i, j) for i in range(32) for j in range(32) if 0 < 2 * G[i, j] < G[j, i])
    points = [f"{(node // 4 + 0.5) / 8},{(node % 4 + 0.5) / 4}" for node in (i, j)]
    page.open(lang=lang, i=points[0], j=points[1])
    page.click("#start-tour")
    texts = []
    for step in range(1, 7):
        page.wait("document.getElementById('tour-step').textContent.includes(arguments[0])", str(step))
        page.wait(
            "document.getElementById('tour-text').textContent !== arguments[0]", texts[-1] if texts else ""
        )
        texts.append(page.text("#tour-text"))
        assert page.run("return document.querySelectorAll('.toured').length") > 0
        if page.run("return document.querySelector('.content .toured canvas.tap') !== null"):  # not covered
            page.wait(
                "((canvas) => { const b = canvas.getBoundingClientRect(); return canvas ==="
                " document.elementFromPoint((b.left + b.right) / 2, (b.top + b.bottom) / 2); })"
                "(document.querySelector('.content .toured canvas.tap'))"
            )
        if step < 6:
            page.run("document.getElementById('tour-next').click()")
    assert not page.run("return document.getElementById('tour-next').disabled === false")
    assert not [text for text in texts if re.search(r"[{}]|undefined|NaN", text)]
    assert bool(re.search(r"[\u4e00-\u9fff]", "".join(texts))) == (lang == "zh")
    for name, value in (("value-row", G[i, j]), ("value-column", G[j, i])):
        assert page.number(name) == pytest.approx(float(value), rel=SHOWN)
        assert page.run("return formatNumber(arguments[0])", page.number(name)) in texts[5]
    assert "8 × 4" in texts[0]
    page.run("document.getElementById('tour-end').click()")
    assert page.run("return document.getElementById('tour').hidden")


def test_an_entry_whose_vectors_are_not_kept_is_named(
    browse: Browse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relation_views, "MAX_OPERAND", 0)  # 32 nodes of 128
    exhibits = []
    for name, channels in (("rga_s", 16), ("cam", 64)):
        torch.manual_seed(0)
        module, x = ATTENTION_MODULES[name](channels, (16, 8)).eval(), torch.rand(1, channels, 16, 8)
        with torch.no_grad():
            relations = module.relations(x)
            trace, output = relations.trace()
        captured = StageCapture(1, name, relations.matrices, trace.weights, trace.flow, output)
        exhibits.append(
            Exhibit(name, True, "a.jpg", np.zeros((64, 32, 3), np.uint8), [stage_view(captured)], "a model")
        )
    file = tmp_path / "page.html"
    file.write_text(explorer_page(exhibits), encoding="utf-8")
    with browse(file) as browser:
        page = Page(browser, file)
        page.open(lang="en", exhibit=1, open="A")
        result = "document.querySelector('.calc')?.lastElementChild.textContent"
        page.wait(f"{result} !== undefined")
        entry = page.run("return {...document.querySelector('.calc').dataset}")
        readout = page.find("#readout")
        assert [entry["i"], entry["j"]] == [
            readout.get_attribute(f"data-{name}") for name in ("node", "other")
        ]
        assert float(entry["value"]) == pytest.approx(page.number("value-row"), rel=SHOWN)

        page.open(lang="en", exhibit=0, i="0.01,0.01", j="0.99,0.99", open="G_s")
        page.wait(f"{result}?.startsWith('Gs[i′, j′] = ')")
        assert "32 positions only" in page.text(".calc")
        page.click("#start-tour")
        page.wait(f"{result}?.startsWith('Gs[i, j] = ')")
        data = page.run("return {...document.querySelector('.calc').dataset}")
        assert float(data["value"]) == pytest.approx(page.number("value-row"), rel=SHOWN)
        page.run("document.getElementById('tour-end').click()")  # back to the view before
        page.wait(f"{result}?.startsWith('Gs[i′, j′] = ')")
        page.node(0)


def test_the_address_keeps_the_view(page: Page) -> None:
    page.click("#exhibits label:nth-of-type(2) input")
    page.wait("document.querySelector('#exhibits label:has(:checked)').textContent.startsWith('pam')")
    page.point_at(page.find("#photo"), 6, 3, (8, 4)).click().perform()
    page.node(27)
    page.click("#language")
    page.click("#theme")
    page.wait("location.hash.includes('theme=light') && location.hash.includes('held=1')")
    address = page.run("return location.href")
    page.browser.get("about:blank")
    page.browser.get(address)
    page.wait("document.body.dataset.ready === 'yes'")
    page.node(27)
    assert page.text("#exhibits label:has(:checked)") == "pam，已训练"
    assert page.text("#matrices label:has(:checked)") == "A，位置"
    assert page.text("#networks").strip() == "a model，64×32 像素。"
    assert page.run("return document.documentElement.dataset.theme") == "light"
    assert page.run("return document.documentElement.lang") == "zh-CN"


def test_panels_are_saved_as_pictures(page: Page) -> None:
    count = page.run("return document.querySelectorAll('button.save').length")
    assert count >= 5 + page.run("return document.querySelectorAll('#same-point figure').length")
    size, drawn, original = page.run(
        "const f = document.getElementById('fig-row'), p = panelPicture(f, 'row'), c = f.querySelector('canvas');"
        "const at = (canvas, x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data];"
        "return [[p.width, p.height], at(p, 12 + 5 * (p.width - 24) / c.width, 38 + 5 * (p.width - 24) / c.width),"
        "at(c, 5, 5)]"
    )
    assert size[0] >= 320
    assert drawn == original
    page.run(
        "window.saved = null; HTMLAnchorElement.prototype.click = function () { window.saved = this.download; };"
    )
    page.click("#fig-row .save")
    page.wait("window.saved !== null")
    assert page.run("return window.saved").endswith(".png")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_texts_have_enough_contrast(file: Path, browse: Browse, lang: str, dark: bool) -> None:
    with browse(file, dark=dark) as browser:
        page = Page(browser, file)
        page.open(lang=lang, tour=3)
        page.run("for (const d of document.querySelectorAll('details')) d.open = true")
        assert low_contrasts(browser) == []
        assert page.run("return getComputedStyle(document.body).colorScheme") == "light dark"


def test_data_of_the_page_is_complete(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    data = json.loads(held[1])
    assert set(data["strings"]) == {"en", "zh"}
    assert [exhibit["start"] for exhibit in data["exhibits"]] == [1, 1, 1, 1, 1]
