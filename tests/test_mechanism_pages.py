"""docs/mechanisms says what the code says now."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.reports.glossary import WORDS

DOCS = Path(__file__).parent.parent / "docs"
RENEW = "run `python docs/mechanisms.py --pictures`"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mechanisms", DOCS / "mechanisms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names() -> list[str]:
    return sorted(page.stem for page in (DOCS / "mechanisms").glob("*.md"))


def test_every_mechanism_has_a_page(generator: ModuleType) -> None:
    covered = {name for page in generator.PAGES for name in generator.VARIANTS.get(page, (page,))}
    assert covered == set(ATTENTION_MODULES)
    assert names() == sorted(generator.PAGES)


def test_every_mechanism_has_words() -> None:
    assert set(WORDS) == set(ATTENTION_MODULES)


@pytest.mark.parametrize("name", names())
def test_generated_text_is_current(generator: ModuleType, name: str) -> None:
    page = DOCS / "mechanisms" / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert generator.written(page) == text, RENEW
    for part in ("meaning", "equation", "flow", "cost"):
        assert text.count(f"<!-- generated: {part} -->") == 1


def test_the_index_is_current(generator: ModuleType) -> None:
    page = DOCS / "attention.md"
    assert "<!-- generated: index -->" in page.read_text(encoding="utf-8")
    assert generator.written(page) == page.read_text(encoding="utf-8"), RENEW


@pytest.mark.parametrize("name", names())
def test_pictures_are_there_and_the_flow_is_current(generator: ModuleType, name: str) -> None:
    def words(svg: str) -> list[str]:
        return [text.strip() for text in ET.fromstring(svg).itertext() if text.strip()]

    drawn = (DOCS / "mechanisms" / f"{name}_flow.svg").read_text(encoding="utf-8")
    assert words(drawn) == words(generator.flow_picture(name)), RENEW
    picture = DOCS / "mechanisms" / f"{name}.png"
    assert picture.stat().st_size < 150_000
    assert min(Image.open(picture).size) > 150


@pytest.mark.parametrize("name", ["rga", "dual", "cbam"])
def test_shapes_without_memory_are_those_of_real_tensors(generator: ModuleType, name: str) -> None:
    module = ATTENTION_MODULES[name](generator.CHANNELS, generator.MAP).eval()
    with torch.inference_mode():
        real = module.relations(torch.rand(1, generator.CHANNELS, *generator.MAP)).flow
    assert [(step.symbol, step.shape) for step in real] == [(s.symbol, s.shape) for s in generator.flow(name)]
    kinds = {step.symbol: step.kind for step in generator.flow(name)}
    expected = {"rga": {"G_s", "G_c"}, "dual": {"A_p", "A_c"}, "cbam": set()}
    assert {symbol for symbol, kind in kinds.items() if kind == "matrix"} == expected[name]
