"""EMA, replacing an earlier run, NaN guard, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rga_reid.commands import main, train
from rga_reid.commands._options import parse
from rga_reid.data import decode, read_table
from rga_reid.errors import InputError
from rga_reid.models import EmbeddingModel
from rga_reid.training import EMA, ReIDLoss, ReIDModule
from tests.folders import files_below

Words = Callable[..., list[str]]
Refused = Callable[..., str]


class Walk(pl.LightningModule):
    """Keeps the weights and statistics after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.states: list[dict[str, Tensor]] = []

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layers(batch).pow(2).sum()

    def on_train_batch_end(self, *_: object) -> None:
        self.states.append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.6, 3), (0.0, 1)])
def test_ema_formula(decay: float, every: int) -> None:
    module = Walk()
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[EMA(decay, every)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(torch.randn(40, 3), batch_size=4))  # type: ignore[arg-type]
    taken = module.states[::every]
    for name, found in module.state_dict().items():
        if not found.is_floating_point():
            assert found == 1 + len(taken[:-1]) * every  # copied at the last update
            continue
        expected = taken[0][name].double()
        for state in taken[1:]:
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        if decay and name == "layers.0.weight":
            assert not torch.allclose(found, module.states[-1][name])


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"decay": math.nan}, {"update_every_n_steps": 0}])
def test_invalid_ema(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"EMA {next(iter(options))}"):
        EMA(**options)


def test_earlier_run_survives_runs_that_cannot_start(
    small_run: Words, tiny_market: Path, tmp_path: Path, refused: Refused
) -> None:
    damaged = tmp_path / "damaged" / "bounding_box_train"
    damaged.mkdir(parents=True)
    for file in (tiny_market / "bounding_box_train").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-200])
    obstacles = [
        ["--trainer.limit_train_batches", "0.0001"],  # less than one batch
        ["--trainer.val_check_interval", "99", "--data.val_fraction", "0.5"],
        ["--trainer.max_time", "00:00:00:00"],
        ["--data.root", str(damaged.parent)],
    ]
    run = tmp_path / "run"
    words = small_run("--trainer.max_epochs", "1")
    for obstacle in obstacles:
        refused(*words, *obstacle)
        assert not run.exists(), obstacle  # so that the corrected command needs no --overwrite
    assert main(words) == 0
    (run / "test.json").write_text("{}")
    for name in ("not_finite.pt", "not_finite-rank1.pt"):
        (run / name).write_bytes(b"a batch")
    (run / "csv" / "mine.txt").write_text("keep")
    before = files_below(run)
    for obstacle in obstacles:
        refused(*words, "--overwrite", *obstacle)
        assert files_below(run) == before, obstacle
    assert main([*words, "--overwrite"]) == 0
    after = files_below(run)
    assert after.keys() & before.keys() == {"last.ckpt", "config.yaml", "csv/mine.txt"}  # no log of before


def saved_batch(tmp_path: Path) -> dict[str, Any]:
    return torch.load(tmp_path / "run" / "not_finite.pt", weights_only=True)


def test_nan_loss(
    small_run: Words, tiny_market: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = ReIDLoss.forward, []

    def sixth_is_nan(self: ReIDLoss, *arguments: Any) -> dict[str, Tensor]:
        calls.append(arguments)
        losses = forward(self, *arguments)
        return {**losses, "loss": losses["loss"] * (math.nan if len(calls) == 6 else 1)}

    words = small_run()
    with monkeypatch.context() as patch:
        patch.setattr(ReIDLoss, "forward", sixth_is_nan)
        error = refused(*words)
    assert "nan in epoch 2, batch 2" in error
    assert str(tmp_path / "run" / "not_finite.pt") in error

    batch = saved_batch(tmp_path)
    assert (batch["epoch"], batch["batch"], batch["step"]) == (1, 1, 5)
    assert math.isnan(batch["losses"]["loss"])
    assert math.isfinite(batch["losses"]["triplet"])
    np.testing.assert_array_equal(batch["images"].numpy(), decode(batch["paths"], (64, 32)))
    table = read_table(tiny_market)
    table = table[table.split == "train"].set_index("path")
    pids = np.sort(table.pid.unique())
    assert pids[batch["labels"].numpy()].tolist() == table.pid[batch["paths"]].tolist()
    assert torch.equal(batch["labels"], calls[5][1])

    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)  # of the epoch before
    assert (kept["epoch"], kept["global_step"]) == (0, 4)
    assert main([*words, "--resume"]) == 0  # now without NaN


def test_broken_weights_are_not_saved(
    small_run: Words, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: ReIDModule, optimizer: torch.optim.Optimizer) -> None:
        next(self.model.parameters()).grad[0] = math.inf  # type: ignore[index]

    monkeypatch.setattr(ReIDModule, "on_before_optimizer_step", overflow)
    error = refused(*small_run("--trainer.limit_train_batches", "1"))
    assert "weights are not finite" in error
    assert saved_batch(tmp_path)["images"].shape == (4, 3, 64, 32)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_infinite_validation_features(
    small_run: Words, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = EmbeddingModel.forward

    def broken(self: EmbeddingModel, x: Tensor) -> Any:
        return forward(self, x) if self.training else forward(self, x) * math.inf

    monkeypatch.setattr(EmbeddingModel, "forward", broken)
    assert "features of validation images" in refused(*small_run("--data.val_fraction", "0.3"))
    assert len(saved_batch(tmp_path)["paths"]) == 4


def test_training_stops_after_a_checkpoint_if_standard_output_fails(
    small_run: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parse(train.parser(), train.prepare(small_run()[1:]))
    assert options is not None

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", fail)
    with pytest.raises(BrokenPipeError):
        train.fit_recipe(options)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_lines_show_validation_scores_of_their_epoch(
    small_run: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = {"max_epochs": 3, "check_val_every_n_epoch": 2, "limit_train_batches": 1}
    assert main(small_run(data={"val_fraction": 0.3}, trainer=trainer)) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert ["val_mAP" in line for line in lines] == [False, True, False]


def test_means_of_an_epoch_survive_an_interruption(
    small_run: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of an epoch that is resumed in its middle is the mean over all of its steps."""
    trainer = {"max_epochs": 1, "limit_train_batches": 4}
    assert main(small_run(trainer=trainer, name="whole")) == 0
    words = small_run("--save-every", "2", trainer=trainer)
    step = ReIDModule.training_step

    def stop(module: ReIDModule, batch: Any, number: int) -> Tensor:
        if number == 3:
            raise KeyboardInterrupt
        return step(module, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(ReIDModule, "training_step", stop)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    means = []
    for name in ("whole", "run"):
        (file,) = sorted((tmp_path / name / "csv").rglob("metrics.csv"))[-1:]
        means.append(pd.read_csv(file)["loss_epoch"].dropna().iloc[-1])
    assert means[0] == means[1]
