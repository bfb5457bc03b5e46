"""The command `train`, mostly with a small network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
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
from rga_reid.commands._options import parse
from rga_reid.commands.train import parser
from rga_reid.data import check_data
from rga_reid.experiments.results import read_curve
from rga_reid.training import WarmupStep
from tests.training.conftest import small_network, small_run

__all__ = ["small_network", "small_run"]  # fixtures

Words = Callable[..., list[str]]
Refused = Callable[..., str]
EMA = [{"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.5}}]
ONE_EPOCH = {"trainer": {"max_epochs": 1}}

TERMS = "Market-1501: For research only; the pictures show real people and must not be passed on."


def load(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load(checkpoint)["state_dict"]


def test_train_test_and_features(tiny_market: Path, tmp_path: Path) -> None:
    """With a real network, an attention module by class path, and bfloat16."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    content = {
        "model": {
            "depth": 18,
            "attention": {"class_path": "rga_reid.attention.PAM", "init_args": {"ratio": 4}},
            "stages": [3],
            "weights": None,
            "size": [64, 32],
        },
        "data": {"identities_per_batch": 3, "images_per_identity": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "precision": "bf16-mixed"},
    }
    recipe.write_text(yaml.safe_dump(content))
    words = ["--config", str(recipe), "--data.root", str(tiny_market), "--out", str(out)]
    assert main(["train", *words]) == 0
    assert {"last.ckpt", "config.yaml", "csv", "tensorboard"} == {path.name for path in out.iterdir()}
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["size"] == [64, 32]
    model = load_model(out / "last.ckpt")
    assert model.backbone.attention3.query_conv.weight.shape == (64, 256, 1, 1)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    counts = {"images": 48, "identities": 8, "cameras": 2, "datasets": 1}
    assert model.trained_on == counts | {"terms": TERMS}

    report = tmp_path / "metrics.json"
    words = ["test", "--checkpoint", str(out / "last.ckpt"), "--data.root", str(tiny_market), "--flip"]
    assert main([*words, "--json", str(report)]) == 0
    metrics = json.loads(report.read_text())
    assert {"mAP", "mAP_trapezoid", "mINP", "rank-1", "rank-5", "rank-10", "rank-20", "cmc"} <= set(metrics)
    assert metrics["queries"] == metrics["valid_queries"] == 4
    assert metrics["gallery"] == 13
    assert metrics["mAP"] > 0.5  # four identities of plain colours

    features = tmp_path / "features.npz"
    words = ["features", "--checkpoint", str(out / "last.ckpt"), "--images", str(tiny_market / "query")]
    assert main([*words, "--out", str(features)]) == 0
    arrays = np.load(features)
    assert arrays["features"].shape == (4, 512)
    assert arrays["pids"].tolist() == [11, 12, 13, 14]


def test_a_note_that_random_weights_are_frozen(
    tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.root", str(tiny_market), "--model.backbone", "resnet18", "--model.attention", "null"]
    words += ["--model.size", "[32, 32]", "--model.weights", "null", "--data.identities_per_batch", "3"]
    words += ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true"]
    for count in (1, 0):
        out = ["--model.frozen_stages", str(count), "--out", str(tmp_path / str(count))]
        assert main(["train", *words, *out]) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert len(notes) == count
        assert all("model.weights" in note and "--model.frozen_stages 0" in note for note in notes)


def test_best_checkpoint_has_the_highest_validation_map(
    small_run: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([0.2, 0.9, 0.5])

    def ranked(*_: Any, **__: Any) -> SimpleNamespace:
        value = next(values)
        return SimpleNamespace(mAP=value, rank=lambda k: 1 - value)

    monkeypatch.setattr("rga_reid.training.module.evaluate_features", ranked)
    out = tmp_path / "run"
    assert main(small_run("--data.val_fraction", "0.4", "--trainer.max_epochs", "3")) == 0
    assert f"trained: {out / 'best.ckpt'}" in capsys.readouterr().out
    assert [load(out / name)["epoch"] for name in ("best.ckpt", "last.ckpt")] == [1, 2]
    assert "val_mAP" in (out / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]


def test_last_checkpoint_without_validation(
    small_run: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.val_fraction", "0.4", "--trainer.check_val_every_n_epoch", "5"]
    assert main(small_run(*words)) == 0
    assert f"trained: {tmp_path / 'run' / 'last.ckpt'}" in capsys.readouterr().out
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_averaged_weights_and_note_about_the_resolution_schedule(
    small_run: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = small_run(model={"resolution_schedule": [[0, 32, 32], [1, 64, 32]]}, trainer={"callbacks": EMA})
    assert main(words) == 0
    assert "note: " not in capsys.readouterr().err
    checkpoint = load(tmp_path / "run" / "last.ckpt")
    key = "model.backbone.layers.0.weight"
    assert not torch.equal(checkpoint["state_dict"][key], checkpoint["current_model_state"][key])
    assert main([*words, "--overwrite", "--trainer.max_epochs", "1"]) == 0
    assert "model.resolution_schedule" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--trainer.fast_dev_run", "true"]) == 0
    captured = capsys.readouterr()
    assert "note: " not in captured.err
    assert "no checkpoint is kept" in captured.out
    assert "trained:" not in captured.out


def test_several_data_sets_and_test_on_another(
    small_run: Words, tiny_market: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_market, tmp_path / "second")
    both = ["--data.dataset", "[market1501, market1501]"]
    both += ["--data.root", f"[{tiny_market}, {tmp_path / 'second'}]", "--test.root", str(tiny_market)]
    monkeypatch.setattr("rga_reid.commands.train.load_model", load_small)
    assert main(small_run(*both, **ONE_EPOCH)) == 0
    checkpoint = load(tmp_path / "run" / "last.ckpt")
    assert checkpoint["state_dict"]["model.classifier.weight"].shape[0] == 16
    expected = {"images": 96, "identities": 16, "cameras": 4, "datasets": 2}
    assert checkpoint["rga_reid_data"] == expected | {"terms": TERMS}
    metrics = json.loads((tmp_path / "run" / "test.json").read_text())
    assert (metrics["queries"], metrics["gallery"]) == (4, 13)

    words = small_run(*both[:2], "--overwrite")
    assert "two data sets" in refused(*words, "--data.root", f"[{tiny_market}, {tiny_market}]")
    assert "nowhere" in refused(*words, "--data.root", str(tiny_market), "--test.root", "nowhere")
    (tmp_path / "train.csv").write_text(
        f"path,pid,camid,split\n{tiny_market}/query/0011_c1s1_000000_00.jpg,1,1,train"
    )
    words = small_run(name="other")
    assert "--test.root" in refused(*words, "--test.root", str(tmp_path / "train.csv"))
    assert not (tmp_path / "other").exists()  # refused before training


def load_small(path: Path, device: object) -> Any:
    from tests.training.small import build_small_model

    model = build_small_model(classes=0, size=(64, 32))
    state = {key.removeprefix("model."): value for key, value in weights(path).items()}
    model.load_state_dict({key: value for key, value in state.items() if key in model.state_dict()})
    return model.eval()


def test_images_are_decoded_into_a_file_and_used_again(
    small_run: Words, tiny_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(tiny_market, tmp_path / "market")
    words = ["--data.cache", "file", "--data.root", str(root)]
    assert main(small_run(*words, name="one", **ONE_EPOCH)) == 0
    monkeypatch.setattr("rga_reid.data.cache.decode", lambda *_, **__: pytest.fail("decoded again"))
    assert main(small_run(*words, name="two", **ONE_EPOCH)) == 0
    one, two = (weights(tmp_path / name / "last.ckpt") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not [problem for problem in check_data(root, fast=True).problems if problem.kind != "count"]


def test_output_folder(small_run: Words, tiny_market: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    words = small_run(**ONE_EPOCH)
    assert "--overwrite or --resume" in refused(*words)
    assert "last.ckpt" in refused(*words, "--resume")
    assert main([*words, "--overwrite"]) == 0
    assert (out / "precious.txt").read_text() == "keep"
    assert read_curve(out)["epoch"].tolist() == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epoch", "3"], "max_epoch"),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs: expected int or None, got many"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.identities_per_batch", "9"], "identities_per_batch"),
        (["--data.val_fraction", "1"], "val_fraction"),
        (["--data.val_seed", "-1"], "val_seed"),
        (["--seed", "-1"], "--seed"),
        (["--save-every", "0"], "save_every"),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs"),
        (["--trainer.max_steps", "0"], "trainer.max_steps"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches"),
        (["--trainer.check_val_every_n_epoch", "0"], "trainer.check_val_every_n_epoch"),
        (["--trainer.overfit_batches", "1"], "trainer.overfit_batches"),
        (["--trainer.devices", "9999"], "trainer.devices"),
        (["--trainer.barebones", "true"], "--trainer.barebones"),
        (["--trainer.callbacks", "os.system"], "--trainer.callbacks: expected list[Callback] or Callback"),
        (["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:01:00"], "max_epochs or max_steps"),
        (["--model.loss.margin", "-3"], "margin"),
        (["--model.loss.label_smoothing", "nan"], "--model.loss.label_smoothing: expected float, got nan"),
        (["--model.loss.label_smoothing", "2"], "label_smoothing"),
        (["--model.loss.rate", "1"], "--model.loss.rate"),
        (["--model.loss", "os.system"], "--model.loss: expected ReIDLoss or None, got os.system"),
        (["--model.optimizer.lr", "-1"], "optimizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_options(
    small_run: Words, tmp_path: Path, refused: Refused, words: list[str], message: str
) -> None:
    assert message in refused(*small_run(*words))
    assert not (tmp_path / "run").exists()


def test_unknown_attention(tmp_path: Path, tiny_market: Path, refused: Refused) -> None:
    words = ["--data.root", str(tiny_market), "--out", str(tmp_path / "run"), "--model.weights", "null"]
    words += ["--data.identities_per_batch", "2", "--model.attention", "rgaa"]
    assert "'rgaa'" in refused("train", *words)


def test_invalid_recipes(tmp_path: Path, refused: Refused) -> None:
    assert "did you mean market1501/cpu_scratch" in refused("train", "--config", "market1501/cpu_scrach")
    assert "missing.yaml" in refused("train", "--config", "missing.yaml")
    bad = tmp_path / "bad.yaml"
    for text, message in [
        ("- 1\n- 2\n", "a mapping"),
        ("a: [", "not valid YAML"),
        ("model: {dept: 18}", "dept"),
    ]:
        bad.write_text(text)
        assert message in refused("train", "--config", str(bad))
    error = refused("demo", "--config", str(bad), "--out", str(tmp_path / "demo"))
    assert f"--config {bad}" in error
    assert "dept" in error
    bad.write_text("title: two\nvariants: [{name: one}]")
    for command in ("train", "demo"):
        assert "plan of ablate" in refused(command, "--config", str(bad), "--out", str(tmp_path / "demo"))


@pytest.mark.slow
def test_integers_count_batches_whatever_typing_has_cached() -> None:
    """``typing`` returns the union that was used first, so use one with float first."""
    program = (
        "from typing import Optional, Union; Optional[Union[float, int]]\n"
        "from rga_reid.commands.train import parser\n"
        "for text in ('1', '0.5', '1.0', 'null'):\n"
        "    options = parser().parse_args(['--data.root', 'x', '--trainer.limit_train_batches', text])\n"
        "    print(repr(options.trainer.limit_train_batches))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0.5", "1.0", "None"]


def test_integers_count_batches() -> None:
    for text in ("1", "0.5", "1.0", "null"):
        options = parse(parser(), ["--data.root", "x", "--trainer.limit_train_batches", text])
        assert options is not None
        assert repr(options.trainer.limit_train_batches) == text.replace("null", "None")


def test_few_steps_are_no_reason_to_warn(small_run: Words, recwarn: pytest.WarningsRecorder) -> None:
    assert main(small_run(trainer={"max_epochs": 1, "log_every_n_steps": 50})) == 0
    assert not [one for one in recwarn if "log_every_n_steps" in str(one.message)]


def test_length_in_steps(small_run: Words, tmp_path: Path) -> None:
    def rates(*words: str) -> np.ndarray:
        changes = {
            "model": {"schedule": {"class_path": "rga_reid.training.WarmupStep"}},
            "data": {"identities_per_batch": 3},  # 2 steps per epoch
            "trainer": {"max_epochs": None},
        }
        assert main(small_run("--overwrite", "--trainer.max_steps", "5", *words, **changes)) == 0
        (log,) = (tmp_path / "run" / "csv").glob("version_*/metrics.csv")
        return pd.read_csv(log)["lr-AdamW"].dropna().to_numpy()

    expected = [1e-2 * WarmupStep().factor(3 * step / 5, 3) for step in range(5)]
    np.testing.assert_allclose(rates(), expected, rtol=1e-6)
    assert min(expected) > 0
    expected = [1e-2 * WarmupStep().factor(step // 2, 2.5) for step in range(5)]
    np.testing.assert_allclose(rates("--trainer.max_epochs", "9"), expected, rtol=1e-6)


def test_next_command(
    small_run: Words, tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the card, and no data set without query images."""
    best = tmp_path / "run" / "last.ckpt"
    test = f"next: rga-reid test --checkpoint {best} --data.root"
    assert main(small_run(**ONE_EPOCH)) == 0
    assert capsys.readouterr().out.endswith(f"{test} {tiny_market}\n")
    people = tmp_path / "people"
    for split in ("train", "query", "gallery"):
        for file in (tiny_market / "bounding_box_train").glob("*.jpg"):
            (people / split / file.name[:4]).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, people / split / file.name[:4])
    words = small_run("--overwrite", "--data.root", str(people), "--data.dataset", "folders", **ONE_EPOCH)
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(f"{test} {people} --data.dataset folders\n")
    shutil.rmtree(people / "query")
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"{test} {people}" not in printed
    assert "query" in printed.splitlines()[-1]
