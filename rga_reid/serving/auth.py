"""Tokens of clients, with their roles and a limit on the rate of their requests."""

from __future__ import annotations

import hmac
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from rga_reid.errors import InputError
from rga_reid.inputs import read_file
from rga_reid.serving.problems import Problem

ROLES = ("read", "write", "erase")
VARIABLE = "RGA_REID_TOKENS"  #: environment variable with the lines of a token file
_NAME = re.compile(r"[\w.@-]{1,100}")


@dataclass(frozen=True)
class Caller:
    """Whoever sends a request: the name that logs show, and what is allowed."""

    name: str
    roles: frozenset[str]

    def require(self, role: str) -> None:
        """Refuse a request that needs a role which the caller does not have."""
        if role not in self.roles:
            raise Problem(403, f"token {self.name}: does not have the role {role}")


ANYBODY = Caller("local", frozenset(ROLES))  #: on a server without tokens


class Tokens:
    """The tokens that a server accepts.

    Args:
        lines: of a token file: ``NAME ROLES TOKEN``, where roles are separated by commas, or only ``TOKEN``, which
            has all roles. Empty lines and lines that begin with ``#`` are skipped.
        source: what error messages call them.

    Raises:
        InputError: a line of another form, an unknown role, a token or name that occurs twice, or no token.
    """

    def __init__(self, lines: Sequence[str], source: str = VARIABLE) -> None:
        self._callers: list[tuple[bytes, Caller]] = []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) == 1:
                words = [f"token-{number}", ",".join(ROLES), *words]
            if len(words) != 3 or not _NAME.fullmatch(words[0]):
                raise InputError(f"{source}, line {number}: expected NAME ROLES TOKEN, or TOKEN")
            name, roles, token = words
            unknown = sorted(set(roles.split(",")) - set(ROLES))
            if unknown:
                raise InputError(
                    f"{source}, line {number}: expected roles among {','.join(ROLES)}, found {unknown[0]!r}"
                )
            digest = _digest(token)
            if any(name == other.name or digest == known for known, other in self._callers):
                raise InputError(f"{source}, line {number}: the name or the token occurs twice")
            self._callers.append((digest, Caller(name, frozenset(roles.split(",")))))
        if not self._callers:
            raise InputError(f"{source}: expected a token, found none")

    @classmethod
    def read(cls, path: str | None) -> Tokens | None:
        """Read the tokens in a file, or in the environment variable ``RGA_REID_TOKENS``; None without either.

        Raises:
            InputError: see ``Tokens``; the file cannot be read.
        """
        if path is None:
            text = os.environ.get(VARIABLE)
            return None if text is None else cls(text.splitlines())
        try:
            text = read_file(path, 1 << 20).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{path}: expected a text file in UTF-8") from None
        return cls(text.splitlines(), path)

    def authenticate(self, header: str | None) -> Caller:
        """Return who sends a request with this ``Authorization`` header.

        Every known token is compared, in constant time.

        Raises:
            Problem: no token, or an unknown one.
        """
        scheme, _, token = (header or "").partition(" ")
        digest, found = _digest(token.strip()), None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if scheme.lower() != "bearer" or found is None:
            reason = "unknown token" if header else "expected the header Authorization: Bearer TOKEN"
            raise Problem(401, reason, {"WWW-Authenticate": "Bearer"})
        return found


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


class RateLimit:
    """At most ``rate`` requests per second of each caller, on average; twice as many at once.

    Args:
        rate: requests per second; 0 for no limit.
        clock: returns seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock, self._lock = rate, clock, threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # requests left, and when that was

    def check(self, caller: Caller) -> None:
        """Count a request.

        Raises:
            Problem: there were too many; the answer says after how many seconds the next is accepted.
        """
        if not self._rate:
            return
        with self._lock:
            now, most = self._clock(), max(1.0, 2 * self._rate)
            left, then = self._left.get(caller.name, (most, now))
            left = min(most, left + (now - then) * self._rate)
            self._left[caller.name] = (left - (left >= 1), now)
        if left < 1:
            wait = str(int((1 - left) / self._rate) + 1)
            raise Problem(
                429,
                f"token {caller.name}: more than {self._rate:g} requests per second",
                {"Retry-After": wait},
            )
