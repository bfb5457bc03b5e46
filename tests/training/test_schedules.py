"""Schedules against the learning rates of the released code, and against their formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rga_reid.errors import InputError
from rga_reid.training import OneCycle, WarmupStep

REFERENCE = json.loads((Path(__file__).parent.parent / "fixtures" / "training.json").read_text())


def test_warmup_step_is_the_released_schedule() -> None:
    published = REFERENCE["schedule_learning_rate_by_epoch"]
    assert len(published) == 600
    ours = [8e-4 * WarmupStep().factor(epoch, 600) for epoch in range(600)]
    assert ours == pytest.approx(published, rel=1e-6)


def test_warmup_step_is_constant_within_an_epoch() -> None:
    schedule = WarmupStep()
    assert schedule.factor(7.99, 600) == schedule.factor(7, 600)
    assert schedule.factor(8.0, 600) > schedule.factor(7.99, 600)


def test_one_cycle() -> None:
    schedule = OneCycle(rise=0.25, start=0.1, end=0.01)
    assert schedule.factor(0, 100) == pytest.approx(0.1)
    assert schedule.factor(12.5, 100) == pytest.approx(0.55)
    assert schedule.factor(25, 100) == pytest.approx(1.0)
    quarter = 0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2
    assert schedule.factor(25 + 75 / 4, 100) == pytest.approx(quarter)
    assert schedule.factor(100, 100) == pytest.approx(0.01)
    assert schedule.factor(101, 100) == pytest.approx(0.01)


def test_invalid_settings() -> None:
    with pytest.raises(InputError, match="milestones"):
        WarmupStep(milestones=(20, 10))
    with pytest.raises(InputError, match="rise"):
        OneCycle(rise=1.0)
