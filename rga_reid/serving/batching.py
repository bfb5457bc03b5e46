"""Run a function on the items of several requests together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from rga_reid.serving.problems import Problem

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WAITING = 4096  #: rows that may wait; further requests are refused


def chain(first: Future[Item], then: Callable[[Item], Future[Result]]) -> Future[Result]:
    """Return a future of what follows another one, without a way through the thread that waits for it.

    Args:
        first: its errors are those of the result.
        then: called with its result, in the thread that has it.
    """
    last: Future[Result] = Future()

    def finish(done: Future[Result]) -> None:
        if not last.set_running_or_notify_cancel():  # the client has gone
            return
        error = done.exception()
        if error is None:
            last.set_result(done.result())
        else:
            last.set_exception(error)

    def go_on(done: Future[Item]) -> None:
        if last.cancelled():
            return
        try:
            then(done.result()).add_done_callback(finish)
        except Exception as error:
            if last.set_running_or_notify_cancel():
                last.set_exception(error)

    last.add_done_callback(lambda done: first.cancel() if done.cancelled() else None)
    first.add_done_callback(go_on)
    return last


class _Waiting(NamedTuple):
    key: Hashable
    item: Any
    size: int
    future: Future[Any]


class Batcher(Generic[Item, Result]):
    """Runs a function on items that arrive together, in threads of its own.

    Items that wait while the function runs are its next batch. Before a batch starts, it waits for items that were
    announced by ``expect``, but never long.

    Args:
        name: of its threads.
        run: returns the results of some items of one key, in their order.
        threads: batches that run at the same time.
        max_size: rows in a batch, unless one item has more.
        wait: seconds that a batch waits for items that are expected.
        observe: called with the number of rows of each batch.
        split_on: error after which the items of a batch are processed one by one, so that only the request that causes
            it gets it.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Any, Sequence[Item]], Sequence[Result]],
        *,
        threads: int = 1,
        max_size: int = 64,
        wait: float = 0.0,
        observe: Callable[[int], object] = lambda size: None,
        split_on: type[Exception] = Exception,
    ) -> None:
        self._split_on = split_on
        self._run, self._max_size, self._wait, self._observe = run, max_size, wait, observe
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._expected, self._closed = 0, False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item, size: int = 1, key: Hashable = None) -> Future[Result]:
        """Queue an item.

        Args:
            item: passed to the function.
            size: number of its rows.
            key: only items of one key are in one batch.

        Raises:
            Problem: too many rows are waiting, or the server is stopping.
        """
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                raise Problem(503, "the server is stopping")
            if self._waiting and self.rows_waiting + size > MAX_WAITING:
                raise Problem(503, "too many requests are waiting", {"Retry-After": "1"})
            self._waiting.append(_Waiting(key, item, size, future))
            self._changed.notify_all()
        return future

    @contextmanager
    def expect(self) -> Iterator[None]:
        """Announce an item that is submitted at the end of the block, or not at all."""
        with self._changed:
            self._expected += 1
        try:
            yield
        finally:
            with self._changed:
                self._expected -= 1
                self._changed.notify_all()

    @property
    def rows_waiting(self) -> int:
        """Number of rows that wait."""
        return sum(waiting.size for waiting in list(self._waiting))

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._observe(sum(waiting.size for waiting in batch))
            self._finish(batch)

    def _next_batch(self) -> list[_Waiting]:
        """Return items of one key; none when the batcher is closed."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                end = time.monotonic() + self._wait
                while (
                    self._expected
                    and 0 < self.rows_waiting < self._max_size
                    and (left := end - time.monotonic()) > 0
                ):
                    self._changed.wait(left)
                if batch := self._take():  # empty if another thread took all
                    return batch

    def _take(self) -> list[_Waiting]:
        batch, others, size = list[_Waiting](), deque[_Waiting](), 0
        for waiting in self._waiting:
            if batch and (waiting.key != batch[0].key or size + waiting.size > self._max_size):
                others.append(waiting)
            elif waiting.future.set_running_or_notify_cancel():  # false if the client has gone
                batch.append(waiting)
                size += waiting.size
        self._waiting = others
        return batch

    def _finish(self, batch: list[_Waiting]) -> None:
        try:
            results = self._run(batch[0].key, [waiting.item for waiting in batch])
        except Exception as error:
            for waiting in batch:
                if len(batch) > 1 and isinstance(error, self._split_on):
                    self._finish([waiting])
                else:
                    waiting.future.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)
