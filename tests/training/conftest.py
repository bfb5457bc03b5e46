"""Training of a small network, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rga_reid.experiments.recipes import merge
from tests.training.small import RECIPE, build_small_model


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``train`` build a small network in place of a ResNet."""
    monkeypatch.setattr("rga_reid.training.module.build_model", build_small_model)


@pytest.fixture
def small_run(small_network: None, tiny_market: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function: the words of ``train`` into ``tmp_path / name``, with changes to the recipe."""

    def words(*more: str, name: str = "run", **changes: object) -> list[str]:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(merge(RECIPE, changes)))
        words = ["train", "--config", str(recipe), "--data.root", str(tiny_market)]
        return [*words, "--out", str(tmp_path / name), *more]

    return words
