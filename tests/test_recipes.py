"""Bundled recipes: that of the released code, the names of version 1, merging."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rga_reid.commands._options import parse
from rga_reid.commands.train import parser, prepare
from rga_reid.errors import InputError
from rga_reid.experiments.recipes import merge, read_recipe
from rga_reid.resources import list_resources
from rga_reid.training import Augmentation
from rga_reid.training.augmentation import step_generator

RECIPES = list_resources("configs")
FIXTURES = Path(__file__).parent / "fixtures"
RELEASED = json.loads((FIXTURES / "training.json").read_text())


def parsed(*words: str) -> Any:
    options = parse(parser(), prepare(["--config", *words]))
    assert options is not None
    return options


def test_bundled_recipes() -> None:
    assert RECIPES == [
        "cuhk03_detected/rga_sc",
        "cuhk03_labeled/rga_sc",
        "demo",
        "market1501/cpu_pretrained",
        "market1501/cpu_pretrained_long",
        "market1501/cpu_scratch",
        "market1501/rga_sc",
        "market1501/rga_sc_8gpus",
        "market1501/rga_sc_fast",
        "msmt17/rga_sc",
    ]
    for name in RECIPES:
        assert parsed(name).trainer.max_epochs > 0


@pytest.fixture(scope="module")
def released(tiny_market: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The objects of `market1501/rga_sc`, as `train` creates them, for a small data set."""
    root = tmp_path_factory.mktemp("recipes") / "market"
    shutil.copytree(tiny_market, root)  # the recipe keeps its image cache there
    words = ["--data.root", str(root), "--data.identities_per_batch", "4", "--model.weights", "null"]
    words += ["--model.depth", "18", "--model.stages", "[3]"]
    return parser().instantiate(parsed("market1501/rga_sc", *words, "--model.size", "[64, 32]"))


def test_released_options() -> None:
    options = parsed("market1501/rga_sc")
    assert (options.model.backbone, options.model.attention, options.model.weights) == (
        "resnet50",
        "rga",
        "imagenet",
    )
    assert (options.model.last_stride, options.model.stages) == (None, None)  # 1 and all for a ResNet
    assert tuple(options.model.size) == tuple(options.data.size) == (256, 128)
    assert (options.data.identities_per_batch, options.data.images_per_identity) == (16, 4)
    assert options.data.val_fraction == 0
    assert options.trainer.max_epochs == 600
    assert options.trainer.gradient_clip_val is None
    assert list(options.model.resolution_schedule) == []


def test_released_learning_rates(released: Any) -> None:
    optimizer = released.model.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam  # AdamW would decouple the weight decay
    assert optimizer.defaults["weight_decay"] == 5e-4
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    rate = optimizer.defaults["lr"]
    rates = [rate * released.model.schedule.factor(epoch, 600) for epoch in range(600)]
    assert rates == pytest.approx(RELEASED["schedule_learning_rate_by_epoch"], rel=1e-6)


def test_released_epoch(released: Any) -> None:
    """It shows each identity once; identities that do not fill a batch are dropped."""
    released.data.setup("fit")
    table = released.data.train_table
    rows = [row for batch in released.data.train_dataloader().sampler for row in batch]
    pids = table.pid.to_numpy()[rows].reshape(-1, 4)
    assert (pids == pids[:, :1]).all()
    assert sorted(pids[:, 0]) == sorted(table.pid.unique())
    assert len(set(rows)) == len(rows)


def test_released_augmentation(released: Any) -> None:
    expected = Augmentation(
        crop_probability=0.5,
        crop_scale=1.125,
        flip_probability=0.5,
        erase_probability=0.5,
        erase_area=(0.02, 0.4),
        erase_aspect=0.3,
    )
    assert released.model.augmentation == expected
    assert released.model.model.mean == (0.485, 0.456, 0.406)
    assert released.model.model.std == (0.229, 0.224, 0.225)
    # erased pixels are 0 after normalisation: the mean, not black
    always = dataclasses.replace(expected, erase_probability=1.0)
    white = torch.full((8, 3, 64, 32), 255, dtype=torch.uint8)
    done = always(white, (64, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), step_generator(0))
    assert {round(float(value), 2) for value in done[:, 0].unique()} == {0.0, round(0.515 / 0.229, 2)}


def test_released_losses(released: Any) -> None:
    terms = released.model.losses.terms
    assert {name: (term.on, term.weight) for name, term in terms.items()} == {
        "cross_entropy": ("logits", 1),
        "triplet": ("pre_neck", 1),
    }
    assert terms["cross_entropy"].function.label_smoothing == 0.1
    assert terms["triplet"].function.loss.margin == 0.3


def test_command_line_overrides_recipe_overrides_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: {depth: 34, last_stride: 2}\ntrainer: {max_epochs: 7}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nmodel: {depth: 18}\n")
    options = parsed(str(tmp_path / "mine.yaml"), "--trainer.max_epochs", "3")
    assert (options.model.backbone, options.model.last_stride, options.trainer.max_epochs) == (
        "resnet18",
        2,
        3,
    )
    options = parsed("market1501/cpu_scratch", "--model.attention", "pam")
    assert options.model.attention == "pam"  # in place of a class with options
    position = {"class_path": "rga_s", "init_args": {"zero_init_gate": True}}
    assert parsed("demo", "--model.attention", json.dumps(position)).model.attention == position
    words = ["--model.attention.init_args.channel", "false"]
    assert parsed("demo", *words).model.attention["init_args"] == {"zero_init_gate": True, "channel": False}
    words = ["--model.attention.class_path=my.Gate", "--model.attention.ratio=4"]
    assert parsed("demo", *words).model.attention == {"class_path": "my.Gate", "init_args": {"ratio": 4}}
    with pytest.raises(InputError, match=r"--model\.attention CLASS"):
        parsed("market1501/cpu_pretrained", "--model.attention.ratio", "4")
    network = {"class_path": "torchvision.models.resnet34", "init_args": {"width_per_group": 32}}
    words = ["--model.backbone", json.dumps(network | {"init_args": {"groups": 2}}), "--model.backbone"]
    assert parsed("demo", *words, json.dumps(network)).model.backbone == network


def test_merge_replaces_classes_and_lists() -> None:
    base = {"a": {"class_path": "x", "init_args": {"p": 1}}, "b": {"c": 1, "d": [1, 2]}}
    override = {"a": {"class_path": "y"}, "b": {"d": [3]}}
    assert merge(base, override) == {"a": {"class_path": "y"}, "b": {"c": 1, "d": [3]}}
    assert base["b"] == {"c": 1, "d": [1, 2]}


def test_circular_base(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(InputError, match="its own base"):
        read_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("section", ["model", "data", "trainer", "test"])
def test_section_that_is_not_a_mapping(tmp_path: Path, section: str) -> None:
    """The option parser would ignore it, and train with the defaults."""
    file = tmp_path / "a.yaml"
    for value in ([{"a": 1}], "text", 3, True):
        file.write_text(yaml.safe_dump({section: value}))
        with pytest.raises(InputError, match=rf"a\.yaml: {section}"):
            read_recipe(str(file))
    file.write_text(yaml.safe_dump({section: None}))
    assert read_recipe(str(file)) == {section: None}
