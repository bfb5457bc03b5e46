"""A training that meets NaN: one line, the batch in a file, the good checkpoint kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rga_reid.commands import main
from rga_reid.data import decode, read_table
from rga_reid.models import EmbeddingModel
from rga_reid.training import ReIDLoss, ReIDModule

RECIPE: dict[str, Any] = {
    "model": {
        "depth": 18,
        "attention": None,
        "weights": None,
        "size": [64, 32],
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "rga_reid.training.OneCycle"},
    },
    "data": {"identities_per_batch": 2, "images_per_identity": 2},  # four batches of the eight identities
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False, "log_every_n_steps": 1},
}


@pytest.fixture
def words(tiny_market: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["train", "--config", str(tmp_path / "recipe.yaml"), "--data.root", str(tiny_market)]
    return [*words, "--out", str(tmp_path / "run")]


def saved(tmp_path: Path) -> dict[str, Any]:
    return torch.load(tmp_path / "run" / "not_finite.pt", weights_only=True)


def test_the_loss(
    words: list[str],
    tiny_market: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward, calls = ReIDLoss.forward, []

    def sixth_is_nan(self: ReIDLoss, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(arguments)
        losses = forward(self, *arguments)
        return {**losses, "loss": losses["loss"] * (math.nan if len(calls) == 6 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(ReIDLoss, "forward", sixth_is_nan)
        error = refused(*words)
    assert "training: the loss is nan in epoch 2, batch 2, which is saved in " in error
    assert f"{tmp_path / 'run' / 'not_finite.pt'}; try a smaller learning rate" in error

    batch = saved(tmp_path)
    assert (batch["epoch"], batch["batch"], batch["step"]) == (1, 1, 5)
    assert math.isnan(batch["losses"]["loss"])
    assert math.isfinite(batch["losses"]["triplet"])
    np.testing.assert_array_equal(batch["images"].numpy(), decode(batch["paths"], (64, 32)))
    table = read_table(tiny_market)
    train = table[table.split == "train"].set_index("path")
    pids = np.sort(train.pid.unique())
    assert pids[batch["labels"].numpy()].tolist() == train.pid[batch["paths"]].tolist()
    assert torch.equal(batch["labels"], calls[5][1])

    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)  # of the epoch before
    assert (kept["epoch"], kept["global_step"]) == (0, 4)
    assert main([*words, "--resume"]) == 0  # this time nothing makes it NaN
    (tmp_path / "run" / "not_finite-rank1.pt").touch()  # as another process would have left it
    assert main([*words, "--overwrite"]) == 0
    assert list((tmp_path / "run").glob("not_finite*")) == []


def test_weights_are_never_saved_broken(
    words: list[str], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step was fine, but its gradient was not: no checkpoint, rather than one of NaN."""

    def overflow(self: ReIDModule, optimizer: torch.optim.Optimizer) -> None:
        self.model.backbone.conv1.weight.grad[0] = math.inf

    monkeypatch.setattr(ReIDModule, "on_before_optimizer_step", overflow)
    error = refused(*words, "--trainer.limit_train_batches", "1")
    assert "weights are not finite after a step in epoch 1, batch 1, which is saved in" in error
    assert saved(tmp_path)["images"].shape == (4, 3, 64, 32)
    assert not (tmp_path / "run" / "last.ckpt").exists()
    assert [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_features_of_held_out_images(
    words: list[str], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = EmbeddingModel.forward

    def broken(self: EmbeddingModel, x: torch.Tensor) -> Any:
        return forward(self, x) if self.training else forward(self, x) * math.inf

    monkeypatch.setattr(EmbeddingModel, "forward", broken)
    error = refused(*words, "--data.held_out", "0.3")
    assert "features of held-out images are not finite in epoch 1, batch 3" in error
    assert len(saved(tmp_path)["paths"]) == 4
