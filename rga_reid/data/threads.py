"""One function over many files in a few threads, with a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rga_reid.progress import tracked

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
            yield from results if len(items) < _MANY else tracked(results, what, len(items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for those that have begun
