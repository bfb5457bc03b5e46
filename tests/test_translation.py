"""README.zh-CN.md says what README.md says: the same blocks, figures, links and names, section by section."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


@dataclass
class Section:
    """What a translation leaves as it is, from one heading to the next."""

    line: int
    heading: str
    blocks: list[str] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)  #: lines
    prose: list[str] = field(default_factory=list)  #: lines


def sections(text: str) -> list[Section]:
    found = [Section(1, "")]
    block: list[str] | None = None
    in_table = False
    for number, line in enumerate(text.splitlines(), start=1):
        here = found[-1]
        if line.startswith("```"):
            if block is None:
                block = [line]
            else:
                here.blocks.append("\n".join([*block, line]))
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("#"):
            found.append(Section(number, line))
        elif line.startswith("|"):
            if not in_table:
                here.tables.append([])
            here.tables[-1].append(line)
        else:
            here.prose.append(line)
        in_table = block is None and line.startswith("|")
    return found


def figures(text: str) -> list[str]:
    """Numbers outside of names and addresses."""
    return _NUMBER.findall(_CODE.sub(" ", _LINK.sub(" ", text)))


def names(text: str) -> list[str]:
    """What stands in backquotes."""
    return _CODE.findall(text)


def links(text: str) -> list[str]:
    """Where links and pictures lead, but for the two files' links to each other."""
    return [target for target in _LINK.findall(text) if target not in (ENGLISH, CHINESE)]


def differences(english: str, chinese: str) -> list[str]:
    """A line for each thing that is not the same in both, with where it stands."""
    ours, theirs = sections(english), sections(chinese)
    shape = [[re.match(r"#*", one.heading)[0] for one in side] for side in (ours, theirs)]  # type: ignore[index]
    if shape[0] != shape[1]:
        return [f"headings: {[one.heading for one in ours]} and {[one.heading for one in theirs]}"]
    return [line for pair in zip(ours, theirs, strict=True) for line in _compare(*pair)]


def _compare(english: Section, chinese: Section) -> list[str]:
    where = f"{ENGLISH} line {english.line} ({english.heading}), {CHINESE} line {chinese.line}"
    found = []
    if len(english.blocks) != len(chinese.blocks):
        found.append(f"{where}: {len(english.blocks)} code blocks and {len(chinese.blocks)}")
    for number, (one, two) in enumerate(zip(english.blocks, chinese.blocks, strict=False), start=1):
        if one != two:
            lines = difflib.unified_diff(one.splitlines(), two.splitlines(), ENGLISH, CHINESE, "", "", 0, "")
            found.append("\n".join([f"{where}: code block {number} differs:", *lines]))
    if [len(table) for table in english.tables] != [len(table) for table in chinese.tables]:
        found.append(f"{where}: tables of other lengths")
    else:
        for number, (one, two) in enumerate(zip(english.tables, chinese.tables, strict=True), start=1):
            for row, (left, right) in enumerate(zip(one, two, strict=True), start=1):
                found += _differ(f"{where}: table {number}, row {row}", left, right)
    found += _differ(f"{where}: text", "\n".join(english.prose), "\n".join(chinese.prose), ordered=False)
    return found


def _differ(where: str, english: str, chinese: str, *, ordered: bool = True) -> list[str]:
    found = []
    for what, extract in (("figures", figures), ("names in backquotes", names), ("links", links)):
        one, two = extract(english), extract(chinese)
        missing, more = Counter(one) - Counter(two), Counter(two) - Counter(one)
        if missing or more:
            found.append(
                f"{where}: {what}: only in {ENGLISH}: {sorted(missing.elements())}; only in {CHINESE}: "
                f"{sorted(more.elements())}"
            )
        elif ordered and one != two:
            found.append(f"{where}: {what}: {one} in {ENGLISH}, {two} in {CHINESE}: another order")
    return found


@pytest.fixture(scope="module")
def readmes() -> tuple[str, str]:
    return tuple((CHECKOUT / name).read_text(encoding="utf-8") for name in (ENGLISH, CHINESE))  # type: ignore[return-value]


def test_both_say_the_same(readmes: tuple[str, str]) -> None:
    found = differences(*readmes)
    assert not found, "\n\n".join(["the two READMEs have drifted apart:", *found])


def test_each_leads_to_the_other(readmes: tuple[str, str]) -> None:
    assert f"]({CHINESE})" in readmes[0]
    assert f"]({ENGLISH})" in readmes[1]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("| 55.5 |", "| 55.6 |", r"table 2, row 5: figures: only in README.md: \['55.5'\]; .*\['55.6'\]"),
        ("3.4 分钟", "3.3 分钟", r"text: figures: only in README.md: \['3.4'\]"),
        ("--flip --json runs", "--json runs", r"code block 1 differs:\n(.*\n)*-rga-reid test .*--flip"),
        ("(docs/training.md)", "(docs/trainings.md)", r"links: only in README.md: \['docs/training.md'\]"),
        ("`--resume`", "`--resum`", r"names in backquotes: only in README.md: \['--resume'\]"),
        ("## 引用\n", "", "headings: "),
        ("| 8.9 | 8.2 |", "| 8.2 | 8.9 |", "table 2, row 3: figures: .*another order"),
    ],
)
def test_drift_is_named(readmes: tuple[str, str], before: str, after: str, told: str) -> None:
    english, chinese = readmes
    assert before in chinese
    found = "\n".join(differences(english, chinese.replace(before, after, 1)))
    assert re.search(told, found), found
