"""train, test and features as a user types them, on a tiny data set."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from rga_reid import load_model
from rga_reid.commands import main
from rga_reid.data import check_data
from rga_reid.experiments.results import read_curve
from rga_reid.models import EmbeddingModel
from rga_reid.training import Augmentation, ReIDModule, WarmupStep

RECIPE = {
    "model": {
        "depth": 18,
        "attention": "rga",
        "weights": None,
        "size": [64, 32],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "schedule": {"class_path": "rga_reid.training.OneCycle"},
    },
    "data": {"identities_per_batch": 3, "images_per_identity": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@contextmanager
def edited(recipe: str) -> Iterator[dict[str, Any]]:
    """What a recipe says, to be changed."""
    content = yaml.safe_load(Path(recipe).read_text())
    yield content
    Path(recipe).write_text(yaml.safe_dump(content))


def train(recipe: str, root: Path, out: Path, *more: str) -> int:
    return main(["train", "--config", recipe, "--data.root", str(root), "--out", str(out), *more])


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_model(checkpoint).state_dict()


def test_train_then_test_then_features(recipe: str, tiny_market: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out) == 0
    assert {"last.ckpt", "config.yaml", "csv", "tensorboard"} <= {path.name for path in out.iterdir()}
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert kept["model"]["optimizer"]["init_args"]["lr"] == 0.001

    report = tmp_path / "metrics.json"
    words = ["test", "--checkpoint", str(out / "last.ckpt"), "--data.root", str(tiny_market), "--flip"]
    assert main([*words, "--json", str(report)]) == 0
    metrics = json.loads(report.read_text())
    assert {"mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20", "cmc"} <= set(metrics)
    assert metrics["queries"] == metrics["valid_queries"] == 4
    assert metrics["gallery"] == 13
    assert metrics["mAP"] > 0.5  # four identities of plain colours

    features = tmp_path / "features.npz"
    images = str(tiny_market / "query")
    words = ["features", "--checkpoint", str(out / "last.ckpt"), "--images", images, "--out", str(features)]
    assert main(words) == 0
    arrays = np.load(features)
    assert arrays["features"].shape == (4, 512)
    assert arrays["pids"].tolist() == [11, 12, 13, 14]


def test_held_out_identities_choose_the_best_checkpoint(
    recipe: str, tiny_market: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out, "--data.held_out", "0.4") == 0
    best = torch.load(out / "best.ckpt", weights_only=True)
    assert best["rga_reid_model"]["depth"] == 18
    log = (out / "csv" / "version_0" / "metrics.csv").read_text()
    assert "val_mAP" in log.splitlines()[0]
    assert weights(out / "best.ckpt").keys() == weights(out / "last.ckpt").keys()


@pytest.mark.parametrize("limit", ["1.0", "2"])
def test_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    recipe: str, tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    with edited(recipe) as content:
        content["data"]["visits"] = "image"
        content["trainer"]["limit_train_batches"] = yaml.safe_load(limit)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(recipe, tiny_market, whole) == 0

    step = ReIDModule.training_step

    def interrupted(self: ReIDModule, *arguments: Any) -> torch.Tensor:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ReIDModule, "training_step", interrupted)
        assert train(recipe, tiny_market, parts) == 130
    assert train(recipe, tiny_market, parts, "--resume") == 0
    expected, resumed = weights(whole / "last.ckpt"), weights(parts / "last.ckpt")
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)


def test_averaged_weights_and_smaller_images_first(
    recipe: str, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with edited(recipe) as content:
        content["model"]["input_sizes"] = [[0, 32, 32], [1, 64, 32]]
        content["trainer"]["callbacks"] = [
            {"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.5}}
        ]
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out, "--data.held_out", "0.4") == 0
    assert "note: " not in capsys.readouterr().err
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    averaged = weights(out / "last.ckpt")["backbone.conv1.weight"]
    current = checkpoint["current_model_state"]["model.backbone.conv1.weight"]
    assert not torch.equal(averaged, current)  # what is tested is the average
    assert train(recipe, tiny_market, tmp_path / "short", "--trainer.max_epochs", "1") == 0
    told = capsys.readouterr().err
    assert "note: this training has 1 epochs, but images of 64x32 begin with epoch 1, counted from 0" in told
    assert train(recipe, tiny_market, tmp_path / "dev", "--trainer.fast_dev_run", "true") == 0
    assert "note: " not in capsys.readouterr().err


def test_several_sets_train_one_model_that_is_tested_on_another(
    recipe: str, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(tiny_market, tmp_path / "second")
    out, other = tmp_path / "run", tmp_path / "other.csv"
    rows = ["path,pid,camid,split", f"{tiny_market}/bounding_box_train/0001_c1s1_000000_00.jpg,1,1,query"]
    for pid, camera, frame in ((1, 2, 1), (2, 1, 0)):
        rows.append(
            f"{tiny_market}/bounding_box_train/{pid:04d}_c{camera}s1_{frame:06d}_00.jpg,{pid},{camera},gallery"
        )
    other.write_text("\n".join(rows))
    words = ["train", "--config", recipe, "--out", str(out), "--trainer.max_epochs", "1"]
    words += ["--data.dataset", "[market1501, market1501]", "--test.root", str(other)]
    assert main([*words, "--data.root", f"[{tiny_market}, {tmp_path / 'second'}]"]) == 0
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["model.classifier.weight"].shape[0] == 16
    expected = {"images": 96, "identities": 16, "cameras": 4, "datasets": 2}
    assert load_model(out / "last.ckpt").trained_on == expected
    metrics = json.loads((out / "test.json").read_text())
    assert (metrics["queries"], metrics["gallery"]) == (1, 2)

    again = [*words, "--overwrite"]
    error = refused(*again, "--data.root", f"[{tiny_market}, {tiny_market}]")
    assert "are in two data sets" in error
    assert "nowhere" in refused(*again, "--data.root", str(tiny_market), "--test.root", "nowhere")


def test_images_are_decoded_into_a_file_and_mapped_again(
    recipe: str, tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(tiny_market, tmp_path / "market")
    words = ["--data.cache", "file", "--trainer.max_epochs", "1"]
    assert train(recipe, root, tmp_path / "one", *words) == 0
    monkeypatch.setattr("rga_reid.data.cache.decode", lambda *_, **__: pytest.fail("decoded again"))
    assert train(recipe, root, tmp_path / "two", *words) == 0
    one, two = (weights(tmp_path / name / "last.ckpt") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not [problem for problem in check_data(root, fast=True).problems if problem.kind != "count"]


def test_bfloat16(recipe: str, tiny_market: Path, tmp_path: Path) -> None:
    words = ["--trainer.precision", "bf16-mixed", "--trainer.max_epochs", "1"]
    assert train(recipe, tiny_market, tmp_path / "run", *words) == 0
    assert all(value.isfinite().all() for value in weights(tmp_path / "run" / "last.ckpt").values())


def test_attention_by_class_path(recipe: str, tiny_market: Path, tmp_path: Path) -> None:
    with edited(recipe) as content:
        content["model"]["attention"] = {"class_path": "rga_reid.attention.PAM", "init_args": {"ratio": 4}}
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out, "--trainer.max_epochs", "1") == 0
    assert load_model(out / "last.ckpt").backbone.attention1.query_conv.weight.shape == (16, 64, 1, 1)


def test_output_folder_that_exists(
    recipe: str, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    words = ["train", "--config", recipe, "--data.root", str(tiny_market), "--out", str(out)]
    assert "--overwrite or --resume" in refused(*words)
    assert "no run to go on with" in refused(*words, "--resume")
    assert main([*words, "--overwrite", "--trainer.max_epochs", "1"]) == 0
    assert (out / "precious.txt").read_text() == "keep"


def test_bad_options_in_one_line(
    recipe: str, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    good = ["train", "--config", recipe, "--data.root", str(tiny_market), *out]
    assert "did you mean market1501/cpu_scratch" in refused("train", "--config", "market1501/cpu_scrach")
    assert "no such file" in refused("train", "--config", "missing.yaml", *out)
    assert "max_epoch" in refused(*good, "--trainer.max_epoch", "3")
    assert "--trainer.max_epochs: expected int or None, got many" in refused(
        *good, "--trainer.max_epochs", "many"
    )
    assert "unknown mechanism 'rgaa'" in refused(*good, "--model.attention", "rgaa")
    assert "nowhere" in refused("train", "--config", recipe, "--data.root", "nowhere", *out)
    assert "9 identities are needed" in refused(*good, "--data.identities_per_batch", "9")
    assert "--seed: expected a whole number from 0 to 4294967295, got -1" in refused(*good, "--seed", "-1")
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        assert f"trainer.{name}: expected more than 0" in refused(*good, f"--trainer.{name}", "0")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        wanted = f"trainer.{name}: expected a whole number of at least 1, got 0"
        assert wanted in refused(*good, f"--trainer.{name}", "0")
    for name, value in (("data.held_out_seed", "-1"), ("model.loss.margin", "-3")):
        told = refused(*good, f"--{name}", value)
        assert f"{name.rpartition('.')[2]}: expected a" in told
        assert "of at least 0" in told
    for option, value, wanted in (
        ("--model.loss.label_smoothing", "nan", "--model.loss.label_smoothing: expected float, got nan"),
        ("--model.loss.label_smoothing", "2", "error: label_smoothing: expected 0 to 1, got 2.0"),
        ("--model.loss.margin", "wide", "--model.loss.margin: expected float or None, got wide"),
        ("--model.loss.rate", "1", "--model.loss.rate: Option 'rate' is not accepted"),
        ("--model.loss", "os.system", "--model.loss: expected ReIDLoss or None, got os.system"),
        (
            "--trainer.callbacks",
            "os.system",
            "--trainer.callbacks: expected list[Callback] or Callback or None, got os.system",
        ),
        ("--trainer.barebones", "true", "error: --trainer.barebones: cannot be used here"),
    ):
        assert wanted in refused(*good, option, value)
    assert "trainer.overfit_batches" in refused(*good, "--trainer.overfit_batches", "1")
    assert "trainer.devices: expected at most" in refused(*good, "--trainer.devices", "9999")
    assert not (tmp_path / "run").exists()  # nothing was begun
    assert "`limit_train_batches`" in refused(*good, "--trainer.limit_train_batches", "0.0001")


def test_recipe_that_is_no_recipe(tmp_path: Path, refused: Callable[..., str]) -> None:
    bad = tmp_path / "bad.yaml"
    for text, message in [
        ("- 1\n- 2\n", "a mapping"),
        ("a: [", "not valid YAML"),
        ("base: bad.yaml", "its own base"),
    ]:
        bad.write_text(text)
        assert message in refused("train", "--config", str(bad))
    bad.write_text("model: {dept: 18}")
    assert "dept" in refused("train", "--config", str(bad))
    told = refused("demo", "--config", str(bad), "--out", str(tmp_path / "demo"))
    assert f"error: --config {bad}: " in told
    assert "dept" in told
    bad.write_text("title: two\nvariants: [{name: one}]")
    for command in ("train", "demo"):
        told = refused(command, "--config", str(bad), "--out", str(tmp_path / "demo"))
        assert f"error: recipe {bad}: expected options of train, found a plan of ablate" in told


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_checkpoint_that_is_none(
    content: bytes, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name in ("x.ckpt", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        error = refused("test", "--checkpoint", str(tmp_path / name), "--data.root", str(tiny_market))
        assert name in error
    error = refused("test", "--checkpoint", "missing.ckpt", "--data.root", str(tiny_market))
    assert "missing.ckpt: no such file" in error


def test_test_split_without_matches(
    tiny_market: Path, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rows = ["path,pid,camid,split"]
    rows += [f"{path},1,1,query" for path in (tiny_market / "query").glob("*.jpg")]
    rows += [f"{path},2,2,gallery" for path in (tiny_market / "bounding_box_test").glob("*.jpg")]
    (tmp_path / "own.csv").write_text("\n".join(rows))
    words = ["test", "--checkpoint", str(tiny_checkpoint), "--data.root", str(tmp_path / "own.csv")]
    assert "identit" in refused(*words)
    (tmp_path / "own.csv").write_text("\n".join(row for row in rows if "gallery" not in row))
    assert "'gallery'" in refused(*words)


def test_a_whole_number_counts_batches_whatever_typing_remembers() -> None:
    """``typing`` gives out the union that was asked for first; in a process of its own, as it is kept."""
    program = (
        "from typing import Optional, Union; Optional[Union[float, int]]\n"
        "from rga_reid.commands.train import parser\n"
        "for text in ('1', '0.5', '1.0', 'null'):\n"
        "    options = parser().parse_args(['--data.root', 'x', '--trainer.limit_train_batches', text])\n"
        "    print(repr(options.trainer.limit_train_batches))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0.5", "1.0", "None"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_for_fused_optimizers(
    recipe: str, tiny_market: Path, tmp_path: Path, precision: str, algorithm: str
) -> None:
    def step(name: str, *more: str) -> torch.Tensor:
        """All changes of weights in one step of plain gradient descent at rate 1: the clipped gradients."""
        words = ["--trainer.max_steps", "1", "--trainer.precision", precision, *more]
        words += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.fused", "true"]
        words += ["--model.optimizer.lr", rate, "--model.schedule.rise", "0.5", "--model.schedule.start", "1"]
        assert train(recipe, tiny_market, tmp_path / name, *words) == 0
        state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        kinds = ("weight", "bias")
        return torch.cat([v.double().flatten() for k, v in state.items() if k.rpartition(".")[2] in kinds])

    rate = "0"
    start = step("start")
    rate = "1"
    words = ["--trainer.gradient_clip_val", "0.01", "--trainer.gradient_clip_algorithm", algorithm]
    free, clipped = step("free") - start, step("clipped", *words) - start
    assert free.abs().max() > 0.02
    expected = free * (0.01 / free.norm()) if algorithm == "norm" else free.clamp(-0.01, 0.01)
    torch.testing.assert_close(clipped, expected, rtol=1e-3, atol=1e-6)


def test_a_run_that_replaces_another_leaves_none_of_its_logs(
    recipe: str, tiny_market: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out, "--test.root", str(tiny_market)) == 0
    assert {"csv", "tensorboard", "test.json"} <= {path.name for path in out.iterdir()}
    (out / "csv" / "mine.txt").write_text("keep")
    assert train(recipe, tiny_market, out, "--overwrite", "--trainer.max_epochs", "1") == 0
    assert not (out / "test.json").exists()  # it was of the other model
    assert sorted(path.name for path in (out / "csv").iterdir()) == ["mine.txt", "version_0"]
    assert read_curve(out)["epoch"].tolist() == [1]


def test_a_run_as_long_as_so_many_steps(
    recipe: str, tiny_market: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    with edited(recipe) as content:
        del content["trainer"]["max_epochs"]
        del content["model"]["schedule"]  # the released one, in steps of epochs
    out = tmp_path / "run"
    assert train(recipe, tiny_market, out, "--trainer.max_steps", "5") == 0  # 2 steps an epoch
    log = pd.read_csv(out / "csv" / "version_0" / "metrics.csv")["lr-AdamW"].dropna()
    rates = [1e-3 * WarmupStep().factor(3 * step / 5, 3) for step in range(5)]
    np.testing.assert_allclose(log, rates, rtol=1e-6)
    assert min(rates) > 0
    words = ["--trainer.max_epochs", "9", "--trainer.max_steps", "5", "--overwrite"]
    assert train(recipe, tiny_market, out, *words) == 0  # which ever ends first, an epoch is as long as it is
    log = pd.read_csv(out / "csv" / "version_0" / "metrics.csv")["lr-AdamW"].dropna()
    rates = [1e-3 * WarmupStep().factor(step // 2, 2.5) for step in range(5)]
    np.testing.assert_allclose(log, rates, rtol=1e-6)
    words = ["train", "--config", recipe, "--data.root", str(tiny_market), "--out", str(tmp_path / "other")]
    error = refused(*words, "--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:01:00")
    assert "the schedule needs the run's length" in error


def test_what_to_do_next_names_the_kind_of_data_set(
    recipe: str, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = tmp_path / "people"
    for file in (tiny_market / "bounding_box_train").glob("*.jpg"):
        (people / "train" / file.name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, people / "train" / file.name[:4])
    best = tmp_path / "run" / "last.ckpt"
    next_step = f"next: rga-reid test --checkpoint {best} --data.root {people} --data.dataset folders\n"
    assert train(recipe, people, tmp_path / "run", "--data.dataset", "folders") == 0
    assert capsys.readouterr().out.endswith(next_step)
    assert train(recipe, tiny_market, tmp_path / "run", "--overwrite") == 0
    assert capsys.readouterr().out.endswith(f"--data.root {tiny_market}\n")


def test_what_to_test_is_there_where_nothing_was_validated(
    recipe: str, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.held_out", "0.4", "--trainer.check_val_every_n_epoch", "5"]
    assert train(recipe, tiny_market, tmp_path / "run", *words) == 0
    assert f"trained: {tmp_path / 'run' / 'last.ckpt'}" in capsys.readouterr().out
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_the_best_checkpoint_is_that_of_the_highest_map_on_held_out_identities(
    recipe: str,
    tiny_market: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = iter([0.2, 0.9, 0.5])

    def ranked(*_: Any, **__: Any) -> SimpleNamespace:
        value = next(values)
        return SimpleNamespace(mAP=value, rank=lambda k: 1 - value)

    monkeypatch.setattr("rga_reid.training.module.evaluate_ranking", ranked)
    out = tmp_path / "run"
    words = ["--data.held_out", "0.4", "--trainer.max_epochs", "3"]
    assert train(recipe, tiny_market, out, *words) == 0
    assert f"trained: {out / 'best.ckpt'}" in capsys.readouterr().out
    epochs = [torch.load(out / name, weights_only=True)["epoch"] for name in ("best.ckpt", "last.ckpt")]
    assert epochs == [1, 2]


def test_steps_follow_the_recipe(
    recipe: str, tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with edited(recipe) as content:
        content["model"]["input_sizes"] = [[0, 32, 32], [1, 64, 32]]
        content["trainer"]["precision"] = "bf16-mixed"
    passes: list[tuple[bool, tuple[int, ...], torch.dtype]] = []
    draws: list[int] = []
    forward, augment = EmbeddingModel.forward, Augmentation.__call__

    def watched_forward(self: EmbeddingModel, images: torch.Tensor) -> Any:
        passes.append((self.training, tuple(images.shape[2:]), torch.get_autocast_dtype("cpu")))
        assert torch.is_autocast_enabled("cpu")
        return forward(self, images)

    def watched_augment(self: Augmentation, *arguments: Any) -> torch.Tensor:
        draws.append(arguments[-1].initial_seed())
        return augment(self, *arguments)

    monkeypatch.setattr(EmbeddingModel, "forward", watched_forward)
    monkeypatch.setattr(Augmentation, "__call__", watched_augment)
    words = ["--data.held_out", "0.25", "--seed"]
    assert train(recipe, tiny_market, tmp_path / "one", *words, "0") == 0
    epoch = [(True, (32, 32), torch.bfloat16)] * 2 + [(False, (64, 32), torch.bfloat16)]
    assert passes == epoch + [(trained, (64, 32), dtype) for trained, _, dtype in epoch]
    first = list(draws)
    assert len(set(first)) == len(first) == 4  # another draw for each step of each epoch
    draws.clear()
    assert train(recipe, tiny_market, tmp_path / "two", *words, "0") == 0
    assert draws == first
    draws.clear()
    assert train(recipe, tiny_market, tmp_path / "three", *words, "1") == 0
    assert not set(draws) & set(first)


def test_a_run_to_try_the_code_says_that_it_keeps_nothing(
    recipe: str, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, tiny_market, tmp_path / "run", "--trainer.fast_dev_run", "true") == 0
    printed = capsys.readouterr().out
    assert "nothing is kept" in printed
    assert "trained:" not in printed
