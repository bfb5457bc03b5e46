"""One function over many files in a few threads, with a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MANY = 1000  # files from which the work takes long enough for a progress bar


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, what: str
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``; the first error, or Ctrl-C, drops the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            results = pool.map(function, items)
            if len(items) < _MANY or not sys.stderr.isatty():
                yield from results
                return
            from rich.console import Console
            from rich.progress import track

            yield from track(results, what, len(items), transient=True, console=Console(stderr=True))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for those that have begun
