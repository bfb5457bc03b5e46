"""Apply limits and security headers to every request, and record metrics and a log line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rga_reid.serving.metrics import Metrics
from rga_reid.serving.problems import Problem, problem_response

log = logging.getLogger("rga_reid.serving")

#: nothing is loaded from elsewhere, and no script or style is written inside a page
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_METHODS = _SAFE | {"POST", "PATCH", "DELETE", "PUT"}


class Guard:
    """Checks size and origin of requests, adds headers, counts and logs.

    Args:
        app: application.
        max_bytes: largest body of a request.
        local_only: answer only under the names of this machine. Without tokens a page of another site could
            otherwise reach the server through a name that it lets point here.
        origins: origins of other sites whose pages may send requests.
        metrics: counts requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        local_only: bool,
        origins: Sequence[str],
        metrics: Metrics,
    ) -> None:
        self._app, self._max_bytes, self._local_only = app, max_bytes, local_only
        self._origins, self._metrics = set(origins), metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started, status, received = Headers(scope=scope), time.monotonic(), 500, 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added.setdefault(name, value)
            await send(message)

        try:
            problem = self._refuse(scope, headers)
            if problem is None:
                await self._app(scope, limited, answer)
            else:
                await problem_response(problem)(scope, receive, answer)
        finally:
            self._record(scope, status, time.monotonic() - started)

    def _refuse(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self._local_only and _host_name(host) not in _LOCAL:
            return Problem(403, "this server has no tokens and answers only to localhost")
        origin = headers.get("origin")
        changes = scope["method"] not in _SAFE
        if changes and origin not in (None, *self._origins) and urlsplit(origin or "").netloc != host:
            return Problem(403, "requests from pages of other sites are refused")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return Problem(400, "Content-Length: expected a whole number")
        return self._too_large() if int(length[:19]) > self._max_bytes else None

    def _too_large(self) -> Problem:
        limit = f"{self._max_bytes / 2**20:g} MiB"
        return Problem(413, f"the request is larger than {limit}", {"Connection": "close"})

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.observe_request(method, route, status, seconds)
        caller = scope.get("state", {}).get("caller")
        line = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 1)}
        log.info("request", extra={"fields": line | ({} if caller is None else {"token": caller.name})})


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class JsonFormatter(logging.Formatter):
    """Formats log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line of JSON."""
        time_ = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time_, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)
