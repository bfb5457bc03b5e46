"""Training in two processes: same validation metrics as in one, same images in a step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import multiprocessing, nn

from rga_reid.attention import RGA
from rga_reid.training import ReIDData, build_reid_module, fit
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Metrics(pl.Callback):
    """Keep logged values and the labels of each training step; freeze the running statistics."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.steps: list[list[int]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(batch[1].tolist())

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}


def still(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer that does not change the initial weights."""
    return torch.optim.SGD(parameters, lr=0.0)


def train(root: Path, out: Path, identities: int, trainer: dict[str, Any]) -> Metrics:
    torch.manual_seed(0)
    batch = {"identities_per_batch": identities, "images_per_identity": 2}
    data = ReIDData(str(root), size=(64, 32), val_fraction=0.5, **batch)
    model = {"depth": 18, "attention": None, "weights": None, "size": (64, 32)}
    metrics = Metrics()
    settings = {**SETTINGS, **trainer, "callbacks": [metrics]}
    fit(build_reid_module(data.classes, optimizer=still, **model), data, out, trainer=settings)
    return metrics


def one_of_two(rank: int, port: int, root: str, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(rank)}  # as Lightning does
    rank_zero_only.rank = rank
    strategy = DDPStrategy(process_group_backend="gloo")
    metrics = train(Path(root), Path(out) / "two", 2, {"devices": 2, "strategy": strategy})
    torch.save({"values": metrics.values, "steps": metrics.steps}, Path(out) / f"rank{rank}.pt")


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tiny_market: Path, tmp_path: Path) -> None:
    """Four identities are trained, 2 x 2 on each process; 24 images of four others are ranked."""
    tiny_market = shutil.copytree(tiny_market, tmp_path / "market")  # decoded images are kept there
    multiprocessing.spawn(one_of_two, (free_port(), str(tiny_market), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = train(tiny_market, tmp_path / "one", 4, {"devices": 1})
    assert one.values.keys() == {"val_mAP", "val_rank1"}
    for rank in ranks:
        assert rank["values"] == pytest.approx(one.values, abs=1e-6)
    assert len(ranks[0]["steps"]) == len(ranks[1]["steps"]) == len(one.steps) == 1
    for first, second, both in zip(ranks[0]["steps"], ranks[1]["steps"], one.steps, strict=True):
        assert not set(first) & set(second)  # no identity on two ranks in a step
        assert first + second == both  # together they see what one process sees
    assert (tmp_path / "two" / "best.ckpt").is_file()


def test_statistics_of_rga_follow_synchronised_batch_norm() -> None:
    """Lightning's sync_batchnorm replaces modules, which the fast path of RGA must use."""
    torch.manual_seed(0)
    plain = RGA(16, (8, 4)).train()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(RGA(16, (8, 4)))
    converted.load_state_dict(plain.state_dict())
    called = []
    for module in converted.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(4, 16, 8, 4)
    torch.testing.assert_close(converted(x), plain(x))
    for (name, one), two in zip(plain.named_buffers(), converted.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    assert len(called) == 12
    assert torch.allclose(converted.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.slow
def test_command_in_two_processes(tiny_market: Path, tmp_path: Path) -> None:
    root, out = shutil.copytree(tiny_market, tmp_path / "market"), tmp_path / "run"
    recipe = {
        "model": {"depth": 18, "attention": None, "weights": None, "size": [64, 32]},
        "data": {"identities_per_batch": 2, "images_per_identity": 2, "val_fraction": 0.25},
        "trainer": {**SETTINGS, "max_epochs": 2, "devices": 2, "strategy": "ddp"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", "--config", str(tmp_path / "recipe.yaml"), "--data.root", str(root), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "rga_reid.commands", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: ") == 1
    last = torch.load(out / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2  # of 6 identities 2 x 2 in the one step of each epoch
    assert last["ReIDData"]["processes"] == 2
    (log,) = (out / "csv").glob("version_*/metrics.csv")
    assert "val_mAP" in log.read_text()
