"""Texts of the pages: every language has every text, and every text that a page names exists and is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rga_reid.attention import ATTENTION_MODULES, DualAttention, NonLocal
from rga_reid.errors import InputError
from rga_reid.reports.glossary import GLOSSARY, lookup
from rga_reid.reports.language import (
    LANGUAGES,
    load_strings,
    render_page,
    translate,
    translate_formula,
    translate_meaning,
)

CHECKOUT = Path(__file__).parents[2]
PACKAGE = CHECKOUT / "rga_reid"
TEMPLATES = PACKAGE / "reports" / "templates"
SECTIONS = [name for name in load_strings("en") if name not in ("flow", "formula", "glossary")]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("section", SECTIONS)
def test_languages_have_the_same_texts(section: str) -> None:
    english, chinese = (load_strings(lang)[section] for lang in LANGUAGES)
    assert list(english) == list(chinese)
    for key, text in english.items():
        fields = [sorted(set(re.findall(r"\{\w+\}", one))) for one in (text, chinese[key])]
        assert fields[0] == fields[1], key
        assert re.findall("`[^`]+`", text) == re.findall("`[^`]+`", chinese[key]), key
        words = re.sub(r"\{\w+\}|\[i, j\]|\[:, [ij]\]|[a-z] = ", "", text)
        if re.search(r"[A-Za-z]{2}", words) and key != "language":
            assert CHINESE.search(chinese[key]), key


def test_every_text_is_used_and_every_used_text_exists() -> None:
    texts = [file.read_text(encoding="utf-8") for file in TEMPLATES.iterdir()]
    code = [
        file.read_text(encoding="utf-8")
        for file in (*PACKAGE.rglob("*.py"), CHECKOUT / "docs" / "mechanisms.py")
    ]
    known = {key for section in SECTIONS for key in load_strings("en")[section]}
    literal = {word for text in (*texts, *code) for word in re.findall(r"[\"'](\w+)[\"']", text)}
    # keys that are put together: `tour_${n}`, `${direction}_of`, f"col_{name}"
    starts = tuple({start for text in texts for start in re.findall(r"[`\"](\w+_)\$\{", text)})
    starts += tuple({start for text in texts for start in re.findall(r'"(\w+_)" ~', text)})
    starts += tuple(
        {
            start
            for text in code
            for start in re.findall(r"f\"(col_|chart_|no_|ap_|metric_|view_|gate_|column_)\{", text)
        }
    )
    ends = tuple({end for text in texts for end in re.findall(r"`\$\{\w+\}(_\w+)`", text)})
    composed = {key for key in known if key.startswith(starts) or key.endswith(ends)}
    assert known - literal - composed - {"tied_most", "tied_least"} == set()  # named by the id of their place
    used = {key for text in texts for key in re.findall(r"\b(?:t|say)\(\"(\w+)\"", text)}
    used |= {key for text in texts for key in re.findall(r'attribute\("[\w-]+", "(\w+)"', text)}
    used |= {key for text in code for key in re.findall(r'\bText\("(\w+)"', text)}
    assert {key for key in used if not key.endswith("_")} <= known


def relations() -> dict[str, Any]:
    """Return the relations of every attention module with every option that changes them, on the meta device."""
    with torch.device("meta"):
        modules = {name: made(64, (8, 4)) for name, made in ATTENTION_MODULES.items()}
        modules |= {f"nonlocal_{mode}": NonLocal(64, mode=mode) for mode in ("gaussian", "concatenation")}
        modules["dual_head"] = DualAttention(64, head=True)
        x = torch.empty(1, 64, 8, 4)
        return {name: module.eval().relations(x) for name, module in modules.items()}


def test_tensors_formulas_and_matrices_are_described_in_chinese() -> None:
    for name, one in relations().items():
        for step in one.flow:
            assert CHINESE.search(translate_meaning("zh", step.meaning)), (name, step.meaning)
            formula = translate_formula("zh", step.formula)
            assert not re.search(r"[a-z]+ (of|over|as) ", formula), (name, formula)
            assert translate_formula("en", step.formula) == step.formula
        for matrix in (*one.matrices, "both_passes"):
            assert CHINESE.search(translate_meaning("zh", matrix.replace("_", " "))), (name, matrix)
    assert translate_meaning("zh", "of a module of the user") == "of a module of the user"


@pytest.mark.parametrize("name", GLOSSARY)
def test_modules_are_described_in_chinese(name: str) -> None:
    english, chinese = lookup(name), lookup(name, "zh")
    assert chinese.paper == english.paper
    for field in ("title", "idea", "nodes", "row", "use", "directions"):
        assert CHINESE.search(getattr(chinese, field)), field
    for field in vars(english):
        assert bool(getattr(english, field)) == bool(getattr(chinese, field)), field
    assert ("1" in english.row) == ("1" in chinese.row)


def test_the_terms_are_those_of_the_literature() -> None:
    text = " ".join(str(section) for section in load_strings("zh").values())
    for term in ("空间注意力", "通道注意力", "关系矩阵", "非局部", "十字交叉注意力", "全局关系"):
        assert term in text


def test_a_page_opens_in_a_language_and_escapes_values() -> None:
    assert translate("zh", "explorer", "tour_step", n=2, count=6) == "第 2 步，共 6 步"
    network = {"name": "ResNet-18", "height": 96, "width": 48}
    values: dict[str, Any] = {
        "note": "",
        "networks": [network],
        "trained": "",
        "drawn": True,
        "untrained": False,
    }
    page = render_page("explorer.html", ["explorer"], lang="zh", title="<b>", max_whole="<i>", **values)
    assert '<html lang="zh-CN">' in page
    text = re.sub(r"<[^>]+>", "", page.partition("<script")[0])
    assert "数据流" in text
    assert "ResNet-18，96×48 像素。 图中的行人由代码绘制。" in text
    assert "&lt;b&gt;" in page
    assert "<i>" not in page
    with pytest.raises(InputError):
        render_page("explorer.html", ["explorer"], lang="fr", title="", max_whole=1, **values)
