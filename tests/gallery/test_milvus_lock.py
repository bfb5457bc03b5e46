"""Writers of one Milvus gallery, on a server made of a dictionary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rga_reid.errors import InputError
from rga_reid.gallery import milvus_lock
from rga_reid.gallery.milvus_lock import WriterLock


class Notes:
    """Notes of a gallery; each call is complete before the next one begins, as on a server."""

    location = "milvus://host:1/people"

    def __init__(self) -> None:
        self.texts: dict[int, str] = {0: "the gallery"}
        self.answers = True
        self._lock = threading.Lock()

    def _check(self) -> None:
        if not self.answers:
            raise InputError("does not answer")

    def write_notes(self, name: str, texts: dict[int, str]) -> None:
        with self._lock:
            self._check()
            self.texts |= texts

    def delete_notes(self, name: str, numbers: list[int]) -> None:
        with self._lock:
            self._check()
            for number in numbers:
                self.texts.pop(number, None)

    def marks(self, name: str) -> dict[int, str]:
        with self._lock:
            self._check()
            return {number: text for number, text in self.texts.items() if number < 0}


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WriterLock]:
    """Makes locks that are quick to expire."""
    monkeypatch.setattr(milvus_lock, "BEAT", 0.02)
    monkeypatch.setattr(milvus_lock, "LEASE", 1.0)
    monkeypatch.setattr(milvus_lock, "MAX_SILENCE", 0.7)
    monkeypatch.setattr(milvus_lock, "PAUSE", 0.01)

    def make(server: Any, wait: float = 60.0) -> WriterLock:
        return WriterLock(server, "people", wait)

    return make


def test_one_writer_at_a_time(lock: Callable[..., WriterLock]) -> None:
    """Each adds to a number that it has read before."""
    server, total = Notes(), [0]

    def add() -> None:
        for _ in range(10):
            with lock(server) as own:
                own.require()
                read = total[0]
                time.sleep(0.002)
                total[0] = read + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [40]
    assert server.texts == {0: "the gallery"}


def test_a_second_writer_is_refused_while_the_first_one_is_there(lock: Callable[..., WriterLock]) -> None:
    server = Notes()
    with lock(server) as first:
        for wait in (0.0, 1.5):  # longer than marks need to expire
            with pytest.raises(InputError, match="locked"), lock(server, wait):
                pass
        first.require()
        assert len(server.marks("people")) == 1


def test_the_mark_of_a_killed_writer_expires(lock: Callable[..., WriterLock]) -> None:
    server = Notes()
    server.texts[-7] = '{"host": "gone", "process": 1, "beat": 3}'
    server.texts[-8] = "no JSON"
    with pytest.raises(InputError, match="locked"), lock(server, 0.1):
        pass
    with lock(server):
        assert len(server.marks("people")) == 1
    assert server.texts == {0: "the gallery"}


def test_a_writer_without_a_sign_of_life_stops(lock: Callable[..., WriterLock]) -> None:
    server = Notes()
    with lock(server) as own:
        own.require()
        server.answers = False
        time.sleep(1.0)
        server.answers = True  # too late: another program may have removed the mark
        with pytest.raises(InputError, match="stopped"):
            own.require()
        time.sleep(0.1)
        with pytest.raises(InputError, match="stopped"):
            own.require()
