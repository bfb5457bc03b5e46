"""The bundled recipes parse, and the released one says what the released code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rga_reid.commands.parsing import parse
from rga_reid.commands.recipes import merge, read_recipe
from rga_reid.commands.train import parser, prepare
from rga_reid.errors import InputError
from rga_reid.resources import list_resources


@pytest.mark.parametrize("name", list_resources("configs"))
def test_bundled_recipes_parse(name: str) -> None:
    options = parse(parser(), prepare(["--config", name]))
    assert options is not None
    assert options.trainer.max_epochs > 0


def test_released_recipe() -> None:
    options = parse(parser(), prepare(["--config", "market1501/rga_sc"]))
    assert options is not None
    assert (options.model.depth, options.model.attention, options.model.weights) == (50, "rga", "imagenet")
    assert tuple(options.model.size) == tuple(options.data.size) == (256, 128)
    assert options.model.optimizer.class_path == "torch.optim.Adam"
    assert (options.model.optimizer.init_args.lr, options.model.optimizer.init_args.weight_decay) == (
        8e-4,
        5e-4,
    )
    assert (options.data.identities_per_batch, options.data.images_per_identity) == (16, 4)
    assert options.data.visits == "identity"
    assert options.trainer.max_epochs == 600


def test_command_line_overrides_recipe_overrides_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {depth: 34, last_stride: 2}\ntrainer: {max_epochs: 7}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {depth: 18}\n")
    words = prepare(["--config", str(tmp_path / "mine.yaml"), "--trainer.max_epochs", "3"])
    options = parse(parser(), words)
    assert options is not None
    assert (options.model.depth, options.model.last_stride, options.trainer.max_epochs) == (18, 2, 3)


def test_a_mechanism_by_name_replaces_one_with_options() -> None:
    options = parse(parser(), prepare(["--config", "market1501/cpu_scratch", "--model.attention", "pam"]))
    assert options is not None
    assert options.model.attention == "pam"


def test_base_by_bundled_name() -> None:
    assert read_recipe("demo")["model"]["depth"] == read_recipe("market1501/cpu_scratch")["model"]["depth"]


def test_merge_replaces_classes_whole_and_lists_whole() -> None:
    below = {"a": {"class_path": "x", "init_args": {"p": 1}}, "b": {"c": 1, "d": [1, 2]}}
    above = {"a": {"class_path": "y"}, "b": {"d": [3]}}
    assert merge(below, above) == {"a": {"class_path": "y"}, "b": {"c": 1, "d": [3]}}
    assert below["b"] == {"c": 1, "d": [1, 2]}


def test_circular_bases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(InputError, match="its own base"):
        read_recipe(str(tmp_path / "a.yaml"))
