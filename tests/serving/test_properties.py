"""Requests drawn from the description of the API: none of them may be an unexpected error."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import Served, draw

PICTURES = [draw(1), draw(2, kind="JPEG"), draw(3, kind="GIF")]
TEXTS = [
    "", "a", "ä", "\x00", "�", "𝕏", "'", '"', "null", "true", "-1", "1e400", "id", "pid", "camera", "track", "time",
    "../../etc/passwd", "pid = 1", "camera in (0, 1) and pid is not null", "time > now - 2h", "id >= 0", "((((",
    "zone like '%'",
    "2026-11-20T10:00:00Z", "9" * 30, "x" * 3000,
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 12, 255, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.5, 1.0, 1e308, 1e-320]


class Requests:
    """Draws requests from a description."""

    def __init__(self, description: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in description["paths"].items()
            for method, operation in methods.items()
        ]

    def draw(self) -> tuple[str, str, dict[str, Any]]:
        """Return method, address and content of a request."""
        method, path, operation = self._random.choice(self._operations)
        query: dict[str, Any] = {}
        for parameter in operation.get("parameters", []):
            value = self._value(parameter["schema"])
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", str(value).replace("/", "%2F")[:50] or "0")
            elif self._random.random() < 0.5:
                query[parameter["name"]] = (
                    value if isinstance(value, str | int | float) else json.dumps(value)
                )
        content: dict[str, Any] = {"params": query}
        bodies = operation.get("requestBody", {}).get("content", {})
        if bodies and self._random.random() < 0.95:
            kind = self._random.choice(list(bodies))
            fields = self._object(bodies[kind]["schema"])
            content |= self._form(fields) if kind.startswith("multipart") else self._json(fields)
        return method, path, content

    def _json(self, fields: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(fields)
        if self._random.random() < 0.05:
            text = text[: self._random.randrange(len(text))]
        return {"content": text.encode(), "headers": {"content-type": "application/json"}}

    def _form(self, fields: dict[str, Any]) -> dict[str, Any]:
        pictures = [self._picture() for _ in range(self._random.choice([0, 1, 1, 2]))]
        data = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
            if name != "image"
        }
        return {"files": [("image", (self._text(), one)) for one in pictures] or {"x": ""}, "data": data}

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        required = schema.get("required", [])
        fields = {
            name: self._value(inner, name)
            for name, inner in schema["properties"].items()
            if name in required or self._random.random() < 0.3
        }
        if self._random.random() < 0.05:
            fields[self._text()] = self._text()
        return fields

    def _value(self, schema: dict[str, Any], name: str = "") -> Any:
        if self._random.random() < 0.05:  # of another type
            return self._random.choice([None, True, [], {}, [[]], self._text(), self._random.choice(NUMBERS)])
        if name == "features":
            length = self._random.choice([self.dimension] * 9 + [1])
            return [
                [self._random.gauss(0, 1) for _ in range(length)]
                for _ in range(self._random.choice([0, 1, 2]))
            ]
        if name == "images":
            return [base64.b64encode(self._picture()).decode() for _ in range(self._random.choice([0, 1, 2]))]
        if name == "rows":
            return [self._row() for _ in range(self._random.choice([0, 1, 1, 2]))]
        schema = self._random.choice(schema.get("anyOf", [schema]))
        kind = schema.get("type")
        if kind == "array":
            return [self._value(schema.get("items", {})) for _ in range(self._random.choice([0, 1, 1, 2, 3]))]
        if kind == "integer":
            return self._random.choice([*range(20), *NUMBERS[:12]])
        if kind == "number":
            return self._random.choice(NUMBERS)
        if kind == "boolean":
            return self._random.random() < 0.5
        return None if kind == "null" else self._text()

    def _row(self) -> dict[str, Any]:
        names = ["path", "pid", "camera", "camid", "time", "track", "zone", self._text()]
        values = [None, True, *NUMBERS, *TEXTS]
        return {
            self._random.choice(names): self._random.choice(values) for _ in range(self._random.randrange(5))
        }

    def _text(self) -> str:
        return self._random.choice(TEXTS)

    def _picture(self) -> bytes:
        picture = self._random.choice(PICTURES)
        if self._random.random() < 0.2:
            place = self._random.randrange(len(picture))
            return picture[:place] + bytes([self._random.randrange(256)]) + picture[place + 1 :]
        return picture[: self._random.randrange(len(picture))] if self._random.random() < 0.1 else picture

    dimension = 1


def send_requests(served: Served, count: int, seed: int) -> None:
    """Send requests; check that answers are successful, or problems that the description lists."""
    description = served.http.get("/openapi.json").json()
    requests = Requests(description, seed)
    requests.dimension = served.engine.gallery.dimension
    statuses = set()
    for number in range(count):
        method, path, content = requests.draw()
        answer = served.http.request(method, path, **content)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (number, method, path, content, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json", (method, path)
            assert answer.json()["status"] == answer.status_code
    assert {200, 422} <= statuses
    answer = served.http.get("/v1/images", params={"limit": 1000})
    assert answer.status_code == 200
    assert served.http.get("/v1/gallery").status_code == 200


def test_no_request_is_an_unexpected_error(serve: Callable[..., Served], people: Path) -> None:
    send_requests(serve(images_root=people.parent), 40, seed=0)


@pytest.mark.slow
def test_no_request_of_many_is_an_unexpected_error(serve: Callable[..., Served], people: Path) -> None:
    send_requests(serve(images_root=people.parent), 2000, seed=1)
