"""Chinese pages match the English ones: the same code blocks, numbers, links and code names in each section."""

from __future__ import annotations

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
MECHANISMS = sorted((CHECKOUT / "docs" / "mechanisms").glob("*.zh.md"))
TUTORIALS = sorted((CHECKOUT / "docs" / "tutorials").glob("*.md"))

BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")


def split_sections(text: str) -> list[str]:
    """Return the sections, each from its heading to the next; ``#`` in code blocks are comments."""
    comments = BLOCK.sub(lambda block: block[0].replace("\n#", "\n\0"), text)
    return [section.replace("\0", "#") for section in re.split(r"^(?=#)", comments, flags=re.MULTILINE)]


def find_facts(text: str) -> dict[str, list[str]]:
    """Return what a translation must not change."""
    return {
        "numbers": NUMBER.findall(CODE.sub(" ", LINK.sub(" ", text))),
        "code": CODE.findall(text),
        "links": [
            target.replace(".zh.md", ".md")
            for target in LINK.findall(text)
            if target not in (ENGLISH, CHINESE)
        ],
    }


def find_differences(english: str, chinese: str) -> list[str]:
    """Return a line for each fact that differs. Table rows must also keep the order of their facts."""
    found = []
    for number, (one, two) in enumerate(
        zip_longest(split_sections(english), split_sections(chinese), fillvalue="")
    ):
        where = f"section {number} ({one.splitlines()[0] if one else 'missing'})"
        if re.match("#*", one)[0] != re.match("#*", two)[0]:  # type: ignore[index]
            return [*found, f"{where}: other heading"]
        if BLOCK.findall(one) != BLOCK.findall(two):
            found.append(f"{where}: other code blocks")
        one, two = BLOCK.sub("", one), BLOCK.sub("", two)
        rows = [[line for line in side.splitlines() if line.startswith("|")] for side in (one, two)]
        for row, (left, right) in enumerate(zip_longest(*rows, fillvalue=""), start=1):
            if find_facts(left) != find_facts(right):
                found.append(f"{where}: table row {row}: {find_facts(left)} became {find_facts(right)}")
        ours, theirs = find_facts(one), find_facts(two)
        for kind in ours:
            missing = Counter(ours[kind]) - Counter(theirs[kind])
            more = Counter(theirs[kind]) - Counter(ours[kind])
            if missing or more:
                found.append(f"{where}: {kind}: {[*missing]} became {[*more]}")
    return found


@pytest.fixture(scope="module")
def readmes() -> tuple[str, str]:
    return tuple((CHECKOUT / name).read_text(encoding="utf-8") for name in (ENGLISH, CHINESE))  # type: ignore[return-value]


@pytest.mark.parametrize("page", MECHANISMS, ids=lambda page: page.name)
def test_pages_of_attention_modules_match(page: Path) -> None:
    chinese = page.read_text(encoding="utf-8")
    english = page.with_name(page.name.replace(".zh", "")).read_text(encoding="utf-8")
    # words in equations are translated
    assert (
        find_differences(BLOCK.sub("", english), BLOCK.sub("", chinese).replace("flow.zh.svg", "flow.svg"))
        == []
    )
    links = [target for target in LINK.findall(chinese) if re.fullmatch(r"\w+(\.zh)?\.md", target)]
    assert [target for target in links if ".zh" not in target] == [page.name.replace(".zh", "")]
    prose = re.sub(r"<!--.*?-->|\([^)]*\)", "", CODE.sub("", BLOCK.sub("", chinese)))
    assert not re.findall(r"(?:[A-Za-z]{2,} ){3}", prose)


@pytest.mark.parametrize(
    "page", [page for page in TUTORIALS if ".zh" not in page.name], ids=lambda page: page.name
)
def test_tutorials_match(page: Path) -> None:
    chinese = page.with_name(page.name.replace(".md", ".zh.md"))
    texts = [one.read_text(encoding="utf-8") for one in (page, chinese)]
    assert find_differences(*texts) == []
    assert f"]({chinese.name})" in texts[0]
    links = [
        target
        for target in LINK.findall(texts[1])
        if re.search(r"^(\.\./mechanisms/)?\w+(\.zh)?\.md", target)
    ]
    assert [target for target in links if ".zh" not in target] == [page.name]  # the page in English


def test_readmes_match(readmes: tuple[str, str]) -> None:
    assert find_differences(*readmes) == []
    assert f"]({CHINESE})" in readmes[0]
    assert f"]({ENGLISH})" in readmes[1]


@pytest.mark.parametrize(
    ("before", "after", "reported"),
    [
        ("支持 Python 3.10", "支持 Python 3.11", r"numbers: \['3.10'\]"),
        ("--config demo --data.root", "--data.root", "other code blocks"),
        ("(docs/training.md)", "(docs/trainings.md)", "docs/trainings.md"),
        ("## 引用\n", "", "other heading"),
        ("| 8.9 | 8.2 |", "| 8.2 | 8.9 |", "table row 6"),
    ],
)
def test_drift_is_reported(readmes: tuple[str, str], before: str, after: str, reported: str) -> None:
    english, chinese = readmes
    assert before in chinese
    found = "\n".join(find_differences(english, chinese.replace(before, after, 1)))
    assert re.search(reported, found), found
