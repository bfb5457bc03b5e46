"""Memory of a run without that of files which it maps."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rga_reid.experiments.benchmark import return_memory, status

_SAMPLED = 0.002  # seconds between two looks at the memory


def peak_anonymous(run: Callable[[], object]) -> float:
    """Growth of this process's anonymous memory during a run at its peak, in MiB (Linux, glibc).

    Pages of mapped files are not counted. The kernel keeps no peak of this figure: it is sampled, every two
    milliseconds or as often as the interpreter lets another thread run.
    """
    return_memory()
    before = peak = status("RssAnon")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLED):
            peak = max(peak, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 1024
