"""The bundled recipes parse, and the released one says what the released code does."""

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
from rga_reid.models import TrainingOutput
from rga_reid.resources import find_resource, list_resources
from rga_reid.training import Augmentation
from rga_reid.training.augmentation import step_generator

RECIPES = list_resources("configs")


@pytest.mark.parametrize("name", RECIPES)
def test_bundled_recipes_parse(name: str) -> None:
    options = parse(parser(), prepare(["--config", name]))
    assert options is not None
    assert options.trainer.max_epochs > 0


DATASETS = ("market1501", "cuhk03_labeled", "cuhk03_detected", "msmt17")
ATTENTION = {
    "baseline": None,
    "rga_s": "rga_s",
    "rga_c": "rga_c",
    "rga_sc": "rga",
    "pam": "pam",
    "cam": "cam",
    "dual": "dual",
    "nonlocal": "nonlocal",
    "criss_cross": "criss_cross",
    "cbam": "cbam",
    "se": "se",
}
RELEASED = json.loads((Path(__file__).parent / "fixtures" / "training.json").read_text())


def parsed(*words: str) -> Any:
    options = parse(parser(), prepare(["--config", *words]))
    assert options is not None
    return options


@pytest.fixture(scope="module")
def released(tiny_market: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parts of `market1501/rga_sc`, built as `train` builds them, for a small data set."""
    root = tmp_path_factory.mktemp("recipes") / "market"
    shutil.copytree(tiny_market, root)  # the recipe keeps its image cache there
    words = ["--data.root", str(root), "--data.identities_per_batch", "4", "--model.weights", "null"]
    return parser().instantiate(parsed("market1501/rga_sc", *words, "--model.size", "[64, 32]"))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("name", "attention"), ATTENTION.items())
def test_variants_differ_from_the_released_recipe_in_their_name_only(
    dataset: str, name: str, attention: str | None
) -> None:
    """Read, not parsed: each file adds the attention and the data set to the same base."""
    expected = read_recipe("released")
    expected["model"]["attention"] = attention
    expected["data"]["dataset"] = dataset
    assert read_recipe(f"{dataset}/{name}") == expected


def test_released_recipe_says_what_the_released_code_does() -> None:
    options = parsed("market1501/rga_sc")
    assert (options.model.depth, options.model.attention, options.model.weights) == (50, "rga", "imagenet")
    assert options.model.last_stride == 1
    assert tuple(options.model.stages) == (1, 2, 3, 4)
    assert tuple(options.model.size) == tuple(options.data.size) == (256, 128)
    assert (options.data.identities_per_batch, options.data.images_per_identity) == (16, 4)
    assert options.data.held_out == 0
    assert options.trainer.max_epochs == 600
    assert options.trainer.gradient_clip_val is None
    assert list(options.model.input_sizes) == []


def test_released_learning_rate_of_every_epoch(released: Any) -> None:
    optimizer = released.model.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam  # AdamW would decouple the weight decay
    assert optimizer.defaults["weight_decay"] == 5e-4
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    rate = optimizer.defaults["lr"]
    rates = [rate * released.model.schedule.factor(epoch, 600) for epoch in range(600)]
    assert rates == pytest.approx(RELEASED["schedule_learning_rate_by_epoch"], rel=1e-6)
    chosen = {0: 8e-6, 1: 4.76e-5, 10: 4.04e-4, 19: 7.604e-4, 20: 8e-4, 79: 8e-4, 80: 4e-4, 120: 2e-4}
    assert {epoch: rates[epoch] for epoch in chosen} == pytest.approx(chosen, rel=1e-6)
    assert rates[360] == rates[599] == pytest.approx(3.125e-6)


def test_released_visits(released: Any) -> None:
    """An epoch shows each identity once, with as many images as a group holds; a rest is dropped."""
    released.data.setup("fit")
    table = released.data.train_table
    rows = [row for batch in released.data.train_dataloader().sampler for row in batch]
    pids = table.pid.to_numpy()[rows].reshape(-1, 4)
    assert (pids == pids[:, :1]).all()
    assert sorted(pids[:, 0]) == sorted(table.pid.unique())
    assert len(set(rows)) == len(rows)


def test_released_augmentation(released: Any) -> None:
    wanted = Augmentation(
        crop_probability=0.5,
        crop_scale=1.125,
        flip_probability=0.5,
        erase_probability=0.5,
        erase_area=(0.02, 0.4),
        erase_aspect=0.3,
    )
    assert released.model.augmentation == wanted
    assert released.model.model.mean == (0.485, 0.456, 0.406)
    assert released.model.model.std == (0.229, 0.224, 0.225)
    # erased pixels are 0 after normalisation, the mean, not black
    always = dataclasses.replace(wanted, erase_probability=1.0)
    white = torch.full((8, 3, 64, 32), 255, dtype=torch.uint8)
    done = always(white, (64, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), step_generator(0))
    assert {round(float(value), 2) for value in done[:, 0].unique()} == {0.0, round(0.515 / 0.229, 2)}


def test_released_losses(released: Any) -> None:
    loss = released.model.loss
    assert loss.cross_entropy.label_smoothing == 0.1
    assert (loss.triplets, loss.triplet.loss.margin) == ("pooled", 0.3)
    features, labels = torch.randn(8, 4), torch.arange(4).repeat_interleave(2)
    one, two = (
        loss(TrainingOutput(features, torch.randn(8, 4), torch.zeros(8, 4)), labels)["triplet"] for _ in "ab"
    )
    assert one == two  # features behind the neck do not enter
    assert loss(TrainingOutput(2 * features, features, torch.zeros(8, 4)), labels)["triplet"] != one


def test_the_fast_recipe_is_labelled_untested() -> None:
    assert "UNTESTED" in find_resource("configs", "fast").read_text(encoding="utf-8")
    options = parsed("msmt17/rga_sc_fast")
    assert (options.model.attention, options.data.dataset) == ("rga", "msmt17")
    assert options.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("accumulated", "trainer.accumulate_grad_batches", 2),
        ("checkpointed", "model.checkpointing", True),
        ("compiled", "model.compile", True),
        ("float16", "trainer.precision", "16-mixed"),
        ("bfloat16", "trainer.precision", "bf16-mixed"),
        ("8gpus", "trainer.sync_batchnorm", True),
    ],
)
def test_recipes_of_one_option(name: str, option: str, value: object) -> None:
    assert parsed(f"market1501/rga_sc_{name}")[option] == value


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


@pytest.mark.parametrize("section", ["model", "data", "trainer", "test"])
@pytest.mark.parametrize("value", [[{"a": 1}], "text", 3, True])
def test_a_section_that_is_none_is_refused(tmp_path: Path, section: str, value: object) -> None:
    """The parser of options would leave it out, and train with what it has by default."""
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({section: value}))
    with pytest.raises(InputError, match=rf"a\.yaml: {section}: expected a mapping of options, got "):
        read_recipe(str(file))
    file.write_text(yaml.safe_dump({section: None}))
    assert read_recipe(str(file)) == {section: None}
