"""Loggers, callbacks and profilers by class path, and what is logged and printed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from rga_reid import runtime
from rga_reid.commands import main
from rga_reid.experiments.results import read_curve
from rga_reid.training.monitoring import EpochMetrics, ProgressLines, format_seconds
from tests.training.conftest import small_network, small_run

__all__ = ["small_network", "small_run"]  # fixtures

Words = Callable[..., list[str]]
Refused = Callable[..., str]
ONE_STEP = {"max_epochs": 1, "limit_train_batches": 1}


class FailingLogger(CSVLogger):
    """Cannot reach its server."""

    @property
    def experiment(self) -> Any:
        raise ConnectionError("no account")


def read_log(folder: Path) -> pd.DataFrame:
    (log,) = folder.glob("**/metrics.csv")
    return pd.read_csv(log)


def test_several_loggers_are_added(small_run: Words, tmp_path: Path) -> None:
    loggers = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "one")}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "two")}},
    ]
    assert main(small_run(trainer={"logger": loggers})) == 0
    own, added = (read_log(tmp_path / name) for name in ("run", "one"))
    assert own.equals(added)
    (options,) = (tmp_path / "one").glob("**/hparams.yaml")
    assert yaml.safe_load(options.read_text())["model"]["size"] == [64, 32]
    for folder in ("run/tensorboard", "two"):
        assert list((tmp_path / folder).glob("**/events.*"))


def test_logger_of_the_command_line(small_run: Words, tmp_path: Path, refused: Refused) -> None:
    words = small_run("--trainer.logger", "CSVLogger", trainer=ONE_STEP)
    assert "save_dir" in refused(*words)
    assert "--trainer.logger" in refused(*words[:-1], "NoLogger")
    assert main([*words, "--trainer.logger.save_dir", str(tmp_path / "added")]) == 0
    assert list((tmp_path / "added").glob("**/metrics.csv"))


def test_no_logs(small_run: Words, tmp_path: Path) -> None:
    assert main(small_run("--trainer.logger", "false", trainer=ONE_STEP)) == 0
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "last.ckpt"]


def test_logger_that_fails(small_run: Words, tmp_path: Path, refused: Refused) -> None:
    logger = {
        "class_path": f"{__name__}.{FailingLogger.__name__}",
        "init_args": {"save_dir": str(tmp_path / "x")},
    }
    words = small_run(trainer={**ONE_STEP, "logger": logger})
    error = refused(*words)
    assert "FailingLogger" in error
    assert "no account" in error
    assert not (tmp_path / "run").exists()
    assert main([*words, "--trainer.fast_dev_run", "true"]) == 0  # without loggers


def test_callbacks_and_profiler(small_run: Words, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--trainer.callbacks+", "Timer", "--trainer.callbacks+", "DeviceStatsMonitor"]
    assert main(small_run(*words, "--trainer.profiler", "simple", trainer=ONE_STEP)) == 0
    assert "run_training_epoch" in caplog.text
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    names = [callback["class_path"].rpartition(".")[2] for callback in settings["trainer"]["callbacks"]]
    assert names == ["Timer", "DeviceStatsMonitor"]
    assert any("cpu" in name for name in read_log(tmp_path / "run" / "csv"))


@pytest.mark.slow
def test_wandb_and_mlflow(small_run: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    loggers = [
        {
            "class_path": "WandbLogger",
            "init_args": {"project": "x", "offline": True, "save_dir": str(tmp_path)},
        },
        {"class_path": "MLFlowLogger", "init_args": {"save_dir": str(tmp_path / "mlruns")}},
    ]
    assert main(small_run(data={"val_fraction": 0.25}, trainer={"logger": loggers})) == 0
    import wandb

    wandb.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    metrics = {path.name for path in (tmp_path / "mlruns").glob("**/metrics/*")}
    assert {"loss_epoch", "lr_epoch", "images_per_second", "val_mAP", "val_rank1"} <= metrics
    options = {path.name for path in (tmp_path / "mlruns").glob("**/params/**/*")}
    assert any("max_epochs" in name for name in options)


def test_metrics_of_each_epoch(small_run: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small_run(data={"val_fraction": 0.25}, trainer={"check_val_every_n_epoch": 2})) == 0
    printed = capsys.readouterr().out.splitlines()
    log = read_log(tmp_path / "run" / "csv")
    epochs = log.dropna(subset=["loss_epoch"]).set_index("epoch")
    assert epochs.index.tolist() == [0, 1]
    for name in ("loss", "cross_entropy", "triplet"):
        means = log.groupby("epoch")[name].mean()
        assert epochs[f"{name}_epoch"].tolist() == pytest.approx(means.tolist(), rel=1e-5)
    curve = read_curve(tmp_path / "run")
    assert curve is not None
    assert curve["loss"].tolist() == pytest.approx(epochs["loss_epoch"].tolist(), rel=1e-5)
    rates = log.dropna(subset=["lr-AdamW"])["lr-AdamW"].to_numpy().reshape(2, 3)
    assert epochs["lr_epoch"].tolist() == pytest.approx(rates[:, -1].tolist())
    assert (epochs["images_per_second"] > 0).all()
    assert log.dropna(subset=["val_mAP"])["epoch"].tolist() == [1]
    assert "val_rank1" in log
    # without the note that other programs used the processor
    lines = [line.split("  (")[0] for line in printed if line.startswith("epoch ")]
    assert re.match(rf"epoch 1/2  loss {epochs['loss_epoch'][0]:.4f}  .* images/s  .* left$", lines[0])
    assert re.match(r"epoch 2/2  loss .*  val_mAP [01]\.\d+  val_rank1 .* images/s$", lines[1])
    assert len(lines) == 2


class Plain(pl.LightningModule):
    """A module with the attribute that the callbacks read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.step_losses: dict[str, torch.Tensor] = {}

    def training_step(self, batch: Any) -> torch.Tensor:
        self.step_losses = {"loss": self.layer(batch[0]).pow(2).mean()}
        self.log("loss", self.step_losses["loss"], batch_size=1)
        return self.step_losses["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def print_lines(callbacks: Iterable[pl.Callback], **options: Any) -> None:
    images = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.zeros(12))
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Plain(), DataLoader(images, batch_size=3))


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing else runs."""
    (tmp_path / "schedstat").write_text("900 500 3\n")
    monkeypatch.setattr(runtime, "SCHEDSTAT", tmp_path / "schedstat")


def lines_of_epochs(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines after the first, which names the threads."""
    first, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"training on the CPU: \d+ threads?, precision 32-true", first)
    assert int(first.split()[4]) == torch.get_num_threads()
    return lines


def test_lines_name_a_busy_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulate waiting half of the time."""
    schedstat = SimpleNamespace(read_text=lambda: f"900 {time.monotonic_ns() // 2} 3")
    monkeypatch.setattr(runtime, "SCHEDSTAT", schedstat)
    print_lines([EpochMetrics(), ProgressLines(every=0)], max_epochs=1)
    lines = lines_of_epochs(capsys)
    assert len(lines) == 4
    for line in lines:
        assert re.search(r" \(other programs kept the processor busy \d+ % of the time\)$", line)


def test_lines_within_a_long_epoch(idle: None, capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([EpochMetrics(), ProgressLines(every=0)], max_epochs=2)
    lines = lines_of_epochs(capsys)
    starts = ["epoch 1/2, step 1/4", "epoch 1/2, step 2/4", "epoch 1/2, step 3/4", "epoch 1/2"]
    starts += [start.replace("epoch 1", "epoch 2") for start in starts]
    assert [line.split("  ")[0] for line in lines] == starts
    for line in lines[:-1]:
        assert re.search(r"  loss \d+\.\d{4}  [\d.]+(e\+\d+)? images/s  \d+ s left$", line)
    assert "left" not in lines[-1]
    # `ablate` counts complete epochs
    assert re.findall(r"epoch (\d+)/(\d+) ", "\n".join(lines)) == [("1", "2"), ("2", "2")]


def test_lines_without_a_number_of_epochs(idle: None, capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([EpochMetrics(), ProgressLines(every=1e9)], max_steps=6, max_epochs=-1)
    lines = lines_of_epochs(capsys)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert lines[0].endswith(" left")


def test_a_progress_bar_replaces_the_lines_of_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines([EpochMetrics(), ProgressLines(every=0, bar=True)], max_epochs=2)
    assert lines_of_epochs(capsys) == []


def test_output_that_fails_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, steps = ProgressLines(every=0), []

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    class Steps(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(1)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", fail)
        print_lines([EpochMetrics(), lines, Steps()], max_epochs=3)
    assert isinstance(lines.error, BrokenPipeError)
    assert len(steps) == 4  # the epoch was completed


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (12000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_init_from_is_the_same_as_weights(small_run: Words, tmp_path: Path) -> None:
    for name, words in (("one", ["--init-from", "x.ckpt"]), ("two", ["--init-from=x.ckpt"])):
        assert main(small_run(*words, name=name, trainer=ONE_STEP)) == 0
        settings = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert settings["model"]["weights"] == "x.ckpt"
