"""Learning-rate schedules: factors on the rate of the optimizer as functions of the epoch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from rga_reid.errors import InputError


class Schedule(ABC):
    """Learning-rate schedule without state, so that resuming needs none."""

    @abstractmethod
    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor on the learning rate.

        Args:
            epoch: epochs passed: 2.5 is the middle of the third epoch.
            epochs: length of the run in epochs; a fraction if the run is limited by ``max_steps``.
        """


@dataclass(frozen=True)
class WarmupStep(Schedule):
    """Linear warm-up, then steps at milestones, constant within an epoch (as in the released RGA code).

    Args:
        warmup_epochs: epochs from the factor ``start`` to 1.
        start: factor in epoch 0.
        milestones: epochs at which the rate is multiplied by ``gamma``, in increasing order.
        gamma: factor at each milestone.

    Raises:
        InputError: milestones are not in order.
    """

    warmup_epochs: int = 20
    start: float = 0.01
    milestones: tuple[int, ...] = (80, 120, 160, 200, 240, 280, 320, 360)
    gamma: float = 0.5

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise InputError(f"milestones: expected epochs in increasing order, got {list(self.milestones)}")

    def factor(self, epoch: float, epochs: float) -> float:
        whole = math.floor(epoch)
        if whole < self.warmup_epochs:
            return self.start + (1 - self.start) * whole / self.warmup_epochs
        return self.gamma ** sum(whole >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Cosine rise, then cosine fall, changed at every step (Smith and Topin, arXiv 1708.07120).

    Args:
        rise: fraction of the run in which the rate rises.
        start: factor at the first step.
        end: factor after the last step.

    Raises:
        InputError: ``rise`` is not between 0 and 1.
    """

    rise: float = 0.15
    start: float = 0.04
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.rise < 1:
            raise InputError(f"rise: expected a fraction between 0 and 1, got {self.rise}")

    def factor(self, epoch: float, epochs: float) -> float:
        passed = min(epoch / epochs, 1.0)
        if passed < self.rise:
            return _cosine(self.start, 1.0, passed / self.rise)
        return _cosine(1.0, self.end, (passed - self.rise) / (1 - self.rise))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
