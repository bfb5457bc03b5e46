"""docs/mechanisms agrees with the code."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from rga_reid.attention import ATTENTION_MODULES
from rga_reid.reports.glossary import GLOSSARY, lookup
from rga_reid.reports.language import LANGUAGES

DOCS = Path(__file__).parent.parent / "docs"
RENEW = "run `python docs/mechanisms.py --pictures`"
NAMES = sorted(file.stem for file in (DOCS / "mechanisms").glob("*.png"))
# the costs of all modules take several seconds
ONE_FAST = [name if name == "se" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mechanisms", DOCS / "mechanisms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_glossary_is_about_registered_modules() -> None:
    assert all(any(entry.startswith(name) for name in ATTENTION_MODULES) for entry in GLOSSARY)


def test_a_new_module_appears_in_glossary_and_index(
    generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gate(torch.nn.Module):
        """Scale each position by its own gate.

        More text.
        """

    monkeypatch.setitem(ATTENTION_MODULES, "gate", Gate)
    monkeypatch.setattr(generator, "costs", lambda name: ([(7, 0)] * 4, 1, 1))
    assert (lookup("gate").title, lookup("gate").idea) == ("gate", "Scale each position by its own gate.")
    assert lookup("unheard_of").idea == ""
    assert "| gate |  | 28 |" in generator.index()
    assert "](mechanisms/rga.md) ([中文](mechanisms/rga.zh.md)) | positions" in generator.index()


@pytest.mark.parametrize("name", ONE_FAST)
@pytest.mark.parametrize("suffix", [".md", ".zh.md"])
def test_generated_text_is_current(generator: ModuleType, name: str, suffix: str) -> None:
    page = DOCS / "mechanisms" / f"{name}{suffix}"
    text = page.read_text(encoding="utf-8")
    assert generator.generate(page) == text, RENEW
    for part in ("idea", "meaning", "equation", "flow", "cost"):
        assert text.count(f"<!-- generated: {part} -->") == 1
    other = {".md": f"[中文]({name}.zh.md)", ".zh.md": f"[English]({name}.md)"}[suffix]
    assert text.splitlines()[2] == other


@pytest.mark.slow
def test_the_index_is_current(generator: ModuleType) -> None:
    page = DOCS / "attention.md"
    assert "<!-- generated: index -->" in page.read_text(encoding="utf-8")
    assert generator.generate(page) == page.read_text(encoding="utf-8"), RENEW


@pytest.mark.parametrize("name", NAMES)
def test_pictures_exist_and_the_flow_is_current(generator: ModuleType, name: str) -> None:
    def texts(svg: str) -> list[str]:
        return [text.strip() for text in ET.fromstring(svg).itertext() if text.strip()]

    for lang in LANGUAGES:
        flow = (DOCS / "mechanisms" / generator.flow_file(name, lang)).read_text(encoding="utf-8")
        assert texts(flow) == texts(generator.flow_picture(name, lang)), RENEW
    assert "输入特征图" in texts(flow)
    picture = DOCS / "mechanisms" / f"{name}.png"
    assert picture.stat().st_size < 150_000
    assert min(Image.open(picture).size) > 150


@pytest.mark.parametrize("name", ["rga", "dual", "cbam"])
def test_shapes_on_the_meta_device_are_those_of_real_tensors(generator: ModuleType, name: str) -> None:
    module = ATTENTION_MODULES[name](generator.CHANNELS, generator.MAP).eval()
    with torch.inference_mode():
        real = module.relations(torch.rand(1, generator.CHANNELS, *generator.MAP)).flow
    assert [(step.symbol, step.shape) for step in real] == [(s.symbol, s.shape) for s in generator.flow(name)]
    kinds = {step.symbol: step.kind for step in generator.flow(name)}
    expected = {"rga": {"G_s", "G_c"}, "dual": {"A_p", "A_c"}, "cbam": set()}
    assert {symbol for symbol, kind in kinds.items() if kind == "matrix"} == expected[name]
