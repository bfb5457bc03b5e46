"""Errors of the API as problem details (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from rga_reid.data.images import ImageError
from rga_reid.errors import InputError, UnavailableError

MEDIA_TYPE = "application/problem+json"
#: statuses that the description of every operation lists
STATUSES = (400, 401, 403, 404, 413, 415, 422, 429, 503)
_IMAGE_STATUSES = {"too large": 413, "unreadable": 415}


class Problem(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        detail: what was expected and found, in one line.
        headers: additional headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


def problem_of(error: InputError) -> Problem:
    """Return the problem for bad input, or for a disk or store that does not work."""
    if isinstance(error, ImageError):
        return Problem(_IMAGE_STATUSES.get(error.fault, 422), str(error))
    if isinstance(error, UnavailableError):
        return Problem(503, str(error), {"Retry-After": "5"})
    return Problem(422, str(error))


def problem_response(problem: Problem) -> Response:
    """Return the answer to a refused request."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    content = json.dumps(body, ensure_ascii=True)
    return Response(content, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)
