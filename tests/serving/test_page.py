"""The operator page in a real browser, against a real server: its results are those of ``Gallery.search``."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from rga_reid import Gallery, load_model
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.inference import ModelFingerprint, extract_features
from rga_reid.inference.feature_files import read_features
from tests.serving.conftest import run_server

pytestmark = pytest.mark.slow
Browse = Callable[..., AbstractContextManager[Any]]

CHECKOUT = Path(__file__).parents[2]
PATIENCE = 600  # seconds, to end a hang
WIDTHS = (1280, 390)
START = pd.Timestamp("2026-03-01T10:00:00Z")
TOKEN = "correct-horse"
NAME = re.compile(r"(?P<pid>\d{4})_c(?P<camera>\d)s1_(?P<frame>\d{6})")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn people: four that the gallery has, by three cameras."""
    root = tmp_path_factory.mktemp("people") / "set"
    write_synthetic(root, SyntheticSettings(2, 4, (3, 3), (3, 3), 0, 0, (64, 32)))
    return root


@pytest.fixture(scope="module")
def gallery(people: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the people. The last person has no label, and one image of each camera has no track."""
    files = sorted(map(str, (people / "bounding_box_test").glob("*.jpg")))
    rows = [match.groupdict() for file in files if (match := NAME.search(file))]
    table = pd.DataFrame(rows).astype({"pid": "Int64", "camera": "Int64", "frame": int})
    table["track"] = table["pid"] % 10  # the same number in each camera
    table.loc[table.groupby("camera").head(1).index, "track"] = pd.NA
    table["time"] = START + pd.to_timedelta(table["frame"], unit="s")
    table["pid"] = table["pid"].mask(table["pid"] == table["pid"].max())
    table["note"] = "<b>text</b>"
    model = load_model(tiny_checkpoint)
    features, _ = extract_features(model, files)
    built = Gallery.build(
        features,
        table.drop(columns="frame").assign(path=files),
        model=ModelFingerprint.of(model, tiny_checkpoint),
    )
    place = tmp_path_factory.mktemp("gallery") / "G"
    built.save(place)
    return place


@pytest.fixture(scope="module")
def queries(people: Path) -> list[Path]:
    """Query pictures, two of each person."""
    files = sorted((people / "query").glob("*.jpg"))
    return [
        file
        for pid in dict.fromkeys(file.name[:4] for file in files)
        for file in [f for f in files if f.name[:4] == pid][:2]
    ]


@contextmanager
def serve(gallery: Path, people: Path, *options: str) -> Iterator[str]:
    """Run the server; return its address."""
    log = gallery.with_name(f"{gallery.name}.log")
    with run_server(str(gallery), log, "--images-root", str(people), *options) as (_, address):
        yield address


@pytest.fixture(scope="module")
def server(gallery: Path, people: Path) -> Iterator[str]:
    """A server of the gallery, which the tests must not change."""
    with serve(gallery, people, "--read-only") as address:
        yield address


class Page:
    """The page as an operator uses it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: str, *arguments: Any) -> None:
        WebDriverWait(self.browser, PATIENCE).until(
            lambda b: b.execute_script(f"return {condition}", *arguments)
        )

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Wait until what is done in the block has changed the results."""
        before = self.run("return document.body.dataset.searches")
        yield
        self.wait(
            "Number(document.body.dataset.searches) > arguments[0] && !document.body.classList.contains('busy')",
            int(before),
        )

    def add(self, *files: Path) -> None:
        with self.searching():
            self.find("#files").send_keys("\n".join(map(str, files)))

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, selector: str, value: str) -> None:
        self.show_filters()
        with self.searching():
            Select(self.find(selector)).select_by_value(value)

    def type(self, selector: str, text: str) -> None:
        """Enter a value as a user does who leaves the field."""
        self.show_filters()
        with self.searching():
            self.run(
                "arguments[0].value = arguments[1]; for (const name of ['input', 'change']) "
                "arguments[0].dispatchEvent(new Event(name, {bubbles: true}))",
                self.find(selector),
                text,
            )

    def show_filters(self) -> None:
        self.run("for (const box of document.querySelectorAll('#filters, #filters details')) box.open = true")

    def cards(self, part: str = "#results") -> list[int]:
        """Return the ids of the pictures in a part of the results."""
        return [
            int(i)
            for i in self.run(
                "return [...document.querySelectorAll(arguments[0] + ' .card')].map(c => c.dataset.id)", part
            )
        ]

    def scores(self) -> list[str]:
        return list(
            self.run(
                "return [...document.querySelectorAll('#results .card .first b')].map(b => b.textContent)"
            )
        )

    def focus(self) -> str:
        return str(
            self.run(
                "return document.activeElement.closest('.card')?.dataset.id ?? document.activeElement.id"
            )
        )

    def fits(self) -> bool:
        """Return whether nothing is wider than the window."""
        return bool(self.run("return document.documentElement.scrollWidth <= innerWidth"))

    def complaints(self) -> list[Any]:
        return list(self.browser.get_log("browser"))


@pytest.fixture(scope="module", params=WIDTHS)
def window(request: pytest.FixtureRequest, server: str, browse: Browse) -> Iterator[Any]:
    """A wide and a narrow window."""
    with browse(server, width=request.param) as browser:
        yield browser


@pytest.fixture
def page(window: Any, server: str) -> Iterator[Page]:
    """The page, opened for the first time. The console must stay empty."""
    window.execute_script("localStorage.clear(); sessionStorage.clear()")
    window.get(server)
    opened = Page(window)
    opened.wait("document.body.dataset.ready === 'yes'")
    yield opened
    assert opened.fits()
    assert opened.complaints() == []


@pytest.fixture(scope="module")
def wanted(gallery: Path, tiny_checkpoint: Path) -> Callable[..., pd.DataFrame]:
    """Return a function that searches in this process, for the mean of pictures and of images of the gallery."""
    opened, model = Gallery.open(gallery), load_model(tiny_checkpoint)

    def search(files: list[Path], ids: tuple[int, ...] = (), **settings: Any) -> pd.DataFrame:
        features = np.asarray(extract_features(model, list(map(str, files)))[0])
        stored = [Path(opened.table["path"][list(opened.ids).index(i)]) for i in ids]
        if stored:
            features = np.concatenate(
                [features, np.asarray(extract_features(model, list(map(str, stored)))[0])]
            )
        found = opened.search(features.mean(axis=0, keepdims=True), 20 + len(ids), with_ids=True, **settings)
        return found[~found["id"].isin(ids)].head(20)

    return search


def table_of(gallery: Path) -> pd.DataFrame:
    opened = Gallery.open(gallery)
    return opened.table.assign(id=opened.ids).set_index("id")


def test_results_are_those_of_a_search(
    page: Page, queries: list[Path], wanted: Callable[..., pd.DataFrame]
) -> None:
    page.add(queries[0])
    page.choose("#group-by", "")
    page.type("#threshold", "")
    found = wanted(queries[:1])
    assert page.cards() == found["id"].tolist()
    assert page.scores() == [f"{score:.3f}" for score in found["score"]]
    page.add(queries[1])  # the mean of both
    assert page.cards() == wanted(queries[:2])["id"].tolist()
    page.click("#pictures li:first-child button")
    page.wait(
        "document.querySelectorAll('#pictures li').length === 1 && !document.body.classList.contains('busy')"
    )
    assert page.cards() == wanted(queries[1:2])["id"].tolist()
    assert page.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    origin = page.run("return location.origin")
    assert loaded
    assert all(name.startswith((f"{origin}/", f"blob:{origin}/", "data:")) for name in loaded)
    with page.searching():
        page.click("#clear")
    assert page.cards() == []
    assert page.find("#empty").is_displayed()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(
    page: Page, queries: list[Path], wanted: Callable[..., pd.DataFrame], event: str
) -> None:
    script = """
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(arguments[1]), c => c.charCodeAt(0));
    transfer.items.add(new File([bytes], 'someone.jpg', {type: 'image/jpeg'}));
    const made = arguments[0] === 'drop'
      ? new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true})
      : new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true});
    document.getElementById('drop').dispatchEvent(made);
    """
    with page.searching():
        page.run(script, event, base64.b64encode(queries[0].read_bytes()).decode())
    page.choose("#group-by", "")
    assert page.cards() == wanted(queries[:1])["id"].tolist()


def test_picture_is_taken_with_the_camera(server: str, browse: Browse) -> None:
    with browse(server) as browser:
        page = Page(browser)
        page.click("#take")
        page.wait("document.getElementById('video').videoWidth > 0")
        with page.searching():
            page.click("#capture")
        assert len(page.cards()) > 0
        assert page.run("return document.querySelectorAll('#pictures img').length") == 1
        assert page.complaints() == []


def test_filters_limit_cameras_and_times(page: Page, queries: list[Path], gallery: Path) -> None:
    table = table_of(gallery)
    page.add(queries[0])
    page.choose("#group-by", "")
    page.show_filters()
    cameras = page.run(
        "return [...document.querySelectorAll('#cameras .chip')].map(c => c.textContent.trim())"
    )
    assert cameras == [str(camera) for camera in sorted(table["camera"].unique())]
    with page.searching():
        page.run("document.querySelectorAll('#cameras input')[1].click()")
    camera = int(cameras[1])
    assert set(page.cards()) == set(table.index[table["camera"] == camera])
    middle = table["time"].sort_values().iloc[len(table) // 2]
    local = page.run(
        "const d = new Date(arguments[0]); d.setMinutes(d.getMinutes() - d.getTimezoneOffset()); "
        "return d.toISOString().slice(0, 19)",
        middle.isoformat(),
    )
    page.type("#from", local)
    assert set(page.cards()) == set(table.index[(table["camera"] == camera) & (table["time"] >= middle)])
    page.type("#to", local)
    assert set(page.cards()) == set(table.index[(table["camera"] == camera) & (table["time"] == middle)])
    page.type("#from", "")
    page.type("#where", "pid is null")
    late = (table["camera"] == camera) & (table["time"] <= middle) & table["pid"].isna()
    assert set(page.cards()) == set(table.index[late])


@pytest.mark.parametrize(
    ("column", "keys"), [("track", ["camera", "track"]), ("camera", ["camera"]), ("pid", ["pid"])]
)
def test_results_are_grouped(
    page: Page, queries: list[Path], gallery: Path, column: str, keys: list[str]
) -> None:
    table = table_of(gallery)
    page.add(queries[0])
    page.choose("#group-by", "")
    page.choose("#group-by", column)
    groups = page.run(
        "return [...document.querySelectorAll('#results .group')].map(g => [g.querySelector('h3').textContent, "
        "[...g.querySelectorAll('.card')].map(c => Number(c.dataset.id))])"
    )
    shared = [
        tuple(table.loc[ids, keys].drop_duplicates().itertuples(index=False, name=None)) for _, ids in groups
    ]
    assert all(len(one) == 1 for one in shared)
    known = [one[0] for one in shared if not pd.isna(one[0][-1])]
    assert len(known) == len(set(known)) == len(table[keys].dropna().drop_duplicates())
    for (title, _), one in zip(groups, shared, strict=True):
        assert all(str(value) in title for value in one[0] if not pd.isna(value))


def test_timeline_shows_each_sighting(page: Page, queries: list[Path], gallery: Path) -> None:
    page.add(queries[0])
    page.choose("#group-by", "")
    marks = page.run(
        "return [...document.querySelectorAll('.mark[role=button]')]"
        ".map(m => [m.dataset.id, m.getAttribute('cx'), m.getAttribute('cy')].map(Number))"
    )
    drawn = pd.DataFrame(marks, columns=["id", "x", "y"]).set_index("id").join(table_of(gallery))
    assert sorted(drawn.index) == sorted(page.cards())
    seconds = (drawn["time"] - drawn["time"].min()).dt.total_seconds()
    wanted = drawn["x"].min() + seconds / seconds.max() * (drawn["x"].max() - drawn["x"].min())
    np.testing.assert_allclose(drawn["x"], wanted, atol=0.01)
    lanes = drawn.groupby("camera")["y"].unique()
    assert lanes.map(len).eq(1).all()
    assert np.all(np.diff(np.concatenate(lanes.tolist())) > 0)  # cameras in their order
    names = page.run("return [...document.querySelectorAll('.camera-name')].map(n => n.textContent)")
    assert names == [f"camera {camera}" for camera in lanes.index]


def test_threshold_divides_the_results(
    page: Page, queries: list[Path], wanted: Callable[..., pd.DataFrame]
) -> None:
    found = wanted(queries[:1])
    page.add(queries[0])
    page.choose("#group-by", "")
    line = float(found["score"].iloc[4:6].mean())
    page.type("#threshold", str(line))
    assert page.cards("#above") == found["id"][:5].tolist()
    assert page.cards("#below") == found["id"][5:].tolist()
    assert f"{line:.6f}".rstrip("0") in page.find("#below .line").text
    page.type("#threshold", "1")
    assert page.cards("#above") == []
    assert page.find("#nobody").is_displayed()
    limit, best = map(float, re.findall(r"[0-9]\.[0-9]+", page.find("#nobody").text))
    assert best == pytest.approx(found["score"].iloc[0], abs=5e-4)
    assert best < limit == 1
    assert not page.find("#below .card").is_displayed()  # closed until asked for


def test_threshold_of_the_server_is_not_raised(
    gallery: Path, people: Path, queries: list[Path], browse: Browse
) -> None:
    """Scores of a model that finds everything alike differ in late decimals."""
    with (
        serve(gallery, people, "--read-only", "--threshold", "0.9998765") as address,
        browse(address) as browser,
    ):
        page = Page(browser)
        page.add(queries[0])
        assert float(page.find("#threshold").get_attribute("value")) == 0.999876
        assert page.run(
            "const box = document.querySelector('#threshold'); return box.scrollWidth <= box.clientWidth"
        )
        assert "0.999876" in page.find("#below .line").text


@pytest.mark.parametrize(("factor", "words"), [(5, "larger"), (0.2, "other people"), (1, "")])
def test_page_says_in_which_direction_the_threshold_errs(
    gallery: Path,
    people: Path,
    queries: list[Path],
    browse: Browse,
    tmp_path: Path,
    factor: float,
    words: str,
) -> None:
    calibrated = int(factor * len(Gallery.open(gallery)))
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps({"kind": "open_set", "threshold": 0.5, "gallery_size": calibrated}))
    with (
        serve(gallery, people, "--read-only", "--calibration", str(file)) as address,
        browse(address) as browser,
    ):
        page = Page(browser)
        page.add(queries[0])
        hints = [hint.text for hint in browser.find_elements(By.CSS_SELECTOR, "#status .hint")]
        notes = [hint for hint in hints if "threshold" in hint]
        assert len(notes) == bool(words)
        assert all(words in note for note in notes)


def test_dialog_compares_side_by_side(
    page: Page, queries: list[Path], wanted: Callable[..., pd.DataFrame]
) -> None:
    found = wanted(queries[:1])
    page.add(queries[0])
    page.choose("#group-by", "")
    page.click("#results .card:nth-child(2) .open")
    for number in (1, 2, 1):  # the second result, the next one, and back
        row = found.iloc[number]
        page.wait(
            "document.querySelector('#compare-score').textContent.includes(arguments[0])", f"{row.score:.3f}"
        )
        assert row.path in page.find("#compare-columns").text
        assert "<b>text</b>" in page.find("#compare-columns").text
        assert (
            page.run("return document.querySelectorAll('#compare-query img, #compare-match img').length") == 2
        )
        page.find("#compare").send_keys(Keys.ARROW_RIGHT if number == 1 else Keys.ARROW_LEFT)
    left, right = (page.find(f"#compare-{side}").rect for side in ("query", "match"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert not page.find("#compare-label").is_displayed()  # read-only
    assert not page.find("#compare-erase").is_displayed()
    ActionChains(page.browser).send_keys(Keys.ESCAPE).perform()
    assert not page.find("#compare").is_displayed()
    assert page.focus() == str(found["id"].iloc[2])


def test_match_is_explained(page: Page, queries: list[Path]) -> None:
    page.add(queries[0])
    page.click("#results .card .open")
    page.click("#compare-explain")
    page.wait("document.querySelectorAll('#compare-maps img').length === 2")
    page.wait("[...document.querySelectorAll('#compare-maps img')].every(i => i.naturalWidth > 0)")


def test_confirmed_pictures_join_the_search(
    page: Page, queries: list[Path], wanted: Callable[..., pd.DataFrame]
) -> None:
    page.add(queries[0])
    page.choose("#group-by", "")
    first, second, third = page.cards()[:3]
    with page.searching():
        page.click(f".card[data-id='{second}'] .yes")
    assert page.cards("#above .confirmed") == [second]
    again = wanted(queries[:1], (second,))
    assert page.cards() == [second, *again["id"]]
    assert page.run("return document.querySelectorAll('#confirmed li').length") == 1
    with page.searching():
        page.click(f".card[data-id='{third}'] .no")
    assert page.cards() == [second, *wanted(queries[:1], (second,), where=f"id != {third}")["id"]]
    with page.searching():
        page.click("#show-rejected")
    assert page.cards() == [second, *again["id"]]
    with page.searching():
        page.click(f".card[data-id='{second}'] .yes")  # taken back
    assert page.cards() == wanted(queries[:1])["id"].tolist()
    page.click(f".card[data-id='{first}'] .open")
    with page.searching():
        page.click("#compare-add")
    assert page.run("return document.querySelectorAll('#pictures li').length") == 2
    assert page.cards() == wanted(queries[:1], (first,))["id"].tolist()
    page.click("#compare [data-close]")


def test_rejected_track_is_hidden_as_a_whole(page: Page, queries: list[Path], gallery: Path) -> None:
    table = table_of(gallery)
    page.add(queries[0])
    group = page.find("#above .group:has(header .judge)")
    gone = int(group.find_element(By.CSS_SELECTOR, ".card").get_attribute("data-id"))
    with page.searching():
        page.click("#above .group header .no")
    page.choose("#top-k", "50")
    page.choose("#group-by", "")
    same = (table["camera"] == table["camera"][gone]) & table["track"].eq(table["track"][gone]).fillna(False)
    assert set(page.cards()) == set(table.index[~same])


def test_tracks_without_cameras_and_with_long_numbers(
    gallery: Path, people: Path, queries: list[Path], browse: Browse, tmp_path: Path
) -> None:
    opened = Gallery.open(gallery)
    opened.export(tmp_path / "all.npz")
    features, table = read_features(tmp_path / "all.npz")
    table["track"] = table["track"].where(table["track"] != table["track"].max(), 2**53 + 1)
    table = table.drop(columns=["camera", "camid"], errors="ignore")
    Gallery.build(features, table, model=opened.model).save(tmp_path / "G")
    table = table_of(tmp_path / "G")
    with serve(tmp_path / "G", people, "--read-only") as address, browse(address) as browser:
        page = Page(browser)
        page.add(*queries)
        page.choose("#top-k", "50")
        first = (
            "[...document.querySelectorAll('#results .group')].find((one) => one.querySelector('header .no'))"
        )
        for _ in range(table["track"].nunique()):
            if not page.run(f"return Boolean({first})"):
                break
            shown = page.run(f"return [...{first}.querySelectorAll('.card')].map((one) => +one.dataset.id)")
            with page.searching():
                page.run(f"{first}.querySelector('header .no').click()")
            left, rejected = page.cards(), table["track"][shown[0]]
            assert left
            assert not set(shown) & set(left)
            if rejected < 2**53:  # of a number that JavaScript rounds, only what is shown is hidden
                assert table["track"].ne(rejected).fillna(True)[left].all()
        assert page.complaints() == []


def test_labels_are_stored_as_typed(
    gallery: Path, people: Path, queries: list[Path], browse: Browse, tmp_path: Path
) -> None:
    copied = tmp_path / "G"
    shutil.copytree(gallery, copied)
    with serve(copied, people) as address, browse(address) as browser:
        page = Page(browser)
        page.add(queries[0])
        page.choose("#group-by", "")
        first, second, *_ = page.cards()
        with page.searching():
            page.click(f".card[data-id='{first}'] .yes")
        for card, name in ((first, "Anna"), (second, "007")):
            page.click(f".card[data-id='{card}'] .open")
            page.click("#compare-label")
            page.find("#label-name").send_keys(Keys.CONTROL, "a")
            with page.searching():
                page.find("#label-name").send_keys(name, Keys.ENTER)
            page.run("document.querySelector('#compare').close()")
        assert table_of(copied)["pid"][[first, second]].tolist() == ["Anna", "007"]
        page.click(f".card[data-id='{second}'] .open")
        page.click("#compare-label")
        page.find("#label-name").send_keys(Keys.CONTROL, "a")
        with page.searching():
            page.find("#label-name").send_keys(Keys.DELETE, Keys.ENTER)
        page.run("document.querySelector('#compare').close()")
        assert table_of(copied)["pid"][[first, second]].isna().tolist() == [False, True]
        assert "Anna" in page.find(f"#above .confirmed .card[data-id='{first}']").text


def test_keys_move_among_the_results(page: Page, queries: list[Path]) -> None:
    page.add(queries[0])
    page.choose("#group-by", "")
    ids = [str(one) for one in page.cards()]
    tops = page.run(
        "return [...document.querySelectorAll('#results .open')].map(o => Math.round(o.getBoundingClientRect().top))"
    )
    row = tops.index(next(top for top in tops if top != tops[0]))  # cards in a row
    page.run("document.querySelector('#results .open').focus()")
    for key, now in (
        (Keys.ARROW_RIGHT, 1),
        (Keys.ARROW_DOWN, 1 + row),
        (Keys.ARROW_LEFT, row),
        (Keys.ARROW_UP, 0),
    ):
        ActionChains(page.browser).send_keys(key).perform()
        assert page.focus() == ids[now]
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    ActionChains(page.browser).send_keys(Keys.ENTER).perform()
    assert page.find("#compare").is_displayed()


def test_languages_switch_and_are_remembered(page: Page, queries: list[Path]) -> None:
    page.add(queries[0])
    text = (CHECKOUT / "rga_reid/serving/page/strings.js").read_text(encoding="utf-8")
    strings = json.loads(re.search(r"STRINGS = (\{.*?\n\});", text, re.DOTALL)[1])  # type: ignore[index]
    for language in ("en", "zh", "en", "zh"):
        page.click(f"[data-language={language}]")
        wrong = page.run(
            "return [...document.querySelectorAll('[data-t]')]"
            ".filter(e => e.textContent !== arguments[0][e.dataset.t]).map(e => e.dataset.t)",
            strings[language],
        )
        assert wrong == []
        assert strings[language]["score_meaning"] in page.find("#status").text
        assert page.run("return document.documentElement.lang").startswith(language)
    page.browser.refresh()
    page.wait("document.body.dataset.ready === 'yes'")
    assert page.find("h1").text == strings["zh"]["title"]


def test_first_language_is_that_of_the_browser(server: str, browse: Browse) -> None:
    with browse(server, language="zh-CN") as browser:
        assert browser.find_element(By.TAG_NAME, "h1").text == "行人检索"


#: texts whose contrast with the background is below 4.5, or 3 if they are large
LOW_CONTRAST = """
const light = c => { const x = c / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgba = text => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const brightness = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const background = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = rgba(getComputedStyle(e).backgroundColor);
    if (colour[3] > 180) return colour;
  }
  return [255, 255, 255, 255];
};
const low = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest('[disabled], dialog:not([open]), .skip')) continue;
  const style = getComputedStyle(e), svg = e instanceof SVGElement;
  const [a, b] = [brightness(rgba(svg ? style.fill : style.color)), brightness(background(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  if (ratio < (large ? 3 : 4.5)) low.push([e.className.baseVal ?? e.className, e.textContent.slice(0, 40), ratio]);
}
return low;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_wcag_aa(server: str, queries: list[Path], browse: Browse, dark: bool) -> None:
    with browse(server, dark=dark) as browser:
        page = Page(browser)
        scheme = page.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", scheme)[:3])) < 380) == dark
        page.add(queries[0])
        page.type("#threshold", "1")
        assert page.run(LOW_CONTRAST) == []
        page.type("#threshold", "0.5")
        with page.searching():
            page.click("#results .card .yes")
        page.find("#where").send_keys("no such column", Keys.ENTER)
        page.wait("document.querySelectorAll('#messages .message').length === 1")
        assert page.run(LOW_CONTRAST) == []
        page.click("#results .card .open")
        page.wait("document.querySelectorAll('#compare-match img').length === 1")
        assert page.run(LOW_CONTRAST) == []
        page.run("document.querySelector('#compare').close()")
        for _ in ("light", "dark"):  # the switch wins over the system
            page.click("#theme")
        assert page.run("return document.documentElement.dataset.theme") == "dark"
        assert page.run(LOW_CONTRAST) == []


def test_errors_of_the_server_are_shown(
    server: str, queries: list[Path], tmp_path: Path, browse: Browse
) -> None:
    with browse(server) as browser:
        page = Page(browser)
        page.add(queries[0])
        before = page.cards()
        page.show_filters()
        page.find("#where").send_keys("shoes = 'red'" + Keys.ENTER)
        page.wait("document.querySelector('#messages').textContent.includes('shoes')")
        assert page.cards() == before
        page.find("#where").clear()
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(queries[0].read_bytes()[:300])
        page.add(broken)
        page.wait("document.querySelector('#messages').textContent.includes('broken.jpg')")
        assert page.run("return document.querySelectorAll('#pictures li').length") == 1
        text = tmp_path / "text.txt"
        text.write_text("text")
        page.find("#files").send_keys(str(text))
        page.wait("document.querySelector('#messages').textContent.includes('text.txt')")


@pytest.mark.parametrize("width", WIDTHS)
def test_labels_and_erasures_change_the_gallery(
    gallery: Path, people: Path, queries: list[Path], browse: Browse, tmp_path: Path, width: int
) -> None:
    copied = tmp_path / "G"
    shutil.copytree(gallery, copied)
    before = table_of(copied)
    with serve(copied, people) as address, browse(address, width=width) as browser:
        page = Page(browser)
        page.add(queries[0])
        page.choose("#group-by", "")
        first, second, *others = page.cards()
        third = next(one for one in others if pd.notna(before["track"][one]))

        page.click(f".card[data-id='{first}'] .open")
        page.click("#compare-label")
        page.find("#label-name").send_keys(Keys.CONTROL, "a")
        page.find("#label-name").send_keys("77")
        with page.searching():
            page.find("#label-name").send_keys(Keys.ENTER)
        table = table_of(copied)
        assert table["pid"][first] == 77
        assert (table["pid"].drop(first).fillna(-1) == before["pid"].drop(first).fillna(-1)).all()
        page.wait("document.querySelector('#compare-columns').textContent.includes('77')")
        page.click("#compare-next")

        page.click("#compare-erase")
        assert page.run("return document.activeElement.textContent") == "Cancel"
        ActionChains(page.browser).send_keys(Keys.ENTER).perform()
        page.wait("!document.querySelector('#erase-dialog').open")
        assert list(table_of(copied).index) == list(before.index)  # nothing was erased

        page.click("#compare-erase")
        with page.searching():
            page.click("#erase-dialog .danger")
        assert set(table_of(copied).index) == set(before.index) - {second}
        assert second not in page.cards()
        page.wait(f"document.querySelector('#gallery').textContent.includes('{len(before) - 1}')")

        page.run("if (document.querySelector('#compare').open) document.querySelector('#compare').close()")
        page.click(f".card[data-id='{third}'] .open")
        page.click("#compare-erase")
        page.click("#erase-dialog .scope label:nth-child(2)")  # the whole track
        with page.searching():
            page.click("#erase-dialog .danger")
        track = before["camera"].eq(before["camera"][third]) & before["track"].eq(
            before["track"][third]
        ).fillna(False)
        assert set(table_of(copied).index) == set(before.index[~track]) - {second}
        assert page.fits()
        assert page.complaints() == []


def test_token_is_asked_for_and_kept(
    gallery: Path, people: Path, queries: list[Path], browse: Browse, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"operator read,write {TOKEN}\n")
    copied = tmp_path / "G"
    shutil.copytree(gallery, copied)
    with serve(copied, people, "--token-file", str(tokens)) as address, browse("about:blank") as browser:
        page = Page(browser)
        browser.get(address)
        page.wait("document.querySelector('#token-dialog').open")
        page.find("#token").send_keys("wrong" + Keys.ENTER)
        page.wait(
            "document.querySelector('#token-dialog').open && !document.querySelector('#token-dialog .problem').hidden"
        )
        page.find("#token").send_keys(TOKEN + Keys.ENTER)
        page.wait("document.body.dataset.ready === 'yes'")
        page.add(queries[0])
        page.wait("document.querySelectorAll('#results .card img').length > 0")
        page.click("#results .card .open")
        assert page.find("#compare-label").is_displayed()
        assert not page.find("#compare-erase").is_displayed()  # without the role
        browser.refresh()
        page.wait("document.body.dataset.ready === 'yes'")
        assert not page.find("#token-dialog").is_displayed()
        assert page.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
        page.click("#forget-token")
        page.wait("document.querySelector('#token-dialog').open")
