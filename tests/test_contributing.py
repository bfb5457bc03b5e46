"""CONTRIBUTING.md is followed to the letter: its files are put where it says, its commands are run."""

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
PLACES = ["rga_reid/attention/eca.py", "configs/market1501/eca.yaml", "tests/attention/test_eca.py"]
NEEDED = ("rga_reid", "configs", "datasets", "tests/attention", "tests/conftest.py", "cli.py", "setup.cfg")


def placed(blocks: list[Any]) -> dict[str, Any]:
    """The blocks that a line above gives a place, by that place."""
    return {above[1]: block for block in blocks if (above := re.fullmatch(r"`([\w/.]+)`:", block.above))}


def test_one_file_one_recipe_one_test_class(code_blocks: Callable[..., list[Any]]) -> None:
    files = placed(code_blocks("CONTRIBUTING.md"))
    assert list(files) == PLACES
    assert not any((CHECKOUT / place).exists() for place in files), "an example that is no longer new"
    assert re.findall(r"^class (\w+)", files[PLACES[2]].text, re.MULTILINE) == ["TestECA"]


def test_the_example_is_as_clean_as_it_asks_for(
    tmp_path: Path, code_blocks: Callable[..., list[Any]]
) -> None:
    shutil.copy(CHECKOUT / "ruff.toml", tmp_path)
    for place, block in placed(code_blocks("CONTRIBUTING.md")).items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(block.text, encoding="utf-8")
    ours = ["--config", 'lint.isort.known-first-party=["rga_reid"]']  # there is no package to see it by
    for words in (["check", "--no-cache", *ours, "."], ["format", "--no-cache", "--diff", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_mechanism_added_by_the_book(
    tmp_path: Path, code_blocks: Callable[..., list[Any]], documented: Callable[..., str]
) -> None:
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, tmp_path / name)
    shutil.copytree(CHECKOUT / "tests" / "fixtures", tmp_path / "tests" / "fixtures")
    blocks = code_blocks("CONTRIBUTING.md")
    for place, block in placed(blocks).items():
        (tmp_path / place).write_text(block.text, encoding="utf-8")
    (commands,) = [block for block in blocks if "max_steps" in block.text]
    printed = documented(commands, tmp_path, source=tmp_path)
    assert "6 passed" in printed
    assert "trained: runs/eca/last.ckpt" in printed
    page = (tmp_path / "runs" / "eca.html").read_text(encoding="utf-8")
    assert "ECA, trained" in page
    assert "ECA, untrained" in page
