"""Measurements in separate processes, and latency and memory of models."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from rga_reid.experiments import benchmark
from rga_reid.experiments.benchmark import in_fresh_processes
from rga_reid.experiments.results import read_conditions
from rga_reid.models import build_model, save_model
from rga_reid.process import Stopped, handle_signals


def process_id(case: int) -> float:
    return float(os.getpid() * 10 + case)


def die(case: int) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def fail(case: int) -> float:
    raise ArithmeticError(f"case {case}")


def take_long(file: Path) -> float:
    time.sleep(20)
    file.touch()
    return 0.0


@pytest.mark.slow
def test_each_case_has_its_own_process() -> None:
    found = in_fresh_processes(process_id, [1, 2])
    assert [value % 10 for value in found] == [1, 2]
    assert len({value // 10 for value in found} | {os.getpid()}) == 3
    with pytest.raises(ArithmeticError, match="case 3"):
        in_fresh_processes(fail, [3])
    with pytest.raises(BrokenProcessPool):
        in_fresh_processes(die, [1])


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_process(signum: int, tmp_path: Path) -> None:
    def stop() -> None:
        until = time.monotonic() + 500
        while not multiprocessing.active_children():
            if time.monotonic() > until:
                return  # a signal would reach another test
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), signum)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped), handle_signals():
        in_fresh_processes(take_long, [tmp_path / "done"])
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "done").exists()


def save(file: Path, attention: str) -> Path:
    save_model(build_model(depth=18, attention=attention, stages=[4], size=(32, 32)), file)
    return file


def test_measurements_are_kept_for_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def pretend(function: object, cases: list[object]) -> list[object]:
        calls.append(function)
        return [[float(len(calls))] if isinstance(case, list) else 2.0 for case in cases]

    monkeypatch.setattr(benchmark, "in_fresh_processes", pretend)
    one, same = (save(tmp_path / f"{name}.safetensors", "se") for name in ("one", "same"))
    other = save(tmp_path / "other.safetensors", "pam")
    first = benchmark.measure({"a": one}, tmp_path)
    assert first == {"a": {"latency_ms": 1.0, "memory_mib": 2.0}}
    for checkpoint, count in ((one, 2), (same, 2), (other, 4)):
        measured = benchmark.measure({"a": checkpoint}, tmp_path)
        assert (measured == first) == (count == 2)
        assert len(calls) == count
    (tmp_path / benchmark.MEASUREMENTS).write_text("{}")
    benchmark.measure({"a": other}, tmp_path)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [(1, 1, "1 core, 1 thread"), (2, 1, "2 cores, 1 thread"), (4, 3, "4 cores, 3 threads")],
)
def test_cores_and_threads_are_those_of_the_process(
    cores: int, threads: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(benchmark, "in_fresh_processes", lambda function, cases: [[] for _ in cases])
    monkeypatch.setattr(benchmark, "choose_device", lambda: torch.device("cpu"))
    benchmark.measure({}, tmp_path)
    conditions = read_conditions(tmp_path)
    assert conditions is not None
    assert conditions.values["where"].endswith(f", {expected}")

    file = tmp_path / benchmark.MEASUREMENTS
    content = json.loads(file.read_text())
    del content["machine"]["threads"]  # as written by 2.0.0
    file.write_text(json.dumps(content))
    conditions = read_conditions(tmp_path)
    assert conditions is not None
    assert conditions.values["where"].endswith(expected.partition(",")[0])


def test_peak_memory_counts_what_is_freed_again() -> None:
    grown = benchmark.peak_memory(lambda: torch.ones(2**24), torch.device("cpu"))  # 64 MiB
    assert 60 < grown < 200
