"""Answers of the API: their form, for its description, and how they are written."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import Response


class Match(BaseModel):
    """An image that was found, with all columns of the gallery; unknown values are null."""

    model_config = ConfigDict(extra="allow")

    rank: int
    score: float
    id: int
    path: str
    pid: int | str | None
    camera: int | str | None
    time: str | None
    track: int | str | None


class Group(BaseModel):
    """Matches that have one value in a column."""

    model_config = ConfigDict(extra="allow")


class QueryAnswer(BaseModel):
    """Matches of a query, best first."""

    matches: list[Match]
    groups: list[Group]


class SearchAnswer(BaseModel):
    """Answer to a search."""

    queries: list[QueryAnswer]


class VerifyAnswer(BaseModel):
    """Similarity of two pictures; ``same`` is null without a threshold."""

    score: float
    threshold: float | None
    same: bool | None


class EmbedAnswer(BaseModel):
    """Unit vectors."""

    features: list[list[float]]


class AddAnswer(BaseModel):
    """Ids of the images, in the order of the request."""

    ids: list[int]


class ChangeAnswer(BaseModel):
    """Number of images whose pid has changed, or whose columns were written."""

    changed: int


class EraseAnswer(BaseModel):
    """Number of images that were erased."""

    deleted: int


class ImageAnswer(BaseModel):
    """An image of the gallery, with all columns."""

    model_config = ConfigDict(extra="allow")

    id: int
    path: str
    pid: int | str | None
    camera: int | str | None
    time: str | None
    track: int | str | None


class ImagesAnswer(BaseModel):
    """Images by increasing id; ``next`` is the ``after`` of the next page, null on the last one."""

    count: int
    images: list[ImageAnswer]
    next: int | None


class FindAnswer(ImagesAnswer):
    """The same, with unit vectors if they were asked for."""

    features: list[list[float]] | None = None


class MapAnswer(BaseModel):
    """A picture and a map over it, as data URIs."""

    name: str
    photo: str
    map: str
    notes: list[str]


class ExplainAnswer(BaseModel):
    """Maps of both pictures, and how to read them."""

    score: float
    title: str
    reading: str
    maps: list[MapAnswer]


class MaintenanceAnswer(BaseModel):
    """Number of images in the gallery."""

    count: int


class CheckAnswer(BaseModel):
    """Number of files, or rows of a gallery in Milvus, that were checked."""

    checked: int


class RemovalAnswer(BaseModel):
    """A line of the deletion log; ``label`` is the new pid of images that were not removed, empty for none."""

    time: str
    pid: int | str | None
    count: int
    label: int | str | None


class RemovalsAnswer(BaseModel):
    """The deletion log, oldest line first."""

    removals: list[RemovalAnswer]


class GalleryAnswer(BaseModel):
    """Description of the gallery, as of ``rga-reid gallery info --json``, and of the server."""

    model_config = ConfigDict(extra="allow")

    count: int
    columns: dict[str, str]
    model: dict[str, Any] | None


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer as JSON. Numbers that JSON does not have, in a table of a user, are null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        content = text.encode()
    except ValueError:  # a number that is not finite, or half of a character
        content = json.dumps(_finite(value), separators=(",", ":")).encode()
    return Response(content, status, media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
