"""One function over many files in a few threads, with a progress bar on a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rga_reid.progress import tracked

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 32  # items that wait for each thread
_MANY = 1000  # files from which the work takes long enough for a progress bar


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, what: str
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of ``items``; the first error, or Ctrl-C, drops the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            results = _in_order(pool, function, items, _AHEAD * threads)
            yield from results if len(items) < _MANY else tracked(results, what, len(items))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the block waits for those that have begun


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """As ``pool.map``, which would take up all items at once."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
