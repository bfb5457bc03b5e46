"""A transformer and a mobile network learn the synthetic data set of the demo, in two or three minutes each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rga_reid.commands import main
from rga_reid.data import read_table
from rga_reid.evaluation import RankingResult
from rga_reid.experiments.demo import make_data
from rga_reid.experiments.evaluate_model import embed_test_images, rank_test_images
from rga_reid.models import ColourHistogram, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people") / "data"
    make_data(root, 0)
    return root


def rank(model: Any, root: Path) -> RankingResult:
    return rank_test_images(*embed_test_images(model, read_table(root)))


@pytest.mark.parametrize(
    ("backbone", "rate"),
    [
        ("timm/mobilenetv2_100", 0.002),
        ("{class_path: timm/vit_tiny_patch16_224, init_args: {patch_size: 8, depth: 6}}", 0.001),
    ],
    ids=["MobileNetV2", "ViT"],
)
def test_it_beats_the_colour_histogram(people: Path, backbone: str, rate: float, tmp_path: Path) -> None:
    words = ["train", "--config", "demo", "--data.root", str(people), "--out", str(tmp_path / "run")]
    words += ["--model.backbone", backbone, "--model.attention", "null"]
    words += ["--model.optimizer.init_args.lr", str(rate), "--trainer.max_epochs", "20"]
    words += ["--model.size", "[64, 32]", "--model.resolution_schedule", "[]"]
    assert main(words) == 0
    trained, histogram = (
        rank(model, people) for model in (load_model(tmp_path / "run" / "last.ckpt"), ColourHistogram())
    )
    assert trained.mAP > histogram.mAP
    assert trained.rank(1) > histogram.rank(1)
