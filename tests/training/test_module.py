"""LightningModule: validation, image sizes, gradient clipping, random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.evaluation import evaluate_ranking
from rga_reid.models import EmbeddingModel
from rga_reid.training import Augmentation, ReIDData, ReIDModule, build_reid_module
from rga_reid.training.trainer import fit


def module(**options: Any) -> ReIDModule:
    return build_reid_module(classes=4, depth=18, attention=None, weights=None, size=(64, 32), **options)


@pytest.mark.parametrize("seen", [slice(None), slice(3, 20)])
def test_validation_ranks_the_images_that_were_seen(
    small_network: None, tiny_market: Path, monkeypatch: pytest.MonkeyPatch, seen: slice
) -> None:
    data = ReIDData(str(tiny_market), val_fraction=0.5, identities_per_batch=2, images_per_identity=2)
    rows = torch.randperm(len(data.val_table))[seen]
    rows = torch.cat([rows, rows[:4]])  # processes repeat images of others
    features = torch.nn.functional.normalize(torch.randn(len(data.val_table), 8))
    trainer = SimpleNamespace(datamodule=data, world_size=1, sanity_checking=False)
    trained, logged = module(), {}
    monkeypatch.setattr(ReIDModule, "trainer", trainer)
    monkeypatch.setattr(ReIDModule, "log_dict", lambda self, values, **_: logged.update(values))
    images = torch.zeros(len(rows), 3, 64, 32, dtype=torch.uint8)
    monkeypatch.setattr(EmbeddingModel, "forward", lambda self, _: features[current])
    for current in rows.split(5):
        trained.validation_step((images[: len(current)], current), 0)
    trained.on_validation_epoch_end()

    table = data.val_table.iloc[sorted(set(rows.tolist()))]
    is_query = ~table.duplicated(["pid", "camid"])
    expected = evaluate_ranking(
        features[table.index[is_query].to_numpy()],
        features[table.index.to_numpy()],
        table.pid[is_query],
        table.pid,
        table.camid[is_query],
        table.camid,
        query_paths=table.path[is_query],
        gallery_paths=table.path,
    )
    assert logged == {"val_mAP": expected.mAP, "val_rank1": expected.rank(1)}


def test_training_that_ends_early_leaves_a_model_of_full_size(
    tiny_market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ReIDData(str(tiny_market), size=(64, 32), identities_per_batch=3, images_per_identity=2)
    options = {"depth": 18, "attention": "rga", "weights": None, "size": (64, 32), "stages": (3,)}
    trained = build_reid_module(data.classes, resolution_schedule=[(0, 32, 32), (2, 64, 32)], **options)
    trainer = {"max_epochs": 9, "max_steps": 1, "accelerator": "cpu", "enable_model_summary": False}
    fit(trained, data, tmp_path / "run", trainer=trainer)
    image = next((tiny_market / "query").glob("*.jpg"))
    assert trained.model.embed([image]).shape == (1, 512)
    assert "model.resolution_schedule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fused", "scaled", "clip", "refused"),
    [
        (True, True, 1.0, True),
        (True, True, None, False),
        (False, True, 1.0, False),
        (True, False, 1.0, False),
    ],
)
def test_fused_optimizers_do_not_clip_scaled_gradients(
    small_network: None,
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
    scaled: bool,
    clip: float | None,
    refused: bool,
) -> None:
    trainer = SimpleNamespace(
        estimated_stepping_batches=10,
        num_training_batches=10,
        accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(setup_data=lambda: None),
        gradient_clip_val=clip,
        precision_plugin=SimpleNamespace(scaler=object() if scaled else None),
    )
    monkeypatch.setattr(ReIDModule, "trainer", trainer)
    trained = module(optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=fused))
    if refused:
        with pytest.raises(InputError, match="optimizer"):
            trained.configure_optimizers()
    else:
        assert trained.configure_optimizers()["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize(("precision", "algorithm"), [("32-true", "value"), ("bf16-mixed", "norm")])
def test_gradients_are_clipped_for_fused_optimizers(
    small_run: Callable[..., list[str]], tmp_path: Path, precision: str, algorithm: str
) -> None:
    def train(name: str, rate: float, *more: str) -> torch.Tensor:
        """Return all weights after one step of plain gradient descent."""
        optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": rate, "fused": True}}
        schedule = {"class_path": "rga_reid.training.OneCycle", "init_args": {"rise": 0.5, "start": 1}}
        words = small_run(name=name, model={"optimizer": optimizer, "schedule": schedule})
        assert main([*words, "--trainer.max_steps", "1", "--trainer.precision", precision, *more]) == 0
        state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        kinds = ("weight", "bias")
        return torch.cat([v.double().flatten() for k, v in state.items() if k.rpartition(".")[2] in kinds])

    start = train("start", 0.0)
    clip = ["--trainer.gradient_clip_val", "0.01", "--trainer.gradient_clip_algorithm", algorithm]
    gradient, clipped = train("free", 1.0) - start, train("clipped", 1.0, *clip) - start
    assert gradient.abs().max() > 0.02
    expected = gradient * (0.01 / gradient.norm()) if algorithm == "norm" else gradient.clamp(-0.01, 0.01)
    torch.testing.assert_close(clipped, expected, rtol=1e-3, atol=1e-6)


def test_options_for_memory_and_speed(small_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(EmbeddingModel, "compile", lambda self: compiled.append(self))
    plain, other = module(), module(checkpointing=True, compile=True, channels_last=False)
    assert compiled == [other.model]
    assert (plain.model.backbone.checkpointing, other.model.backbone.checkpointing) == (False, True)
    weights = [one.model.backbone.layers[4].weight for one in (plain, other)]  # type: ignore[union-attr, index]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [True, False]


def test_frozen_stages_are_not_given_to_the_optimizer() -> None:
    given: list[nn.Parameter] = []

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        given[:] = parameters
        return torch.optim.SGD(given, lr=1.0)

    trained = module(optimizer=optimizer, frozen_stages=2)
    names = {id(p): name for name, p in trained.model.backbone.named_parameters()}
    trained_parts = {names[id(p)].partition(".")[0] for p in given if id(p) in names}
    assert trained_parts == {"layer3", "layer4"}


def test_steps_leave_the_global_generator_alone(small_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout depends on seed, epoch and step only."""
    trainer = SimpleNamespace(current_epoch=0, global_rank=0, is_global_zero=True)
    monkeypatch.setattr(ReIDModule, "trainer", trainer)
    monkeypatch.setattr(ReIDModule, "log_dict", lambda *_, **__: None)
    trained = module()
    batch = torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8), torch.arange(8) // 2

    def loss(step: int, generator_seed: int) -> float:
        torch.manual_seed(generator_seed)
        before = torch.random.get_rng_state()
        value = float(trained.training_step(batch, step).detach())
        assert torch.equal(torch.random.get_rng_state(), before)
        return value

    assert loss(0, 1) == loss(0, 2)
    assert loss(0, 1) != loss(1, 1)
    tiny = torch.tensor([1e-30]) * 1e-10  # a denormal number
    assert tiny != 0  # no setting of the whole process was changed


def test_steps_follow_the_recipe(
    small_run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[bool, tuple[int, ...], torch.dtype]] = []
    draws: list[int] = []
    forward, augment = EmbeddingModel.forward, Augmentation.__call__

    def watched_forward(self: EmbeddingModel, images: torch.Tensor) -> Any:
        assert torch.is_autocast_enabled("cpu")
        passes.append((self.training, tuple(images.shape[2:]), torch.get_autocast_dtype("cpu")))
        return forward(self, images)

    def watched_augment(self: Augmentation, *arguments: Any) -> torch.Tensor:
        draws.append(arguments[-1].initial_seed())
        return augment(self, *arguments)

    monkeypatch.setattr(EmbeddingModel, "forward", watched_forward)
    monkeypatch.setattr(Augmentation, "__call__", watched_augment)

    def train(name: str, seed: int) -> list[int]:
        draws.clear()
        changes = {
            "model": {"resolution_schedule": [[0, 32, 32], [1, 64, 32]]},
            "data": {"identities_per_batch": 3, "val_fraction": 0.25},
            "trainer": {"precision": "bf16-mixed"},
        }
        assert main([*small_run(name=name, **changes), "--seed", str(seed)]) == 0
        return list(draws)

    first = train("one", 0)
    epoch = [(True, (32, 32), torch.bfloat16)] * 2 + [(False, (64, 32), torch.bfloat16)]
    assert passes == epoch + [(training, (64, 32), dtype) for training, _, dtype in epoch]
    assert len(set(first)) == len(first) == 4  # other random numbers in each step
    assert train("two", 0) == first
    assert not set(train("three", 1)) & set(first)
