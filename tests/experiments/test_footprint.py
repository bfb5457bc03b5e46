"""Latency and memory are measured once for a build of a model on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from rga_reid.experiments import benchmark as footprint
from rga_reid.models import build_model, save_model


def test_figures_of_another_build_are_not_kept(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []

    def counted(function: object, cases: list[object]) -> list[object]:
        measured.append(function)
        return [[1.0]] if function is footprint._latencies else [2.0]

    monkeypatch.setattr(footprint, "in_fresh_processes", counted)
    other, same = tmp_path / "other.safetensors", tmp_path / "same.safetensors"
    save_model(build_model(depth=18, attention="pam", size=(64, 32)), other)
    save_model(build_model(depth=18, attention="rga", size=(64, 32)), same)
    expected = {"a": {"latency_ms": 1.0, "memory_mib": 2.0}}
    for checkpoint, times in ((tiny_checkpoint, 2), (tiny_checkpoint, 2), (same, 2), (other, 4), (other, 4)):
        assert footprint.measure({"a": checkpoint}, tmp_path) == expected
        assert len(measured) == times
    (tmp_path / footprint.MEASURED).write_text("{}")
    assert footprint.measure({"a": other}, tmp_path) == expected
    assert len(measured) == 6
