"""The exponential moving average of the weights (EMA): what is validated and saved for testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rga_reid.checks import whole_number
from rga_reid.errors import InputError

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class EMA(WeightAveraging):
    """w̄ ← decay · w̄ + (1 − decay) · w after every so many steps, of weights and buffers; counters are copied.

    Lightning's ``EMAWeightAveraging`` averages one tensor after the other and makes new ones on the way; here
    torch's own function goes over all of them in place, for a quarter of the time.

    Args:
        decay: 0 to 1; an average every n steps with decay dⁿ forgets as fast as one every step with d.
        update_every_n_steps: n, for an nth of the time.

    Raises:
        InputError: a decay outside 0 to 1, a number of steps below 1.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay <= 1:
            raise InputError(f"EMA decay: expected 0 to 1, got {decay}")
        super().__init__(multi_avg_fn=_average(decay))
        self.update_every_n_steps = whole_number("EMA update_every_n_steps", update_every_n_steps)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the step that was taken is one of every so many."""
        return step_idx is not None and step_idx % self.update_every_n_steps == 0


def _average(decay: float) -> Callable[[Tensors, Tensors, Any], None]:
    of_numbers = get_ema_multi_avg_fn(decay)

    def update(averages: Tensors, values: Tensors, updates: Any) -> None:
        if averages[0].is_floating_point():
            of_numbers(averages, values, updates)
        else:  # an average of counters would be cut off at each update, and never count
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return update


__all__ = ["EMA"]
