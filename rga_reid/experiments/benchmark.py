"""Times that are fair to each other, the memory of a run, and the machine."""

from __future__ import annotations

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
from rga_reid.runtime import return_freed_memory

Case = TypeVar("Case")
Result = TypeVar("Result")


def run_interleaved(runs: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
    """Median seconds of each run, see ``turns``."""
    return [statistics.median(measured) for measured in turns(runs, repeats, warm_up)]


def turns(runs: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[list[float]]:
    """Seconds of each run; they take turns, so that a slow spell of the machine meets all of them.

    Args:
        runs: what is timed.
        repeats: turns of each.
        warm_up: take one turn more, the first, that does not count.
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
    """``function(case)``, each in a process of its own, one after the other."""
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    for case in cases:  # an executor, unlike a pool, tells when the system has killed its process
        before = multiprocessing.active_children()
        with ProcessPoolExecutor(1, mp_context=context, initializer=_ignore_interrupts) as executor:
            try:
                results.append(executor.submit(function, case).result())
            except BaseException:  # nobody waits for it any more: Ctrl-C, for one
                for process in set(multiprocessing.active_children()).difference(before):
                    process.terminate()
                raise
    return results


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that waits, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def peak_resident(run: Callable[[], object]) -> float:
    """Growth of this process's peak resident set during a run, in MiB (Linux, glibc)."""
    return_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def return_memory() -> None:
    """Return to the system what earlier runs have freed."""
    gc.collect()
    return_freed_memory()


def status(field: str) -> int:
    """A figure of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status: no {field}")


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


MEASURED = "measured.json"
_TURNS = 31  # of each model; the median counts
_BATCH = 32  # images, for the memory


def measure(checkpoints: Mapping[str, Path], out: Path) -> dict[str, dict[str, float]]:
    """Latency and memory of each model, on the device that ``test`` would use.

    The models take turns in one process, so that a slow spell of the machine meets all of them; memory is
    measured in a process for each. What was measured before is kept if it was on this device, and of models
    of the same build.

    Args:
        checkpoints: by the name of the variant.
        out: folder of the file that keeps the figures.

    Returns:
        By the name: ``latency_ms``, median of a forward pass of one image in milliseconds, and
        ``memory_mib``, growth of the memory at its peak while 32 images pass.
    """
    file = out / MEASURED
    device = choose_device()
    named = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    conditions = {"latency_images": 1, "memory_images": _BATCH, "turns": _TURNS, **named}
    builds = {name: load_model(path).config for name, path in checkpoints.items()}
    if file.is_file():
        kept = read_json(file)
        if json.dumps([kept.get("builds"), kept.get("conditions")]) == json.dumps([builds, conditions]):
            return kept["models"]
    names, paths = list(checkpoints), [str(path) for path in checkpoints.values()]
    (latencies,) = in_fresh_processes(_latencies, [paths])
    memory = in_fresh_processes(_memory, paths)
    models = {
        name: {"latency_ms": round(latency, 3), "memory_mib": round(mebibytes, 1)}
        for name, latency, mebibytes in zip(names, latencies, memory, strict=True)
    }
    write_json(file, {"models": models, "builds": builds, "conditions": conditions, "machine": machine()})
    return models


def _latencies(paths: list[str]) -> list[float]:
    device = choose_device()
    models = [load_model(path, device) for path in paths]
    with torch.inference_mode():
        seconds = run_interleaved([partial(_forward, model, _images(model, 1)) for model in models], _TURNS)
    return [1e3 * one for one in seconds]


def _memory(path: str) -> float:
    device = choose_device()
    model = load_model(path, device)
    with torch.inference_mode():
        _forward(model, _images(model, 2))  # libraries set themselves up
        run = partial(_forward, model, _images(model, _BATCH))
        if device.type != "cuda":
            return peak_resident(run)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def _images(model: EmbeddingModel, count: int) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *model.size, generator=generator).to(device)


def _forward(model: EmbeddingModel, images: Tensor) -> None:
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
