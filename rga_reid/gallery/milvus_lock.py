"""One writer at a time in a gallery on a Milvus server, which has neither locks nor transactions.

A writer puts a mark, a note with a negative number, beside the notes of the gallery, and then reads all marks: with
strong consistency, of two writers at least one sees the other. Who sees another's mark removes its own and tries
again. A writer changes its mark every few seconds; a mark that stays the same for long was left by a program that was
killed, and is removed.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

from rga_reid.errors import InputError, UnavailableError
from rga_reid.gallery.milvus_client import NOTES_TIMEOUT, MilvusServer

BEAT = 2.0  #: seconds between changes of a mark
LEASE = 25.0  #: seconds after which an unchanged mark is removed
#: Without an answer for so long, a writer stops: what it sent last is written, or refused, before its mark is removed.
MAX_SILENCE = LEASE - NOTES_TIMEOUT - BEAT
PAUSE = 0.5  #: seconds between looks at the marks of others, on average


class WriterLock:
    """A context manager that waits for other writers of a gallery, and keeps them waiting.

    Args:
        server: connection.
        name: name of the gallery, whose collection of notes exists.
        wait: seconds to wait for another writer.

    Raises:
        InputError: another writer is still there.
    """

    def __init__(self, server: MilvusServer, name: str, wait: float) -> None:
        self._server, self._name, self._wait = server, name, wait
        self._number = -1 - secrets.randbits(61)
        self._done = threading.Event()
        self._beats, self._answered, self._error = 0, 0.0, ""

    def __enter__(self) -> WriterLock:
        deadline = time.monotonic() + self._wait
        seen: dict[int, tuple[str, float]] = {}  # marks, and since when they are the same
        while True:
            others = self._others(seen)
            if not others:
                self._beat()
                others = self._others(seen)
                if not others:
                    break
                self._server.delete_notes(self._name, [self._number])
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self._server.location}: locked: {next(iter(others.values()))} is changing it; --wait "
                    "SECONDS waits longer"
                )
            time.sleep(random.uniform(0.5, 1.5) * PAUSE)
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        with suppress(InputError):  # it expires
            self._server.delete_notes(self._name, [self._number])

    def _others(self, seen: dict[int, tuple[str, float]]) -> dict[int, str]:
        """Return the writers of other marks by their numbers; remove marks that were left behind."""
        now = time.monotonic()
        marks = self._server.marks(self._name)
        marks.pop(self._number, None)
        for number, text in marks.items():
            if number not in seen or seen[number][0] != text:
                seen[number] = (text, now)
        left = [number for number in marks if now - seen[number][1] > LEASE]
        if left:
            self._server.delete_notes(self._name, left)
        return {number: _writer(text) for number, text in marks.items() if number not in left}

    def _beat(self) -> None:
        sent = time.monotonic()
        mark = {"host": socket.gethostname(), "process": os.getpid(), "beat": self._beats}
        self._server.write_notes(self._name, {self._number: json.dumps(mark)})
        self._beats, self._answered = self._beats + 1, sent

    def _keep(self) -> None:
        """Change the mark now and then, until the block ends or the server has not answered for too long."""
        while not self._done.wait(BEAT):
            if time.monotonic() - self._answered > MAX_SILENCE:
                return
            try:
                self._beat()
            except InputError as error:
                self._error = str(error)

    def require(self) -> None:
        """Refuse to go on where another program may be writing by now.

        Raises:
            InputError: the server has not answered for too long, or this program was suspended.
        """
        silence = time.monotonic() - self._answered
        if silence > MAX_SILENCE:
            why = self._error or "this program was suspended, or is too slow"
            raise InputError(
                f"{self._server.location}: stopped: no sign of life to other writers for {silence:.0f} s ({why})"
            )


def _writer(text: str) -> str:
    try:
        mark = json.loads(text)
        return f"process {mark['process']} on {mark['host']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another program"
