"""Measure time and memory of models, and describe the machine."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rga_reid.devices import choose_device
from rga_reid.files import write_json
from rga_reid.inputs import read_json
from rga_reid.models import EmbeddingModel, load_model
from rga_reid.runtime import import_modules, return_freed_memory

Case = TypeVar("Case")
Result = TypeVar("Result")


def run_interleaved(runs: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
    """Return the median seconds of each function, see ``time_interleaved``."""
    return [statistics.median(seconds) for seconds in time_interleaved(runs, repeats, warm_up)]


def time_interleaved(
    runs: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True
) -> list[list[float]]:
    """Return the seconds of each call. Functions take turns, so that other load affects all of them.

    Args:
        runs: functions to time.
        repeats: calls of each.
        warm_up: call each function once before.
    """
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(-int(warm_up), repeats):
        for run, measured in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 0:
                measured.append(time.perf_counter() - start)
    return times


def in_fresh_processes(function: Callable[[Case], Result], cases: Sequence[Case]) -> list[Result]:
    """Return ``function(case)`` for each case, each in a new process, one after another."""
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    for case in cases:  # an executor, unlike a pool, raises if the process is killed
        before = multiprocessing.active_children()
        with ProcessPoolExecutor(1, mp_context=context, initializer=_ignore_interrupts) as executor:
            try:
                results.append(executor.submit(function, case).result())
            except BaseException:  # such as Ctrl-C
                for process in set(multiprocessing.active_children()).difference(before):
                    process.terminate()
                raise
    return results


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the waiting process, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """Return the peak growth of memory during a call, in MiB: allocated on a GPU, or resident on a CPU."""
    if device.type != "cuda":
        return peak_resident(run)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def peak_resident(run: Callable[[], object]) -> float:
    """Return the growth of the peak resident set during a call, in MiB (Linux, glibc)."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = read_status("VmRSS")
    run()
    return (read_status("VmHWM") - before) / 1024


def release_memory() -> None:
    """Return freed memory to the system."""
    gc.collect()
    return_freed_memory()


def read_status(field: str) -> int:
    """Return a field of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: no {field}")


def describe_machine() -> dict[str, Any]:
    """Return processor, the cores that this process may use, the threads of torch, and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def describe_options(options: argparse.Namespace, *left_out: str) -> dict[str, Any]:
    """Return the options of a benchmark, without ``out``, ``folder`` and those to leave out, such as paths."""
    return {key: value for key, value in vars(options).items() if key not in ("out", "folder", *left_out)}


MEASUREMENTS = "measured.json"
_TURNS = 31  # calls of each model, for the latency
_BATCH = 32  # images, for the memory


def measure(
    checkpoints: Mapping[str, Path], out: Path, imports: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Measure latency and memory of each model, on the device that ``test`` would use.

    Latencies are measured in one process, interleaved; memory in one process per model. Earlier results in
    ``out`` are returned if the device and the configurations of the models are the same.

    Args:
        checkpoints: checkpoint of each variant.
        out: folder of the file with the results.
        imports: modules of the user that the processes import first, see ``import_modules``.

    Returns:
        For each variant ``latency_ms``, the median of a forward pass of one image in milliseconds, and
        ``memory_mib``, the peak growth of memory for a batch of 32 images.
    """
    file = out / MEASUREMENTS
    device = choose_device()
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    conditions = {"latency_images": 1, "memory_images": _BATCH, "turns": _TURNS, "device": device_name}
    builds = {name: load_model(path).config for name, path in checkpoints.items()}
    if file.is_file():
        earlier = read_json(file)
        if json.dumps([earlier.get("builds"), earlier.get("conditions")]) == json.dumps([builds, conditions]):
            return earlier["models"]
    paths = [str(path) for path in checkpoints.values()]
    (latencies,) = in_fresh_processes(partial(_measure_latencies, imports=imports), [paths])
    memory = in_fresh_processes(partial(_measure_memory, imports=imports), paths)
    models = {
        name: {"latency_ms": round(latency, 3), "memory_mib": round(mebibytes, 1)}
        for name, latency, mebibytes in zip(checkpoints, latencies, memory, strict=True)
    }
    write_json(
        file, {"models": models, "builds": builds, "conditions": conditions, "machine": describe_machine()}
    )
    return models


def _measure_latencies(paths: list[str], imports: Sequence[str]) -> list[float]:
    import_modules(imports)
    device = choose_device()
    models = [load_model(path, device) for path in paths]
    with torch.inference_mode():
        seconds = run_interleaved(
            [partial(_forward, model, _random_images(model, 1)) for model in models], _TURNS
        )
    return [1e3 * one for one in seconds]


def _measure_memory(path: str, imports: Sequence[str]) -> float:
    import_modules(imports)
    device = choose_device()
    model = load_model(path, device)
    with torch.inference_mode():
        _forward(model, _random_images(model, 2))  # loads libraries
        return peak_memory(partial(_forward, model, _random_images(model, _BATCH)), device)


def _random_images(model: EmbeddingModel, count: int) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *model.size, generator=generator).to(device)


def _forward(model: EmbeddingModel, images: Tensor) -> None:
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
