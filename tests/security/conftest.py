"""Fixtures of the security tests: a gallery to damage, and the mark that unpickled code would leave."""

from __future__ import annotations

import importlib
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import COMMANDS
from rga_reid.gallery import Gallery
from tests.fuzz import harness
from tests.security.hostile import Bomb, Run


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    """Import all modules first, so that they do not count as memory of a command."""
    for name in (*(f"commands.{command}" for command in COMMANDS), "gallery", "training"):
        importlib.import_module(f"rga_reid.{name}")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """File that a bomb would create."""
    mark = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the bomb works
    mark.unlink()
    return mark


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Gallery of five images, after one was removed."""
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(6)], "pid": range(6), "camid": 1})
    Gallery.build(np.eye(6, dtype=np.float32), table).save(tmp_path / "G")
    Gallery.open(tmp_path / "G").remove(pids=5)
    return tmp_path / "G"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command under the limits of the fuzz tests."""
    return partial(harness.run, capture=capfd)
