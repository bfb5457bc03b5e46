"""A network that trains in a fraction of a second, and a recipe for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rga_reid.models import EmbeddingModel

RECIPE: dict[str, Any] = {
    "model": {
        "weights": None,
        "size": [64, 32],
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        "schedule": {"class_path": "rga_reid.training.OneCycle"},
    },
    "data": {"identities_per_batch": 2, "images_per_identity": 2},  # 4 batches of the 8 identities
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}


class SmallBackbone(nn.Module):
    """Has a state (batch norm) and draws random numbers (dropout)."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.channels, self.checkpointing = size, 16, False
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 4, stride=4),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(16, 16, 3),
        )

    def set_input_size(self, size: tuple[int, int]) -> None:
        pass

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def build_small_model(*, classes: int, size: tuple[int, int], **_: Any) -> EmbeddingModel:
    return EmbeddingModel(SmallBackbone(size), classes, config={"size": list(size)})  # type: ignore[arg-type]
