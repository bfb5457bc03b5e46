"""``explain`` from the command line; its page in a real browser, its numbers against ``relations``."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from rga_reid.commands import main
from rga_reid.data.synthetic import SyntheticSettings, write_synthetic
from rga_reid.experiments import explain as explaining
from rga_reid.experiments.explain import explain
from rga_reid.models import EmbeddingModel, build_model, load_model, save_model
from rga_reid.models.embedding import uint8_batch
from rga_reid.reports.explorer import explorer_page

Browse = Callable[..., AbstractContextManager[Any]]

SHOWN = 1e-3  #: relative precision of the numbers, as the page states it
THREE_DIGITS = 5.1e-3  #: relative precision of their text
PATIENCE = 600  # seconds, to end a hang


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "set"
    write_synthetic(root, SyntheticSettings(2, 1, (2, 2), (2, 2), 0, 0, (128, 64)))
    return sorted((root / "query").glob("*.jpg"))[0]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models whose blocks do something: γ is not 0."""
    folder = tmp_path_factory.mktemp("checkpoints")
    files = {}
    for name in ("rga", "criss_cross", "cam"):
        torch.manual_seed(1)
        # 128×64: stage 1 has 32·16 = 512 positions, whole; channels of stage 4 are 512
        model = build_model(depth=18, attention=name, size=(128, 64))
        for key, parameter in model.named_parameters():
            if key.endswith("gamma"):
                parameter.data.fill_(0.5)
        files[name] = folder / f"{name}.safetensors"
        save_model(model, files[name])
    return files


def inputs_of(model: EmbeddingModel, picture: Path) -> dict[int, torch.Tensor]:
    """Input of the attention after each stage, by running the backbone by hand."""
    body = model.backbone
    found = {}
    with torch.inference_mode():
        x = body.conv1(model.normalise(uint8_batch([picture], model.size)))
        x = body.maxpool(body.relu(body.bn1(x)))
        for stage in (1, 2, 3, 4):
            x = found[stage] = getattr(body, f"layer{stage}")(x)
            x = getattr(body, f"attention{stage}")(x)
    return found


WRITTEN = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")


def number(browser: Any, name: str) -> float:
    element = browser.find_element(By.ID, name)
    text = element.text.replace("·10", "e").translate(WRITTEN)
    assert float(text) == pytest.approx(float(element.get_attribute("data-value")), rel=THREE_DIGITS)
    return float(element.get_attribute("data-value"))


def choose(browser: Any, group: str, label: str) -> None:
    """Click the option of a group whose label starts so, and wait for its picture."""
    labels = browser.find_elements(By.CSS_SELECTOR, f"#{group} label")
    option = next(one for one in labels if one.text.startswith(label))
    before = browser.find_element(By.ID, "readout").get_attribute("innerHTML")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", option)
    option.find_element(By.TAG_NAME, "input").click()
    checked = f"#{group} label:has(:checked)"
    WebDriverWait(browser, PATIENCE).until(
        lambda b: (
            b.find_element(By.CSS_SELECTOR, checked).text.startswith(label)
            and b.find_element(By.ID, "readout").get_attribute("innerHTML") != before
        )
    )


def point_at(browser: Any, canvas: str, row: int, column: int, grid: tuple[int, int]) -> Any:
    """Move to the middle of a cell; the caller clicks or waits."""
    element = browser.find_element(By.ID, canvas)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    width, height = element.size["width"], element.size["height"]
    x = (column + 0.5) * width / grid[1] - width / 2
    y = (row + 0.5) * height / grid[0] - height / 2
    return ActionChains(browser, duration=0).move_to_element_with_offset(element, round(x), round(y))


def wait_for(browser: Any, key: str, value: int) -> None:
    WebDriverWait(browser, PATIENCE).until(
        lambda b: b.find_element(By.ID, "readout").get_attribute(f"data-{key}") == str(value)
    )


def no_complaints(browser: Any) -> None:
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_hover_click_and_keys_show_the_numbers_of_relations(
    picture: Path, checkpoints: dict[str, Path], tmp_path: Path, browse: Browse
) -> None:
    page = tmp_path / "page.html"
    assert (
        main(
            ["explain", "--image", str(picture), "--checkpoint", str(checkpoints["rga"]), "--out", str(page)]
        )
        == 0
    )
    model = load_model(checkpoints["rga"])
    inputs = inputs_of(model, picture)
    with torch.inference_mode():
        related = {s: getattr(model.backbone, f"attention{s}").relations(x) for s, x in inputs.items()}
        matrices, weights = ({s: getattr(r, n) for s, r in related.items()} for n in ("matrices", "weights"))
    spatial = matrices[3]["spatial"][0]
    with browse(page) as browser:
        choose(browser, "stages", "3")
        grid = (8, 4)
        point_at(browser, "photo", 2, 1, grid).perform()  # hover
        wait_for(browser, "node", 9)
        point_at(browser, "photo", 2, 1, grid).click().perform()  # hold, and pass over other cells
        point_at(browser, "row", 6, 3, grid).perform()
        wait_for(browser, "other", 27)
        assert number(browser, "value-row") == pytest.approx(float(spatial[9, 27]), rel=SHOWN)
        assert number(browser, "value-column") == pytest.approx(float(spatial[27, 9]), rel=SHOWN)
        assert number(browser, "value-sum") == pytest.approx(float(spatial[9].sum()), rel=1e-3)
        off = ~torch.eye(32, dtype=torch.bool)
        ours = float((spatial - spatial.T)[off].abs().sum() / (spatial + spatial.T)[off].abs().sum())
        assert number(browser, "value-asymmetry") == pytest.approx(ours, rel=1e-4)

        photo = browser.find_element(By.ID, "photo")
        photo.send_keys(Keys.ARROW_DOWN)
        wait_for(browser, "node", 13)
        photo.send_keys(Keys.ARROW_RIGHT)
        wait_for(browser, "node", 14)
        photo.send_keys(Keys.SHIFT, Keys.ARROW_UP)
        wait_for(browser, "other", 23)
        assert number(browser, "value-row") == pytest.approx(float(spatial[14, 23]), rel=SHOWN)

        choose(browser, "stages", "1")
        choose(browser, "matrices", "Gc")
        field = browser.find_element(By.ID, "channel-number")
        field.clear()
        field.send_keys("7", Keys.ENTER)
        wait_for(browser, "node", 7)
        channel = matrices[1]["channel"][0]
        row = channel[7].clone()
        row[7] = -torch.inf
        assert number(browser, "value-row") == pytest.approx(float(row.max()), rel=SHOWN)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#most canvas, #least canvas")) == 8
        for value, text in {
            "0": "0",
            "-0.25": "−0.250",
            "9999.6": "10000",
            "12345": "1.23·10⁴",
            "0.00012346": "1.23·10⁻⁴",
            "0.0012346": "0.00123",
        }.items():
            assert browser.execute_script(f"return formatNumber({value})") == text
        for canvas in browser.find_elements(By.TAG_NAME, "canvas"):
            silent = canvas.get_attribute("aria-hidden") == "true" or not canvas.is_displayed()
            assert silent or canvas.accessible_name, canvas.get_attribute("outerHTML")
        choose(browser, "exhibits", "rga, untrained")
        cells = browser.find_elements(By.CSS_SELECTOR, "#applied tr:nth-child(2) td")
        for cell, stage in zip(cells, (1, 2, 3, 4), strict=True):
            shown, numbers_of = cell.find_elements(By.TAG_NAME, "canvas"), re.findall(r"\d\.\d+", cell.text)
            ends = [end for kind in ("spatial", "channel") for end in weights[stage][kind].aminmax()]
            if cell.text.startswith("every place"):
                assert f"{ends[0]:.3g}" == f"{ends[1]:.3g}"
                del ends[1]
            if "every channel" in cell.text:
                assert f"{ends[-2]:.3g}" == f"{ends[-1]:.3g}"
                del ends[-1]
            assert [float(one) for one in numbers_of] == pytest.approx(
                [float(e) for e in ends], rel=THREE_DIGITS
            )
            assert len(shown) == len(ends) - 2  # a picture where not all are equal, a line of words where so
        no_complaints(browser)


@pytest.mark.slow
def test_criss_cross_and_cam_in_the_browser(
    picture: Path, checkpoints: dict[str, Path], tmp_path: Path, browse: Browse
) -> None:
    page = tmp_path / "page.html"
    files = [str(checkpoints[name]) for name in ("criss_cross", "cam")]
    assert main(["explain", "--image", str(picture), "--checkpoint", *files, "--out", str(page)]) == 0
    model = load_model(checkpoints["criss_cross"])
    with torch.inference_mode():
        found = model.backbone.attention3.relations(inputs_of(model, picture)[3]).matrices
    first, second = (found[f"pass_{n}"][0] for n in (1, 2))
    with browse(page, width=390, height=844) as browser:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        choose(browser, "stages", "3")
        point_at(browser, "photo", 4, 2, (8, 4)).click().perform()
        wait_for(browser, "node", 18)
        point_at(browser, "row", 0, 0, (8, 4)).click().perform()
        wait_for(browser, "other", 0)
        assert number(browser, "value-row") == 0  # not on the cross of the point
        choose(browser, "matrices", "A2 A1")
        expected = float(second[18].double() @ first[:, 0].double())
        assert number(browser, "value-row") == pytest.approx(expected, rel=1e-3)
        assert number(browser, "value-row") > 0
        choose(browser, "exhibits", "cam, trained")
        assert browser.find_element(By.ID, "channel-picker").is_displayed()
        assert not browser.find_element(By.ID, "fig-row").is_displayed()
        no_complaints(browser)


@pytest.mark.slow
def test_large_matrices_are_exact_at_chosen_points(picture: Path, tmp_path: Path, browse: Browse) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "large.safetensors"
    save_model(build_model(depth=18, attention="pam", stages=(1,), size=(192, 64)), checkpoint)  # 48·16 = 768
    page = tmp_path / "page.html"
    assert (
        main(["explain", "--image", str(picture), "--checkpoint", str(checkpoint), "--out", str(page)]) == 0
    )
    model = load_model(checkpoint)
    with torch.inference_mode():
        matrix = model.backbone.attention1.relations(inputs_of(model, picture)[1]).matrices["positions"][0]
    with browse(page) as browser:
        assert "too large" in browser.find_element(By.ID, "cap-photo").text
        assert "Pooled" in browser.find_element(By.ID, "cap-matrix").text
        point_at(browser, "photo", 20, 9, (48, 16)).click().perform()
        node = int(browser.find_element(By.ID, "readout").get_attribute("data-node"))
        point_at(browser, "column", 30, 3, (48, 16)).perform()
        wait_for(browser, "other", 30 * 16 + 3)
        assert number(browser, "value-row") == pytest.approx(float(matrix[node, 483]), rel=SHOWN)
        assert number(browser, "value-column") == pytest.approx(float(matrix[483, node]), rel=SHOWN)
        # 48·16 positions are pooled to 12·4 dots: those of 4·4 positions each
        assert lines_of(browser, 48) == {node // 16 // 4 * 4 + node % 16 // 4}
        point_at(browser, "matrix", 5 * 4 + 2, 11 * 4 + 1, (48, 48)).perform()
        wait_for(browser, "other", 46 * 16 + 6)  # the position below the middle of dot (11, 1)
        found = int(browser.find_element(By.ID, "readout").get_attribute("data-node"))
        assert (found // 16 // 4, found % 16 // 4) == (5, 2)
        assert lines_of(browser, 48) == {5 * 4 + 2}
        no_complaints(browser)


def lines_of(browser: Any, dots: int) -> set[int]:
    """The rows of the matrix's picture that a line goes through, from the colours of its left edge."""
    edge = browser.execute_script(
        "const m = document.getElementById('matrix'), copy = document.createElement('canvas');"
        "copy.width = m.width; copy.height = m.height;"
        "const c = copy.getContext('2d', {willReadFrequently: true}); c.drawImage(m, 0, 0);"
        "return Array.from({length: arguments[0]}, (_, k) =>"
        " [...c.getImageData(1, (k + 0.5) * m.height / arguments[0], 1, 1).data])",
        dots,
    )
    return {place for place, (red, green, blue, _) in enumerate(edge) if (red, green, blue) == (232, 89, 12)}


@pytest.fixture(scope="module")
def small_page(picture: Path, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    hostile = tmp_path_factory.mktemp("images") / "<script>alert(1)<`script>.jpg"
    hostile.write_bytes(picture.read_bytes())
    page = tmp_path_factory.mktemp("page") / "page.html"
    assert (
        main(
            ["explain", "--image", str(hostile), "--checkpoint", str(checkpoints["rga"]), "--out", str(page)]
        )
        == 0
    )
    return page.read_text(encoding="utf-8")


def test_the_page_needs_no_network_and_names_are_text(small_page: str) -> None:
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)|href=\"(?!#)", small_page)
    assert small_page.count("<script") == 2  # the data and the page's own code
    assert "script-src 'sha256-" in small_page
    assert "alert(1)" in small_page


def test_smoke_in_the_browser(
    picture: Path, checkpoints: dict[str, Path], small_page: str, tmp_path: Path, browse: Browse
) -> None:
    """The page opens on a phone at the finest stage, and a tap shows a number of ``relations``."""
    (tmp_path / "page.html").write_text(small_page, encoding="utf-8")
    model = load_model(checkpoints["rga"])
    with torch.inference_mode():
        relations = model.backbone.attention1.relations(inputs_of(model, picture)[1])
    spatial = relations.matrices["spatial"][0]
    with browse(tmp_path / "page.html", width=390, height=844) as browser:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        point_at(browser, "photo", 12, 5, (32, 16)).click().perform()
        wait_for(browser, "node", 12 * 16 + 5)
        point_at(browser, "row", 20, 9, (32, 16)).click().perform()
        wait_for(browser, "other", 20 * 16 + 9)
        assert number(browser, "value-row") == pytest.approx(
            float(spatial[12 * 16 + 5, 20 * 16 + 9]), rel=SHOWN
        )
        no_complaints(browser)


def held_data(page: str) -> dict[str, Any]:
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    return json.loads(held[1])


def test_the_flow_has_true_shapes(small_page: str) -> None:
    last = held_data(small_page)["exhibits"][0]["stages"][3]
    shapes = {step["symbol"]: tuple(step["shape"]) for step in last["flow"]}
    assert shapes["x"] == (1, 512, 8, 4)
    assert shapes["G_s"] == (1, 32, 32)
    assert shapes["G_c"] == (1, 512, 512)


def test_checkpoints_of_one_mechanism_are_told_apart(picture: Path, tmp_path: Path) -> None:
    files = []
    for folder, size, seed in (("a", (64, 32), 1), ("b", (64, 32), 2), ("c", (96, 48), 3)):
        torch.manual_seed(seed)
        files.append(tmp_path / folder / "last.safetensors")
        files[-1].parent.mkdir()
        save_model(build_model(depth=18, attention="se", stages=(4,), size=size), files[-1])
    exhibits = explain([picture], checkpoints=[*files, files[0]])
    assert [exhibit.label for exhibit in exhibits] == [
        "se, trained (a/last.safetensors)",
        "se, untrained (ResNet-18, 64×32)",  # of a and b: they differ in their weights alone
        "se, trained (b/last.safetensors)",
        "se, trained (c/last.safetensors)",
        "se, untrained (ResNet-18, 96×48)",
    ]
    text = re.sub("<[^>]+>", "", explorer_page(exhibits, trained=["one", "two"]).partition('id="data"')[0])
    assert "ResNet-18, 64×32 pixels. ResNet-18, 96×48 pixels. Trained: one, two." in text
    assert [exhibit.label for exhibit in explain([picture], checkpoints=files[:1])] == [
        "se, trained",
        "se, untrained",
    ]


def test_photos_of_one_name_are_told_apart(
    picture: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpg").write_bytes(picture.read_bytes())
    images = [tmp_path / "a/same.jpg", tmp_path / "b/same.jpg", tmp_path / "a/../a/same.jpg"]
    exhibits = explain(images, checkpoints=[tiny_checkpoint])
    assert [exhibit.image for exhibit in exhibits] == ["a/same.jpg"] * 2 + ["b/same.jpg"] * 2
    other = tmp_path / "other.safetensors"
    save_model(build_model(depth=18, attention="se", stages=(4,), size=(96, 48)), other)
    page = tmp_path / "page.html"
    words = ["--image", str(images[0]), "--checkpoint", str(tiny_checkpoint), str(other), "--out", str(page)]
    assert main(["explain", *words]) == 0
    assert "4 views of 1 picture (--view relations)\n" in capsys.readouterr().out
    names = [photo["name"] for photo in held_data(page.read_text(encoding="utf-8"))["photos"]]
    assert names == ["same.jpg, 64×32", "same.jpg, 96×48"]  # one photo, as models of two sizes see it


def test_words_are_those_of_the_block_that_is_there(picture: Path, tmp_path: Path) -> None:
    files = []
    for name, options in (("dot", {"mode": "dot_product"}), ("pooled", {"sub_sample": True})):
        attention = {"class_path": "rga_reid.attention.NonLocal", "init_args": options}
        files.append(str(tmp_path / f"{name}.safetensors"))
        save_model(build_model(depth=18, attention=attention, stages=(3,), size=(64, 32)), files[-1])
    page = tmp_path / "page.html"
    words = ["--image", str(picture), "--attention", "nonlocal", "--checkpoint", *files, "--out", str(page)]
    assert main(["explain", *words]) == 0
    held = held_data(page.read_text(encoding="utf-8"))
    first, second = (" ".join(module["words"]["en"].values()) for module in held["modules"])
    assert "dot product" in first
    assert "not a normalised weight" in first
    assert "does not sum to 1" in first
    assert "sums to 1" in second
    assert "row only" in second
    assert held["modules"][1]["asymmetry"] == []
    assert held["exhibits"][0]["mechanism"] == "nonlocal_dot_product"


@pytest.mark.parametrize(
    ("attention", "kind"), [("pam", "png"), pytest.param("se", "pdf", marks=pytest.mark.slow)]
)
def test_figures(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str, kind: str
) -> None:
    checkpoint = tmp_path / "model.safetensors"
    save_model(build_model(depth=18, attention=attention, stages=(4,), size=(64, 32)), checkpoint)
    written = []
    for day in ("1000000000", "1700000000"):  # matplotlib's clock: files must not contain the date
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)
        out = tmp_path / f"{day}.{kind}"
        words = ["--image", str(picture), "--checkpoint", str(checkpoint), "--stage", "4", "--out", str(out)]
        assert main(["explain", *words]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    if kind == "png":
        pixels = np.asarray(Image.open(io.BytesIO(written[0])).convert("L"))
        assert pixels.shape[0] > 500
        assert pixels.std() > 10
    else:
        assert len(re.findall(rb"/Type /Page\b", written[0])) == 2  # the weights and the flow


def test_bad_input_is_named(
    picture: Path, checkpoints: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = ["--out", str(tmp_path / "page.html")]
    rga = ["--checkpoint", str(checkpoints["rga"])]
    error = refused("explain", "--image", str(picture), *rga, "--attention", "pam", *out)
    assert "attention pam" in error
    assert "rga after stages 1, 2, 3, 4" in error
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert "broken.jpg" in refused("explain", "--image", str(broken), *rga, *out)
    assert "no such image" in refused("explain", "--image", str(tmp_path / "gone.jpg"), *out)
    assert "unknown module 'pan'" in refused("explain", "--image", str(picture), "--attention", "pan", *out)
    missing = str(tmp_path / "no" / "page.html")
    assert "its folder does not exist" in refused("explain", "--image", str(picture), "--out", missing)
    assert ".html, .png or .pdf" in refused(
        "explain", "--image", str(picture), "--out", str(tmp_path / "page")
    )
    plain = tmp_path / "plain.safetensors"
    save_model(build_model(depth=18, size=(64, 32)), plain)
    error = refused(
        "explain", "--image", str(picture), "--checkpoint", str(plain), "--view", "relations", *out
    )
    assert "found none" in error
    diverged = tmp_path / "diverged.safetensors"
    model = build_model(depth=18, attention="pam", size=(64, 32))
    model.backbone.attention2.gamma.data.fill_(3e38)  # finite, but the output overflows
    model.backbone.attention2.value_conv.bias.data.fill_(1e38)
    save_model(model, diverged)
    error = refused("explain", "--image", str(picture), "--checkpoint", str(diverged), *out)
    assert "diverged.safetensors: attention after stage 2: NaN" in error
    assert not (tmp_path / "page.html").exists()


def test_an_untrained_twin_is_of_the_same_build() -> None:
    model = build_model(
        depth=18, attention="pam", size=(64, 32), stem_pool="ceil", stripes=2, mean=(0.1, 0.2, 0.3)
    )
    pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    assert explaining._untrained_twin(model, pixels, 0).config == model.config
