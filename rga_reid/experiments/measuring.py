"""Times that are fair to each other, the memory of a run, and the machine."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from rga_reid.memory import return_freed_memory

Case = TypeVar("Case")
Result = TypeVar("Result")


def interleaved(runs: Sequence[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
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
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def give_back() -> None:
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
