"""The files of the operator page: texts in every language, and nothing that its Content-Security-Policy forbids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "rga_reid" / "serving" / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))


def tables() -> dict[str, dict[str, str]]:
    """Return the texts by language."""
    text = (PAGE / "strings.js").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = json.loads(re.search(r"STRINGS = (\{.*?\n\});", text, re.DOTALL)[1])  # type: ignore[index]
    return found


def test_languages_have_the_same_texts() -> None:
    english, chinese = tables()["en"], tables()["zh"]
    assert list(tables()) == ["en", "zh"]
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key
        assert chinese[key].strip()
    assert {key for key in english if not re.search(r"[\u4e00-\u9fff]", chinese[key])} <= {"scope_one"}


def test_every_text_is_used_and_every_used_text_exists() -> None:
    used, prefixes = set[str](), set[str]()
    for file in {*SCRIPTS, PAGE / "page.html"} - {PAGE / "strings.js"}:
        text = file.read_text(encoding="utf-8")
        used |= set(re.findall(r'data-t(?:-\w+)?="(\w+)"', text))
        calls = re.findall(r"\b(t|plural)\(((?:[^()]|\([^()]*\))*)", text)
        for name, arguments in calls:
            endings = ("_one", "_other") if name == "plural" else ("",)
            literal = re.findall(r'"(\w+)"', arguments.partition(", {")[0])
            used |= {key + ending for key in literal for ending in endings}
            prefixes |= set(re.findall(r"`(\w+)\$\{", arguments))
        used |= set(re.findall(r'dataset\.t = "(\w+)"', text))
    known = set(tables()["en"])
    assert used <= known
    assert {key for key in known - used if not key.startswith(tuple(prefixes))} == set()


class Elements(HTMLParser):
    """Elements of the page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed((PAGE / "page.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def __iter__(self) -> Iterator[tuple[str, dict[str, str]]]:
        return iter(self.found)


def test_page_has_no_inline_script_or_style() -> None:
    for tag, attributes in Elements():
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes["src"]


def test_files_refer_only_to_each_other() -> None:
    links = [a.get("src") or a.get("href") for tag, a in Elements() if tag in ("script", "link", "img")]
    wanted = {"data:,", "static/page.css", "static/page.js"}
    assert set(links) == wanted
    assert (PAGE / "page.css").is_file()
    for file in SCRIPTS:
        for imported in re.findall(r'from "(.*?)"', file.read_text(encoding="utf-8")):
            assert (PAGE / imported).is_file(), f"{file.name}: {imported}"
    for file in [*SCRIPTS, PAGE / "page.css", PAGE / "page.html"]:
        addresses = re.findall(r"https?://[^\s\"']+", file.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name


def test_controls_have_names() -> None:
    """Every input has a label around it, or one that names it; ids occur once."""
    html = (PAGE / "page.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    labelled = "".join(re.findall(r"<label\b.*?</label>", html, re.DOTALL))
    for tag, attributes in Elements():
        if tag in ("input", "select") and "hidden" not in attributes:
            assert f'id="{attributes["id"]}"' in labelled, attributes["id"]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_write_no_markup(file: Path) -> None:
    """Names from the gallery become text, never elements."""
    text = file.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
    )
