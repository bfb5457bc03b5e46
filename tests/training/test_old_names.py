"""Options, arguments, values and recipes of version 1 still work, with a warning."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rga_reid import training
from rga_reid._deprecated import RECIPES as OLD_RECIPES
from rga_reid._deprecated import rename_options
from rga_reid.commands import main
from rga_reid.commands._options import parse
from rga_reid.commands.train import parser, prepare
from rga_reid.errors import InputError
from rga_reid.experiments.ablation import DataSource, Run
from rga_reid.experiments.recipes import merge, read_recipe
from rga_reid.models import build_model, load_model, save_model
from rga_reid.resources import list_resources
from rga_reid.runtime import run_main
from rga_reid.training import IdentitySampler, ReIDData, ReIDLoss, ReIDModule

#: resolved options of each recipe of version 1.0; all but the first as differences from it, "-" for missing ones
VERSION_1 = json.loads((Path(__file__).parents[1] / "fixtures" / "recipes_v1.json").read_text())
BATCH: dict[str, Any] = {"identities_per_batch": 2, "images_per_identity": 2}


def parsed(*words: str) -> Any:
    options = parse(parser(), prepare(["--config", *words]))
    assert options is not None
    return options


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        options = merge(options, value)
    return options


@pytest.mark.parametrize("name", VERSION_1)
def test_recipes_of_version_1(name: str) -> None:
    options = VERSION_1["released"] | VERSION_1[name]
    missing = options.pop("-", [])
    options = {key: value for key, value in options.items() if key not in missing}
    if name == "demo":  # 1.0 took the drawn data set for Market-1501, whose terms of use are others
        options["data.dataset"] = "synthetic"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_recipe(name)
    # null leaves these to the backbone, which is a ResNet
    resnet = {"stages": [1, 2, 3, 4], "last_stride": 1}
    found["model"] |= {key: value for key, value in resnet.items() if found["model"].get(key, "") is None}
    assert found == rename_options(nested(options), warn=False)
    assert [warning.category for warning in caught] == (
        [FutureWarning] if name not in list_resources("configs") else []
    )
    if caught:
        assert "--config" not in str(caught[0].message)
        assert OLD_RECIPES[name][0] in str(caught[0].message)


def test_old_recipe_as_base_and_old_options(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    old = {
        "base": "market1501/pam",
        "model": {
            "input_sizes": [[0, 128, 64], [9, 256, 128]],
            "loss": {"init_args": {"triplets": "embedded"}},
        },
        "data": {"visits": "image", "held_out": 0.1, "held_out_seed": 2},
    }
    recipe.write_text(yaml.safe_dump(old))
    with pytest.warns(FutureWarning, match="data.val_fraction"):
        options = parsed(str(recipe))
    assert options.model.attention == "pam"
    assert options.model.resolution_schedule == [(0, 128, 64), (9, 256, 128)]
    assert options.model.loss.init_args.triplets == "post_neck"
    assert (options.data.epoch, options.data.val_fraction, options.data.val_seed) == ("images", 0.1, 2)
    assert not {"visits", "held_out", "held_out_seed"} & set(options.data.as_dict())


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        (["--data.visits", "image"], "data.epoch", "images"),
        (["--data.visits=identity"], "data.epoch", "identities"),
        (["--data.held_out_seed", "3"], "data.val_seed", 3),
        (["--model.input_sizes", "[[0, 256, 128]]"], "model.resolution_schedule", [(0, 256, 128)]),
        (["--model.loss.triplets", "embedded"], "model.loss.init_args.triplets", "post_neck"),
        (["--model.loss.init_args.triplets=pooled"], "model.loss.init_args.triplets", "pre_neck"),
        (["--model.loss", "{init_args: {triplets: embedded}}"], "model.loss.init_args.triplets", "post_neck"),
    ],
)
def test_old_options_on_the_command_line(words: list[str], option: str, value: object) -> None:
    with pytest.warns(FutureWarning, match=option.rpartition(".")[2]):
        assert parsed("market1501/rga_sc", *words)[option] == value


def test_arguments_of_the_data_module(tiny_market: Path) -> None:
    with pytest.warns(FutureWarning, match="val_fraction"):
        old = ReIDData(str(tiny_market), visits="image", held_out=0.5, held_out_seed=1, **BATCH)  # type: ignore[call-arg]
    new = ReIDData(str(tiny_market), epoch="images", val_fraction=0.5, val_seed=1, **BATCH)
    assert old.batch == new.batch
    assert old.val_table.equals(new.val_table)
    assert ReIDData(str(tiny_market), "market1501", (64, 32), 2, 2, "images", 0.5, 1).batch == new.batch


def test_arguments_of_the_module(small_network: None) -> None:
    options: dict[str, Any] = {"weights": None, "size": (64, 32), "loss": ReIDLoss(0.2), "seed": 3}
    with (
        pytest.warns(FutureWarning, match="resolution_schedule"),
        pytest.warns(DeprecationWarning, match="build_reid_module"),
    ):
        old = ReIDModule(4, input_sizes=[(0, 32, 32), (3, 64, 32)], **options)  # type: ignore[arg-type, call-arg]
    (schedule,) = old.configure_callbacks()
    assert schedule.sizes == {0: (32, 32), 3: (64, 32)}  # type: ignore[attr-defined]
    assert (old.losses, old.seed) == (options["loss"], 3)
    new = ReIDModule(old.model, old.losses)
    assert new.model is old.model


def test_arguments_of_the_sampler_and_the_loss() -> None:
    with pytest.warns(FutureWarning, match="epoch"):
        sampler = IdentitySampler([1, 1, 1, 1, 2, 2], 2, 2, visits="image")  # type: ignore[call-arg]
    assert list(sampler) == list(IdentitySampler([1, 1, 1, 1, 2, 2], 2, 2, epoch="images"))
    with pytest.warns(FutureWarning, match="post_neck"):
        assert ReIDLoss(triplets="embedded").triplets == "post_neck"  # type: ignore[arg-type]


def test_a_run_of_version_1_is_resumed(small_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Its checkpoint describes batches by the old names."""
    words = small_run(data={"epoch": "images", "val_fraction": 0.25}, trainer={"max_epochs": 1})
    assert main(words) == 0
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    batch = content["ReIDData"]["batch"]
    batch["visits"] = {"images": "image"}[batch.pop("epoch")]
    torch.save(content, tmp_path / "run" / "last.ckpt")
    assert main([*words, "--resume", "--trainer.max_epochs", "2"]) == 0
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_old_and_new_name_together(small_run: Callable[..., list[str]], refused: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"data\.held_out"):
        rename_options({"data": {"held_out": 0.1, "val_fraction": 0.2}})
    with pytest.warns(FutureWarning):
        assert "val_fraction" in refused(*small_run("--data.held_out", "0.1", "--data.val_fraction", "1"))


def test_settings_of_an_ablation_run(tmp_path: Path) -> None:
    data = DataSource("nowhere", "market1501", "0")
    run = Run("a", 0, {"data": {"val_fraction": 0.1}}, data, False, tmp_path / "seed-0")
    run.prepare()
    file = run.folder / "run.json"
    file.write_text(file.read_text().replace("val_fraction", "held_out"))
    run.check()


def test_warnings_take_one_line() -> None:
    def work() -> int:
        own = warnings.formatwarning(FutureWarning("x is now y"), FutureWarning, training.__file__, 1)
        assert own == "rga-reid: warning: x is now y\n"
        assert warnings.formatwarning(FutureWarning("x"), FutureWarning, yaml.__file__, 1) != own
        return 5

    before = warnings.formatwarning
    assert run_main(work) == 5
    assert warnings.formatwarning is before


def test_checkpoint_with_old_options(tmp_path: Path) -> None:
    new = {"class_path": "rga_reid.attention.RGA", "init_args": {"zero_init_gate": True}}
    old = {"class_path": "rga_reid.attention.RGA", "init_args": {"neutral_start": True}}
    model = build_model(depth=18, attention=new, stages=[4], size=(32, 32))
    assert model.config is not None
    model.config["attention"] = old
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # the user did not write it
        save_model(model, tmp_path / "old.safetensors")
        assert load_model(tmp_path / "old.safetensors").config["attention"] == new
    with pytest.warns(FutureWarning, match="zero_init_gate"):
        options = parsed("market1501/rga_sc", "--model.attention", json.dumps(old))
    assert options.model.attention == new
