"""Pages and figures of heat maps: what is drawn, and the words around it."""

from __future__ import annotations

import base64
import io
import re
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rga_reid.errors import InputError
from rga_reid.reports.heat_maps import VIEWS, HeatMap, MapView, heat_map_figure, heat_map_page
from rga_reid.reports.language import Text
from rga_reid.reports.plots import figure_bytes, find_chinese_font
from tests.page_texts import element_texts, visible_text

GREY = np.full((64, 32, 3), 128, np.uint8)


def heat_map(values: Any, **changes: Any) -> HeatMap:
    words = {"image": "a.jpg", "pixels": GREY, "model": "m.ckpt", "what": "on a.jpg"} | changes
    return HeatMap(values=np.asarray(values, np.float32), **words)


def pictures(page: str) -> list[np.ndarray]:
    """The embedded pictures, in order: the photo, then the maps."""
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB"), float) for one in found]


def test_the_highest_value_has_the_last_colour_where_it_is() -> None:
    values = np.zeros((4, 2))
    values[3, 0] = 0.25
    photo, shown = pictures(heat_map_page([heat_map(values)], "gradcam"))
    assert photo.shape == shown.shape == (128, 64, 3)
    assert np.abs(photo - 128).max() < 4
    # cividis from (0, 34, 78) to (254, 232, 56), at 0.7 over grey
    np.testing.assert_allclose(shown[124, 4], [216, 200, 77], atol=8)
    np.testing.assert_allclose(shown[4, 60], [38, 62, 92], atol=8)
    assert shown[112, 32, 0] < 216 - 40  # interpolated towards the right half


def test_scales_begin_at_zero_or_at_the_lowest_value() -> None:
    values = [[0.5, 1.0]]
    for from_zero, low in ((True, "0"), (False, "0.5")):
        one = heat_map(values, from_zero=from_zero)
        page = heat_map_page([one], "gates")
        assert re.search(rf'class="bar"><span>{low}</span><i></i><span>1</span>', page)
        first = pictures(page)[1][64, 2]
        assert (first[0] < 60) == (not from_zero)


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.25, 0.5, ("0.25", "0.5")), (0.99702, 1.00231, ("0.99702", "1.0023")), (-2, 1000, ("-2", "1e+03"))],
)
def test_a_narrow_range_has_the_digits_of_its_width(low: float, high: float, ends: tuple[str, str]) -> None:
    shown = heat_map(np.array([low, high]), from_zero=False)
    assert shown.scale.values == {"low": ends[0], "high": ends[1]}


def test_even_maps_have_no_colours() -> None:
    page = heat_map_page([heat_map(np.zeros((4, 2))), heat_map(np.full(8, 0.5), what="channels")], "gates")
    assert {"0 everywhere: no colours", "0.5 everywhere: no colours"} <= set(element_texts(page, "li"))
    assert 'class="bar"' not in page
    photo, shown = pictures(page)
    assert np.abs(shown - photo).max() < 4


def test_channels_are_a_strip_in_ascending_order() -> None:
    values = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 300))
    page = heat_map_page([heat_map(values, from_zero=False)], "gates")
    strip = pictures(page)[1]
    assert strip.shape == (16, 256, 3)
    assert (np.diff(strip[8, ::16].sum(1)) > 0).all()
    assert "<span>0.1</span><i></i><span>0.9</span>" in page


def test_words_are_escaped_and_sections_group_maps() -> None:
    name = "<script>alert(1)</script>"
    ramp = np.arange(8).reshape(4, 2)
    maps = [
        heat_map(ramp, image=name, section="pair", notes=["score 0.8"]),
        heat_map(ramp, image="b.jpg", section="pair", what="on b.jpg"),
        heat_map(ramp, image="c.jpg", network="ResNet-18, 64×32 pixels"),
    ]
    page = heat_map_page(maps, "gradcam", score="cosine similarity to b.jpg")
    assert "<script>alert" not in page
    assert not re.search(r"https?:|url\(|@import", page)
    assert name in element_texts(page, "figcaption")[0]
    assert element_texts(page, "h2") == ["pair", "c.jpg"]
    assert element_texts(page, "b").count("Photo") == 3
    assert element_texts(page, "h1") == ["Grad-CAM: cosine similarity to b.jpg"]
    assert element_texts(page, "p")[0] == "ResNet-18, 64×32 pixels"
    assert "score 0.8" in element_texts(page, "li")
    assert "ReLU" in visible_text(page)


def test_photos_of_two_sizes_are_shown_with_their_sizes() -> None:
    small = np.full((32, 16, 3), 128, np.uint8)
    ramp = np.arange(8).reshape(4, 2)
    maps = [heat_map(ramp, network="A"), heat_map(ramp, pixels=small, model="n.ckpt", network="B")]
    page = heat_map_page(maps, "activation")
    text = visible_text(page)
    assert "m.ckpt: A; n.ckpt: B" in text
    assert "a.jpg, 64×32" in text
    assert "a.jpg, 32×16" in text


@pytest.mark.parametrize("view", VIEWS)
def test_a_page_opens_in_a_language(view: MapView) -> None:
    what = Text("gate_after", {"stage": 3, "name": Text("gate_spatial")})
    words = {"what": what, "model": Text("untrained_model", {"name": "rga"}), "section": "Section"}
    maps = [
        heat_map(values, notes=[Text("map_places", {"h": 4, "w": 2})], **words)
        for values in ([[0, 1]], [[2, 2]])
    ]
    for lang, expected in (
        ("en", ["rga, untrained", "after stage 3: spatial", "4×2 places", "2 everywhere: no colours"]),
        ("zh", ["rga，未训练", "阶段 3 之后：空间", "4×2 个位置", "处处为 2：不着色"]),
    ):
        page = heat_map_page(maps, view, score=Text("score_cosine", {"name": "b.jpg"}), lang=lang)
        text = visible_text(page)
        assert all(one in text for one in expected)
        titles = element_texts(page, "h1")
        assert titles == element_texts(page, "title")
        assert ("余弦相似度" in titles[0]) == (lang == "zh")
        # words of the other language are in no element but the switch
        left = text.replace("中文", "") if lang == "en" else re.sub("English|Section", "", text)
        found = re.findall("[\u4e00-\u9fff]" if lang == "en" else r"\b[a-z]{4,}\b", left)
        assert set(found) <= {"logit"}
    with pytest.raises(InputError, match="lang"):
        heat_map_page(maps, view, lang="fr")


def test_figures() -> None:
    ramp = np.arange(8).reshape(4, 2)
    side_by_side = [
        heat_map(ramp, image=image, model=model, what="", notes=["$5"])
        for image in ("a_$1.jpg", "b.jpg")
        for model in ("m.ckpt", "n.ckpt")
    ]
    figure = heat_map_figure(side_by_side, "gradcam", score="logit of identity 3")
    assert figure.get_suptitle() == "Grad-CAM: logit of identity 3"
    grid = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    assert len(grid) == 6  # rows: pictures; columns: the photo and two models
    assert "n.ckpt" in grid[5].get_title()
    assert figure_bytes(figure, "png", 40) == figure_bytes(
        heat_map_figure(side_by_side, "gradcam", score="logit of identity 3"), "png", 40
    )
    gates = [
        heat_map(values, model=model) for model in "mn" for values in (ramp, ramp, np.arange(5), ramp * 0)
    ]
    figure = heat_map_figure(gates, "gates")
    grid = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    assert len(grid) == 10  # a row for each model
    line = grid[3].get_lines()[0].get_ydata()
    assert list(line) == [0, 1, 2, 3, 4]
    assert [label.get_text() for label in grid[3].get_yticklabels()] == ["0", "4"]
    figure_bytes(figure, "pdf")


def test_an_even_strip_is_a_flat_line_in_figures() -> None:
    even = heat_map(np.array([0.4999, 0.5, 0.5001]), what="channels")
    axes = heat_map_figure([even], "gates").axes[1]
    low, high = axes.get_ylim()
    assert high - low > 100 * np.ptp(axes.get_lines()[0].get_ydata())


def test_bad_input_is_named() -> None:
    for values in (np.zeros((1, 2, 2)), np.zeros((0, 2))):
        with pytest.raises(InputError, match=r"m\.ckpt: expected values"):
            heat_map(values)
    with pytest.raises(InputError, match=r"a\.jpg: NaN"):
        heat_map([[0.0, np.nan]])
    for draw in (heat_map_page, heat_map_figure):
        with pytest.raises(InputError, match="maps"):
            draw([], "gradcam")
        with pytest.raises(InputError, match="view"):
            draw([heat_map([[0.0, 1.0]])], "cam")  # type: ignore[arg-type]


@pytest.mark.skipif(find_chinese_font() is None, reason="needs a font with Chinese characters")
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_names_of_files_in_chinese_are_drawn(kind: str) -> None:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, "我的图片.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of characters that the font lacks
        figure_bytes(figure, kind)
