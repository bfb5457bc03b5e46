"""A gallery as an HTTP API and a page for operators, and the client of that API."""

from __future__ import annotations

from typing import Any

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":  # needs httpx, which the server does not
        from rga_reid.serving.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
