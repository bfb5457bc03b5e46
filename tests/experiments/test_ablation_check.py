"""Models of a plan are tried before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from rga_reid.commands import main
from rga_reid.errors import InputError
from rga_reid.experiments.ablation import Outcome
from rga_reid.experiments.ablation_check import check_model
from rga_reid.training.module import ReIDModule, build_reid_module


class Fine(nn.Module):
    """Scale the channels."""

    def __init__(self, in_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, in_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class WrongShape(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:]


class OnlyWeights(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.mean((2, 3), keepdim=True)


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise NotImplementedError("no gradient yet")


class WrongBackward(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return NoGradient.apply(x)


class WrongSize(Fine):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, size=(1, 2, 3))  # raises in a function of torch


class WrongState(Fine):
    """A parameter that is made in the first forward pass is missing in a new model."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(1, device=x.device))
        return x * self.late


def line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


FAULTS = {
    WrongShape: r"forward: attention WrongShape after stage 1: .*\(2, 64, 8, 8\), got \(2, 63, 8, 8\)$",
    OnlyWeights: r"forward: attention OnlyWeights after stage 1: .*\(2, 64, 8, 8\), got \(2, 64, 1, 1\)$",
    WrongSize: r"forward: ValueError: .*\(test_ablation_check.py, line {}\)".format(
        line_of("size=(1, 2, 3)")
    ),
    WrongBackward: r"backward: .*: no gradient yet \(test_ablation_check.py, line {}\)".format(
        line_of("no grad")
    ),
    WrongState: "save and load: ",
}


def path_of(attention: type[nn.Module]) -> str:
    return f"{__name__}.{attention.__name__}"


def build(module: type[nn.Module]) -> ReIDModule:
    attention = path_of(module)
    return build_reid_module(
        classes=3, depth=18, attention=attention, stages=[1], weights=None, size=(32, 32)
    )


@pytest.mark.parametrize("attention", FAULTS)
def test_faults_of_a_module_are_named(attention: type[nn.Module]) -> None:
    with pytest.raises(InputError, match=FAULTS[attention]):
        check_model(build(attention), "cpu")


def test_a_model_without_faults_gets_gradients() -> None:
    module = build(Fine)
    check_model(module, "cpu")
    gradients = [one.grad for one in module.model.parameters() if one.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_unfinished_variants_are_tried_before_any_training(
    tiny_market: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def make_runs(runs: list[Any], *, select: Callable[[Any], bool], **_: object) -> Outcome:
        started.extend(run.name for run in runs if select(run))
        return Outcome((), ())

    monkeypatch.setattr("rga_reid.experiments.ablation.make_runs", make_runs)
    recipe = {
        "model": {"depth": 18, "stages": [1], "weights": None, "size": [32, 32]},
        "data": {"identities_per_batch": 2, "images_per_identity": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    modules = {"fine": Fine, "bad": WrongShape}
    variants = [
        {"name": name, "overrides": {"model.attention": path_of(module)}} for name, module in modules.items()
    ]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "variants": variants}))
    out = tmp_path / "out"
    words = ["ablate", "--config", str(tmp_path / "plan.yaml"), "--data.root", str(tiny_market)]
    words += ["--out", str(out)]
    error = refused(*words)
    assert "plan.yaml: variant bad: forward: " in error
    assert started == []
    assert not out.exists() or list(out.iterdir()) == []
    assert main([*words, "--only", "fine"]) == 0  # not part of this call
    assert started == ["fine seed 0"]
    done = out / "bad" / "seed-0" / "result.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    assert main(words) == 0  # finished
