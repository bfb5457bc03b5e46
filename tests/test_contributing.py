"""The example of CONTRIBUTING.md works: its files are copied to where it says, and its commands are run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parent.parent
PLACES = ["rga_reid/attention/eca.py", "tests/attention/test_eca.py"]
NEEDED = ("rga_reid", "configs", "datasets", "tests/attention", "tests/conftest.py", "cli.py", "setup.cfg")


def find_files(blocks: list[Any]) -> dict[str, Any]:
    """Return the code blocks whose line above is a path, by that path."""
    return {above[1]: block for block in blocks if (above := re.fullmatch(r"`([\w/.]+)`:", block.above))}


def test_example_has_two_files(code_blocks: Callable[..., list[Any]]) -> None:
    files = find_files(code_blocks("CONTRIBUTING.md"))
    assert list(files) == PLACES
    assert not any((CHECKOUT / place).exists() for place in files), "the example is no longer new"


def test_example_passes_ruff(tmp_path: Path, code_blocks: Callable[..., list[Any]]) -> None:
    shutil.copy(CHECKOUT / "ruff.toml", tmp_path)
    for place, block in find_files(code_blocks("CONTRIBUTING.md")).items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(block.text, encoding="utf-8")
    first_party = ["--config", 'lint.isort.known-first-party=["rga_reid"]']
    for words in (["check", "--no-cache", *first_party, "."], ["format", "--no-cache", "--diff", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_where_is_names_twenty_files() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Where is ...?")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| `(\S+?)`", section, re.MULTILINE)
    assert len(rows) >= 20
    assert [path for _, path in rows if not (CHECKOUT / path).exists()] == []


@pytest.mark.slow
def test_example_works(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    shutil.copytree(CHECKOUT / "tests" / "fixtures", tmp_path / "tests" / "fixtures")
    blocks = code_blocks("CONTRIBUTING.md")
    for place, block in find_files(blocks).items():
        (tmp_path / place).write_text(block.text, encoding="utf-8")
    registry = tmp_path / "rga_reid" / "attention" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    last = '    "cbam": _load("cbam.CBAM"),\n'
    assert last in text
    line = re.search(
        r'Add `("eca": .*,)` to `ATTENTION_MODULES`',
        (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    )
    assert line
    registry.write_text(text.replace(last, f"{last}    {line[1]}\n"), encoding="utf-8")
    (commands,) = [block for block in blocks if "max_steps" in block.text]
    printed = documented(commands, tmp_path, source=tmp_path)
    assert "6 passed" in printed
    assert "trained: runs/eca/last.ckpt" in printed
    page = (tmp_path / "runs" / "eca.html").read_text(encoding="utf-8")
    assert re.search("eca, trained", page, re.IGNORECASE)
    assert re.search("eca, untrained", page, re.IGNORECASE)
