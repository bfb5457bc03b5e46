"""Losses that a recipe lists: names, weights, what they are computed on, miners, parameters, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from pytorch_metric_learning import losses as metric_losses
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.experiments.recipes import read_recipe
from rga_reid.models import TrainingOutput, load_model
from rga_reid.training import (
    BatchHardTripletLoss,
    CenterLoss,
    LossTerm,
    ReIDLoss,
    ReIDLosses,
    ReIDModule,
    build_reid_module,
)
from tests.states import assert_equal, numbers_of
from tests.training.small import build_small_model

Words = Callable[..., list[str]]
Refused = Callable[..., str]

HERE = __name__
METRIC = "pytorch_metric_learning.losses"
CROSS_ENTROPY = {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}}
ONE_STEP = {"max_epochs": 1, "limit_train_batches": 1}
LABELS = torch.arange(4).repeat_interleave(3)


class MeanNorm(nn.Module):
    """A loss of a user: the mean length of features, times a learned factor."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(start))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        assert len(features) == len(labels)
        return self.factor * features.norm(dim=1).mean()


class Vector(MeanNorm):
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return features.norm(dim=1)


class NotANumber(MeanNorm):
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return super().forward(features, labels) * float("nan")


def make_output(seed: int = 0, parts: int = 0) -> TrainingOutput:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((12, 8), (12, 8), (12, *([parts] * bool(parts)), 4))
    return TrainingOutput(*(torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes))


def build(*entries: dict[str, Any], **options: Any) -> ReIDModule:
    return build_reid_module(4, size=(64, 32), losses=list(entries), **options)


def released(output: TrainingOutput, labels: Tensor, triplets: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the losses as version 1 did."""
    logits = output.logits.float().movedim(-1, 1)  # type: ignore[union-attr]
    parts = labels.view(-1, *(1,) * (logits.ndim - 2)).expand(-1, *logits.shape[2:])
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=0.1)(logits, parts)
    features = output.pre_neck if triplets == "pre_neck" else F.normalize(output.post_neck.float())
    triplet = BatchHardTripletLoss(0.3)(features, labels)
    return cross_entropy + triplet, cross_entropy, triplet


@pytest.mark.parametrize("triplets", ["pre_neck", "post_neck"])
@pytest.mark.parametrize("parts", [0, 3])
def test_default_losses_have_the_bits_of_version_1(small_network: None, triplets: Any, parts: int) -> None:
    normalize = {"normalize": triplets == "post_neck"}
    triplet = {"class_path": "rga_reid.training.BatchHardTripletLoss", "init_args": normalize, "on": triplets}
    for losses in (ReIDLoss(triplets=triplets), build(CROSS_ENTROPY, triplet).losses):
        for seed in range(5):
            output, other = make_output(seed, parts), make_output(seed, parts)
            found, expected = losses(output, LABELS), released(other, LABELS, triplets)
            assert [*found][:2] == ["loss", "cross_entropy"]
            assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))
            found["loss"].backward()
            expected[0].backward()
            for one, two in zip(output, other, strict=True):
                assert (one.grad is None) == (two.grad is None)
                assert one.grad is None or torch.equal(one.grad, two.grad)


def test_weights_fields_and_miner(small_network: None) -> None:
    entries = [
        {"class_path": f"{METRIC}.CircleLoss", "on": "post_neck", "weight": 0.5},
        {
            "class_path": f"{METRIC}.MultiSimilarityLoss",
            "init_args": {
                "distance": {"class_path": "pytorch_metric_learning.distances.DotProductSimilarity"}
            },
            "miner": {
                "class_path": "pytorch_metric_learning.miners.MultiSimilarityMiner",
                "init_args": {"epsilon": 0.3},
            },
        },
        {"class_path": f"{METRIC}.SupConLoss", "init_args": {"temperature": 0.2}, "weight": 2},
        CROSS_ENTROPY,
        {"class_path": f"{METRIC}.SupConLoss"},
        {"class_path": f"{METRIC}.SupConLoss", "on": "post_neck"},
    ]
    output = make_output()
    found = build(*entries).losses(output, LABELS)
    similarity = metric_losses.MultiSimilarityLoss(distance=DotProductSimilarity())
    expected = {
        "circle": metric_losses.CircleLoss()(output.post_neck, LABELS),
        "multi_similarity": similarity(
            output.pre_neck, LABELS, MultiSimilarityMiner(epsilon=0.3)(output.pre_neck, LABELS)
        ),
        "sup_con": metric_losses.SupConLoss(0.2)(output.pre_neck, LABELS),
        "cross_entropy": nn.CrossEntropyLoss(label_smoothing=0.1)(output.logits, LABELS),
        "sup_con_pre_neck": metric_losses.SupConLoss()(output.pre_neck, LABELS),
        "sup_con_post_neck": metric_losses.SupConLoss()(output.post_neck, LABELS),
    }
    weights = {"circle": 0.5, "sup_con": 2}
    total = sum(weights.get(name, 1) * value for name, value in expected.items())
    assert found.keys() == {"loss", *expected}
    for name, value in {"loss": total, **expected}.items():
        torch.testing.assert_close(found[name], value)


def test_sizes_of_classifier_heads_are_filled_in(small_network: None) -> None:
    entries = [
        {"class_path": f"{METRIC}.ArcFaceLoss", "on": "post_neck"},
        {"class_path": f"{METRIC}.CosFaceLoss", "init_args": {"num_classes": 9, "scale": 30}},
        {"class_path": "rga_reid.training.CenterLoss"},
        {
            "class_path": f"{METRIC}.CrossBatchMemory",
            "init_args": {"loss": {"class_path": f"{METRIC}.NTXentLoss"}, "memory_size": 5},
        },
    ]
    trained = build(*entries)
    shapes = {name: tuple(value.shape) for name, value in trained.losses.named_parameters()}
    assert shapes == {
        "terms.arc_face.function.W": (16, 4),
        "terms.cos_face.function.W": (16, 9),
        "terms.center.function.centers": (4, 16),
    }
    assert trained.model.classifier is None
    assert trained.losses.terms["cross_batch_memory"].function.embedding_memory.shape == (5, 16)


def test_center_loss() -> None:
    loss = CenterLoss(4, 8)
    features = torch.randn(12, 8)
    each = [(f - loss.centers[label]).pow(2).sum() / 2 for f, label in zip(features, LABELS, strict=True)]
    torch.testing.assert_close(loss(features, LABELS), sum(each) / 12)


def test_losses_on_the_logits_of_parts(small_network: None) -> None:
    """A loss of two-dimensional input takes each part as an image."""
    output = make_output(parts=3)
    losses = ReIDLosses([LossTerm(nn.MultiMarginLoss(), on="logits")])
    each = [nn.MultiMarginLoss()(output.logits[:, part], LABELS) for part in range(3)]  # type: ignore[index]
    torch.testing.assert_close(losses(output, LABELS)["loss"], sum(each) / 3)


@pytest.mark.parametrize(
    ("fields", "classifier", "neck"),
    [
        (["pre_neck"], False, False),
        (["post_neck"], False, True),
        (["pre_neck", "post_neck"], False, True),
        (["pre_neck", "logits"], True, True),
    ],
)
def test_every_parameter_gets_a_gradient(
    small_network: None, fields: list[str], classifier: bool, neck: bool
) -> None:
    """Distributed training fails for a parameter without gradient."""
    trained = build(*({"class_path": f"{HERE}.MeanNorm", "on": on} for on in fields))
    assert (trained.model.classifier is not None) == classifier
    assert trained.model.neck.weight.requires_grad == neck
    output = trained.model(torch.randn(4, 3, 64, 32))
    assert (output.logits is not None) == classifier
    trained.losses(output, torch.arange(4))["loss"].backward()
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_model_without_classifier_and_a_loss_on_logits() -> None:
    with pytest.raises(InputError, match="losses"):
        ReIDModule(build_small_model(classes=0, size=(64, 32)))


def test_classifier_that_no_loss_uses_is_removed() -> None:
    model = build_small_model(classes=4, size=(64, 32))
    assert ReIDModule(model, ReIDLosses([LossTerm(MeanNorm())])).model.classifier is None


ENTRIES = [
    {"class_path": f"{METRIC}.ArcFaceLoss", "on": "post_neck", "weight": 0.5},
    {"class_path": f"{HERE}.MeanNorm", "init_args": {"start": 2.0}},
]


def test_parameters_of_losses_are_trained_saved_and_resumed(
    small_run: Words, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema = [{"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.8}}]
    changes = {"model": {"losses": ENTRIES}, "trainer": {"callbacks": ema}}
    assert main(small_run("--save-every", "1", name="whole", **changes)) == 0
    step = ReIDModule.training_step

    def interrupted(self: ReIDModule, batch: Any, batch_index: int) -> Tensor:
        if (self.current_epoch, batch_index) == (1, 2):
            raise KeyboardInterrupt
        return step(self, batch, batch_index)

    words = small_run("--save-every", "1", name="parts", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(ReIDModule, "training_step", interrupted)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    whole, parts = (numbers_of(tmp_path / name / "last.ckpt") for name in ("whole", "parts"))
    assert_equal(whole, parts)

    state = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["losses.terms.arc_face.function.W"].shape == (16, 8)
    assert abs(float(state["losses.terms.mean_norm.function.factor"]) - 2) > 1e-3
    assert not [key for key in state if "classifier" in key]
    settings = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["model"]["losses"]
    assert settings == ENTRIES
    (log,) = (tmp_path / "whole" / "csv").glob("version_*/metrics.csv")
    columns = set(log.read_text().split("\n")[0].split(","))
    assert {"loss", "arc_face", "mean_norm", "arc_face_epoch", "mean_norm_epoch"} <= columns
    again = [*small_run(name="whole", **changes), "--resume", "--model.losses", "null"]
    assert "losses.terms" in refused(*again)


def test_yaml_reads_the_key_on_as_true(small_run: Words, tmp_path: Path) -> None:
    words = small_run("--model.losses", f"[{{class_path: {HERE}.MeanNorm, on: logits}}]", trainer=ONE_STEP)
    assert main(words) == 0
    assert (
        yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["losses"][0]["on"] == "logits"
    )
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    assert {"losses.terms.mean_norm.function.factor", "model.classifier.weight"} <= state.keys()
    plain: dict[Any, Any] = {"class_path": f"{HERE}.MeanNorm", True: "post_neck"}
    assert build(plain).losses.fields == {"post_neck"}


def test_losses_that_the_guide_lists_are_those_of_the_recipe(
    small_network: None, code_blocks: Callable[..., list[Any]]
) -> None:
    (block,) = [one for one in code_blocks("docs/extending.md") if one.above == "`pretrained_losses.yaml`:"]
    recipe = yaml.safe_load(block.text)
    loss = ReIDLoss(**read_recipe(recipe["base"])["model"]["loss"]["init_args"])
    listed = build(*recipe["model"]["losses"][:2]).losses
    for seed in range(5):
        one, two = (found(make_output(seed), LABELS) for found in (loss, listed))
        assert all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))


def test_a_note_that_losses_replace_the_loss(small_run: Words, capsys: pytest.CaptureFixture[str]) -> None:
    loss, losses = {"class_path": "rga_reid.training.ReIDLoss"}, [CROSS_ENTROPY]
    given: list[tuple[dict[str, Any], list[str]]] = [
        ({"loss": loss}, []),
        ({"losses": losses}, []),
        ({"loss": loss, "losses": losses}, ["model.losses"]),
    ]
    for number, (model, expected) in enumerate(given):
        assert main(small_run(name=f"run{number}", model=model, trainer=ONE_STEP)) == 0
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert [line.split()[1] for line in notes] == expected


def test_print_config_is_a_recipe_with_the_same_losses(
    small_run: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    added = f"{{class_path: {HERE}.MeanNorm, on: post_neck}}"
    words = small_run(
        "--model.losses+", added, "--print_config", model={"losses": [CROSS_ENTROPY | {"on": "logits"}]}
    )
    assert main(words) == 0
    losses = yaml.safe_load(capsys.readouterr().out)["model"]["losses"]
    assert losses == [CROSS_ENTROPY | {"on": "logits"}, {"class_path": f"{HERE}.MeanNorm", "on": "post_neck"}]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"class_path": "nowhere.Loss"}, ["model.losses[1]", "nowhere.Loss", "--import nowhere"]),
        ({"class_path": f"{METRIC}.CircelLoss"}, ["model.losses[1]", "CircelLoss"]),
        ({"class_path": "CircleLoss"}, ["model.losses[1]", "CircleLoss"]),
        ({"init_args": {}}, ["model.losses[1]", "class_path"]),
        ({"class_path": f"{METRIC}.CircleLoss", "wieght": 1}, ["model.losses[1]", "weight?"]),
        ({"class_path": f"{METRIC}.CircleLoss", "weight": 0}, ["model.losses[1]", "weight", "0"]),
        ({"class_path": f"{METRIC}.CircleLoss", "weight": "much"}, ["model.losses[1]", "weight", "much"]),
        ({"class_path": f"{METRIC}.CircleLoss", "on": "neck"}, ["model.losses[1]", "'neck'"]),
        ({"class_path": f"{METRIC}.CircleLoss", "init_args": [1]}, ["model.losses[1]", "init_args"]),
        ({"class_path": f"{METRIC}.CircleLoss", "init_args": {"rate": 3}}, ["model.losses[1]", "rate"]),
        ({"class_path": "os.getcwd"}, ["model.losses[1]", "torch.nn.Module"]),
        ({"class_path": "os.sep"}, ["model.losses[1]", "os.sep"]),
        (
            {"class_path": f"{HERE}.MeanNorm", "miner": {"class_path": "torch.nn.Identity"}},
            ["model.losses[1]", "miner"],
        ),
        (
            {"class_path": f"{METRIC}.CircleLoss", "miner": {"class_path": "nowhere.Miner"}},
            ["model.losses[1].miner", "nowhere.Miner"],
        ),
        ({"class_path": f"{HERE}.{Vector.__name__}"}, ["model.losses[1]", "scalar", "(4,)"]),
        ({"class_path": "torch.nn.CosineEmbeddingLoss"}, ["model.losses[1]", "CosineEmbeddingLoss"]),
        (
            {"class_path": f"{HERE}.{NotANumber.__name__}"},
            ["model.losses[1]", "nan", "batch 1", "not_finite.pt"],
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_invalid_entries(
    small_run: Words, refused: Refused, entry: dict[str, Any], expected: list[str]
) -> None:
    error = refused(*small_run(model={"losses": [CROSS_ENTROPY, entry]}))
    for word in expected:
        assert word in error


def test_no_losses() -> None:
    with pytest.raises(InputError, match="losses"):
        ReIDLosses([])


@pytest.mark.slow
def test_losses_with_a_real_network(tiny_market: Path, tmp_path: Path) -> None:
    """The checkpoint of a model without classifier is loaded for inference."""
    recipe = {
        "model": {"depth": 18, "attention": None, "weights": None, "size": [64, 32], "losses": ENTRIES},
        "data": {"identities_per_batch": 3, "images_per_identity": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "precision": "bf16-mixed"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", "--config", str(tmp_path / "recipe.yaml"), "--data.root", str(tiny_market)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert load_model(tmp_path / "run" / "last.ckpt").dimension == 512
