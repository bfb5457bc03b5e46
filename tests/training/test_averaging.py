"""The moving average of the weights, against its formula in float64."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rga_reid.errors import InputError
from rga_reid.training import EMA


class Walk(pl.LightningModule):
    """Two weights and a statistic that a step changes; all of their values are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.visited: list[dict[str, Tensor]] = []

    def training_step(self, batch: Tensor) -> Tensor:
        return self.layers(batch).pow(2).sum()

    def on_train_batch_end(self, *_: object) -> None:
        self.visited.append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.6, 3), (0.0, 1)])
def test_average_is_the_formula(decay: float, every: int) -> None:
    torch.manual_seed(0)
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
    taken = module.visited[::every]
    for name, found in module.state_dict().items():
        if not found.is_floating_point():
            assert found == 1 + len(taken[:-1]) * every  # batches that were seen at the last update
            continue
        expected = taken[0][name].double()  # the first one is taken over as it is
        for state in taken[1:]:
            expected = decay * expected + (1 - decay) * state[name].double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        if decay and name == "layers.0.weight":
            assert not torch.allclose(found, module.visited[-1][name])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 1.5}, "EMA decay: expected 0 to 1, got 1.5"),
        ({"decay": float("nan")}, "EMA decay: expected 0 to 1, got nan"),
        (
            {"update_every_n_steps": 0},
            "EMA update_every_n_steps: expected a whole number of at least 1, got 0",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        EMA(**options)  # type: ignore[arg-type]
    assert str(refusal.value) == said
