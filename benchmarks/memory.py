"""Measure the memory of a run, without mapped files."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rga_reid.experiments.benchmark import read_status, release_memory

_INTERVAL = 0.002  # seconds between two measurements


def peak_anonymous(run: Callable[[], object]) -> float:
    """Return the peak growth of this process's anonymous memory during a run, in MiB (Linux, glibc).

    Pages of mapped files are not counted. The kernel does not record the peak of this figure, so it is sampled every
    two milliseconds, or as often as the interpreter lets another thread run.
    """
    release_memory()
    before = peak = read_status("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_INTERVAL):
            peak = max(peak, read_status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 1024
