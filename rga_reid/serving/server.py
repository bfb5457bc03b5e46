"""Run the application: bind, print where it answers, stop gracefully."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from rga_reid.errors import InputError
from rga_reid.serving.middleware import JsonFormatter

GRACE = 30  #: seconds that requests have to end when the server is stopped


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: address or name.
        port: 0 for a free one.

    Raises:
        InputError: an unknown address, or a port that is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small answers at once only on sockets that are known to be TCP
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--host {host}, --port {port}: cannot listen there ({reason})") from None
    return listener


class _Server(uvicorn.Server):
    """Calls a function once requests are accepted."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._report_start = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and report it."""
        await super().startup(sockets=sockets)
        if self.started:
            self._report_start()


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted are answered, and changes are committed.

    Prints ``ready http://HOST:PORT`` on stdout once requests are answered. The log, lines of JSON, goes to stderr.

    Args:
        app: see ``create_app``.
        listener: see ``bind``.
    """
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host

    def report() -> None:
        print(f"ready http://{address}:{port}", flush=True)

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        lifespan="on",
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("rga_reid.serving", "uvicorn")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    server = _Server(config, report)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again after the graceful stop
        if not server.started:
            raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
