"""What the LightningModule does between Lightning's hooks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rga_reid.errors import InputError
from rga_reid.evaluation import evaluate_ranking
from rga_reid.models import EmbeddingModel
from rga_reid.training import ReIDData, ReIDModule
from rga_reid.training.trainer import fit


class Trainer(SimpleNamespace):
    """What the module asks Lightning's for."""


def module(**options: Any) -> ReIDModule:
    return ReIDModule(classes=4, depth=18, attention=None, weights=None, size=(64, 32), **options)


@pytest.mark.parametrize("seen", [slice(None), slice(3, 20)])
def test_held_out_images_are_ranked_as_far_as_they_were_seen(
    tiny_market: Path, monkeypatch: pytest.MonkeyPatch, seen: slice
) -> None:
    batch: dict[str, Any] = {"identities_per_batch": 2, "images_per_identity": 2}
    data = ReIDData(str(tiny_market), held_out=0.5, **batch)
    torch.manual_seed(0)
    rows = torch.randperm(len(data.held_out))[seen]
    rows = torch.cat([rows, rows[:4]])  # processes fill up with images that others have, too
    features = torch.nn.functional.normalize(torch.randn(len(data.held_out), 8))
    trainer = Trainer(datamodule=data, world_size=1, sanity_checking=False)
    trained, logged = module(), {}
    monkeypatch.setattr(ReIDModule, "trainer", trainer)
    monkeypatch.setattr(ReIDModule, "log_dict", lambda self, values, **_: logged.update(values))
    trained._validation = [(features[part], part) for part in rows.split(5)]
    trained.on_validation_epoch_end()

    table = data.held_out.iloc[sorted(set(rows.tolist()))]
    asks = ~table.duplicated(["pid", "camid"])
    expected = evaluate_ranking(
        features[table.index[asks].to_numpy()],
        features[table.index.to_numpy()],
        table.pid[asks],
        table.pid,
        table.camid[asks],
        table.camid,
        query_paths=table.path[asks],
        gallery_paths=table.path,
    )
    assert logged["val_mAP"] == expected.mAP
    assert logged["val_rank1"] == expected.rank(1)


def test_a_training_that_ends_early_leaves_a_model_of_its_own_size(
    tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ReIDData(str(tiny_market), size=(64, 32), identities_per_batch=3, images_per_identity=2)
    options = {"depth": 18, "attention": "rga", "weights": None, "size": (64, 32), "stages": (3,)}
    trained = ReIDModule(data.classes, input_sizes=[(0, 32, 32), (2, 64, 32)], **options)
    trainer = {"max_epochs": 9, "max_steps": 1, "accelerator": "cpu", "enable_model_summary": False}
    fit(trained, data, tmp_path / "run", trainer=trainer)
    image = next((tiny_market / "query").glob("*.jpg"))
    assert trained.model.embed([image]).shape == (1, 512)
    assert "images of 64x32 begin with epoch 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fused", "scaled", "clip", "refused"),
    [
        (True, True, 1.0, True),
        (True, True, None, False),
        (False, True, 1.0, False),
        (True, False, 1.0, False),
    ],
)
def test_scaled_gradients_are_not_clipped_for_fused_optimizers(
    monkeypatch: pytest.MonkeyPatch, fused: bool, scaled: bool, clip: float | None, refused: bool
) -> None:
    plugin = SimpleNamespace(scaler=object() if scaled else None)
    trainer = Trainer(
        estimated_stepping_batches=10,
        num_training_batches=10,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(setup_data=lambda: None),
        gradient_clip_val=clip,
        precision_plugin=plugin,
    )
    monkeypatch.setattr(ReIDModule, "trainer", trainer)
    trained = module(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=fused))
    if refused:
        with pytest.raises(InputError, match="a fused one cannot clip gradients in float16"):
            trained.configure_optimizers()
    else:
        assert trained.configure_optimizers()["lr_scheduler"]["interval"] == "step"


def test_options_of_memory_and_speed_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(EmbeddingModel, "compile", lambda self: compiled.append(self))
    plain, other = module(), module(checkpointing=True, compile=True, channels_last=False)
    assert compiled == [other.model]
    assert (plain.model.backbone.checkpointing, other.model.backbone.checkpointing) == (False, True)
    weights = [one.model.backbone.conv1.weight for one in (plain, other)]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [True, False]
