"""The description of the API: bodies of requests in OpenAPI, and a page that shows it without the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rga_reid.serving import bodies
from rga_reid.serving.problems import MEDIA_TYPE, STATUSES

#: body of each operation, by method and path
BODIES: dict[tuple[str, str], type[bodies.Body]] = {
    ("POST", "/v1/search"): bodies.SearchBody,
    ("POST", "/v1/verify"): bodies.VerifyBody,
    ("POST", "/v1/embed"): bodies.ImagesBody,
    ("POST", "/v1/explain"): bodies.ExplainBody,
    ("POST", "/v1/images"): bodies.AddBody,
    ("POST", "/v1/images/find"): bodies.FindBody,
    ("PATCH", "/v1/images"): bodies.ChangeBody,
    ("DELETE", "/v1/images"): bodies.EraseBody,
}
_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "pictures"}


def add_bodies(app: FastAPI) -> None:
    """Describe what the operations of an application read by themselves, and their errors."""
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        errors = {str(status): {"$ref": "#/components/responses/Problem"} for status in STATUSES}
        extra: dict[str, Any] = {"responses": errors} if route.path.startswith("/v1") else {}
        body = BODIES.get((min(route.methods or {""}), route.path))
        if body is not None:
            extra["requestBody"] = {"required": body is not bodies.EraseBody, "content": _content(body)}
        route.openapi_extra = extra
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema.setdefault("components", {})["responses"] = {
            "Problem": {
                "description": "Problem details (RFC 9457)",
                "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
            }
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _content(body: type[bodies.Body]) -> dict[str, Any]:
    schema = body.model_json_schema()
    content = {"application/json": {"schema": schema}}
    if "images" in schema["properties"]:
        fields = {name: value for name, value in schema["properties"].items() if name != "images"}
        form = {**schema, "properties": {"image": _FILES, **fields}}
        content["multipart/form-data"] = {"schema": form}
    return content


def describe_page(schema: dict[str, Any]) -> str:
    """Return the description of the API as a page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation.get("summary", ""),
            "parameters": [
                _field(one["name"], one["schema"], one.get("description"))
                for one in operation.get("parameters", [])
            ],
            "bodies": [
                (kind, [_field(name, value) for name, value in content["schema"]["properties"].items()])
                for kind, content in operation.get("requestBody", {}).get("content", {}).items()
            ],
        }
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return environment.get_template("docs.html").render(
        title=schema["info"]["title"], version=schema["info"]["version"], operations=operations
    )


def _field(name: str, schema: dict[str, Any], description: str | None = None) -> dict[str, str]:
    choices = schema.get("anyOf", [schema])
    kinds = [one.get("type", "any") for one in choices]
    described = [one["description"] for one in (schema, *choices) if "description" in one]
    default = schema.get("default")
    return {
        "name": name,
        "type": " or ".join(kind for kind in kinds if kind != "null"),
        "description": description or next(iter(described), ""),
        "default": "" if default in (None, []) else str(default),
    }
