"""What files of strangers cannot do: a gallery to damage, and the mark of what was run."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rga_reid.commands import COMMANDS
from rga_reid.gallery import Gallery
from tests.security.hostile import Bomb


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    """What a command imports on first use is none of the memory that it takes for a file."""
    for name in (*(f"commands.{command}" for command in COMMANDS), "retrieval", "training"):
        importlib.import_module(f"rga_reid.{name}")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What a bomb would leave."""
    mark = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it is one
    mark.unlink()
    return mark


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A gallery of six images."""
    table = pd.DataFrame({"path": [f"{row}.jpg" for row in range(6)], "pid": range(6), "camid": 1})
    Gallery.build(np.eye(6, dtype=np.float32), table).save(tmp_path / "G")
    Gallery.open(tmp_path / "G").remove(pids=5)
    return tmp_path / "G"
